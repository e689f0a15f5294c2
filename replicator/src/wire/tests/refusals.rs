//! Each kind of bad input gets an error that names it.

use super::samples::{all, at, hello, node, record, welcome, write};
use super::{CONTEXT, Data, Stream, decoder_for, frame, head, reseal, reseal_header};
use crate::core::message::{Message, Seq, VolumeRange, WriteKind};
use crate::wire::encode::kind_of;
use crate::wire::header::HEADER_BYTES;
use crate::wire::{
    Decoder, EncodeError, Features, FrameContext, Kind, LOCAL_OFFER, MAX_HASHES, MAX_PAYLOAD_BYTES,
    Negotiated, Offer, RecordError, RejectReason, VERSION, WireError, encode, encode_reject,
};
use vocabulary::{BLOCK_BYTES, ByteRange, ClusterId, ResourceId, VolumeId};

/// The error that this frame gets where frames of this type come.
fn error(kind: Kind, bytes: &[u8]) -> WireError {
    Stream::new(decoder_for(kind))
        .feed(bytes)
        .expect_err("a frame that must be refused")
}

/// A sample of the type with some bytes replaced and the checksums put right.
fn changed(kind: Kind, place: usize, with: &[u8]) -> WireError {
    let (_, message) = all()
        .into_iter()
        .find(|(_, message)| kind_of(message) == kind)
        .expect("a sample");
    let mut bytes = head(&message);
    bytes[place..place + with.len()].copy_from_slice(with);
    reseal(&mut bytes);
    error(kind, &bytes)
}

const BODY: usize = HEADER_BYTES;

#[test]
fn another_protocol_is_seen_from_its_first_byte() {
    for bytes in [
        &b"G"[..],
        b"GET / HTTP/1.1\r\n",
        b"LkX",
        b"\x16\x03\x01\x02",
    ] {
        let error = error(Kind::Hello, bytes);
        assert!(matches!(error, WireError::BadMagic { .. }), "{error}");
        assert_eq!(error.reject_reason(), None);
    }
}

#[test]
fn damage_is_named_by_where_it_is() {
    let mut bytes = frame(&write());
    bytes[20] ^= 1;
    assert_eq!(error(Kind::Write, &bytes), WireError::HeaderChecksum);
    bytes[20] ^= 1;
    bytes[BODY] ^= 1;
    let kind = Kind::Write;
    assert_eq!(error(kind, &bytes), WireError::BodyChecksum { kind });
    bytes[BODY] ^= 1;
    *bytes.last_mut().expect("a payload") ^= 1;
    let error = error(kind, &bytes);
    assert_eq!(error, WireError::PayloadChecksum { kind });
    assert_eq!(error.reject_reason(), Some(RejectReason::Checksum));
}

#[test]
fn another_cluster_or_resource_is_refused_by_name() {
    let mut bytes = Vec::new();
    let stranger = FrameContext {
        cluster: ClusterId(77),
        ..CONTEXT
    };
    encode(&stranger, &hello(), None, &mut bytes).expect("a valid message");
    let other = error(Kind::Hello, &bytes);
    let found = ClusterId(77);
    let ours = CONTEXT.cluster;
    assert_eq!(other, WireError::OtherCluster { found, ours });
    assert_eq!(other.reject_reason(), Some(RejectReason::Cluster));

    bytes.clear();
    let stranger = FrameContext {
        resource: ResourceId(78),
        ..CONTEXT
    };
    let flush = Message::<Data>::Flush { seq: Seq(1) };
    encode(&stranger, &flush, None, &mut bytes).expect("a valid message");
    let found = ResourceId(78);
    let ours = CONTEXT.resource;
    assert_eq!(
        error(Kind::Flush, &bytes),
        WireError::OtherResource { found, ours }
    );
}

#[test]
fn a_record_of_another_resource_than_the_frames_is_refused() {
    let mut record = record();
    record.resource = ResourceId(5);
    let bytes = head(&Message::Record { record });
    let found = ResourceId(5);
    let ours = CONTEXT.resource;
    assert_eq!(
        error(Kind::Record, &bytes),
        WireError::OtherResource { found, ours }
    );
}

#[test]
fn an_accepted_connection_begins_with_a_hello_and_has_only_one() {
    let mut decoder = Stream::new(Decoder::accepting(CONTEXT.cluster));
    let kind = Kind::Ping;
    assert_eq!(
        decoder
            .feed(&head(&Message::Ping { token: 1 }))
            .unwrap_err(),
        WireError::OutOfPlace { kind }
    );
    let mut decoder = Stream::new(Decoder::accepting(CONTEXT.cluster));
    decoder.feed(&head(&hello())).expect("the first");
    assert_eq!(
        decoder.feed(&head(&hello())).unwrap_err(),
        WireError::OutOfPlace { kind: Kind::Hello }
    );
}

#[test]
fn before_its_welcome_a_replica_may_only_refuse_fail_and_answer_pings() {
    for (name, message) in all() {
        let kind = kind_of(&message);
        let mut stream = Stream::new(Decoder::dialing(CONTEXT.cluster, CONTEXT.resource));
        let result = stream.feed(&frame(&message));
        let allowed = matches!(
            kind,
            Kind::Welcome
                | Kind::Attached
                | Kind::Refuse
                | Kind::DiskFailed
                | Kind::Ping
                | Kind::Pong
        );
        assert_eq!(result.is_ok(), allowed, "{name}: {result:?}");
    }
}

#[test]
fn a_frame_from_the_end_that_never_sends_it_is_refused() {
    let mut primary = Stream::new(Decoder::dialing(CONTEXT.cluster, CONTEXT.resource));
    primary.feed(&head(&welcome())).expect("the welcome");
    let mut replica = Stream::new(Decoder::accepting(CONTEXT.cluster));
    replica.feed(&head(&hello())).expect("the hello");
    let kind = Kind::Write;
    assert_eq!(
        primary.feed(&frame(&write())).unwrap_err(),
        WireError::WrongDirection { kind }
    );
    let kind = Kind::Acks;
    assert_eq!(
        replica
            .feed(&head(&Message::Acks { seqs: Vec::new() }))
            .unwrap_err(),
        WireError::WrongDirection { kind }
    );
}

#[test]
fn unknown_types_flags_and_versions_are_named() {
    let code = 999;
    assert_eq!(
        changed(Kind::Ping, 6, &999_u16.to_le_bytes()),
        WireError::UnknownType { code }
    );
    let kind = Kind::Ping;
    let flags = 0x8000_0000;
    assert_eq!(
        changed(kind, 8, &0x8000_0000_u32.to_le_bytes()),
        WireError::UnknownFlags { kind, flags }
    );
    let (found, expected) = (1, VERSION);
    let error = changed(kind, 4, &[1, 0]);
    assert_eq!(error, WireError::Version { found, expected });
    assert_eq!(error.reject_reason(), Some(RejectReason::Version));
}

#[test]
fn a_newer_peers_hello_of_any_length_is_answered_with_the_versions() {
    let mut bytes = head(&hello());
    bytes[4] = 9;
    bytes[BODY] = 7;
    bytes[BODY + 2] = 9;
    bytes.resize(BODY + 60_000, 0xee);
    bytes[12..16].copy_from_slice(&60_000_u32.to_le_bytes());
    reseal(&mut bytes);
    let error = error(Kind::Hello, &bytes);
    assert!(
        matches!(
            error,
            WireError::NoCommonVersion {
                theirs: Offer {
                    min_version: 7,
                    max_version: 9,
                    ..
                },
                ours: LOCAL_OFFER
            }
        ),
        "{error}"
    );
    assert_eq!(error.reject_reason(), Some(RejectReason::Version));
}

#[test]
fn a_peer_that_requires_unknown_features_is_refused_and_one_that_only_has_them_is_not() {
    let mut bytes = head(&hello());
    bytes[BODY + 8] = 0b111;
    reseal(&mut bytes);
    let mut decoder = decoder_for(Kind::Hello);
    decoder.decode::<Data>(&bytes).expect("only optional");
    assert_eq!(
        decoder.negotiated(),
        Some(Negotiated {
            version: VERSION,
            features: Features::NUMBERS
        })
    );
    bytes[BODY + 16] = 0b101;
    reseal(&mut bytes);
    let features = Features(0b100);
    let error = error(Kind::Hello, &bytes);
    assert_eq!(error, WireError::UnknownFeatures { features });
    assert_eq!(error.reject_reason(), Some(RejectReason::Features));
}

#[test]
fn a_rejection_arrives_as_the_peers_reason() {
    for reason in RejectReason::ALL {
        let mut bytes = Vec::new();
        encode_reject(reason, &mut bytes);
        for kind in [Kind::Welcome, Kind::Acks, Kind::Write] {
            let theirs = LOCAL_OFFER;
            let error = error(kind, &bytes);
            assert_eq!(error, WireError::Rejected { reason, theirs });
            assert_eq!(error.reject_reason(), None, "no rejection of a rejection");
        }
    }
}

#[test]
fn lengths_beyond_the_limits_are_refused_from_the_header_alone() {
    let mut bytes = head(&write());
    bytes.truncate(HEADER_BYTES);
    let kind = Kind::Write;
    bytes[64..68].copy_from_slice(&(MAX_PAYLOAD_BYTES + 1).to_le_bytes());
    reseal_header(&mut bytes);
    let len = MAX_PAYLOAD_BYTES + 1;
    assert_eq!(error(kind, &bytes), WireError::PayloadTooLong { kind, len });
    for kind in Kind::ALL.iter().copied().filter(|k| *k != Kind::Reject) {
        let (_, message) = all()
            .into_iter()
            .find(|(_, message)| kind_of(message) == kind)
            .expect("a sample");
        let mut bytes = head(&message);
        bytes.truncate(HEADER_BYTES);
        bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        reseal_header(&mut bytes);
        let error = error(kind, &bytes);
        assert!(
            matches!(error, WireError::BodyLength { len: u32::MAX, .. }),
            "{error}"
        );
    }
}

#[test]
fn payloads_are_only_where_they_belong() {
    let kind = Kind::Ping;
    assert_eq!(changed(kind, 8, &[1]), WireError::PayloadPresence { kind });
    assert_eq!(changed(kind, 64, &[1]), WireError::PayloadPresence { kind });
    let kind = Kind::Write;
    assert_eq!(changed(kind, 8, &[0]), WireError::PayloadPresence { kind });
}

#[test]
fn lists_consist_of_whole_entries() {
    for kind in [Kind::Ranges, Kind::Touch, Kind::Acks, Kind::HashReply] {
        let (_, message) = all()
            .into_iter()
            .find(|(_, message)| kind_of(message) == kind)
            .expect("a sample");
        let mut bytes = head(&message);
        bytes.pop();
        let len = u32::try_from(bytes.len() - HEADER_BYTES).expect("short");
        bytes[12..16].copy_from_slice(&len.to_le_bytes());
        reseal(&mut bytes);
        assert_eq!(error(kind, &bytes), WireError::PartOfEntry { kind });
    }
}

#[test]
fn values_without_a_meaning_are_named() {
    let kind = Kind::Write;
    let value = |field, value| WireError::Value { kind, field, value };
    assert_eq!(changed(kind, BODY + 34, &[3]), value("the kind", 3));
    assert_eq!(changed(kind, BODY + 35, &[2]), value("flags", 2));
    let field = "the distance to the lowest unanswered number";
    assert_eq!(changed(kind, BODY + 36, &[0, 0x10]), value(field, 0x1000));
    let kind = Kind::Ranges;
    let value = |field, value| WireError::Value { kind, field, value };
    assert_eq!(changed(kind, BODY, &[2, 32, 1]), value("the node", 32));
    assert_eq!(changed(kind, BODY, &[3]), value("the sort of ranges", 3));
    assert_eq!(
        changed(kind, BODY + 1, &[1]),
        WireError::Reserved { kind },
        "a window is of no node"
    );
}

#[test]
fn ranges_that_overflow_are_refused_on_both_ends() {
    let offset = u64::MAX - 4095;
    for (kind, place) in [
        (Kind::Write, BODY + 8),
        (Kind::Zero, BODY + 8),
        (Kind::Touch, BODY + 8),
        (Kind::Fetch, BODY + 8),
        (Kind::HashRequest, BODY + 8),
        (Kind::Ranges, BODY + 24),
        (Kind::Grow, BODY + 8),
    ] {
        let error = changed(kind, place, &offset.to_le_bytes());
        assert!(
            matches!(error, WireError::RangeOverflow { kind: found, .. } if found == kind),
            "{error}"
        );
    }
    let touch = Message::<Data>::Touch {
        seq: Seq(1),
        ranges: vec![VolumeRange {
            volume: VolumeId(0),
            range: ByteRange { offset, len: 4096 },
        }],
    };
    assert!(matches!(
        encode(&CONTEXT, &touch, None, &mut Vec::new()),
        Err(EncodeError::Invalid(WireError::RangeOverflow { .. }))
    ));
    let Message::Write { data, mark, .. } = write() else {
        panic!("the sample is a write")
    };
    let write = Message::Write {
        seq: Seq(1),
        volume: VolumeId(0),
        offset,
        data,
        fua: false,
        kind: WriteKind::Client,
        mark,
    };
    assert!(encode(&CONTEXT, &write, None, &mut Vec::new()).is_err());
}

#[test]
fn requests_whose_answers_would_not_fit_are_refused_on_both_ends() {
    let most = MAX_HASHES as u64 * BLOCK_BYTES;
    let hashes = |at| Message::<Data>::HashRequest { id: 1, at };
    let fetch = |at| Message::<Data>::Fetch { id: 1, at };
    let long = u64::from(MAX_PAYLOAD_BYTES);
    let send = |message: &Message<Data>| encode(&CONTEXT, message, None, &mut Vec::new());
    assert_eq!(send(&hashes(at(0, 4096, most))), Ok(()));
    assert!(send(&hashes(at(0, 4095, most))).is_err(), "one block more");
    assert_eq!(send(&fetch(at(0, 1, long))), Ok(()));
    assert!(send(&fetch(at(0, 1, long + 1))).is_err());
    for kind in [Kind::Fetch, Kind::HashRequest] {
        let error = changed(kind, BODY + 16, &(long + 1).to_le_bytes());
        assert!(matches!(error, WireError::RangeTooLong { .. }), "{error}");
    }
}

#[test]
fn a_payload_over_the_limit_is_not_sent() {
    let len = usize::try_from(MAX_PAYLOAD_BYTES).expect("fits") + 1;
    let message = Message::Fetched {
        id: 1,
        data: Some(Data(vec![0; len])),
    };
    let kind = Kind::Fetched;
    assert_eq!(
        encode(&CONTEXT, &message, None, &mut Vec::new()),
        Err(EncodeError::PayloadTooLong { kind, len })
    );
}

#[test]
fn control_bodies_are_read_to_their_end_and_no_further() {
    let mut bytes = head(&Message::Record { record: record() });
    bytes.push(0);
    let len = u32::try_from(bytes.len() - HEADER_BYTES).expect("short");
    bytes[12..16].copy_from_slice(&len.to_le_bytes());
    reseal(&mut bytes);
    let kind = Kind::Record;
    let count = 1;
    assert_eq!(
        error(kind, &bytes),
        WireError::TrailingBytes { kind, count }
    );
    bytes.truncate(bytes.len() - 2);
    bytes[12..16].copy_from_slice(&(len - 2).to_le_bytes());
    reseal(&mut bytes);
    assert!(matches!(error(kind, &bytes), WireError::Body { .. }));
    assert_eq!(
        changed(kind, BODY, &[2]),
        WireError::BodyLayout {
            kind,
            found: 2,
            known: 1
        }
    );
}

#[test]
fn a_hello_to_a_node_that_cannot_be_is_refused() {
    // Behind the offer and the layout number: node, to.
    let kind = Kind::Hello;
    for place in [25, 26] {
        assert_eq!(
            changed(kind, BODY + place, &[32]),
            WireError::Record {
                kind,
                source: RecordError::Node { found: 32 }
            }
        );
    }
}

#[test]
fn records_that_cannot_be_are_refused_on_both_ends() {
    let good = record();
    let mut cases = Vec::new();
    let mut with = |change: &dyn Fn(&mut vocabulary::Record), expected| {
        let mut record = good.clone();
        change(&mut record);
        cases.push((record, expected));
    };
    with(
        &|r| r.min_redundancy = 0,
        RecordError::MinRedundancy { found: 0 },
    );
    with(
        &|r| r.min_redundancy = 33,
        RecordError::MinRedundancy { found: 33 },
    );
    with(&|r| r.in_sync.reverse(), RecordError::MemberOrder);
    with(&|r| r.in_sync[1] = r.in_sync[0], RecordError::MemberOrder);
    let size_bytes = 1 << 63;
    let volume = VolumeId(1);
    with(
        &|r| r.sizes[1] = size_bytes,
        RecordError::VolumeSize { volume, size_bytes },
    );
    let kind = Kind::Record;
    for (record, source) in cases {
        let message = Message::<Data>::Record { record };
        assert_eq!(
            encode(&CONTEXT, &message, None, &mut Vec::new()),
            Err(EncodeError::Invalid(WireError::Record { kind, source }))
        );
    }
    // As a peer without those checks would send it: the last byte is the minimal redundancy, and
    // the members' nodes are where their disks are not.
    let bytes = head(&Message::Record { record: record() });
    let last = bytes.len() - 1;
    assert_eq!(
        changed(kind, last, &[0]),
        WireError::Record {
            kind,
            source: RecordError::MinRedundancy { found: 0 }
        }
    );
    assert_eq!(node(2).get(), bytes[last - 6], "the second member's node");
    assert_eq!(
        changed(kind, last - 6, &[0]),
        WireError::Record {
            kind,
            source: RecordError::MemberOrder
        }
    );
    assert_eq!(
        changed(kind, last - 6, &[200]),
        WireError::Record {
            kind,
            source: RecordError::Node { found: 200 }
        }
    );
}

#[test]
fn a_map_whose_ranges_do_not_add_up_is_refused_on_both_ends() {
    let kind = Kind::Map;
    let place = |value| WireError::Value {
        kind,
        field: "the place of a range among its neighbours",
        value,
    };
    let number = |value: u64| value.to_le_bytes();
    // Two holes at 0x1000 and 0x3000, one lacking range at 0x4000: what begins too early, ends too late,
    // has no bytes, or descends.
    let (first, second, third) = (BODY + 32, BODY + 48, BODY + 64);
    for (at, with, value) in [
        (first + 8, 0x3000, 0x3000),
        (first + 8, 0, 0x1000),
        (second, 0x800, 0x800),
        (second + 8, 0x20_0000, 0x3000),
        (BODY + 8, 0x1800, 0x1000),
        (third + 8, 0, 0x4000),
        (BODY + 16, 0x4800, 0x4000),
    ] {
        assert_eq!(changed(kind, at, &number(with)), place(value));
    }
    assert!(matches!(
        changed(kind, third + 8, &number(u64::MAX)),
        WireError::RangeOverflow { .. }
    ));
    assert_eq!(
        changed(kind, BODY + 24, &4_u32.to_le_bytes()),
        WireError::Value {
            kind,
            field: "the number of holes",
            value: 4
        }
    );
    let Message::Map { number, mut map } = super::samples::map() else {
        panic!("another sample");
    };
    map.holes.ranges.reverse();
    let message = Message::<Data>::Map { number, map };
    assert_eq!(
        encode(&CONTEXT, &message, None, &mut Vec::new()),
        Err(EncodeError::Invalid(place(0x1000)))
    );
}

#[test]
fn a_question_about_nothing_is_refused() {
    let kind = Kind::AskMap;
    let nothing = changed(kind, BODY + 16, &[0; 8]);
    assert!(matches!(nothing, WireError::Value { .. }), "{nothing}");
    let beyond = changed(kind, BODY + 16, &[0xff; 8]);
    assert!(matches!(beyond, WireError::RangeOverflow { .. }));
    let flags = changed(kind, BODY + 26, &[4]);
    assert!(matches!(flags, WireError::Value { value: 4, .. }));
    let reserved = changed(kind, BODY + 27, &[1]);
    assert_eq!(reserved, WireError::Reserved { kind });
}

#[test]
fn a_list_that_claims_to_be_huge_is_refused() {
    // The number of volumes stands before the first size: 2^30 is 80 80 80 80 04 in postcard.
    let bytes = head(&Message::Record { record: record() });
    let first_size = [0x80, 0x80, 0x80, 0x80, 0x04];
    let place = bytes
        .windows(5)
        .position(|window| window == first_size)
        .expect("the sample's first size");
    assert_eq!(bytes[place - 1], 2, "its two volumes");
    let error = changed(Kind::Record, place - 1, &[0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert!(matches!(error, WireError::Body { .. }), "{error}");
}

#[test]
fn the_drivers_own_mistakes_are_named() {
    let mut decoder = decoder_for(Kind::Write);
    let bytes = head(&write());
    assert_eq!(
        decoder.finish(Data(Vec::new())).unwrap_err(),
        WireError::NoPayloadPending
    );
    decoder.decode::<Data>(&bytes).expect("a valid frame");
    assert_eq!(
        decoder.decode::<Data>(&bytes).unwrap_err(),
        WireError::PayloadPending
    );
    let (expected, found) = (8, 3);
    assert_eq!(
        decoder.finish(Data(vec![0; 3])).unwrap_err(),
        WireError::PayloadSize { expected, found }
    );
}

#[test]
fn errors_are_sentences_that_name_the_input() {
    let found = ClusterId(0x77);
    let ours = ClusterId(0x88);
    assert_eq!(
        WireError::OtherCluster { found, ours }.to_string(),
        "the frame is of cluster 00000000000000000000000000000077, this node is in \
         00000000000000000000000000000088"
    );
    let kind = Kind::Write;
    let len = 70 << 20;
    assert_eq!(
        WireError::PayloadTooLong { kind, len }.to_string(),
        "the payload of a Write has 73400320 bytes; the limit is 67108864"
    );
}
