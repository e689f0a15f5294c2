//! Writes of zeroes that shall be fast or not happen.

use super::*;

/// Nodes that follow, of which some write their zeroes; node 0 is primary.
fn cluster(count: usize, slow: &[usize]) -> Cluster {
    let mut c = Cluster::new(count);
    for node in 0..count {
        let (session, errors) = (64 << node, false);
        c.event(node, Event::Access(Access::Follow { session, errors }));
        let fast = match slow.contains(&node) {
            true => FastZeroes::default(),
            false => FastZeroes::ALL,
        };
        c.event(node, Event::FastZeroes(fast));
    }
    c.promote(0);
    c
}

fn zero(c: &mut Cluster, node: usize, range: (u64, u64), hole: bool, fast: bool) -> u64 {
    let range = ByteRange::between(range.0, range.1);
    let fua = false;
    let request = ClientRequest::Zero {
        range,
        hole,
        fua,
        fast,
    };
    let id = c.request(node, request);
    c.run_ms(100);
    id
}

fn is_refused(c: &Cluster, id: u64) -> bool {
    matches!(c.replies[&id], Err(ClientError::NotFast))
}

#[test]
fn where_every_replica_is_fast_it_is_done_from_every_node() {
    let mut c = cluster(3, &[]);
    for node in 0..3 {
        for hole in [false, true] {
            c.write(node, 0, 7, 8192);
            let id = zero(&mut c, node, (100, 8000), hole, true);
            assert!(c.ok(id), "node {node}");
            for replica in 0..3 {
                assert_eq!((c.byte(replica, 99), c.byte(replica, 100)), (7, 0));
            }
        }
    }
}

#[test]
fn one_slow_replica_has_it_refused_and_nothing_changed() {
    for slow in 0..3 {
        let mut c = cluster(3, &[slow]);
        for node in 0..3 {
            c.write(node, 0, 7, 8192);
            let fast = zero(&mut c, node, (0, 8192), true, true);
            assert!(is_refused(&c, fast), "{slow} is slow, {node} asks");
            assert!((0..3).all(|replica| c.byte(replica, 0) == 7));
            let plain = zero(&mut c, node, (0, 8192), true, false);
            assert!(c.ok(plain));
            assert!((0..3).all(|replica| c.byte(replica, 0) == 0));
        }
    }
}

#[test]
fn holes_and_what_stays_allocated_are_told_apart() {
    let mut c = cluster(2, &[]);
    let fast = FastZeroes {
        holes: true,
        allocated: false,
    };
    c.event(1, Event::FastZeroes(fast));
    for node in 0..2 {
        let id = zero(&mut c, node, (0, 4096), false, true);
        assert!(is_refused(&c, id));
        let id = zero(&mut c, node, (0, 4096), true, true);
        assert!(c.ok(id));
    }
}

#[test]
fn a_replica_that_becomes_slow_comes_back_or_is_lost_counts_as_it_is_now() {
    let mut c = cluster(3, &[]);
    let ask = |c: &mut Cluster| {
        let id = zero(c, 0, (0, 4096), true, true);
        !is_refused(c, id)
    };
    assert!(ask(&mut c));
    c.event(2, Event::FastZeroes(FastZeroes::default()));
    assert!(!ask(&mut c));
    c.kill(2);
    c.run_ms(3_000);
    assert_eq!(c.in_sync(), [0, 1]);
    assert!(ask(&mut c), "it gets nothing and need not");
    c.start(2);
    c.run_ms(5_000);
    assert!(!ask(&mut c), "it has not said that it is fast");
    c.event(2, Event::FastZeroes(FastZeroes::ALL));
    assert!(ask(&mut c));
    c.event(0, Event::FastZeroes(FastZeroes::default()));
    assert!(!ask(&mut c), "the primary's own");
}

#[test]
fn a_long_one_is_done_in_pieces_or_refused_as_a_whole() {
    // Pieces end at multiples of 32 MiB.
    const ENDS: [u64; 2] = [31 << 20, 33 << 20];
    for slow in [&[][..], &[1]] {
        for node in 0..2 {
            let mut c = cluster(2, slow);
            let touched = [ENDS[0], 32 << 20, ENDS[1] - 4096];
            for at in touched {
                c.write(node, at, 7, 4096);
            }
            let id = zero(&mut c, node, (ENDS[0], ENDS[1]), true, true);
            let left = if slow.is_empty() { 0 } else { 7 };
            assert_eq!(c.ok(id), slow.is_empty());
            assert_eq!(is_refused(&c, id), !slow.is_empty());
            for (at, replica) in touched.iter().flat_map(|at| [(*at, 0), (*at, 1)]) {
                assert_eq!(c.byte(replica, at), left, "{at} on {replica}, {node} asks");
            }
        }
    }
    // Without follow access the primary itself cuts it up.
    for slow in [&[][..], &[1]] {
        let mut c = cluster(2, slow);
        c.event(0, Event::Access(Access::Exclusive));
        for at in [ENDS[0], ENDS[1] - 4096] {
            c.write(0, at, 7, 4096);
        }
        let id = zero(&mut c, 0, (ENDS[0], ENDS[1]), true, true);
        let left = if slow.is_empty() { 0 } else { 7 };
        assert_eq!(is_refused(&c, id), !slow.is_empty());
        assert_eq!([c.byte(1, ENDS[0]), c.byte(0, ENDS[1] - 1)], [left; 2]);
    }
    // One that was begun is ended, whoever becomes slow meanwhile.
    let mut c = cluster(2, &[]);
    let core = c.nodes[1].core.take();
    let id = zero(&mut c, 0, (ENDS[0], ENDS[1]), true, true);
    assert!(!c.replies.contains_key(&id));
    c.nodes[1].core = core;
    c.event(0, Event::FastZeroes(FastZeroes::default()));
    c.kill(1);
    c.run_ms(3_000);
    assert!(c.ok(id));
}
