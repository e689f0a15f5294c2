//! A client protocol in 21 bytes: both ends.

use super::super::*;
use super::fakes::RESOURCE;
use crate::core::api::ClientError;
use crate::runtime::client::{
    ClientCommand, ClientConnection, ClientOp, ClientStatus, ClientStep, DataPiece, ExportTarget,
};
use socket2::{SockAddr, Socket, Type};
use std::io::{Read as _, Write as _};
use vocabulary::{ByteRange, VolumeId};

const HEADER: usize = 21;

/// Requests are `op cookie offset length`, replies `cookie status` and the bytes read.
#[derive(Default)]
struct Line {
    partial: Vec<u8>,
    greeted: bool,
}

impl ClientConnection for Line {
    fn receive(&mut self, input: &[u8], _out: &mut Vec<u8>) -> (usize, ClientStep) {
        if !std::mem::replace(&mut self.greeted, true) {
            let target = ExportTarget {
                resource: RESOURCE,
                volume: VolumeId(0),
            };
            return (1, ClientStep::Opened(target));
        }
        let taken = (HEADER - self.partial.len()).min(input.len());
        self.partial.extend_from_slice(&input[..taken]);
        if self.partial.len() < HEADER {
            return (taken, ClientStep::NeedMore);
        }
        let number = |at: usize| u64::from_le_bytes(self.partial[at..at + 8].try_into().unwrap());
        let len = u32::from_le_bytes(self.partial[17..21].try_into().unwrap());
        let (op, cookie, offset) = (self.partial[0], number(1), number(9));
        let command = match op {
            b'r' => ClientCommand::Read,
            b'w' => ClientCommand::Write,
            b'z' | b'h' | b'a' | b'k' => ClientCommand::Zero {
                hole: matches!(op, b'z' | b'h'),
                fast: matches!(op, b'h' | b'a'),
            },
            b'f' => ClientCommand::Flush,
            b's' => ClientCommand::Status {
                allocation: true,
                out_of_sync: true,
            },
            _ => return (taken, ClientStep::Close),
        };
        let range = ByteRange {
            offset,
            len: len.into(),
        };
        self.partial.clear();
        let op = ClientOp {
            cookie,
            word: op.into(),
            command,
            range,
            fua: false,
        };
        let step = match command {
            ClientCommand::Write => ClientStep::Write(op),
            _ => ClientStep::Request(op),
        };
        (taken, step)
    }

    fn tls(&self) -> Option<Arc<rustls::ServerConfig>> {
        None
    }

    fn reply(&mut self, op: &ClientOp, outcome: Result<(), ClientError>, out: &mut Vec<u8>) {
        out.extend_from_slice(&op.cookie.to_le_bytes());
        out.push(u8::from(outcome.is_err()));
    }

    fn reply_data(
        &mut self,
        op: &ClientOp,
        data: &[u8],
        _from: usize,
        out: &mut Vec<u8>,
    ) -> DataPiece {
        self.reply(op, Ok(()), out);
        let (send, next) = (0..data.len(), None);
        DataPiece { send, next }
    }

    /// The cookie, and for both a byte with the number of extents and five for each.
    fn reply_status(&mut self, op: &ClientOp, status: &ClientStatus, out: &mut Vec<u8>) {
        out.extend_from_slice(&op.cookie.to_le_bytes());
        for extents in [&status.holes, &status.out_of_sync] {
            out.push(u8::try_from(extents.len()).unwrap());
            for extent in extents {
                out.extend_from_slice(&u32::try_from(extent.len).unwrap().to_le_bytes());
                out.push(u8::from(extent.is));
            }
        }
    }

    fn shut_down(&mut self) {}
}

pub(super) struct LineProtocol;

impl ClientProtocol for LineProtocol {
    fn connect(&mut self, out: &mut Vec<u8>) -> Box<dyn ClientConnection> {
        out.push(b'!');
        Box::new(Line::default())
    }
}

/// The client's end of that.
pub(super) struct LineClient {
    pub(super) stream: Socket,
}

impl LineClient {
    pub(super) fn connect(address: &SockAddr) -> Self {
        let mut stream = Socket::new(address.domain(), Type::STREAM, None).unwrap();
        stream.connect(address).unwrap();
        let _ = stream.set_tcp_nodelay(true);
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut greeting = [0];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"!");
        stream.write_all(b"!").unwrap();
        Self { stream }
    }

    pub(super) fn request(op: u8, cookie: u64, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![op];
        bytes.extend_from_slice(&cookie.to_le_bytes());
        bytes.extend_from_slice(&offset.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
        bytes
    }

    pub(super) fn send_write(&mut self, cookie: u64, offset: u64, bytes: &[u8]) {
        let mut message = Self::request(b'w', cookie, offset, bytes.len());
        message.extend_from_slice(bytes);
        self.stream.write_all(&message).unwrap();
    }

    pub(super) fn send_read(&mut self, cookie: u64, offset: u64, len: usize) {
        self.stream
            .write_all(&Self::request(b'r', cookie, offset, len))
            .unwrap();
    }

    /// The next reply; `len` bytes follow where it is a success.
    pub(super) fn answer(&mut self, len: usize) -> (u64, Result<Vec<u8>, ()>) {
        let mut header = [0; 9];
        self.stream.read_exact(&mut header).unwrap();
        let cookie = u64::from_le_bytes(header[..8].try_into().unwrap());
        if header[8] != 0 {
            return (cookie, Err(()));
        }
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        (cookie, Ok(bytes))
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ()> {
        self.send_write(1, offset, bytes);
        self.answer(0).1.map(drop)
    }

    pub(super) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, ()> {
        self.send_read(2, offset, len);
        self.answer(len).1
    }

    pub(super) fn zero(&mut self, offset: u64, len: usize) -> Result<(), ()> {
        self.zero_by(b'z', offset, len)
    }

    /// With or without a hole: `z` and `k`, fast or not at all: `h` and `a`.
    pub(super) fn zero_by(&mut self, op: u8, offset: u64, len: usize) -> Result<(), ()> {
        self.stream
            .write_all(&Self::request(op, 3, offset, len))
            .unwrap();
        self.answer(0).1.map(drop)
    }

    pub(super) fn flush(&mut self) -> Result<(), ()> {
        self.stream
            .write_all(&Self::request(b'f', 4, 0, 0))
            .unwrap();
        self.answer(0).1.map(drop)
    }

    /// The other end closes, after whatever it has sent.
    pub(super) fn expect_end(&mut self) {
        let _ = self.stream.read_to_end(&mut Vec::new());
    }

    pub(super) fn expect_closed(&mut self) {
        let mut rest = Vec::new();
        let end = self.stream.read_to_end(&mut rest);
        assert!(end.is_err() || rest.is_empty(), "{} bytes more", rest.len());
    }
}
