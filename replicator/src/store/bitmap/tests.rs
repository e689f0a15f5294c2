use std::collections::BTreeSet;

use proptest::prelude::*;
use vocabulary::{DiskId, NodeId};

use super::*;
use crate::store::block::{damaged, with_version};

const DISK: DiskTag = DiskTag(0x1234_5678_9abc_def0);
const PEER: DiskId = DiskId(0xd1);
const PAGE: u64 = PAGE_COVERS_BYTES;
const TIB: u64 = 1 << 40;

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::between(start, end)
}

fn peer(disk: DiskId, blank: Blank) -> PeerSlot {
    PeerSlot {
        node: NodeId::new(1).unwrap(),
        disk,
        blank,
        binding: 0x0b1d,
    }
}

fn bitmap(data_bytes: u64, blank: Blank) -> Bitmap {
    let mut bitmap = Bitmap::new(DISK, data_bytes);
    bitmap.open_slot(3, &peer(PEER, blank));
    bitmap
}

fn all_runs(bitmap: &Bitmap) -> Vec<ByteRange> {
    bitmap.runs(3, u64::MAX).collect()
}

fn allocated(bitmap: &Bitmap) -> usize {
    bitmap
        .slot(3)
        .pages
        .iter()
        .filter(|page| page.has_words())
        .count()
}

fn save_all(bitmap: &mut Bitmap) -> Vec<(u32, Block)> {
    let pages: Vec<(u8, u32)> = bitmap.unsaved_pages().collect();
    pages
        .into_iter()
        .map(|(slot, page)| {
            let block = bitmap.encode_page(slot, page).unwrap();
            bitmap.saved(slot, page);
            (page, block)
        })
        .collect()
}

#[test]
fn golden_bytes() {
    let mut bitmap = bitmap(3 * PAGE, Blank::Clear);
    bitmap.set(3, range(PAGE, PAGE + 1));
    bitmap.set(3, range(PAGE + 9 * 4096, PAGE + 12 * 4096));
    bitmap.set(3, range(2 * PAGE - 1, 2 * PAGE));
    let block = bitmap.encode_page(3, 1).unwrap();
    let hex = |range: std::ops::Range<usize>| -> String {
        block[range]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    };
    assert_eq!(&block[..8], b"LKSTEPBM");
    assert_eq!(
        hex(8..32),
        "157d3f3101000000f0debc9a785634120100000003000000"
    );
    assert_eq!(hex(32..44), "77dc7c48e258031405000000");
    assert_eq!(hex(44..56), "000000001d0b000000000000");
    assert!(block[56..128].iter().all(|byte| *byte == 0));
    assert_eq!(block[128..131], [0x01, 0x0e, 0x00]);
    assert!(block[131..4095].iter().all(|byte| *byte == 0));
    assert_eq!(block[4095], 0x80);
}

#[test]
fn marking_rounds_outwards_and_clearing_inwards() {
    let mut bitmap = bitmap(1 << 20, Blank::Clear);
    assert_eq!(bitmap.set(3, range(4095, 8193)), 3);
    assert_eq!(all_runs(&bitmap), [range(0, 12288)]);
    assert_eq!(bitmap.clear(3, range(1, 8192)), 1);
    assert_eq!(all_runs(&bitmap), [range(0, 4096), range(8192, 12288)]);
    assert_eq!(bitmap.clear(3, range(100, 4000)), 0);
    assert_eq!(bitmap.set(3, range(77, 77)), 0);
}

#[test]
fn a_last_partial_block_counts() {
    let mut bitmap = bitmap(10_000, Blank::Clear);
    bitmap.set(3, range(9999, 10_000));
    assert_eq!(bitmap.count_bytes(3), 10_000 - 8192);
    assert_eq!(all_runs(&bitmap), [range(8192, 10_000)]);
    assert_eq!(bitmap.clear(3, range(8192, 9999)), 0);
    assert_eq!(bitmap.clear(3, range(8192, 10_000)), 1);
    assert_eq!(bitmap.count_bytes(3), 0);
}

#[test]
fn memory_is_used_only_for_pages_with_both_kinds_of_bits() {
    let mut bitmap = bitmap(TIB, Blank::Clear);
    bitmap.set_all(3);
    assert_eq!((bitmap.count_bytes(3), allocated(&bitmap)), (TIB, 0));
    assert_eq!(all_runs(&bitmap), [range(0, TIB)]);
    bitmap.clear(3, range(PAGE + 4096, PAGE + 8192));
    assert_eq!(allocated(&bitmap), 1);
    bitmap.set(3, range(PAGE + 4096, PAGE + 8192));
    assert_eq!(allocated(&bitmap), 0);
    bitmap.clear_all(3);
    bitmap.set(3, range(0, 1));
    assert_eq!(allocated(&bitmap), 1);
    bitmap.clear(3, range(0, 4096));
    assert_eq!((bitmap.count_bytes(3), allocated(&bitmap)), (0, 0));
    assert!(std::mem::size_of::<Page>() <= 16);
}

#[test]
fn runs_go_across_pages_and_stop_at_the_length_asked_for() {
    let mut bitmap = bitmap(TIB, Blank::Clear);
    bitmap.set(3, range(PAGE - 4096, 3 * PAGE + 4096));
    assert_eq!(
        bitmap.next_dirty(3, 0, u64::MAX),
        Some(range(PAGE - 4096, 3 * PAGE + 4096))
    );
    assert_eq!(
        bitmap.next_dirty(3, 0, 10_000),
        Some(range(PAGE - 4096, PAGE + 4096))
    );
    assert_eq!(
        bitmap.next_dirty(3, 2 * PAGE, 1),
        Some(range(2 * PAGE, 2 * PAGE + 4096))
    );
    assert_eq!(bitmap.next_dirty(3, 3 * PAGE + 4096, 4096), None);
    assert_eq!(bitmap.next_dirty(3, TIB, 4096), None);
    assert!(bitmap.is_any_set(3, range(3 * PAGE + 4095, 4 * PAGE)));
    assert!(!bitmap.is_any_set(3, range(3 * PAGE + 4096, 4 * PAGE)));
}

#[test]
fn an_extents_bits_lie_in_one_page() {
    let mut bitmap = bitmap(TIB, Blank::Clear);
    bitmap.open_slot(5, &peer(DiskId(9), Blank::Clear));
    bitmap.set(3, range(30 * EXTENT_BYTES, 31 * EXTENT_BYTES));
    assert_eq!(bitmap.unsaved_pages_of(30).collect::<Vec<_>>(), [(3, 0)]);
    assert_eq!(bitmap.unsaved_pages_of(31).count(), 0);
    bitmap.set_extent(31);
    assert_eq!(
        bitmap.unsaved_pages_of(31).collect::<Vec<_>>(),
        [(3, 1), (5, 1)]
    );
    assert_eq!(bitmap.unsaved_pages_of(u32::MAX).count(), 0);
    assert_eq!(
        bitmap.unsaved_pages().collect::<Vec<_>>(),
        [(3, 0), (3, 1), (5, 1)]
    );
}

#[test]
fn a_page_is_saved_only_when_the_save_of_its_last_change_is_durable() {
    let mut bitmap = bitmap(TIB, Blank::Clear);
    bitmap.set(3, range(0, 1));
    assert!(!bitmap.is_saved(3, 0));
    let first = bitmap.encode_page(3, 0).unwrap();
    assert!(bitmap.is_being_saved(3, 0) && !bitmap.is_saved(3, 0));
    assert_eq!(bitmap.encode_page(3, 0), None);
    bitmap.set(3, range(8192, 8193));
    bitmap.saved(3, 0);
    assert!(!bitmap.is_saved(3, 0));
    assert_ne!(bitmap.encode_page(3, 0).unwrap(), first);
    bitmap.save_failed(3, 0);
    assert_eq!(bitmap.unsaved_pages().count(), 1);
    save_all(&mut bitmap);
    assert_eq!(bitmap.unsaved_pages().count(), 0);
    assert_eq!(bitmap.slot(3).unsettled, 0);
    // What changes nothing needs no save.
    bitmap.set(3, range(0, 1));
    bitmap.clear(3, range(PAGE, 2 * PAGE));
    assert_eq!(bitmap.unsaved_pages().count(), 0);
}

#[test]
fn a_blank_page_means_what_the_slot_says() {
    for (blank, bytes) in [(Blank::Clear, 0), (Blank::Set, TIB)] {
        let mut bitmap = bitmap(TIB, blank);
        assert_eq!(bitmap.count_bytes(3), bytes);
        assert_eq!(bitmap.load_page(3, 8456, &[0; 4096]), Ok(()));
        assert_eq!(bitmap.count_bytes(3), bytes);
        assert_eq!(bitmap.unsaved_pages().count(), 0);
    }
}

#[test]
fn a_page_that_is_torn_foreign_or_of_elsewhere_has_all_bits_set_and_is_written_again() {
    let mut source = bitmap(3 * PAGE, Blank::Clear);
    source.set(3, range(0, 1));
    let old = source.encode_page(3, 0).unwrap();
    source.saved(3, 0);
    source.set(3, range(100 << 20, 101 << 20));
    let good = source.encode_page(3, 0).unwrap();

    let mut target = bitmap(3 * PAGE, Blank::Clear);
    for block in damaged(&old, &good)
        .iter()
        .chain(&damaged(&[0; 4096], &good))
    {
        assert!(target.load_page(3, 0, block).is_err());
        assert_eq!(target.count_bytes(3), PAGE);
        assert_eq!(target.unsaved_pages().collect::<Vec<_>>(), [(3, 0)]);
    }
    assert!(matches!(
        target.load_page(3, 1, &good),
        Err(BlockError::Misplaced { .. })
    ));
    assert_eq!(target.count_bytes(3), 2 * PAGE);
    assert_eq!(target.load_page(3, 0, &good), Ok(()));
    assert_eq!(target.count_bytes(3), PAGE + 4096 + (1 << 20));

    target.open_slot(4, &peer(PEER, Blank::Clear));
    assert!(matches!(
        target.load_page(4, 0, &good),
        Err(BlockError::Misplaced { .. })
    ));
    target.open_slot(3, &peer(DiskId(7), Blank::Clear));
    assert!(matches!(
        target.load_page(3, 0, &good),
        Err(BlockError::OtherDisk { .. })
    ));
    let mut earlier = peer(PEER, Blank::Clear);
    earlier.binding -= 1;
    target.open_slot(3, &earlier);
    assert!(matches!(
        target.load_page(3, 0, &good),
        Err(BlockError::OtherBinding { .. })
    ));
    assert_eq!(target.count_bytes(3), PAGE);
    target.open_slot(3, &peer(PEER, Blank::Clear));
    let newer = with_version(good, 9);
    assert!(matches!(
        target.load_page(3, 0, &newer),
        Err(BlockError::NewerVersion { .. })
    ));
    let mut other = Bitmap::new(DiskTag(8), 3 * PAGE);
    other.open_slot(3, &peer(PEER, Blank::Clear));
    assert!(matches!(
        other.load_page(3, 0, &good),
        Err(BlockError::OtherDisk { .. })
    ));
    assert_eq!(other.count_bytes(3), PAGE);
}

/// The same disk is bound a second time: what was known about it the first time must not count.
#[test]
fn a_page_left_from_an_earlier_binding_was_never_written() {
    let mut source = bitmap(3 * PAGE, Blank::Clear);
    source.set(3, range(0, 1));
    let left_over = source.encode_page(3, 0).unwrap();
    for (disk, blank, bytes) in [
        (PEER, Blank::Set, 3 * PAGE),
        (PEER, Blank::Clear, 0),
        (DiskId(7), Blank::Clear, 0),
    ] {
        let mut later = peer(disk, blank);
        later.binding += 1;
        let mut target = Bitmap::new(DISK, 3 * PAGE);
        target.open_slot(3, &later);
        assert_eq!(target.load_page(3, 0, &left_over), Ok(()));
        assert_eq!(target.count_bytes(3), bytes);
    }
}

#[test]
fn growing_marks_the_new_part_and_the_formerly_partial_block() {
    let mut grown = bitmap(PAGE - 4096 * 2 - 1, Blank::Clear);
    grown.resize(2 * PAGE + 5, true);
    assert_eq!(all_runs(&grown), [range(PAGE - 4096 * 3, 2 * PAGE + 5)]);
    let mut grown = bitmap(PAGE - 4096 * 2, Blank::Clear);
    grown.set_all(3);
    grown.resize(2 * PAGE, false);
    assert_eq!(all_runs(&grown), [range(0, PAGE - 4096 * 2)]);
}

#[test]
fn a_slot_with_blank_pages_set_stays_right_on_disk_when_it_grows() {
    let mut grown = bitmap(PAGE / 2, Blank::Set);
    grown.resize(2 * PAGE, false);
    assert_eq!(all_runs(&grown), [range(0, PAGE / 2)]);
    assert_eq!(save_all(&mut grown).len(), 2);
    // Page 1 may hold anything from before the volume shrank.
    let mut again = bitmap(2 * PAGE, Blank::Set);
    again.resize(PAGE, false);
    again.resize(2 * PAGE, true);
    assert_eq!(again.unsaved_pages().collect::<Vec<_>>(), [(3, 1)]);
}

#[test]
fn shrinking_forgets_what_is_beyond() {
    let mut shrunk = bitmap(3 * PAGE, Blank::Clear);
    shrunk.set_all(3);
    shrunk.resize(PAGE + 4096 * 70, false);
    assert_eq!(shrunk.count_bytes(3), PAGE + 4096 * 70);
    shrunk.resize(3 * PAGE, false);
    assert_eq!(all_runs(&shrunk), [range(0, PAGE + 4096 * 70)]);
}

#[test]
fn bad_pages_of_another_node_are_refused_whole() {
    let mut bitmap = bitmap(PAGE + 4096, Blank::Clear);
    let runs = |first, len| PageBits::Runs(vec![Run { first: 0, len: 1 }, Run { first, len }]);
    assert_eq!(
        bitmap.import(3, 2, &runs(0, 1)),
        Err(BadExchange::NoSuchPage { page: 2, pages: 2 })
    );
    assert_eq!(
        bitmap.import(3, 0, &runs(31743, 2)),
        Err(BadExchange::BadRun {
            first: 31743,
            len: 2
        })
    );
    for bytes in [0, 3967, 3969, 3976] {
        let raw = PageBits::Raw(vec![0xff; bytes]);
        assert_eq!(
            bitmap.import(3, 0, &raw),
            Err(BadExchange::BadLength { bytes })
        );
    }
    assert_eq!(bitmap.count_bytes(3), 0);
    // Bits beyond the volume's end are passed over.
    assert_eq!(
        bitmap.import(3, 1, &PageBits::Raw(vec![0xff; 3968])),
        Ok(())
    );
    assert_eq!(bitmap.import(3, 1, &runs(5, 31000)), Ok(()));
    assert_eq!(all_runs(&bitmap), [range(PAGE, PAGE + 4096)]);
}

#[test]
fn a_whole_page_is_exchanged_as_one_run_and_a_scattered_one_as_it_is() {
    let mut bitmap = bitmap(2 * PAGE, Blank::Clear);
    bitmap.set(3, range(0, PAGE));
    for block in 0..1000 {
        bitmap.set(
            3,
            range(PAGE + block * 3 * 4096, PAGE + block * 3 * 4096 + 1),
        );
    }
    let pages: Vec<(u32, PageBits)> = bitmap.export(3).collect();
    assert_eq!(
        pages[0],
        (
            0,
            PageBits::Runs(vec![Run {
                first: 0,
                len: 31744
            }])
        )
    );
    assert!(matches!(&pages[1], (1, PageBits::Raw(bytes)) if bytes.len() == 3968));
}

#[derive(Clone, Debug)]
enum Op {
    Set(u64, u64),
    Clear(u64, u64),
    SetAll,
    ClearAll,
    Resize(u64, bool),
    Save,
    Reload,
    Exchange,
}

const MOST: u64 = 3 * PAGE + 12_345;

fn ops() -> impl Strategy<Value = Vec<Op>> {
    // Lengths of a few blocks, of many words, and of whole pages; places near the edges of pages.
    let place = prop_oneof![
        0..MOST,
        (0..4u64, 0..20_000u64)
            .prop_map(|(page, near)| (page * PAGE + near).saturating_sub(10_000)),
    ];
    let len = prop_oneof![0..20_000u64, 0..1u64 << 22, 0..MOST];
    let op = prop_oneof![
        6 => (place.clone(), len.clone()).prop_map(|(at, len)| Op::Set(at, len)),
        6 => (place.clone(), len).prop_map(|(at, len)| Op::Clear(at, len)),
        1 => Just(Op::SetAll),
        1 => Just(Op::ClearAll),
        1 => (1..MOST, any::<bool>()).prop_map(|(to, set_new)| Op::Resize(to, set_new)),
        2 => Just(Op::Save),
        2 => Just(Op::Reload),
        1 => Just(Op::Exchange),
    ];
    proptest::collection::vec(op, 1..40)
}

/// A bit per block, and what is on disk.
struct Model {
    bits: Vec<bool>,
    data_bytes: u64,
}

impl Model {
    fn fill(&mut self, start: u64, end: u64, value: bool) {
        let len = self.bits.len() as u64;
        let (start, end) = (start.min(len), end.min(len));
        if start < end {
            self.bits[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()].fill(value);
        }
    }

    fn runs(&self) -> Vec<ByteRange> {
        let mut at = 0;
        let mut runs = Vec::new();
        for run in self.bits.chunk_by(|a, b| a == b) {
            let end = at + run.len() as u64;
            if run[0] {
                runs.push(range(at * 4096, (end * 4096).min(self.data_bytes)));
            }
            at = end;
        }
        runs
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn it_does_what_a_bit_for_each_block_would_do(
        start_bytes in 1..MOST, blank_set: bool, ops in ops(),
    ) {
        let blank = if blank_set { Blank::Set } else { Blank::Clear };
        let mut bitmap = bitmap(start_bytes, blank);
        let blocks = |bytes: u64| usize::try_from(bytes.div_ceil(4096)).unwrap();
        let mut model =
            Model { bits: vec![blank_set; blocks(start_bytes)], data_bytes: start_bytes };
        let mut disk = vec![[0; 4096]; 4];
        let saved_to = |bitmap: &mut Bitmap, disk: &mut Vec<Block>| {
            for (page, block) in save_all(bitmap) {
                disk[page as usize] = block;
            }
        };
        for op in ops {
            match op {
                Op::Set(at, len) => {
                    let before = bitmap.count_bytes(3);
                    bitmap.set(3, range(at, at + len));
                    prop_assert!(bitmap.count_bytes(3) >= before);
                    if len > 0 {
                        model.fill(at / 4096, (at + len).div_ceil(4096), true);
                    }
                }
                Op::Clear(at, len) => {
                    bitmap.clear(3, range(at, at + len));
                    let end = if at + len >= model.data_bytes { u64::MAX } else { (at + len) / 4096 };
                    model.fill(at.div_ceil(4096), end, false);
                }
                Op::SetAll => {
                    bitmap.set_all(3);
                    model.bits.fill(true);
                }
                Op::ClearAll => {
                    bitmap.clear_all(3);
                    model.bits.fill(false);
                }
                Op::Resize(to, set_new) => {
                    let old = model.data_bytes;
                    bitmap.resize(to, set_new);
                    model.bits.resize(blocks(to), false);
                    model.data_bytes = to;
                    if set_new && to > old {
                        model.fill(old / 4096, u64::MAX, true);
                    }
                }
                Op::Save => saved_to(&mut bitmap, &mut disk),
                Op::Reload => {
                    // On disk there are never fewer marks than were saved.
                    let before = bitmap.unsaved_pages().count();
                    let mut loaded = Bitmap::new(DISK, model.data_bytes);
                    loaded.open_slot(3, &peer(PEER, blank));
                    for page in 0..pages_for(model.data_bytes) {
                        prop_assert_eq!(loaded.load_page(3, page, &disk[page as usize]), Ok(()));
                    }
                    if before == 0 {
                        for run in bitmap.runs(3, u64::MAX) {
                            let mut left = Vec::new();
                            left.extend(loaded.next_dirty(3, run.offset, run.len.next_multiple_of(4096)));
                            prop_assert_eq!(left, vec![run]);
                        }
                    }
                    saved_to(&mut bitmap, &mut disk);
                }
                Op::Exchange => {
                    let mut other = Bitmap::new(DISK, model.data_bytes);
                    other.open_slot(3, &peer(PEER, Blank::Clear));
                    other.set(3, range(5000, 9000));
                    let mut expected = all_runs(&bitmap);
                    for (page, bits) in bitmap.export(3) {
                        prop_assert_eq!(other.import(3, page, &bits), Ok(()));
                    }
                    let mut joined = Bitmap::new(DISK, model.data_bytes);
                    joined.open_slot(3, &peer(PEER, Blank::Clear));
                    expected.push(range(5000, 9000));
                    joined.union_from(3, expected);
                    prop_assert_eq!(all_runs(&other), all_runs(&joined));
                }
            }
            let runs = model.runs();
            prop_assert_eq!(bitmap.count_bytes(3), runs.iter().map(|run| run.len).sum::<u64>());
            prop_assert_eq!(all_runs(&bitmap), runs);
            let unsettled = bitmap.unsaved_pages().count();
            prop_assert_eq!(usize::try_from(bitmap.slot(3).unsettled).unwrap(), unsettled);
            for page in &bitmap.slot(3).pages {
                prop_assert!(!page.has_words() || page.count() > 0);
            }
        }
        let probes: BTreeSet<u64> = (0..50).map(|i| i * (MOST / 50)).collect();
        for at in probes {
            let expected = model.runs().iter().any(|run| run.overlaps(range(at, at + 9999)));
            prop_assert_eq!(bitmap.is_any_set(3, range(at, at + 9999)), expected);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(
        bytes in proptest::collection::vec(any::<u8>(), 4096), seal: bool, page in 0..3u32,
    ) {
        let mut block: Block = bytes.try_into().unwrap();
        let mut bitmap = bitmap(2 * PAGE + 4096, Blank::Clear);
        if seal {
            bitmap.set(3, range(0, 1));
            let good = bitmap.encode_page(3, 0).unwrap();
            block[..56].copy_from_slice(&good[..56]);
            let ones: u32 = block[128..].iter().map(|byte| byte.count_ones()).sum();
            block[40..44].copy_from_slice(&ones.to_le_bytes());
            crate::store::block::seal(&mut block);
        }
        let loaded = bitmap.load_page(3, page, &block);
        prop_assert_eq!(loaded.is_ok(), seal && page == 0);
        let sum: u64 = bitmap.runs(3, u64::MAX).map(|run| run.len).sum();
        prop_assert_eq!(bitmap.count_bytes(3), sum);
    }
}
