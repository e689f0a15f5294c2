//! What clients may be told of ranges: where the store's word counts, and what other replicas lack.

use super::*;

fn whole() -> ByteRange {
    ByteRange::between(0, SIZE)
}

fn unsettled(c: &Cluster, node: usize) -> Option<Vec<ByteRange>> {
    let core = c.nodes[node].core.as_ref()?;
    let regions = core.unsettled(c.now, VolumeId(0), whole())?;
    assert_eq!(regions.end, SIZE);
    Some(regions.ranges)
}

fn lacking(c: &Cluster, node: usize) -> Option<Vec<ByteRange>> {
    let core = c.nodes[node].core.as_ref()?;
    let regions = core.out_of_sync(VolumeId(0), whole())?;
    assert_eq!(regions.end, SIZE);
    Some(regions.ranges)
}

#[test]
fn only_a_primary_with_a_lease_vouches_for_its_store() {
    let mut c = Cluster::new(3);
    assert_eq!(unsettled(&c, 0), None, "nobody is primary");
    c.promote(0);
    c.run_ms(100);
    assert_eq!(unsettled(&c, 0), Some(vec![]));
    assert_eq!(
        unsettled(&c, 1),
        None,
        "a secondary may have been evicted without knowing"
    );
    c.beacons = false;
    c.now = c.now.plus_ms(Settings::default().lease_ms);
    assert_eq!(unsettled(&c, 0), None, "another may be primary by now");
    c.beacons = true;
    c.run_ms(100);
    assert_eq!(unsettled(&c, 0), Some(vec![]));
    c.nodes[0].fail_writes = true;
    c.write(0, 0, 1, 4096);
    assert_eq!(unsettled(&c, 0), None, "the disk has failed");
}

#[test]
fn what_is_being_written_or_zeroed_is_unsettled_until_every_replica_has_it() {
    let mut c = Cluster::new(2);
    c.promote(0);
    c.run_ms(100);
    // Node 1 takes nothing in.
    let core = c.nodes[1].core.take();
    let zero = ClientRequest::Zero {
        range: ByteRange::between(5000, 20_000),
        hole: true,
        fua: false,
        fast: false,
    };
    let request = Event::Client {
        id: RequestId(7),
        volume: VolumeId(0),
        request: zero,
    };
    c.event(0, request);
    assert!(!c.replies.contains_key(&7));
    assert_eq!(
        unsettled(&c, 0),
        Some(vec![ByteRange::between(4096, 20_480)])
    );
    c.nodes[1].core = core;
    c.kill(1);
    c.run_ms(3000);
    assert_eq!(
        c.replies.get(&7).map(Result::is_ok),
        Some(true),
        "node 1 was evicted"
    );
    assert_eq!(unsettled(&c, 0), Some(vec![]));
}

#[test]
fn what_an_absent_replica_lacks_is_told_block_by_block() {
    let mut c = Cluster::new(3);
    c.promote(0);
    c.run_ms(100);
    assert_eq!(lacking(&c, 0), Some(vec![]));
    assert_eq!(lacking(&c, 1), None, "only the primary knows");
    c.kill(2);
    c.run_ms(3000);
    c.write(0, 10_000, 1, 10);
    c.write(0, 40 << 20, 1, 8192);
    let written = vec![
        ByteRange::between(8192, 12_288),
        ByteRange::between(40 << 20, (40 << 20) + 8192),
    ];
    assert_eq!(lacking(&c, 0), Some(written.clone()), "in the window");
    c.run_ms(3000);
    assert_eq!(lacking(&c, 0), Some(written), "in the bitmap");
    let core = c.nodes[0].core.as_ref().unwrap();
    let part = ByteRange::between(9000, 30_000);
    let regions = core.out_of_sync(VolumeId(0), part).unwrap();
    assert_eq!(
        regions.ranges,
        [ByteRange::between(9000, 12_288)],
        "cut to what was asked"
    );
    c.start(2);
    c.run_ms(5000);
    assert_eq!(lacking(&c, 0), Some(vec![]), "it has caught up");
}

#[test]
fn more_regions_than_an_answer_holds_end_it_early() {
    let mut c = Cluster::new(2);
    c.promote(0);
    c.run_ms(100);
    c.kill(1);
    c.run_ms(3000);
    for block in 0..5000 {
        c.write(0, block * 8192, 1, 4096);
        if block % 1000 == 0 {
            c.run_ms(1000);
        }
    }
    c.run_ms(3000);
    let core = c.nodes[0].core.as_ref().unwrap();
    let first = core.out_of_sync(VolumeId(0), whole()).unwrap();
    assert_eq!((first.ranges.len(), first.end), (4096, 4096 * 8192));
    let rest = ByteRange::between(first.end, SIZE);
    let rest = core.out_of_sync(VolumeId(0), rest).unwrap();
    assert_eq!((rest.ranges.len(), rest.end), (5000 - 4096, SIZE));
}
