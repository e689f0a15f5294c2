//! What the tests of the wire share: a payload, a peer that reads a stream, samples of all messages.

mod golden;
mod properties;
mod refusals;
mod samples;

use super::header::HEADER_BYTES;
use super::{Decoded, Decoder, FrameContext, FrameHeader, Kind, PayloadBytes, WireError, encode};
use crate::core::api::Payload;
use crate::core::message::Message;
use samples::{attach, attached, hello, welcome};
use vocabulary::{ClusterId, Epoch, Generation, ResourceId};

/// Bytes of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Data(Vec<u8>);

impl Payload for Data {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn slice(&self, start: usize, len: usize) -> Self {
        Self(self.0[start..start + len].to_vec())
    }
}

impl PayloadBytes for Data {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

const CONTEXT: FrameContext = FrameContext {
    cluster: ClusterId(0xc1c1_c1c1_c1c1_c1c1_0000_0000_0000_0001),
    resource: ResourceId(0x7e7e_7e7e_7e7e_7e7e_0000_0000_0000_0002),
    epoch: Epoch(0x0e),
    generation: Generation(0x1234),
};

/// Header and body of a message.
fn head(message: &Message<Data>) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&CONTEXT, message, None, &mut out).expect("a valid message");
    out
}

fn payload(message: &Message<Data>) -> &[u8] {
    message.payload().map_or(&[], |data| data.bytes())
}

/// All bytes of a message as they go over the connection.
fn frame(message: &Message<Data>) -> Vec<u8> {
    let mut out = head(message);
    out.extend_from_slice(payload(message));
    out
}

/// A decoder at the end that gets frames of this type, at the place where they come.
fn decoder_for(kind: Kind) -> Decoder {
    let accepting = || Decoder::accepting(CONTEXT.cluster);
    let dialing = || Decoder::dialing(CONTEXT.cluster, CONTEXT.resource);
    let (mut decoder, first) = match kind {
        Kind::Hello | Kind::Attach => return accepting(),
        Kind::Welcome | Kind::Attached | Kind::Refuse | Kind::Reject => return dialing(),
        Kind::Forward | Kind::AskMap => (accepting(), attach()),
        Kind::Answer | Kind::Map => (dialing(), attached()),
        Kind::WelcomeEnd
        | Kind::Acks
        | Kind::FlushAck
        | Kind::HashReply
        | Kind::Fetched
        | Kind::HandOverDone
        | Kind::Grown
        | Kind::FastZeroes
        | Kind::DiskFailed => (dialing(), welcome()),
        _ => (accepting(), hello()),
    };
    decoder
        .decode::<Data>(&head(&first))
        .expect("the opening is valid");
    assert!(decoder.negotiated().is_some());
    decoder
}

/// Puts right checksums on a frame without a payload whose header or body a test has changed.
fn reseal(frame: &mut [u8]) {
    let body = crc32c::crc32c(&frame[HEADER_BYTES..]);
    frame[68..72].copy_from_slice(&body.to_le_bytes());
    reseal_header(frame);
}

fn reseal_header(frame: &mut [u8]) {
    let header = crc32c::crc32c(&frame[..76]);
    frame[76..80].copy_from_slice(&header.to_le_bytes());
}

/// A driver: collects what came and takes frames from its front.
struct Stream {
    decoder: Decoder,
    buffer: Vec<u8>,
    /// Bytes of the payload that is being awaited.
    wanted: Option<usize>,
}

impl Stream {
    fn new(decoder: Decoder) -> Self {
        Self {
            decoder,
            buffer: Vec::new(),
            wanted: None,
        }
    }

    /// The messages that these bytes complete.
    fn feed(&mut self, bytes: &[u8]) -> Result<Vec<(FrameHeader, Message<Data>)>, WireError> {
        self.buffer.extend_from_slice(bytes);
        let mut messages = Vec::new();
        loop {
            if let Some(len) = self.wanted {
                if self.buffer.len() < len {
                    return Ok(messages);
                }
                let data = Data(self.buffer.drain(..len).collect());
                messages.push(self.decoder.finish(data)?);
                self.wanted = None;
            }
            match self.decoder.decode(&self.buffer)? {
                Decoded::NeedMore(missing) => {
                    assert!(missing > 0, "never waits for nothing");
                    return Ok(messages);
                }
                Decoded::Frame {
                    consumed,
                    header,
                    message,
                } => {
                    self.buffer.drain(..consumed);
                    messages.push((header, message));
                }
                Decoded::Payload { consumed, len, .. } => {
                    self.buffer.drain(..consumed);
                    self.wanted = Some(len);
                }
            }
        }
    }
}
