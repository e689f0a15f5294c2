use super::*;
use vocabulary::{ByteRange, NodeId, VolumeId};

const ERA: Epoch = Epoch(5);
const S: u64 = 0x40 | 2;

fn at(from: u64, to: u64) -> VolumeRange {
    VolumeRange {
        volume: VolumeId(0),
        range: ByteRange::between(from * 4096, to * 4096),
    }
}

fn mark(session: u64, number: u64, released: u64) -> ClientMark {
    ClientMark {
        session,
        number,
        released,
    }
}

fn entry(number: u64, blocks: VolumeRange) -> NumberEntry {
    NumberEntry {
        mark: mark(S, number, 1),
        at: blocks,
        torn: false,
    }
}

/// A replica that holds number 1, in blocks 0 and 1, and has just met a primary that holds 2, in
/// blocks 2 and 3.
fn met() -> Sessions {
    let mut table = Sessions::default();
    table.begin(ERA);
    table.seen(S);
    table.wrote(mark(S, 1, 1), at(0, 2));
    table.meet();
    table.told(ERA, &[entry(2, at(2, 4))]);
    table
}

#[test]
fn a_number_is_known_until_it_is_released() {
    let mut table = Sessions::default();
    table.begin(ERA);
    table.seen(S);
    table.wrote(mark(S, 7, 4), at(0, 1));
    assert_eq!(table.applied(S, 7), Applied::Yes);
    assert_eq!(table.applied(S, 6), Applied::No);
    table.wrote(mark(S, 9, 8), at(0, 1));
    assert_eq!(table.applied(S, 7), Applied::No);
    assert_eq!(table.applied(S, 9), Applied::Yes);
    table.release(S, 10);
    assert_eq!(table.all().count(), 0);
}

#[test]
fn a_node_has_one_session() {
    let node = NodeId::new(2).unwrap();
    let (first, second) = (session_id(0, node), session_id(64, node));
    assert_ne!(first, second);
    let mut table = Sessions::default();
    table.begin(ERA);
    table.seen(first);
    table.wrote(mark(first, 1, 1), at(0, 1));
    table.seen(second);
    assert_eq!(table.applied(first, 1), Applied::No);
    // What the old one had under way ends and is not kept.
    table.wrote(mark(first, 2, 1), at(0, 1));
    table.wrote(mark(second, 1, 1), at(0, 1));
    assert_eq!(table.applied(first, 2), Applied::No);
    assert_eq!(table.applied(second, 1), Applied::Yes);
}

#[test]
fn what_only_one_side_holds_is_what_the_bytes_say_until_all_is_settled() {
    // Promoted before anything was copied: its own bytes.
    let mut table = met();
    table.begin(Epoch(9));
    assert_eq!(table.applied(S, 1), Applied::Yes);
    assert_eq!(table.applied(S, 2), Applied::No);
    assert_eq!(table.era(), Some(ERA));
    // After everything was: the primary's.
    let mut table = met();
    table.wrote(ClientMark::default(), at(0, 4));
    assert_eq!(table.applied(S, 1), Applied::No);
    assert_eq!(table.applied(S, 2), Applied::Yes);
    // In between: neither.
    let mut table = met();
    table.wrote(ClientMark::default(), at(1, 3));
    table.begin(Epoch(9));
    assert_eq!(table.applied(S, 1), Applied::Torn);
    assert_eq!(table.applied(S, 2), Applied::Torn);
    // Settled: the primary's, whether or not bytes had to be copied.
    let mut table = met();
    table.settled();
    assert_eq!(table.applied(S, 1), Applied::No);
    assert_eq!(table.applied(S, 2), Applied::Yes);
}

#[test]
fn a_table_that_was_lost_begins_another_era() {
    let mut restarted = Sessions::default();
    restarted.meet();
    restarted.told(ERA, &[entry(2, at(2, 4))]);
    // Promoted before it was settled: it knows nothing.
    let mut promoted = restarted.clone();
    promoted.begin(Epoch(9));
    assert_eq!(promoted.era(), Some(Epoch(9)));
    assert_eq!(promoted.all().count(), 0);
    restarted.settled();
    restarted.begin(Epoch(9));
    assert_eq!(restarted.era(), Some(ERA));
    assert_eq!(restarted.applied(S, 2), Applied::Yes);
}

#[test]
fn a_primary_of_another_era_may_bring_bytes_whose_numbers_nobody_knows() {
    let mut table = met();
    table.meet();
    table.told(Epoch(8), &[]);
    table.begin(Epoch(9));
    assert_eq!(table.era(), Some(Epoch(9)));
}

#[test]
fn no_number_makes_the_table_grow_beyond_its_bound() {
    let mut table = Sessions::default();
    table.begin(ERA);
    table.seen(S);
    table.wrote(mark(S, MAX_SPAN * 2, 0), at(0, 1));
    table.wrote(mark(S, u64::MAX, 0), at(0, 1));
    assert_eq!(table.all().count(), 0);
    table.wrote(mark(S, u64::MAX, u64::MAX - 5), at(0, 1));
    assert_eq!(table.all().count(), 1);
}
