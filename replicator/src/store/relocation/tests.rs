use super::super::activity_log::LogCapacity;
use super::super::bitmap::Blank;
use super::*;
use crate::core::attach::{Attached, Expected, MetaWrite, NewVolume, Source, attach, create};
use crate::store::{Bitmap, METADATA_BLOCK_BYTES};
use std::cell::RefCell;
use std::io;
use vocabulary::{ClusterId, DiskId, NodeId, ResourceId, Time, VolumeId};

const MIB: u64 = 1 << 20;
const SECTOR: usize = 512;
const OLD: u64 = 12 * MIB;
const NEW: u64 = 40 * MIB;
const SLOTS: u8 = 3;

/// A device whose new part holds garbage, as an extended logical volume does.
struct Device(RefCell<Vec<u8>>);

impl Device {
    fn new() -> Self {
        let at = |n: u64| usize::try_from(n).unwrap();
        let mut bytes = vec![0xa5; at(NEW)];
        bytes[..at(OLD)].fill(0);
        Self(RefCell::new(bytes))
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let at = usize::try_from(offset).unwrap();
        self.0.borrow_mut()[at..at + data.len()].copy_from_slice(data);
    }

    fn bytes(&self, range: ByteRange) -> Vec<u8> {
        let at = |n: u64| usize::try_from(n).unwrap();
        self.0.borrow()[at(range.offset)..at(range.end())].to_vec()
    }
}

impl ReadAt for Device {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let len = u64::try_from(buffer.len()).unwrap();
        buffer.copy_from_slice(&self.bytes(ByteRange::between(offset, offset + len)));
        Ok(())
    }
}

fn expected() -> Expected<'static> {
    Expected {
        cluster: ClusterId(1),
        former: &[],
        resource: ResourceId(2),
        node: NodeId::new(0).unwrap(),
        boot_id: 7,
    }
}

/// Attaches what the list of places leads to.
fn attach_at(device: &Device, sizes: &[u64]) -> (u64, Attached) {
    let device_bytes = find(device, sizes).expect("a superblock");
    let source = Source {
        metadata: device,
        placement: Placement::Internal { device_bytes },
        store_bytes: device_bytes,
    };
    let attached = attach(&expected(), &[source], Time(1)).expect("attached");
    (device_bytes, attached)
}

fn write_all(device: &Device, writes: &[MetaWrite]) {
    for (offset, bytes) in writes {
        device.write(*offset, bytes);
    }
}

/// A replica that has a hot extent and bits for a peer, with its device grown since.
fn grown_device() -> (Device, Superblock, Layout) {
    let device = Device::new();
    let layout = Layout::internal(OLD, SLOTS).unwrap();
    let new = NewVolume {
        cluster: ClusterId(1),
        resource: ResourceId(2),
        volume: VolumeId(0),
        node: NodeId::new(0).unwrap(),
        disk: DiskId(5),
        data_bytes: layout.usable_data_bytes(),
        placement: Placement::Internal { device_bytes: OLD },
        slots: SLOTS,
        log_capacity: LogCapacity::default(),
        boot_id: 7,
        created_empty: false,
    };
    write_all(&device, &create(&new).unwrap());
    let (_, attached) = attach_at(&device, &[OLD]);
    write_all(&device, &attached.writes[0]);
    let mut volume = attached.volumes.into_iter().next().unwrap();
    let transaction = volume.log.begin(&[1]).unwrap().unwrap();
    for (index, block) in &transaction.blocks {
        for offset in layout.ring_offsets(*index) {
            device.write(offset, block);
        }
    }
    let superblock = &mut volume.superblock;
    let slot = superblock.bind(2, NodeId::new(1).unwrap(), DiskId(9), Blank::Clear);
    let mut bitmap = Bitmap::new(superblock.tag(), superblock.data_bytes);
    bitmap.open_slot(2, &slot);
    bitmap.set(2, ByteRange::between(8192, 16384));
    let page = bitmap.encode_page(2, 0).unwrap();
    device.write(layout.page_offset(2, 0).unwrap(), &page);
    superblock.version_count += 1;
    for copy in MetaCopy::BOTH {
        device.write(layout.superblock_offset(copy), &superblock.encode(copy));
    }
    (device, superblock.clone(), layout)
}

/// What a replica must know of itself wherever its metadata are.
fn knows_all(attached: &Attached) {
    let volume = &attached.volumes[0];
    assert!(!volume.damaged && !volume.whole_window);
    assert_eq!(volume.superblock.disk, DiskId(5));
    assert_eq!(volume.log.hot_extents().collect::<Vec<_>>(), vec![1]);
    let bits: u64 = volume.bitmap.runs(2, u64::MAX).map(|run| run.len).sum();
    assert_eq!(bits, 8192);
}

#[test]
fn a_stop_at_any_sector_of_a_move_leaves_metadata_that_know_all() {
    let (device, superblock, old) = grown_device();
    let new = old.grown(NEW).unwrap();
    let sizes = [OLD, NEW];
    let mut writes: Vec<MetaWrite> = Vec::new();
    // What the driver does.
    let area = new.area();
    for offset in (area.offset..area.end()).step_by(METADATA_BLOCK_BYTES) {
        writes.push((offset, vec![0; METADATA_BLOCK_BYTES]));
    }
    for copy in copies(&old, &new) {
        writes.push((copy.to, device.bytes(copy.from)));
    }
    for (offset, bytes) in writes {
        device.write(offset, &bytes);
        assert_eq!(find(&device, &sizes), Some(OLD));
    }
    knows_all(&attach_at(&device, &sizes).1);
    // What the core does then.
    let mut moved = superblock.clone();
    moved.placement = new.placement();
    moved.version_count += 1;
    let mut switched = false;
    for copy in MetaCopy::BOTH {
        let block = moved.encode(copy);
        for (number, sector) in block.chunks(SECTOR).enumerate() {
            let offset = new.superblock_offset(copy) + u64::try_from(number * SECTOR).unwrap();
            device.write(offset, sector);
            let (at, attached) = attach_at(&device, &sizes);
            assert!(at == NEW || !switched, "the old place holds again");
            switched |= at == NEW;
            knows_all(&attached);
        }
    }
    assert!(switched);
    // The old place is data now, whatever stands there.
    for offset in old.area().offset..old.area().end() {
        if offset % 4096 == 0 {
            device.write(offset, &[0x5a; 4096]);
        }
    }
    let (at, attached) = attach_at(&device, &[NEW]);
    assert_eq!(at, NEW);
    knows_all(&attached);
}

#[test]
fn a_move_that_never_ended_does_not_count_however_often_it_is_begun() {
    let (device, _, old) = grown_device();
    for size in [NEW - 8 * MIB, NEW] {
        let new = old.grown(size).unwrap();
        for copy in copies(&old, &new) {
            device.write(copy.to, &device.bytes(copy.from));
        }
    }
    let (at, attached) = attach_at(&device, &[NEW, NEW - 8 * MIB, OLD]);
    assert_eq!(at, OLD);
    knows_all(&attached);
}

#[test]
fn another_disks_superblock_at_the_devices_end_does_not_count() {
    let (device, mut superblock, _) = grown_device();
    let end = Layout::internal(NEW, SLOTS).unwrap();
    superblock.disk = DiskId(77);
    superblock.placement = end.placement();
    superblock.version_count += 100;
    for copy in MetaCopy::BOTH {
        device.write(end.superblock_offset(copy), &superblock.encode(copy));
    }
    assert_eq!(find(&device, &[OLD, NEW]), Some(OLD));
    // Without a list only the device's end is left, and what stands there is somebody's.
    assert_eq!(find(&device, &[NEW]), Some(NEW));
}
