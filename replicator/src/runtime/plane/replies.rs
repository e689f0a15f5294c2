//! Answers to clients' requests, from the core or on the spot.

use super::super::client::{Client, ClientOp, LINGER_MS};
use super::super::pool::PoolBuf;
use super::super::socket::append;
use super::clients::read_bytes;
use super::{Pending, Plane};
use crate::core::api::{ClientError, Payload as _, RequestId};

impl Plane {
    /// The core's answer to a request.
    pub(super) fn reply(&mut self, id: RequestId, result: Result<Option<PoolBuf>, ClientError>) {
        if let Some(Pending { client, op, .. }) = self.take_request(id) {
            self.answer(client, &op, result);
        }
    }

    /// A request that the core has answered, if whoever made it is still there.
    pub(super) fn take_request(&mut self, id: RequestId) -> Option<Pending> {
        let key = usize::try_from(id.0).ok();
        let Some(request) = key.and_then(|key| self.requests.try_remove(key)) else {
            debug_assert!(false, "an answer to a request that is not in flight");
            return None;
        };
        self.read_bytes -= read_bytes(&request.op);
        let client = self.clients.get(request.client)?;
        (client.serial == request.serial).then_some(request)
    }

    pub(super) fn answer(
        &mut self,
        index: usize,
        op: &ClientOp,
        result: Result<Option<PoolBuf>, ClientError>,
    ) {
        let client = &mut self.clients[index];
        client.end(op);
        if client.dead {
            return;
        }
        match result {
            Ok(Some(data)) => client.reply_data(op, data),
            other => {
                let outcome = other.map(|_| ());
                let headers = client.outbox.batch.headers();
                client.protocol.reply(op, outcome, headers);
            }
        }
        self.answered(index);
    }

    /// Something was said to the client.
    pub(super) fn answered(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if (client.closing || client.hanging_up) && client.in_flight == 0 {
            client.deadline = Some(self.now.plus_ms(LINGER_MS));
        }
        self.mark_client(index);
    }
}

impl Client {
    fn reply_data(&mut self, op: &ClientOp, data: PoolBuf) {
        let mut from = 0;
        let send = loop {
            let headers = self.outbox.batch.headers();
            let piece = self.protocol.reply_data(op, data.bytes(), from, headers);
            let Some(next) = piece.next else {
                break piece.send;
            };
            let part = data.slice(piece.send.start, piece.send.len());
            append(&mut self.outbox.batch, part);
            from = next;
        };
        let last = if send.len() == data.len() {
            data
        } else {
            data.slice(send.start, send.len())
        };
        append(&mut self.outbox.batch, last);
    }
}
