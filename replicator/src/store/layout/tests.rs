use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

/// Every place that the layout has for a volume of this size.
fn places(layout: &Layout, data_bytes: u64, slots: u8) -> Vec<u64> {
    let mut all = MetaCopy::BOTH
        .map(|copy| layout.superblock_offset(copy))
        .to_vec();
    all.extend((0..MAX_RING_BLOCKS).flat_map(|index| layout.ring_offsets(index)));
    for slot in 0..slots {
        all.extend((0..pages_for(data_bytes)).map(|page| layout.page_offset(slot, page).unwrap()));
    }
    all
}

#[test]
fn places_stay_where_they_are_in_existing_metadata() {
    let external = Layout::external();
    assert_eq!(
        MetaCopy::BOTH.map(|copy| external.superblock_offset(copy)),
        [0, 65536]
    );
    assert_eq!(external.ring_offsets(0), [131_072, 1_048_576]);
    assert_eq!(external.ring_offsets(135), [684_032, 1_601_536]);
    assert_eq!(external.page_offset(0, 0), Some(2 * MIB));
    assert_eq!(
        external.page_offset(30, 63),
        Some(2 * MIB + 31 * 262_144 - 4096)
    );
    assert_eq!(external.page_offset(0, 64), Some(2 * MIB + 31 * 262_144));
    assert_eq!(external.page_offset(31, 0), None);

    let internal = Layout::internal(1024 * MIB, 7).unwrap();
    assert_eq!(
        internal.usable_data_bytes(),
        1024 * MIB - 2 * MIB - 7 * 9 * 4096
    );
    assert_eq!(internal.superblock_offset(MetaCopy::A), 1024 * MIB - 4096);
    assert_eq!(
        internal.superblock_offset(MetaCopy::B),
        1024 * MIB - 68 * 1024
    );
    assert_eq!(
        internal.ring_offsets(1),
        [1022 * MIB + 4096, 1023 * MIB + 4096]
    );
    assert_eq!(
        internal.page_offset(0, 0),
        Some(internal.usable_data_bytes())
    );
    assert_eq!(internal.page_offset(6, 8), Some(1022 * MIB - 4096));
    assert_eq!(internal.page_offset(7, 0), None);
    assert_eq!(internal.page_offset(0, 9), None);
}

#[test]
fn a_terabyte_takes_34_megabytes_a_slot() {
    let layout = Layout::external();
    assert_eq!(pages_for(TIB), 8457);
    assert_eq!(layout.metadata_bytes(TIB), 2 * MIB + 133 * 31 * 262_144);
    let device = Layout::device_bytes_for(TIB, 7).unwrap();
    assert_eq!(device, TIB + 2 * MIB + 7 * 8457 * 4096);
}

#[test]
fn no_two_blocks_share_a_place_and_none_is_data() {
    let data = 3 * 124 * MIB;
    for layout in [
        Layout::external(),
        Layout::internal(Layout::device_bytes_for(data, 3).unwrap(), 3).unwrap(),
    ] {
        let mut all = places(&layout, data, 3);
        assert!(all.iter().all(|offset| offset.is_multiple_of(4096)));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        let (start, end) = match layout.placement() {
            Placement::External => (0, layout.metadata_bytes(data)),
            Placement::Internal { device_bytes } => (layout.usable_data_bytes(), device_bytes),
        };
        assert!(all[0] >= start && all[count - 1] + 4096 <= end);
    }
}

#[test]
fn superblock_copies_are_far_apart() {
    for layout in [Layout::external(), Layout::internal(64 * MIB, 7).unwrap()] {
        let [a, b] = MetaCopy::BOTH.map(|copy| layout.superblock_offset(copy));
        assert!(a.abs_diff(b) >= 64 << 10);
    }
}

#[test]
fn growing_never_touches_the_old_metadata_or_its_data() {
    let old = Layout::internal(1024 * MIB, 7).unwrap();
    let refused = old.grown(1025 * MIB).unwrap_err();
    let LayoutError::Overlap { needed_bytes, .. } = refused else {
        panic!("{refused}")
    };
    assert!(matches!(
        old.grown(needed_bytes - 4096),
        Err(LayoutError::Overlap { .. })
    ));
    let new = old.grown(needed_bytes).unwrap();
    assert!(new.usable_data_bytes() >= 1024 * MIB);
    assert_eq!(Layout::external().grown(TIB), Err(LayoutError::NotInternal));
}

#[test]
fn sizes_out_of_bounds_are_refused() {
    assert_eq!(
        Layout::internal(64 * MIB, 0),
        Err(LayoutError::Slots { slots: 0 })
    );
    assert_eq!(
        Layout::internal(64 * MIB, 32),
        Err(LayoutError::Slots { slots: 32 })
    );
    assert!(matches!(
        Layout::internal(2 * MIB, 7),
        Err(LayoutError::TooSmall { .. })
    ));
    assert!(matches!(
        Layout::internal(0, 7),
        Err(LayoutError::TooSmall { .. })
    ));
    assert!(matches!(
        Layout::internal(u64::MAX, 7),
        Err(LayoutError::TooLarge { .. })
    ));
    assert!(matches!(
        Layout::device_bytes_for(MAX_DATA_BYTES + 1, 7),
        Err(LayoutError::TooLarge { .. })
    ));
    let smallest = Layout::device_bytes_for(1, 7).unwrap();
    assert_eq!(
        Layout::internal(smallest, 7).unwrap().usable_data_bytes(),
        4096
    );
}

proptest! {
    #[test]
    fn a_device_sized_for_data_holds_it(data in 1..=MAX_DATA_BYTES, slots in 1..=MAX_PEER_SLOTS) {
        let device = Layout::device_bytes_for(data, slots).unwrap();
        let layout = Layout::internal(device, slots).unwrap();
        prop_assert!(layout.usable_data_bytes() >= data);
        prop_assert!(layout.usable_data_bytes() < data + 4096);
    }

    #[test]
    fn every_byte_of_the_data_area_has_its_bit(device in 3 * MIB..1 << 50, slots in 1..=31u8) {
        let layout = Layout::internal(device, slots).unwrap();
        let data = layout.usable_data_bytes();
        prop_assert!(pages_for(data) <= layout.pages);
        prop_assert_eq!(data % 4096, 0);
        prop_assert_eq!(data + layout.metadata_bytes(data), device - device % 4096);
    }

    #[test]
    fn runs_name_every_page_of_a_slot(data in 1..8u64 << 40, slot in 0..7u8, external: bool) {
        let layout = if external {
            Layout::external()
        } else {
            Layout::internal(Layout::device_bytes_for(data, 7).unwrap(), 7).unwrap()
        };
        let mut next = 0;
        for (first, range) in layout.page_runs(slot, data) {
            prop_assert_eq!(first, next);
            for offset in (range.offset..range.end()).step_by(4096) {
                prop_assert_eq!(layout.page_offset(slot, next), Some(offset));
                next += 1;
            }
        }
        prop_assert_eq!(next, pages_for(data));
    }
}
