//! Clients' questions about ranges: every node gives the primary's answer, and there always is one.

use super::*;
use crate::core::map::{MAX_LOOKS, MAX_QUESTIONS};
use crate::core::message::VolumeRange;

impl Sparse {
    /// Blocks that are not there, or zero.
    pub(super) fn holes(&self, range: ByteRange) -> Regions {
        let mut set = block_set::BlockSet::default();
        set.insert(range);
        for (block, _) in self.0.iter().filter(|(_, b)| b.iter().any(|b| *b != 0)) {
            set.remove(ByteRange::between(block * 4096, (block + 1) * 4096));
        }
        let ranges = set
            .ranges()
            .filter_map(|run| run.intersection(range))
            .collect();
        let end = range.end();
        Regions { ranges, end }
    }
}

fn follow(session: u64) -> Event<Bytes> {
    let errors = false;
    Event::Access(Access::Follow { session, errors })
}

/// Nodes that follow; node 0 is primary.
fn cluster(count: usize) -> Cluster {
    let mut c = Cluster::new(count);
    for node in 0..count {
        c.event(node, follow(64 << node));
    }
    c.promote(0);
    c
}

fn question(range: ByteRange) -> MapQuestion {
    let volume = VolumeId(0);
    MapQuestion {
        at: VolumeRange { volume, range },
        holes: true,
        lacking: true,
    }
}

fn ask(c: &mut Cluster, node: usize, range: ByteRange) -> u64 {
    let id = c.next_id;
    c.next_id += 1;
    let event = Event::AskMap {
        id: RequestId(id),
        question: question(range),
    };
    c.event(node, event);
    id
}

fn whole() -> ByteRange {
    ByteRange::between(0, SIZE)
}

/// The whole volume's map at once.
fn map(c: &mut Cluster, node: usize) -> Map {
    let id = ask(c, node, whole());
    c.run_ms(50);
    c.maps.remove(&id).expect("an answer")
}

fn holes(of: &[(u64, u64)]) -> Regions {
    Regions {
        ranges: of
            .iter()
            .map(|(from, to)| ByteRange::between(*from, *to))
            .collect(),
        end: SIZE,
    }
}

const LIMIT: u64 = 5_000;

#[test]
fn every_node_gives_the_primarys_map() {
    let mut c = cluster(3);
    assert_eq!(Settings::default().no_primary_ms, LIMIT);
    // The first question makes the link.
    assert_eq!(map(&mut c, 1).holes, holes(&[(0, SIZE)]));
    c.write(2, 1 << 20, 7, 8192);
    c.run_ms(3_000);
    let written = holes(&[(0, 1 << 20), ((1 << 20) + 8192, SIZE)]);
    // What a follower's own store holds is not looked at.
    c.nodes[1].data.write(0, &[9; 4096]);
    c.kill(2);
    c.run_ms(3_000);
    c.write(0, 4 << 20, 0, 4096);
    for node in 0..2 {
        let map = map(&mut c, node);
        assert_eq!(map.holes, written, "node {node}");
        let lacking = holes(&[(4 << 20, (4 << 20) + 4096)]);
        assert_eq!(map.lacking, lacking, "node {node}");
    }
    // A part is told of the part, and only what was asked for.
    for node in 0..2 {
        let id = c.next_id;
        c.next_id += 1;
        let mut question = question(ByteRange::between(5_000, 1_000_000));
        question.lacking = false;
        let id_ = RequestId(id);
        c.event(node, Event::AskMap { id: id_, question });
        let map = c.maps.remove(&id).expect("an answer");
        let range = question.at.range;
        assert_eq!(
            (&map.holes.ranges[..], map.holes.end),
            (&[range][..], 1_000_000)
        );
        assert_eq!(map.lacking, Map::unknown(range).lacking);
    }
}

#[test]
fn without_follow_access_a_secondary_knows_nothing_and_says_so_at_once() {
    let mut c = Cluster::new(2);
    c.promote(0);
    let id = ask(&mut c, 1, whole());
    assert_eq!(c.maps[&id], Map::unknown(whole()));
    let id = ask(&mut c, 0, whole());
    assert_eq!(c.maps[&id].holes, holes(&[(0, SIZE)]));
}

#[test]
fn what_a_dead_primary_was_asked_the_next_one_answers() {
    let mut c = cluster(3);
    c.write(0, 0, 7, 4096);
    map(&mut c, 1);
    c.hold_looks = true;
    let asked = ask(&mut c, 1, whole());
    assert_eq!(c.looks.len(), 1);
    c.kill(0);
    let meanwhile = ask(&mut c, 1, whole());
    c.run_ms(1_000);
    assert!(!c.maps.contains_key(&asked) && !c.maps.contains_key(&meanwhile));
    c.hold_looks = false;
    c.promote(2);
    c.run_ms(1_000);
    for id in [asked, meanwhile] {
        assert_eq!(c.maps[&id].holes, holes(&[(4096, SIZE)]));
    }
}

#[test]
fn a_node_that_becomes_primary_answers_itself_and_one_that_was_asks_the_next() {
    let mut c = cluster(2);
    map(&mut c, 1);
    c.hold_looks = true;
    let (here, there) = (ask(&mut c, 0, whole()), ask(&mut c, 1, whole()));
    assert_eq!(c.looks.len(), 2);
    c.command(0, Command::Demote { to: None });
    c.run_ms(1_000);
    let looks = std::mem::take(&mut c.looks);
    for (node, looked) in looks {
        c.event(node, looked);
    }
    assert!(c.maps.is_empty(), "what was seen no more counts");
    c.hold_looks = false;
    c.promote(1);
    c.write(1, 0, 7, 4096);
    c.run_ms(1_000);
    assert_eq!(c.maps[&there].holes.end, SIZE);
    assert_eq!(c.maps[&here].holes.end, SIZE);
    assert_ne!(c.maps[&here], Map::unknown(whole()));
}

#[test]
fn without_a_primary_it_waits_as_long_as_a_fail_over_takes_and_then_all_is_data() {
    let mut c = cluster(3);
    c.kill(0);
    let first = ask(&mut c, 1, whole());
    c.run_ms(LIMIT - 200);
    assert!(!c.maps.contains_key(&first));
    c.run_ms(400);
    assert_eq!(c.maps[&first], Map::unknown(whole()));
    // The next ones don't wait again.
    let next = ask(&mut c, 1, whole());
    c.run_ms(100);
    assert_eq!(c.maps[&next], Map::unknown(whole()));
    c.promote(2);
    ask(&mut c, 1, whole());
    c.run_ms(1_000);
    assert_eq!(map(&mut c, 1).holes, holes(&[(0, SIZE)]));
}

#[test]
fn a_primary_without_a_lease_or_with_a_store_that_does_not_answer_costs_nobody_more_than_that() {
    let mut c = cluster(2);
    map(&mut c, 1);
    c.beacons = false;
    c.now = c.now.plus_ms(Settings::default().lease_ms);
    let waits = [ask(&mut c, 0, whole()), ask(&mut c, 1, whole())];
    c.run_ms(200);
    assert!(c.maps.is_empty());
    c.beacons = true;
    c.run_ms(200);
    assert!(
        waits
            .iter()
            .all(|id| c.maps[id].holes == holes(&[(0, SIZE)]))
    );
    c.hold_looks = true;
    let stuck = [ask(&mut c, 0, whole()), ask(&mut c, 1, whole())];
    c.run_ms(LIMIT + 200);
    assert!(stuck.iter().all(|id| c.maps[id] == Map::unknown(whole())));
    // What comes after that is not told again.
    let late = std::mem::take(&mut c.looks);
    for (node, looked) in late {
        c.event(node, looked);
    }
    c.hold_looks = false;
    c.run_ms(100);
    for node in 0..2 {
        assert_eq!(map(&mut c, node).holes, holes(&[(0, SIZE)]), "node {node}");
    }
}

#[test]
fn lost_answers_end_as_all_is_data() {
    let mut c = cluster(2);
    map(&mut c, 1);
    c.lose_answers = true;
    let id = ask(&mut c, 1, whole());
    c.run_ms(LIMIT + 200);
    assert_eq!(c.maps[&id], Map::unknown(whole()));
    c.lose_answers = false;
    assert_eq!(map(&mut c, 1).holes, holes(&[(0, SIZE)]));
}

#[test]
fn any_number_of_questions_is_answered_and_only_so_many_are_under_way() {
    let mut c = cluster(2);
    map(&mut c, 1);
    c.hold_looks = true;
    c.questions = 0;
    let asked: Vec<u64> = (0..1_000)
        .map(|at| ask(&mut c, 1, ByteRange::between(at * 4096, SIZE)))
        .collect();
    assert_eq!(c.questions, MAX_QUESTIONS);
    let here: Vec<u64> = (0..1_000).map(|_| ask(&mut c, 0, whole())).collect();
    assert_eq!(c.looks.len(), MAX_LOOKS);
    while !c.looks.is_empty() {
        let (node, looked) = c.looks.swap_remove(0);
        c.event(node, looked);
        assert!(c.looks.len() <= MAX_LOOKS);
    }
    for id in here.iter().chain(&asked) {
        assert_ne!(c.maps[id].holes.ranges, []);
    }
}

/// The connection on which node 1 asks node 0.
fn link(c: &Cluster) -> ConnId {
    let mut links = c.conns.iter().filter(|(_, ends)| **ends == (1, 0));
    *links.next_back().expect("a link").0
}

fn from(c: &mut Cluster, to: usize, conn: ConnId, message: Message<Bytes>) {
    let generation = c.record.generation;
    let event = Event::Message {
        conn,
        generation,
        message,
    };
    c.event(to, event);
}

#[test]
fn a_node_that_asks_too_much_or_was_not_let_in_is_not_heard() {
    let mut c = cluster(2);
    map(&mut c, 1);
    c.hold_looks = true;
    let conn = link(&c);
    let question = question(whole());
    for number in 0..MAX_QUESTIONS as u64 {
        from(&mut c, 0, conn, Message::AskMap { number, question });
    }
    assert!(c.conns.contains_key(&conn));
    from(
        &mut c,
        0,
        conn,
        Message::AskMap {
            number: 99,
            question,
        },
    );
    assert!(!c.conns.contains_key(&conn), "one too many");
    let stranger = ConnId(10_000);
    c.conns.insert(stranger, (1, 0));
    from(
        &mut c,
        0,
        stranger,
        Message::AskMap {
            number: 1,
            question,
        },
    );
    assert!(!c.conns.contains_key(&stranger));
    // Of a volume that there is not, or beyond its end, nothing is known.
    c.hold_looks = false;
    for (node, looked) in std::mem::take(&mut c.looks) {
        c.event(node, looked);
    }
    let range = ByteRange::between(SIZE, SIZE + 4096);
    let id = ask(&mut c, 0, range);
    assert_eq!(c.maps[&id], Map::unknown(range));
}

#[test]
fn an_answer_that_makes_no_sense_ends_the_link_and_is_not_believed() {
    let mut c = cluster(2);
    map(&mut c, 1);
    c.hold_looks = true;
    let id = ask(&mut c, 1, ByteRange::between(0, 8192));
    let conn = link(&c);
    let number = 2;
    let beyond = Map::unknown(ByteRange::between(0, 16_384));
    from(
        &mut c,
        1,
        conn,
        Message::Map {
            number,
            map: beyond,
        },
    );
    assert_eq!(c.maps[&id], Map::unknown(ByteRange::between(0, 8192)));
    assert!(!c.conns.contains_key(&conn));
    c.hold_looks = false;
    c.run_ms(1_000);
    assert_eq!(map(&mut c, 1).holes, holes(&[(0, SIZE)]));
    let conn = link(&c);
    let nobody_asked = Map::unknown(whole());
    let (number, map) = (77, nobody_asked);
    from(&mut c, 1, conn, Message::Map { number, map });
    assert!(!c.conns.contains_key(&conn));
}
