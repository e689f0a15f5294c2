use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::store::block::{BlockError, damaged, with_version};
use crate::store::layout::MetaCopy;

const DISK: DiskTag = DiskTag(0x1234_5678_9abc_def0);
const GENERATION: u64 = 3;

fn capacity(extents: u32) -> LogCapacity {
    LogCapacity::new(extents).unwrap()
}

/// Both copies of a ring.
#[derive(Clone)]
struct Disk([Vec<Block>; 2]);

impl Disk {
    fn new(capacity: LogCapacity) -> Self {
        let ring = vec![[0; 4096]; capacity.ring_blocks() as usize];
        Self([ring.clone(), ring])
    }

    fn write(&mut self, blocks: &[(u32, Block)]) {
        for (index, block) in blocks {
            for copy in &mut self.0 {
                copy[*index as usize] = *block;
            }
        }
    }

    fn repair(&mut self, repair: &Repair) {
        let copy = usize::from(repair.copy == MetaCopy::B);
        self.0[copy][repair.index as usize] = repair.block;
    }

    fn recover(&self, capacity: LogCapacity) -> Result<Recovered, Unusable> {
        recover(
            [&self.0[0], &self.0[1]],
            DISK,
            GENERATION,
            capacity,
            Time(0),
        )
    }

    fn hot(&self, capacity: LogCapacity) -> Result<BTreeSet<u32>, Unusable> {
        Ok(self.recover(capacity)?.log.hot_extents().collect())
    }
}

fn created(extents: u32) -> (ActivityLog, Disk) {
    let (log, blocks) = ActivityLog::create(DISK, GENERATION, capacity(extents));
    let mut disk = Disk::new(capacity(extents));
    disk.write(&blocks);
    (log, disk)
}

fn activate(log: &mut ActivityLog, disk: &mut Disk, extents: &[u32], now: Time) -> Vec<u32> {
    let transaction = log.begin(extents).unwrap().unwrap();
    disk.write(&transaction.blocks);
    let evicted = transaction.evicted.clone();
    log.commit(transaction, now);
    evicted
}

#[test]
fn golden_bytes() {
    let (mut log, _) = created(1000);
    let transaction = log.begin(&[0x0a0b_0c0d, 7]).unwrap().unwrap();
    let [(index, block)] = &transaction.blocks[..] else {
        panic!("one block")
    };
    assert_eq!(*index, 2);
    let hex = |range: std::ops::Range<usize>| -> String {
        block[range]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    };
    assert_eq!(&block[..8], b"LKSTEPAL");
    assert_eq!(
        hex(8..32),
        "3242995c01000000f0debc9a785634120200000000000000"
    );
    assert_eq!(
        hex(32..64),
        "0200000000000000030000000000000002000000000000000100020000009003"
    );
    assert_eq!(hex(64..80), "00000d0c0b0a01000700000000000000");
    assert!(block[80..448].iter().all(|byte| *byte == 0));
    assert_eq!(hex(448..464), "0d0c0b0a07000000ffffffffffffffff");
    assert!(block[456..].iter().all(|byte| *byte == 0xff));
    log.commit(transaction, Time(0));
    // The next block holds the rest of the table.
    let transaction = log.retire(Time(1), 1).unwrap();
    let (index, block) = &transaction.blocks[0];
    assert_eq!(*index, 3);
    assert_eq!(block[56..64], [1, 0, 1, 0, 0x90, 3, 88, 0]);
    assert_eq!(block[64..70], [0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert!(block[448..800].iter().all(|byte| *byte == 0xff));
    assert!(block[800..].iter().all(|byte| *byte == 0));
}

#[test]
fn the_largest_log_goes_round_in_72_blocks() {
    assert_eq!(LogCapacity::MAX.round_blocks(), 72);
    assert_eq!(MAX_RING_BLOCKS, 136);
    assert_eq!(LogCapacity::new(0), None);
    assert_eq!(LogCapacity::new(65535), None);
}

#[test]
fn an_extent_is_hot_only_once_its_transaction_is_committed() {
    let (mut log, _) = created(4);
    assert_eq!(log.pin(9), Pin::Cold);
    let transaction = log.begin(&[9]).unwrap().unwrap();
    assert_eq!(log.pin(9), Pin::Pending);
    assert!(!log.is_hot(9) && log.is_open());
    log.commit(transaction, Time(0));
    assert_eq!(log.pin(9), Pin::Hot);
}

#[test]
fn the_extent_that_was_idle_longest_makes_room_and_pinned_ones_never_do() {
    let (mut log, mut disk) = created(3);
    assert!(activate(&mut log, &mut disk, &[1, 2, 3], Time(0)).is_empty());
    for (extent, at) in [(2, 10), (1, 20)] {
        assert_eq!(log.pin(extent), Pin::Hot);
        log.unpin(extent, Time(at));
    }
    assert_eq!(log.pin(3), Pin::Hot);
    assert_eq!(activate(&mut log, &mut disk, &[4], Time(30)), [2]);
    assert_eq!(activate(&mut log, &mut disk, &[5], Time(40)), [1]);
    for extent in [4, 5] {
        assert_eq!(log.pin(extent), Pin::Hot);
    }
    assert_eq!(log.begin(&[6]), Err(Full { room: 0 }));
    log.unpin(4, Time(50));
    assert_eq!(log.begin(&[6, 7]), Err(Full { room: 1 }));
    assert_eq!(activate(&mut log, &mut disk, &[6], Time(60)), [4]);
    assert_eq!(disk.hot(capacity(3)), Ok(BTreeSet::from([3, 5, 6])));
}

#[test]
fn an_extent_on_its_way_out_is_cold_and_comes_back_by_another_transaction() {
    let (mut log, mut disk) = created(1);
    activate(&mut log, &mut disk, &[1], Time(0));
    let transaction = log.begin(&[2]).unwrap().unwrap();
    assert_eq!(transaction.evicted, [1]);
    assert_eq!(log.pin(1), Pin::Cold);
    log.commit(transaction, Time(1));
    assert_eq!(activate(&mut log, &mut disk, &[1], Time(2)), [2]);
}

#[test]
fn hot_and_repeated_extents_need_no_transaction() {
    let (mut log, mut disk) = created(8);
    activate(&mut log, &mut disk, &[1, 1, 2], Time(0));
    assert_eq!(log.hot_extents().count(), 2);
    assert_eq!(log.begin(&[2, 1, 2]), Ok(None));
    assert!(!log.is_open());
}

#[test]
fn only_extents_idle_for_long_enough_retire() {
    let (mut log, mut disk) = created(8);
    activate(&mut log, &mut disk, &[1, 2, 3, 4], Time(0));
    for (extent, at) in [(1, 10), (2, 20), (3, 30)] {
        log.pin(extent);
        log.unpin(extent, Time(at));
    }
    log.pin(4);
    assert_eq!(log.retire(Time(10), 9), None);
    let transaction = log.retire(Time(30), 9).unwrap();
    assert_eq!(transaction.evicted, [1, 2]);
    disk.write(&transaction.blocks);
    log.commit(transaction, Time(40));
    assert_eq!(disk.hot(capacity(8)), Ok(BTreeSet::from([3, 4])));
    assert_eq!(log.retire(Time(99), 0), None);
    let transaction = log.retire(Time(99), 9).unwrap();
    assert_eq!(transaction.evicted, [3]);
}

#[test]
fn a_large_transaction_takes_several_blocks_and_has_a_limit() {
    let (mut log, mut disk) = created(65534);
    let many: Vec<u32> = (0..5000).collect();
    assert_eq!(
        log.begin(&many),
        Err(Full {
            room: MAX_TRANSACTION_UPDATES
        })
    );
    activate(
        &mut log,
        &mut disk,
        &many[..MAX_TRANSACTION_UPDATES],
        Time(0),
    );
    let hot: BTreeSet<u32> = (0..4096).collect();
    assert_eq!(disk.hot(LogCapacity::MAX), Ok(hot));
    let transaction = log.retire(Time(1), 65).unwrap();
    assert_eq!(transaction.blocks.len(), 2);
}

#[test]
#[should_panic(expected = "one activity log transaction at a time")]
fn a_second_transaction_waits_for_the_first() {
    let (mut log, _) = created(4);
    let _open = log.begin(&[1]);
    let _ = log.begin(&[2]);
}

#[test]
#[should_panic(expected = "an unpin follows its pin")]
fn an_unpin_without_a_pin_is_noticed() {
    let (mut log, mut disk) = created(4);
    activate(&mut log, &mut disk, &[1], Time(0));
    log.unpin(1, Time(1));
}

#[test]
fn the_ring_alone_rebuilds_a_table_that_it_went_round_many_times() {
    let (mut log, mut disk) = created(2000);
    let mut now = 0;
    for round in 0..300u32 {
        let extents: Vec<u32> = (0..70).map(|i| (round * 37 + i * 101) % 5000).collect();
        now += 1;
        if let Some(transaction) = log.begin(&extents).unwrap() {
            disk.write(&transaction.blocks);
            log.commit(transaction, Time(now));
        }
    }
    let recovered = disk.recover(capacity(2000)).unwrap();
    assert!(recovered.repair.is_empty());
    let hot: BTreeSet<u32> = log.hot_extents().collect();
    assert_eq!(recovered.log.hot_extents().collect::<BTreeSet<_>>(), hot);
    assert_eq!(recovered.log.next_number, log.next_number);
}

#[test]
fn damage_to_one_copy_anywhere_loses_nothing_and_is_repaired() {
    let (mut log, mut disk) = created(4);
    for extent in 0..200 {
        activate(&mut log, &mut disk, &[extent], Time(extent.into()));
    }
    let hot: BTreeSet<u32> = log.hot_extents().collect();
    let good = disk.clone();
    for copy in 0..2 {
        let newest = (log.next_number - 1) % 65;
        for index in [newest as usize, (newest as usize + 64) % 65] {
            let block = good.0[copy][index];
            for damage in damaged(&[0xaa; 4096], &block).into_iter().step_by(7) {
                disk.0[copy][index] = damage;
                assert_eq!(disk.hot(capacity(4)), Ok(hot.clone()));
            }
            let recovered = disk.recover(capacity(4)).unwrap();
            for repair in &recovered.repair {
                disk.repair(repair);
            }
            if index == newest as usize {
                assert_eq!(recovered.repair.len(), 1);
                assert!(disk.0 == good.0);
            }
            disk = good.clone();
        }
    }
}

#[test]
fn a_hole_in_the_needed_history_makes_the_log_unusable() {
    let (mut log, mut disk) = created(2000);
    activate(&mut log, &mut disk, &[1], Time(0));
    activate(&mut log, &mut disk, &[2], Time(0));
    // Blocks 0 to 2 are the creation's, 3 and 4 the transactions; a round is three blocks.
    for copy in &mut disk.0 {
        copy[3][1000] ^= 1;
    }
    assert_eq!(
        disk.recover(capacity(2000)).unwrap_err(),
        Unusable::Hole { number: 3 }
    );
    let empty = Disk::new(capacity(2000));
    assert_eq!(empty.recover(capacity(2000)).unwrap_err(), Unusable::Empty);
    assert_eq!(
        recover([&[], &[]], DISK, GENERATION, capacity(5), Time(0)).unwrap_err(),
        Unusable::Empty
    );
}

#[test]
fn blocks_of_another_disk_place_or_generation_are_not_the_logs() {
    let (mut log, mut disk) = created(4);
    activate(&mut log, &mut disk, &[1], Time(0));
    let ring = [disk.0[0].as_slice(), disk.0[1].as_slice()];
    let try_as = |disk, generation| {
        recover(ring, disk, generation, capacity(4), Time(0))
            .map(|_| ())
            .unwrap_err()
    };
    assert_eq!(try_as(DiskTag(5), GENERATION), Unusable::Empty);
    assert_eq!(try_as(DISK, GENERATION + 1), Unusable::Empty);
    let mut moved = disk.clone();
    for copy in &mut moved.0 {
        copy.swap(0, 1);
    }
    assert_eq!(moved.recover(capacity(4)).unwrap_err(), Unusable::Empty);
    let block = disk.0[0][1];
    disk.0[0][1] = with_version(block, 2);
    assert_eq!(
        disk.recover(capacity(4)).unwrap_err(),
        Unusable::NewerVersion { found: 2, known: 1 }
    );
}

#[test]
fn every_torn_block_is_recognised() {
    let (mut log, mut disk) = created(4);
    activate(&mut log, &mut disk, &[1], Time(0));
    let old = disk.0[0][1];
    for _ in 0..65 {
        let next = log.hot_extents().max().unwrap() + 1;
        activate(&mut log, &mut disk, &[next], Time(0));
    }
    let new = disk.0[0][1];
    assert_ne!(old, new);
    for block in damaged(&old, &new)
        .into_iter()
        .chain(damaged(&[0; 4096], &new))
    {
        let opened = crate::store::block::open(&block, crate::store::BlockKind::ActivityLog);
        assert!(matches!(
            opened.unwrap_err(),
            BlockError::BadChecksum { .. } | BlockError::Foreign { .. }
        ));
    }
}

/// What a crash leaves of a block that was being written.
#[derive(Clone, Copy, Debug)]
enum Left {
    Old,
    New,
    Torn(usize),
}

fn left() -> impl Strategy<Value = Left> {
    prop_oneof![
        Just(Left::Old),
        Just(Left::New),
        (1..8usize).prop_map(Left::Torn)
    ]
}

fn crash_in(disk: &mut Disk, writes: &[(usize, u32, Block)], left: &[Left]) {
    for ((copy, index, block), left) in writes.iter().zip(left.iter().cycle()) {
        let place = &mut disk.0[*copy][*index as usize];
        match left {
            Left::Old => {}
            Left::New => *place = *block,
            Left::Torn(sectors) => {
                place[..sectors * 512].copy_from_slice(&block[..sectors * 512]);
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Begin(Vec<u32>),
    Unpin(usize),
    Retire(u64, usize),
    Crash { lefts: Vec<Left>, repair: Vec<Left> },
}

fn step() -> impl Strategy<Value = Step> {
    let extents = prop_oneof![
        8 => proptest::collection::vec(0..60u32, 1..12),
        1 => (0..2000u32).prop_map(|start| (start..start + 150).collect()),
    ];
    prop_oneof![
        6 => extents.prop_map(Step::Begin),
        6 => any::<usize>().prop_map(Step::Unpin),
        2 => (0..40u64, 0..90usize).prop_map(|(age, max)| Step::Retire(age, max)),
        2 => (
            proptest::collection::vec(left(), 1..9),
            proptest::collection::vec(left(), 1..9)
        ).prop_map(|(lefts, repair)| Step::Crash { lefts, repair }),
    ]
}

/// The log against a model: whatever is written when the power fails, and however often it fails
/// again during the repair, each extent that was committed hot and not put into a transaction that
/// takes it out is found hot again.
fn run(extents: u32, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let capacity = capacity(extents);
    let (mut log, mut disk) = created(extents);
    let mut hot = BTreeSet::new();
    let mut pins: BTreeMap<u32, u32> = BTreeMap::new();
    let mut steps = steps.into_iter().peekable();
    let mut now = 0;
    while let Some(step) = steps.next() {
        now += 1;
        let transaction = match step {
            Step::Begin(cold) => log.begin(&cold).unwrap_or_else(|full| {
                log.begin(&cold[..full.room])
                    .expect("there is room for so many")
            }),
            Step::Retire(age, max) => log.retire(Time(now - now.min(age)), max),
            Step::Unpin(which) => {
                if let Some(extent) = pins.keys().nth(which % pins.len().max(1)).copied() {
                    log.unpin(extent, Time(now));
                    let left = pins.get_mut(&extent).unwrap();
                    *left -= 1;
                    if *left == 0 {
                        pins.remove(&extent);
                    }
                }
                continue;
            }
            Step::Crash { repair, .. } => {
                // With nothing open nothing may be lost or gained.
                (log, hot) = restart(&mut disk, capacity, &repair, &hot, &BTreeSet::new())?;
                pins.clear();
                continue;
            }
        };
        let Some(transaction) = transaction else {
            continue;
        };
        let evicted: BTreeSet<u32> = transaction.evicted.iter().copied().collect();
        prop_assert!(evicted.is_subset(&hot));
        prop_assert!(evicted.iter().all(|extent| !pins.contains_key(extent)));
        hot = hot.difference(&evicted).copied().collect();
        let activated: BTreeSet<u32> = transaction.activated.iter().copied().collect();
        if let Some(Step::Crash { lefts, repair }) =
            steps.next_if(|s| matches!(s, Step::Crash { .. }))
        {
            let writes: Vec<_> = (0..2)
                .flat_map(|copy| transaction.blocks.iter().map(move |(i, b)| (copy, *i, *b)))
                .collect();
            crash_in(&mut disk, &writes, &lefts);
            let open = activated.union(&evicted).copied().collect();
            (log, hot) = restart(&mut disk, capacity, &repair, &hot, &open)?;
            pins.clear();
            continue;
        }
        disk.write(&transaction.blocks);
        log.commit(transaction, Time(now));
        for extent in &activated {
            prop_assert_eq!(log.pin(*extent), Pin::Hot);
            *pins.entry(*extent).or_default() += 1;
        }
        hot.extend(activated);
        prop_assert_eq!(&log.hot_extents().collect::<BTreeSet<_>>(), &hot);
        let room = (extents as usize).saturating_sub(pins.len());
        prop_assert_eq!(log.table.room(), room);
    }
    Ok(())
}

/// Recovers, is cut off in the repair, recovers again. Everything in `hot` has to be there, and
/// nothing but that and what the open transaction was about.
fn restart(
    disk: &mut Disk,
    capacity: LogCapacity,
    cut: &[Left],
    hot: &BTreeSet<u32>,
    open: &BTreeSet<u32>,
) -> Result<(ActivityLog, BTreeSet<u32>), TestCaseError> {
    for attempt in 0..3 {
        let recovered = disk
            .recover(capacity)
            .map_err(|error| TestCaseError::fail(error.to_string()))?;
        let found: BTreeSet<u32> = recovered.log.hot_extents().collect();
        prop_assert!(hot.is_subset(&found), "lost {:?}", hot.difference(&found));
        prop_assert!(found.difference(hot).all(|extent| open.contains(extent)));
        if attempt < 2 {
            let writes: Vec<_> = recovered
                .repair
                .iter()
                .map(|repair| {
                    (
                        usize::from(repair.copy == MetaCopy::B),
                        repair.index,
                        repair.block,
                    )
                })
                .collect();
            crash_in(disk, &writes, cut);
            continue;
        }
        for repair in &recovered.repair {
            disk.repair(repair);
        }
        let again = disk
            .recover(capacity)
            .map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert!(again.repair.is_empty());
        prop_assert_eq!(&again.log.hot_extents().collect::<BTreeSet<_>>(), &found);
        return Ok((recovered.log, found));
    }
    unreachable!("the last attempt returns")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_was_committed_hot_and_not_taken_out_survives_any_crash(
        extents in prop_oneof![1..20u32, Just(1000), Just(2000)],
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        run(extents, steps)?;
    }

    #[test]
    fn no_bytes_make_recovery_panic(
        patches in proptest::collection::vec((0..2usize, 0..65usize, 0..600usize, any::<u64>()), 0..80),
    ) {
        let (mut log, mut disk) = created(6);
        for extent in 0..70 {
            activate(&mut log, &mut disk, &[extent], Time(0));
        }
        for (copy, index, at, value) in patches {
            let block = &mut disk.0[copy][index];
            block[at..at + 8].copy_from_slice(&value.to_le_bytes());
            crate::store::block::seal(block);
        }
        if let Ok(recovered) = disk.recover(capacity(6)) {
            let hot: Vec<u32> = recovered.log.hot_extents().collect();
            prop_assert_eq!(hot.iter().collect::<BTreeSet<_>>().len(), hot.len());
            let mut log = recovered.log;
            prop_assert!(log.begin(&[1, 2, 3]).is_ok());
        }
    }
}
