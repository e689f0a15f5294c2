//! Whatever a peer sends, the decoder neither panics nor takes more than its limits.
//!
//! The first byte chooses: bytes as they come, in pieces; or frames with right checksums around
//! bodies from the input, which is what a hostile peer would send. What is understood must be
//! something that could have been sent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use replicator::core::api::Payload;
use replicator::core::message::{MAX_MAP_RANGES, MAX_NUMBERS, MAX_RANGES, Message};
use replicator::wire::{
    Decoded, Decoder, FrameContext, HEADER_BYTES, Kind, MAX_ACKS, MAX_BODY_BYTES, MAX_HASHES,
    MAX_PAYLOAD_BYTES, MAX_VOLUMES, PayloadBytes, VERSION, encode,
};
use vocabulary::{ClusterId, DiskId, Epoch, Generation, HistoryId, Incarnation, NodeId, NodeSet};
use vocabulary::{Record, ResourceId};

#[derive(Clone, Debug)]
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
    cluster: ClusterId(1),
    resource: ResourceId(2),
    epoch: Epoch(3),
    generation: Generation(4),
};

/// Opens the session, or the connection of a node that follows, at this end.
fn opened(accepting: bool, follows: bool) -> Decoder {
    let node = NodeId::new(0).expect("below the limit");
    if follows {
        let (mut decoder, first) = if accepting {
            let attach = Message::Attach {
                node,
                to: node,
                session: 1,
                epoch: CONTEXT.epoch,
            };
            (Decoder::accepting(CONTEXT.cluster), attach)
        } else {
            let decoder = Decoder::dialing(CONTEXT.cluster, CONTEXT.resource);
            (decoder, Message::Attached { era: Epoch(1) })
        };
        let mut bytes = Vec::new();
        encode::<Data>(&CONTEXT, &first, None, &mut bytes).expect("a valid opening");
        decoder.decode::<Data>(&bytes).expect("a valid opening");
        return decoder;
    }
    let (mut decoder, first) = if accepting {
        let hello = Message::Hello {
            node,
            to: node,
            session: replicator::core::message::SessionId(1),
            record: Record {
                resource: CONTEXT.resource,
                generation: CONTEXT.generation,
                epoch: CONTEXT.epoch,
                history: HistoryId(1),
                sizes: vec![4096],
                primary: None,
                in_sync: Vec::new(),
                replicas: NodeSet(1),
                min_redundancy: 1,
            },
        };
        (Decoder::accepting(CONTEXT.cluster), hello)
    } else {
        let welcome = Message::Welcome {
            disk: DiskId(1),
            incarnation: Incarnation(1),
            history: HistoryId(1),
            bits_for: None,
            whole_window: false,
        };
        let decoder = Decoder::dialing(CONTEXT.cluster, CONTEXT.resource);
        (decoder, welcome)
    };
    let mut bytes = Vec::new();
    encode::<Data>(&CONTEXT, &first, None, &mut bytes).expect("a valid opening");
    decoder.decode::<Data>(&bytes).expect("a valid opening");
    decoder
}

/// What was understood is within the limits and could have been sent.
fn check(message: &Message<Data>) {
    match message {
        Message::Ranges { ranges, .. } | Message::Touch { ranges, .. } => {
            assert!(ranges.len() <= MAX_RANGES);
        }
        Message::Numbers { entries, .. } => assert!(entries.len() <= MAX_NUMBERS),
        Message::Map { map, .. } => {
            assert!(map.holes.ranges.len() <= MAX_MAP_RANGES);
            assert!(map.lacking.ranges.len() <= MAX_MAP_RANGES);
        }
        Message::Acks { seqs } => assert!(seqs.len() <= MAX_ACKS),
        Message::HashReply {
            hashes: Some(hashes),
            ..
        } => assert!(hashes.len() <= MAX_HASHES),
        Message::Hello { record, .. } | Message::Record { record } => {
            assert!(record.sizes.len() <= MAX_VOLUMES);
            assert!(record.in_sync.len() <= usize::from(NodeId::LIMIT));
        }
        _ => {}
    }
    let mut out = Vec::new();
    encode(&CONTEXT, message, None, &mut out).expect("what was taken can be sent");
    assert!(out.len() <= HEADER_BYTES + MAX_BODY_BYTES);
}

/// Feeds the bytes in pieces of this size until they are used up or refused.
fn feed(mut decoder: Decoder, bytes: &[u8], piece: usize) {
    let mut buffer = Vec::new();
    let mut wanted = None;
    for piece in bytes.chunks(piece.max(1)) {
        buffer.extend_from_slice(piece);
        loop {
            if let Some(len) = wanted {
                if buffer.len() < len {
                    break;
                }
                let data = Data(buffer.drain(..len).collect());
                let Ok((_, message)) = decoder.finish(data) else {
                    return;
                };
                check(&message);
                wanted = None;
            }
            match decoder.decode::<Data>(&buffer) {
                Err(_) => return,
                Ok(Decoded::NeedMore(missing)) => {
                    assert!(missing > 0);
                    assert!(buffer.len() + missing <= HEADER_BYTES + MAX_BODY_BYTES);
                    break;
                }
                Ok(Decoded::Frame {
                    consumed, message, ..
                }) => {
                    buffer.drain(..consumed);
                    check(&message);
                }
                Ok(Decoded::Payload { consumed, len, .. }) => {
                    assert!(len <= usize::try_from(MAX_PAYLOAD_BYTES).expect("64 bit"));
                    buffer.drain(..consumed);
                    wanted = Some(len);
                }
            }
        }
    }
}

/// A frame with right checksums.
fn sealed(kind: Kind, flags: u8, body: &[u8], payload: &[u8]) -> Vec<u8> {
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).expect("short").to_le_bytes();
    let crc = |bytes: &[u8]| crc32c::crc32c(bytes).to_le_bytes();
    let mut out = b"LkS1".to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend(kind.code().to_le_bytes());
    out.extend(u32::from(flags).to_le_bytes());
    out.extend(len(body));
    out.extend(CONTEXT.cluster.0.to_le_bytes());
    out.extend(CONTEXT.resource.0.to_le_bytes());
    out.extend(CONTEXT.epoch.0.to_le_bytes());
    out.extend(CONTEXT.generation.0.to_le_bytes());
    out.extend(len(payload));
    out.extend(crc(body));
    out.extend(crc(payload));
    let header = crc(&out);
    out.extend(header);
    assert_eq!(out.len(), HEADER_BYTES);
    out.extend(body);
    out.extend(payload);
    out
}

fuzz_target!(|input: &[u8]| {
    let [mode, piece, kind, flags, payload_len, rest @ ..] = input else {
        return;
    };
    let accepting = mode & 1 != 0;
    let decoder = if mode & 2 != 0 {
        opened(accepting, mode & 8 != 0)
    } else if accepting {
        Decoder::accepting(CONTEXT.cluster)
    } else {
        Decoder::dialing(CONTEXT.cluster, CONTEXT.resource)
    };
    if mode & 4 != 0 {
        feed(decoder, rest, usize::from(*piece));
        return;
    }
    let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
    let payload_len = usize::from(*payload_len).min(rest.len());
    let (payload, body) = if flags & 1 != 0 {
        rest.split_at(payload_len)
    } else {
        (&[][..], rest)
    };
    feed(
        decoder,
        &sealed(kind, *flags, body, payload),
        usize::from(*piece),
    );
});
