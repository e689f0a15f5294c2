//! One message of every type and variant.

use super::Data;
use crate::core::api::{BlockHash, ClientError, ClientRequest, FastZeroes};
use crate::core::message::{
    ClientMark, Message, NumberEntry, RangesOf, RefuseReason, Seq, SessionId, VolumeRange,
    WriteKind,
};
use crate::core::{Map, MapQuestion, Regions};
use vocabulary::{
    ByteRange, DiskId, Epoch, Generation, HistoryId, Incarnation, Member, NodeId, NodeSet, Record,
    VolumeId,
};

pub(super) fn node(id: u8) -> NodeId {
    NodeId::new(id).expect("a node of a sample")
}

pub(super) fn record() -> Record {
    let member = |id: u8| Member {
        node: node(id),
        disk: DiskId(0xd000 + u128::from(id)),
        incarnation: Incarnation(1 + u64::from(id)),
    };
    Record {
        resource: super::CONTEXT.resource,
        generation: Generation(0x1234),
        epoch: Epoch(0x0e),
        history: HistoryId(0xabcd),
        sizes: vec![1 << 30, 4096],
        primary: Some(node(0)),
        in_sync: vec![member(0), member(2)],
        replicas: [0, 1, 2].into_iter().map(node).collect(),
        min_redundancy: 1,
    }
}

pub(super) fn hello() -> Message<Data> {
    Message::Hello {
        node: node(0),
        to: node(2),
        session: SessionId(5),
        record: record(),
    }
}

pub(super) fn welcome() -> Message<Data> {
    Message::Welcome {
        disk: DiskId(0xd002),
        incarnation: Incarnation(3),
        history: HistoryId(0xabcd),
        bits_for: Some(DiskId(0xd000)),
        whole_window: false,
    }
}

pub(super) fn at(volume: u16, offset: u64, len: u64) -> VolumeRange {
    VolumeRange {
        volume: VolumeId(volume),
        range: ByteRange::new(offset, len).expect("a range of a sample"),
    }
}

pub(super) fn write() -> Message<Data> {
    Message::Write {
        seq: Seq(0x0102_0304_0506_0708),
        volume: VolumeId(3),
        offset: 0x1000,
        data: Data(b"payload!".to_vec()),
        fua: true,
        kind: WriteKind::Copy,
        mark: ClientMark {
            session: 0x1122,
            number: 0x3344,
            released: 0x3340,
        },
    }
}

/// All of them, by name.
pub(super) fn all() -> Vec<(&'static str, Message<Data>)> {
    let refuse = |reason| Message::Refuse { reason };
    let promised = Epoch(300);
    vec![
        ("Hello", hello()),
        ("Welcome", welcome()),
        (
            "Welcome, no bits, whole window",
            Message::Welcome {
                disk: DiskId(u128::MAX),
                incarnation: Incarnation(u64::MAX),
                history: HistoryId(0),
                bits_for: None,
                whole_window: true,
            },
        ),
        (
            "Refuse, superseded",
            refuse(RefuseReason::Superseded { promised }),
        ),
        ("Refuse, older session", refuse(RefuseReason::OlderSession)),
        ("Refuse, not primary", refuse(RefuseReason::NotPrimary)),
        ("Refuse, no disk", refuse(RefuseReason::NoDisk)),
        ("Refuse, identity", refuse(RefuseReason::WrongIdentity)),
        ("Refuse, size", refuse(RefuseReason::WrongSize)),
        ("Refuse, disconnected", refuse(RefuseReason::Disconnected)),
        ("Refuse, closing", refuse(RefuseReason::Closing)),
        (
            "Ranges, window",
            Message::Ranges {
                of: RangesOf::Window,
                ranges: vec![at(0, 4096, 8192), at(7, 0, 512)],
            },
        ),
        (
            "Ranges, bits",
            Message::Ranges {
                of: RangesOf::Bits,
                ranges: Vec::new(),
            },
        ),
        (
            "Ranges, bits for a node",
            Message::Ranges {
                of: RangesOf::BitsFor {
                    node: node(31),
                    disk: Some(DiskId(0xd01f)),
                },
                ranges: vec![at(1, 0, 4096)],
            },
        ),
        (
            "Ranges, bits for an unknown disk",
            Message::Ranges {
                of: RangesOf::BitsFor {
                    node: node(1),
                    disk: None,
                },
                ranges: Vec::new(),
            },
        ),
        ("WelcomeEnd", Message::WelcomeEnd),
        ("Record", Message::Record { record: record() }),
        ("Write", write()),
        (
            "Zero",
            Message::Zero {
                seq: Seq(9),
                at: at(2, 0x2000, 0x3000),
                hole: true,
                fua: false,
                kind: WriteKind::Client,
                mark: ClientMark::default(),
            },
        ),
        (
            "Touch",
            Message::Touch {
                seq: Seq(10),
                ranges: vec![at(0, 1 << 40, 4096)],
            },
        ),
        (
            "Acks",
            Message::Acks {
                seqs: vec![Seq(9), Seq(7), Seq(u64::MAX)],
            },
        ),
        ("Flush", Message::Flush { seq: Seq(11) }),
        ("FlushAck", Message::FlushAck { seq: Seq(11) }),
        (
            "Release",
            Message::Release {
                upto: Seq(11),
                old: true,
                stable_on: NodeSet(0b101),
            },
        ),
        (
            "HashRequest",
            Message::HashRequest {
                id: 12,
                at: at(0, 0, 262_144),
            },
        ),
        (
            "HashReply",
            Message::HashReply {
                id: 12,
                hashes: Some(vec![BlockHash::ZERO, BlockHash(0xfeed)]),
            },
        ),
        (
            "HashReply, unreadable",
            Message::HashReply {
                id: 13,
                hashes: None,
            },
        ),
        (
            "Fetch",
            Message::Fetch {
                id: 14,
                at: at(0, 4096, 4096),
            },
        ),
        (
            "Fetched",
            Message::Fetched {
                id: 14,
                data: Some(Data(b"bytes".to_vec())),
            },
        ),
        (
            "Fetched, nothing wanted",
            Message::Fetched {
                id: 15,
                data: Some(Data(Vec::new())),
            },
        ),
        (
            "Fetched, unreadable",
            Message::Fetched { id: 16, data: None },
        ),
        ("HandOverEnd", Message::HandOverEnd { id: 17 }),
        ("HandOverDone", Message::HandOverDone { id: 17 }),
        (
            "Grow",
            Message::Grow {
                id: 18,
                volume: VolumeId(1),
                size_bytes: 2 << 30,
            },
        ),
        ("Grown", Message::Grown { id: 18, ok: true }),
        ("Grown, no", Message::Grown { id: 19, ok: false }),
        (
            "FastZeroes",
            Message::FastZeroes {
                fast: FastZeroes {
                    holes: true,
                    allocated: false,
                },
            },
        ),
        (
            "FastZeroes, all",
            Message::FastZeroes {
                fast: FastZeroes::ALL,
            },
        ),
        ("DiskFailed", Message::DiskFailed),
        ("Ping", Message::Ping { token: 20 }),
        ("Pong", Message::Pong { token: 20 }),
    ]
    .into_iter()
    .chain(forwarding())
    .collect()
}

pub(super) fn attach() -> Message<Data> {
    Message::Attach {
        node: node(2),
        to: node(0),
        session: 0x1122,
        epoch: Epoch(0x0e),
    }
}

pub(super) fn attached() -> Message<Data> {
    Message::Attached { era: Epoch(0x0c) }
}

fn forward(again: bool, request: ClientRequest<Data>) -> Message<Data> {
    Message::Forward {
        number: 0x3344,
        released: 0x3340,
        again,
        volume: VolumeId(3),
        request,
    }
}

/// Request numbers and what nodes that follow and primaries say to each other.
fn forwarding() -> Vec<(&'static str, Message<Data>)> {
    let range = at(0, 0x1000, 8).range;
    let write = ClientRequest::Write {
        range,
        data: Data(b"payload!".to_vec()),
        fua: true,
    };
    let zero = ClientRequest::Zero {
        range,
        hole: true,
        fua: false,
        fast: false,
    };
    let fast = ClientRequest::Zero {
        range,
        hole: false,
        fua: true,
        fast: true,
    };
    let entry = |number, torn| NumberEntry {
        mark: ClientMark {
            session: 0x1122,
            number,
            released: 0x3340,
        },
        at: at(3, 0x1000, 0x2000),
        torn,
    };
    let answer = |result| Message::Answer {
        number: 0x3344,
        result,
    };
    vec![
        (
            "Numbers",
            Message::Numbers {
                era: Epoch(0x0c),
                entries: vec![entry(0x3340, false), entry(0x3344, true)],
            },
        ),
        ("Settled", Message::Settled),
        ("Attach", attach()),
        ("Attached", attached()),
        ("Forward, write", forward(false, write)),
        ("Forward, zero", forward(true, zero)),
        ("Forward, fast zero", forward(false, fast)),
        (
            "Forward, read",
            forward(false, ClientRequest::Read { range }),
        ),
        ("Forward, flush", forward(true, ClientRequest::Flush)),
        ("Answer, data", answer(Ok(Some(Data(b"bytes".to_vec()))))),
        ("Answer, done", answer(Ok(None))),
        ("Answer, not primary", answer(Err(ClientError::NotPrimary))),
        ("Answer, range", answer(Err(ClientError::OutOfRange))),
        ("Answer, error", answer(Err(ClientError::Io))),
        ("Answer, no space", answer(Err(ClientError::NoSpace))),
        ("Answer, shutdown", answer(Err(ClientError::Shutdown))),
        ("Answer, not fast", answer(Err(ClientError::NotFast))),
        ("AskMap", ask_map(true, false)),
        ("AskMap, both", ask_map(true, true)),
        ("Map", map()),
        (
            "Map, unknown",
            Message::Map {
                number: 7,
                map: Map::unknown(range),
            },
        ),
    ]
}

fn ask_map(holes: bool, lacking: bool) -> Message<Data> {
    Message::AskMap {
        number: 7,
        question: MapQuestion {
            at: at(3, 0x1000, 0x20_0000),
            holes,
            lacking,
        },
    }
}

pub(super) fn map() -> Message<Data> {
    let regions = |ranges: &[(u64, u64)], end| Regions {
        ranges: ranges
            .iter()
            .map(|(offset, len)| at(0, *offset, *len).range)
            .collect(),
        end,
    };
    Message::Map {
        number: 7,
        map: Map {
            holes: regions(&[(0x1000, 0x1000), (0x3000, 0x8000)], 0x10_0000),
            lacking: regions(&[(0x4000, 0x1000)], 0x20_1000),
        },
    }
}
