//! What holds for arbitrary messages, splits, damage and garbage.

use super::samples::node;
use super::{CONTEXT, Data, Stream, decoder_for, frame, head, hello, payload, reseal, welcome};
use crate::core::api::{BlockHash, ClientError, ClientRequest, FastZeroes};
use crate::core::message::{
    ClientMark, MAX_MAP_RANGES, MAX_NUMBERS, MAX_RANGES, MAX_SPAN, Message, NumberEntry, RangesOf,
    RefuseReason, Seq, SessionId, VolumeRange, WriteKind,
};
use crate::core::{Map, MapQuestion, Regions};
use crate::wire::encode::kind_of;
use crate::wire::header::{HEADER_BYTES, RawHeader};
use crate::wire::{
    Decoded, Decoder, Kind, MAX_ACKS, MAX_BODY_BYTES, MAX_HASHES, MAX_HEAD_BYTES,
    MAX_PAYLOAD_BYTES, MAX_VOLUMES, PayloadCrc, VERSION, encode,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use vocabulary::{
    ByteRange, DiskId, Epoch, Generation, HistoryId, Incarnation, Member, NodeId, NodeSet, Record,
    VolumeId,
};
use zerocopy::IntoBytes;

fn nodes() -> impl Strategy<Value = NodeId> {
    (0..NodeId::LIMIT).prop_map(node)
}

fn sizes() -> impl Strategy<Value = u64> {
    0..=i64::MAX.unsigned_abs()
}

fn ranges(longest: u64) -> impl Strategy<Value = VolumeRange> {
    (any::<u16>(), 0..=longest)
        .prop_flat_map(|(volume, len)| (Just(volume), 0..=i64::MAX.unsigned_abs() - len, Just(len)))
        .prop_map(|(volume, offset, len)| VolumeRange {
            volume: VolumeId(volume),
            range: ByteRange::new(offset, len).expect("made to fit"),
        })
}

fn any_ranges() -> impl Strategy<Value = Vec<VolumeRange>> {
    vec(ranges(i64::MAX.unsigned_abs()), 0..20)
}

fn records() -> impl Strategy<Value = Record> {
    let ids = (any::<u64>(), any::<u64>(), any::<u128>());
    let members = btree_map(nodes(), (any::<u128>(), any::<u64>()), 0..8);
    let rest = (
        option::of(nodes()),
        any::<u32>(),
        1..=NodeId::LIMIT,
        vec(sizes(), 0..5),
    );
    (ids, members, rest).prop_map(
        |((generation, epoch, history), members, (primary, replicas, min_redundancy, sizes))| {
            Record {
                resource: CONTEXT.resource,
                generation: Generation(generation),
                epoch: Epoch(epoch),
                history: HistoryId(history),
                sizes,
                primary,
                in_sync: members
                    .into_iter()
                    .map(|(node, (disk, incarnation))| Member {
                        node,
                        disk: DiskId(disk),
                        incarnation: Incarnation(incarnation),
                    })
                    .collect(),
                replicas: NodeSet(replicas),
                min_redundancy,
            }
        },
    )
}

fn kinds() -> impl Strategy<Value = WriteKind> {
    prop_oneof![
        Just(WriteKind::Client),
        Just(WriteKind::Reconcile),
        Just(WriteKind::Copy)
    ]
}

fn marks() -> impl Strategy<Value = ClientMark> {
    (any::<u64>(), spans()).prop_map(|(session, (number, released))| ClientMark {
        session,
        number,
        released,
    })
}

/// A number and the lowest unanswered one.
fn spans() -> impl Strategy<Value = (u64, u64)> {
    (any::<u64>(), 0..MAX_SPAN).prop_map(|(number, behind)| (number, number.saturating_sub(behind)))
}

fn requests() -> impl Strategy<Value = ClientRequest<Data>> {
    let range = || ranges(1 << 62).prop_map(|at| at.range);
    prop_oneof![
        range().prop_map(|range| ClientRequest::Read { range }),
        (0..1_u64 << 62, data(), any::<bool>()).prop_map(|(offset, data, fua)| {
            let len = data.0.len() as u64;
            ClientRequest::Write {
                range: ByteRange::new(offset, len).expect("made to fit"),
                data,
                fua,
            }
        }),
        (range(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(range, hole, fua, fast)| ClientRequest::Zero {
                range,
                hole,
                fua,
                fast
            }
        ),
        Just(ClientRequest::Flush),
    ]
}

/// What a node that follows sends.
fn from_follower() -> impl Strategy<Value = Message<Data>> {
    let questions = (any::<u64>(), ranges(1 << 62), any::<bool>(), any::<bool>());
    prop_oneof![
        (spans(), any::<bool>(), any::<u16>(), requests()).prop_map(
            |((number, released), again, volume, request)| Message::Forward {
                number,
                released,
                again,
                volume: VolumeId(volume),
                request,
            },
        ),
        questions
            .prop_filter("a question about nothing", |(_, at, ..)| at.range.len > 0)
            .prop_map(|(number, at, holes, lacking)| Message::AskMap {
                number,
                question: MapQuestion { at, holes, lacking },
            }),
    ]
}

/// Ranges that ascend, each after a gap that may be nothing.
fn regions() -> impl Strategy<Value = Regions> {
    let steps = vec((0..1_u64 << 40, 1..1_u64 << 40), 0..20);
    (0..1_u64 << 62, steps, 0..1_u64 << 40).prop_map(|(start, steps, rest)| {
        let mut end = start;
        let ranges = steps.into_iter().map(|(gap, len)| {
            let from = end + gap;
            end = from + len;
            ByteRange::between(from, end)
        });
        let ranges = ranges.collect();
        Regions {
            ranges,
            end: end + rest,
        }
    })
}

fn maps() -> impl Strategy<Value = Message<Data>> {
    (any::<u64>(), regions(), regions()).prop_map(|(number, holes, lacking)| Message::Map {
        number,
        map: Map { holes, lacking },
    })
}

/// What it gets.
fn answers() -> impl Strategy<Value = Message<Data>> {
    let errors = prop_oneof![
        Just(ClientError::NotPrimary),
        Just(ClientError::OutOfRange),
        Just(ClientError::Io),
        Just(ClientError::NoSpace),
        Just(ClientError::Shutdown),
        Just(ClientError::NotFast),
    ];
    let results = prop_oneof![
        option::of(data()).prop_map(Ok),
        errors.prop_map(Err::<Option<Data>, _>)
    ];
    (any::<u64>(), results).prop_map(|(number, result)| Message::Answer { number, result })
}

fn reasons() -> impl Strategy<Value = RefuseReason> {
    prop_oneof![
        any::<u64>().prop_map(|epoch| RefuseReason::Superseded {
            promised: Epoch(epoch)
        }),
        Just(RefuseReason::OlderSession),
        Just(RefuseReason::NotPrimary),
        Just(RefuseReason::NoDisk),
        Just(RefuseReason::WrongIdentity),
        Just(RefuseReason::WrongSize),
        Just(RefuseReason::Disconnected),
        Just(RefuseReason::Closing),
    ]
}

fn of() -> impl Strategy<Value = RangesOf> {
    prop_oneof![
        Just(RangesOf::Window),
        Just(RangesOf::Bits),
        (nodes(), option::of(any::<u128>())).prop_map(|(node, disk)| RangesOf::BitsFor {
            node,
            disk: disk.map(DiskId)
        }),
    ]
}

fn data() -> impl Strategy<Value = Data> {
    vec(any::<u8>(), 0..300).prop_map(Data)
}

/// Messages that open or refuse a session.
fn openings() -> impl Strategy<Value = Message<Data>> {
    prop_oneof![
        (nodes(), nodes(), any::<u64>(), records()).prop_map(|(node, to, session, record)| {
            Message::Hello {
                node,
                to,
                session: SessionId(session),
                record,
            }
        }),
        (
            any::<u128>(),
            any::<u64>(),
            any::<u128>(),
            option::of(any::<u128>()),
            any::<bool>()
        )
            .prop_map(|(disk, incarnation, history, bits_for, whole_window)| {
                Message::Welcome {
                    disk: DiskId(disk),
                    incarnation: Incarnation(incarnation),
                    history: HistoryId(history),
                    bits_for: bits_for.map(DiskId),
                    whole_window,
                }
            }),
        reasons().prop_map(|reason| Message::Refuse { reason }),
        (nodes(), nodes(), any::<u64>(), any::<u64>()).prop_map(|(node, to, session, epoch)| {
            Message::Attach {
                node,
                to,
                session,
                epoch: Epoch(epoch),
            }
        }),
        any::<u64>().prop_map(|era| Message::Attached { era: Epoch(era) }),
    ]
}

/// What a primary sends in a session.
fn from_primary() -> impl Strategy<Value = Message<Data>> {
    let writes = (
        any::<u64>(),
        any::<u16>(),
        0..1_u64 << 62,
        data(),
        any::<bool>(),
        kinds(),
        marks(),
    );
    let zeroes = (
        any::<u64>(),
        ranges(1 << 62),
        any::<bool>(),
        any::<bool>(),
        kinds(),
        marks(),
    );
    prop_oneof![
        writes.prop_map(
            |(seq, volume, offset, data, fua, kind, mark)| Message::Write {
                seq: Seq(seq),
                volume: VolumeId(volume),
                offset,
                data,
                fua,
                kind,
                mark
            }
        ),
        zeroes.prop_map(|(seq, at, hole, fua, kind, mark)| Message::Zero {
            seq: Seq(seq),
            at,
            hole,
            fua,
            kind,
            mark
        }),
        records().prop_map(|record| Message::Record { record }),
        (of(), any_ranges()).prop_map(|(of, ranges)| Message::Ranges { of, ranges }),
        (any::<u64>(), any_ranges()).prop_map(|(seq, ranges)| Message::Touch {
            seq: Seq(seq),
            ranges
        }),
        any::<u64>().prop_map(|seq| Message::Flush { seq: Seq(seq) }),
        (any::<u64>(), any::<bool>(), any::<u32>()).prop_map(|(upto, old, stable_on)| {
            Message::Release {
                upto: Seq(upto),
                old,
                stable_on: NodeSet(stable_on),
            }
        }),
        (any::<u64>(), ranges(1 << 20)).prop_map(|(id, at)| Message::HashRequest { id, at }),
        (any::<u64>(), ranges(MAX_PAYLOAD_BYTES.into()))
            .prop_map(|(id, at)| Message::Fetch { id, at }),
        any::<u64>().prop_map(|id| Message::HandOverEnd { id }),
        (any::<u64>(), any::<u16>(), sizes()).prop_map(|(id, volume, size_bytes)| Message::Grow {
            id,
            volume: VolumeId(volume),
            size_bytes
        }),
        any::<u64>().prop_map(|token| Message::Ping { token }),
        Just(Message::Settled),
        (
            any::<u64>(),
            vec((marks(), ranges(1 << 62), any::<bool>()), 0..20)
        )
            .prop_map(|(era, entries)| Message::Numbers {
                era: Epoch(era),
                entries: entries
                    .into_iter()
                    .map(|(mark, at, torn)| NumberEntry { mark, at, torn })
                    .collect(),
            }),
    ]
}

/// What a replica sends in a session.
fn from_replica() -> impl Strategy<Value = Message<Data>> {
    prop_oneof![
        Just(Message::WelcomeEnd),
        Just(Message::DiskFailed),
        (any::<bool>(), any::<bool>()).prop_map(|(holes, allocated)| Message::FastZeroes {
            fast: FastZeroes { holes, allocated },
        }),
        vec(any::<u64>(), 0..100).prop_map(|seqs| Message::Acks {
            seqs: seqs.into_iter().map(Seq).collect()
        }),
        any::<u64>().prop_map(|seq| Message::FlushAck { seq: Seq(seq) }),
        (any::<u64>(), option::of(vec(any::<u128>(), 0..70))).prop_map(|(id, hashes)| {
            Message::HashReply {
                id,
                hashes: hashes.map(|hashes| hashes.into_iter().map(BlockHash).collect()),
            }
        }),
        (any::<u64>(), option::of(data())).prop_map(|(id, data)| Message::Fetched { id, data }),
        any::<u64>().prop_map(|id| Message::HandOverDone { id }),
        (any::<u64>(), any::<bool>()).prop_map(|(id, ok)| Message::Grown { id, ok }),
        (of(), any_ranges()).prop_map(|(of, ranges)| Message::Ranges { of, ranges }),
        any::<u64>().prop_map(|token| Message::Pong { token }),
    ]
}

fn messages() -> impl Strategy<Value = Message<Data>> {
    prop_oneof![
        openings(),
        from_primary(),
        from_replica(),
        from_follower(),
        answers(),
        maps()
    ]
}

fn shown(messages: &[Message<Data>]) -> Vec<String> {
    messages.iter().map(|m| format!("{m:?}")).collect()
}

/// Does this stream, opened at the right end, come to an error?
fn is_refused(kind: Kind, bytes: &[u8]) -> bool {
    let mut stream = Stream::new(decoder_for(kind));
    stream.feed(bytes).is_err()
}

proptest! {
    #[test]
    fn every_message_comes_back_as_it_was_sent(message in messages()) {
        let mut stream = Stream::new(decoder_for(kind_of(&message)));
        let bytes = frame(&message);
        let got = stream.feed(&bytes).expect("a valid frame");
        prop_assert_eq!(got.len(), 1);
        prop_assert_eq!(got[0].0.context, CONTEXT);
        prop_assert_eq!(got[0].0.version, VERSION);
        prop_assert_eq!(format!("{:?}", got[0].1), format!("{message:?}"));
        prop_assert_eq!(frame(&got[0].1), bytes);
        prop_assert!(head(&message).len() <= MAX_HEAD_BYTES);
    }

    #[test]
    fn any_split_of_the_stream_gives_the_same_messages(
        primary in any::<bool>(),
        sent in (vec(from_primary(), 1..8), vec(from_replica(), 1..8)),
        cuts in vec(1_usize..200, 1..50),
    ) {
        let (mut sent, decoder) = if primary {
            (sent.0, Decoder::accepting(CONTEXT.cluster))
        } else {
            (sent.1, Decoder::dialing(CONTEXT.cluster, CONTEXT.resource))
        };
        sent.insert(0, if primary { hello() } else { welcome() });
        let bytes: Vec<u8> = sent.iter().flat_map(frame).collect();
        let mut stream = Stream::new(decoder);
        let mut got = Vec::new();
        let mut rest = &bytes[..];
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            got.extend(stream.feed(now).expect("a valid stream").into_iter().map(|m| m.1));
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(shown(&got), shown(&sent));
        prop_assert!(stream.buffer.is_empty());
    }

    #[test]
    fn a_part_of_a_frame_is_waited_for_and_never_for_too_much(
        message in messages(),
        part in any::<prop::sample::Index>(),
    ) {
        let bytes = head(&message);
        let part = part.index(bytes.len());
        let mut decoder = decoder_for(kind_of(&message));
        match decoder.decode::<Data>(&bytes[..part]) {
            Ok(Decoded::NeedMore(missing)) => {
                prop_assert!(missing > 0);
                prop_assert!(part + missing <= bytes.len());
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn any_damaged_byte_is_noticed(
        message in messages(),
        place in any::<prop::sample::Index>(),
        damage in 1_u8..,
    ) {
        let mut bytes = frame(&message);
        let place = place.index(bytes.len());
        bytes[place] ^= damage;
        prop_assert!(is_refused(kind_of(&message), &bytes));
    }

    #[test]
    fn garbage_is_refused_and_never_panics(bytes in vec(any::<u8>(), 1..500)) {
        for decoder in [
            Decoder::accepting(CONTEXT.cluster),
            Decoder::dialing(CONTEXT.cluster, CONTEXT.resource),
        ] {
            if !b"LkS1".starts_with(&bytes[..bytes.len().min(4)]) {
                prop_assert!(Stream::new(decoder).feed(&bytes).is_err());
            }
        }
    }

    /// With right checksums, as a hostile peer would send it.
    #[test]
    fn a_hostile_body_never_panics_and_what_is_taken_is_within_the_limits(
        kind in prop::sample::select(Kind::ALL),
        mut body in vec(prop_oneof![3 => Just(0_u8), 1 => 0_u8..4, 1 => any::<u8>()], 0..400),
        fit in any::<bool>(),
        flags in 0_u32..2,
    ) {
        if fit {
            let (min, max) = kind.body_bytes();
            body.resize(body.len().clamp(min, max), 0);
        }
        let header = RawHeader {
            version: VERSION.into(),
            kind: kind.code().into(),
            flags: flags.into(),
            body_len: u32::try_from(body.len()).expect("short").into(),
            ..RawHeader::new(&CONTEXT)
        };
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(&body);
        reseal(&mut bytes);
        let Ok(got) = Stream::new(decoder_for(kind)).feed(&bytes) else {
            return Ok(());
        };
        prop_assert_eq!(got.len(), 1);
        let message = &got[0].1;
        let entries = match message {
            Message::Ranges { ranges, .. } | Message::Touch { ranges, .. } => {
                prop_assert!(ranges.len() <= MAX_RANGES);
                ranges.capacity()
            }
            Message::Acks { seqs } => {
                prop_assert!(seqs.len() <= MAX_ACKS);
                seqs.capacity()
            }
            Message::HashReply { hashes: Some(hashes), .. } => {
                prop_assert!(hashes.len() <= MAX_HASHES);
                hashes.capacity()
            }
            Message::Numbers { entries, .. } => {
                prop_assert!(entries.len() <= MAX_NUMBERS);
                entries.capacity()
            }
            Message::Map { map, .. } => {
                prop_assert!(map.holes.ranges.len() <= MAX_MAP_RANGES);
                prop_assert!(map.lacking.ranges.len() <= MAX_MAP_RANGES);
                map.holes.ranges.capacity() + map.lacking.ranges.capacity()
            }
            Message::Hello { record, .. } | Message::Record { record } => {
                prop_assert!(record.sizes.len() <= MAX_VOLUMES);
                record.sizes.capacity()
            }
            _ => 0,
        };
        prop_assert!(entries <= body.len() + 8, "{} entries of {} bytes", entries, body.len());
        prop_assert!(payload(message).is_empty());
        let control = matches!(kind, Kind::Hello | Kind::Welcome | Kind::Record | Kind::Refuse);
        // The offer of these is read, and written as this node's.
        let offer = matches!(kind, Kind::Attach | Kind::Attached);
        if !control && !offer {
            // Fixed layouts have one form only.
            prop_assert_eq!(head(message), bytes);
        }
    }
}

#[test]
fn every_flipped_bit_of_a_write_is_noticed() {
    let good = frame(&super::samples::write());
    for place in 0..good.len() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[place] ^= 1 << bit;
            assert!(is_refused(Kind::Write, &bytes), "byte {place}, bit {bit}");
        }
    }
}

#[test]
fn a_wrong_length_is_noticed_before_anything_is_waited_for() {
    let mut bytes = head(&super::samples::write());
    bytes.truncate(HEADER_BYTES);
    bytes[13] ^= 1;
    assert!(is_refused(Kind::Write, &bytes));
}

#[test]
fn the_largest_frames_fit_and_one_more_entry_does_not() {
    let range = super::samples::at(0, 0, 4096);
    let largest = |more: usize| -> [Message<Data>; 5] {
        let count = MAX_MAP_RANGES + more;
        let regions = Regions {
            ranges: (0..count as u64)
                .map(|at| ByteRange::between(2 * at, 2 * at + 1))
                .collect(),
            end: u64::MAX,
        };
        [
            Message::Map {
                number: 1,
                map: Map {
                    holes: regions.clone(),
                    lacking: regions,
                },
            },
            Message::Ranges {
                of: RangesOf::Window,
                ranges: vec![range; MAX_RANGES + more],
            },
            Message::Touch {
                seq: Seq(1),
                ranges: vec![range; MAX_RANGES + more],
            },
            Message::Acks {
                seqs: vec![Seq(u64::MAX); MAX_ACKS + more],
            },
            Message::HashReply {
                id: 1,
                hashes: Some(vec![BlockHash(u128::MAX); MAX_HASHES + more]),
            },
        ]
    };
    let mut record = Record {
        sizes: vec![i64::MAX.unsigned_abs(); MAX_VOLUMES],
        in_sync: (0..NodeId::LIMIT)
            .map(|id| Member {
                node: node(id),
                disk: DiskId(u128::MAX),
                incarnation: Incarnation(u64::MAX),
            })
            .collect(),
        generation: Generation(u64::MAX),
        epoch: Epoch(u64::MAX),
        history: HistoryId(u128::MAX),
        primary: Some(node(31)),
        replicas: NodeSet(u32::MAX),
        min_redundancy: 32,
        ..super::samples::record()
    };
    let hello = |record: &Record| Message::Hello {
        node: node(31),
        to: node(30),
        session: SessionId(u64::MAX),
        record: record.clone(),
    };
    for message in largest(0).into_iter().chain([hello(&record)]) {
        let mut stream = Stream::new(decoder_for(kind_of(&message)));
        let bytes = frame(&message);
        assert!(bytes.len() <= HEADER_BYTES + MAX_BODY_BYTES);
        assert_eq!(stream.feed(&bytes).map(|got| got.len()), Ok(1));
    }
    record.sizes.push(1);
    for message in largest(1).into_iter().chain([hello(&record)]) {
        let mut out = vec![7];
        assert!(encode(&CONTEXT, &message, None, &mut out).is_err());
        assert_eq!(out, [7], "a refused message leaves nothing behind");
    }
}

#[test]
fn a_checksum_in_parts_is_that_of_the_whole() {
    let parts = PayloadCrc::EMPTY.then(b"pay").then(b"").then(b"load!");
    assert_eq!(parts, PayloadCrc::of(b"payload!"));
}
