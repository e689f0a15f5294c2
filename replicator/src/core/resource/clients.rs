//! Clients' requests: to this node's own primary, or kept for the one elsewhere.

use super::*;
use crate::core::api::ClientError;

impl<P: Payload> Resource<P> {
    pub(super) fn client(
        &mut self,
        step: &mut Step<'_, P>,
        id: RequestId,
        volume: VolumeId,
        request: ClientRequest<P>,
    ) {
        let (Role::Primary(primary), Some(record)) = (&mut self.role, &self.record) else {
            if self.forwarder.follows() && self.closing.is_none() && !self.closed {
                self.forwarder.keep(id, volume, request);
            } else {
                let result = Err(ClientError::NotPrimary);
                step.emit(Action::Reply { id, result });
            }
            return;
        };
        let cx = &mut Cx {
            step,
            local: &mut self.local,
            record,
        };
        let mut asked = Asked {
            origin: Origin::Client(id),
            mark: ClientMark::default(),
            again: false,
        };
        if self.forwarder.follows() && self.closing.is_none() {
            let one_write = match &request {
                ClientRequest::Read { .. } | ClientRequest::Flush => false,
                ClientRequest::Write { .. } => true,
                ClientRequest::Zero { range, .. } => self.forwarder.is_one_piece(*range),
            };
            let plain = matches!(request, ClientRequest::Read { .. } | ClientRequest::Flush);
            // In the order of arrival, where others are kept.
            let direct = self.forwarder.is_clear() && primary.takes_requests(cx);
            match () {
                () if direct && plain => {}
                () if direct
                    && one_write
                    && let Some(mark) = self.forwarder.pass(id) =>
                {
                    asked.origin = Origin::Own;
                    asked.mark = mark;
                }
                () => return self.forwarder.keep(id, volume, request),
            }
        }
        primary.client(cx, asked, volume, request);
    }

    pub(super) fn set_access(&mut self, step: &mut Step<'_, P>, access: Access) {
        self.forwarder.set_access(step, access);
        let follow = self.forwarder.follows();
        self.as_primary(step, |primary, cx| primary.set_follow(cx, follow), |_| ());
        if !follow && matches!(self.role, Role::Secondary(_)) {
            step.emit(Action::HangUp);
        }
    }

    /// What clients ask goes to the primary, here or elsewhere.
    pub(super) fn forward(&mut self, step: &mut Step<'_, P>) {
        self.collect(step);
        if !self.forwarder.follows() || self.closing.is_some() || self.closed {
            return;
        }
        if let (Role::Primary(primary), Some(record)) = (&mut self.role, &self.record) {
            let cx = &mut Cx {
                step,
                local: &mut self.local,
                record,
            };
            while primary.takes_requests(cx)
                && let Some(era) = cx.local.sessions.era()
                && let Some(given) = self.forwarder.give(cx.step, era)
            {
                let asked = Asked {
                    origin: Origin::Own,
                    mark: given.mark,
                    again: given.again,
                };
                primary.client(cx, asked, given.volume, given.request);
            }
            self.collect(step);
        } else {
            let record = self.record.as_ref();
            let asked = self.questions.are_open();
            self.forwarder.drive(step, record, &self.settings, asked);
        }
    }

    /// Takes over what this node's own primary has answered or gives back.
    pub(super) fn collect(&mut self, step: &mut Step<'_, P>) {
        if let Role::Primary(primary) = &mut self.role {
            for (number, result) in primary.answered.drain(..) {
                self.forwarder.answered(step, number, result);
            }
            let stopped = !self.forwarder.follows() && !primary.returned.is_empty();
            for returned in primary.returned.drain(..) {
                self.forwarder.take_back(returned);
            }
            if stopped {
                self.forwarder.stop(step);
            }
        }
    }
}
