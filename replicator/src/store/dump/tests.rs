use vocabulary::{
    ByteRange, ClusterId, DiskId, Epoch, HistoryId, Incarnation, NodeId, ResourceId, VolumeId,
};

use super::*;
use crate::store::activity_log::{ActivityLog, LogCapacity};
use crate::store::superblock::PeerSlot;

const DATA: u64 = 1 << 30;

/// A store in memory; reading beyond its end fails as a file does.
struct Memory {
    bytes: Vec<u8>,
    /// An offset that can't be read.
    broken: Option<u64>,
}

impl Memory {
    fn write(&mut self, offset: u64, block: &Block) {
        let at = usize::try_from(offset).unwrap();
        if self.bytes.len() < at + block.len() {
            self.bytes.resize(at + block.len(), 0);
        }
        self.bytes[at..at + block.len()].copy_from_slice(block);
    }

    fn flip(&mut self, offset: u64) {
        self.bytes[usize::try_from(offset).unwrap()] ^= 0xff;
    }
}

impl ReadAt for Memory {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.broken == Some(offset) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let at = usize::try_from(offset).unwrap();
        let bytes = self
            .bytes
            .get(at..at + buffer.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

fn superblock(placement: Placement, slots: u8) -> Superblock {
    let mut peers = [None; 31];
    let node = |id| NodeId::new(id).unwrap();
    peers[0] = Some(PeerSlot {
        node: node(1),
        disk: DiskId(0xd1),
        blank: Blank::Clear,
        binding: 1,
    });
    peers[1] = Some(PeerSlot {
        node: node(2),
        disk: DiskId(0xd2),
        blank: Blank::Set,
        binding: 1,
    });
    Superblock {
        cluster: ClusterId(0xc1),
        resource: ResourceId(0xe1),
        volume: VolumeId(0),
        node: node(0),
        disk: DiskId(0xd0),
        incarnation: Incarnation(2),
        epoch: Epoch(17),
        history: HistoryId(0xf1),
        boot_id: 0xb1,
        open: true,
        created_empty: true,
        never_written: false,
        whole_window: false,
        failed: false,
        data_bytes: DATA,
        placement,
        slots,
        log_capacity: LogCapacity::new(1000).unwrap(),
        ring_generation: 1,
        bindings: 1,
        peers,
        version_count: 5,
    }
}

fn store(superblock: &Superblock) -> (Memory, Layout) {
    let layout = superblock.layout().unwrap();
    let mut memory = Memory {
        bytes: Vec::new(),
        broken: None,
    };
    for copy in MetaCopy::BOTH {
        memory.write(layout.superblock_offset(copy), &superblock.encode(copy));
    }
    let (mut log, mut blocks) = ActivityLog::create(superblock.tag(), 1, superblock.log_capacity);
    blocks.extend(log.begin(&[3, 4, 5, 200]).unwrap().unwrap().blocks);
    for (index, block) in blocks {
        for offset in layout.ring_offsets(index) {
            memory.write(offset, &block);
        }
    }
    let mut bitmap = Bitmap::new(superblock.tag(), DATA);
    bitmap.open_slot(0, &superblock.peers[0].unwrap());
    bitmap.set(0, ByteRange::between(0, 1 << 20));
    memory.write(
        layout.page_offset(0, 0).unwrap(),
        &bitmap.encode_page(0, 0).unwrap(),
    );
    (memory, layout)
}

const GOOD: &str = "\
metadata: external
superblock A at 0: good, write 5
superblock B at 65536: good, write 5
verdict: usable, write 5
  cluster:       000000000000000000000000000000c1
  resource:      000000000000000000000000000000e1
  volume:        0
  node:          0
  disk:          000000000000000000000000000000d0 (tag TAG)
  incarnation:   2
  epoch:         17
  history:       000000000000000000000000000000f1
  boot id:       000000000000000000000000000000b1
  open:          yes
  created empty: yes
  never written: no
  whole window:  no
  failed:        no
  size:          1.0 GiB (1073741824 bytes)
  peer slots:    31
activity log: 1000 extents of 4.0 MiB (4194304 bytes), generation 1: 4 hot, 16.0 MiB (16777216 bytes)
  hot extents 3 to 5: bytes 12582912 to 25165824
  hot extents 200 to 200: bytes 838860800 to 843055104
bitmap slot 0: node 1, disk 000000000000000000000000000000d1: 1.0 MiB (1048576 bytes) out of sync; 9 pages, 8 blank (in sync)
bitmap slot 1: node 2, disk 000000000000000000000000000000d2: 1.0 GiB (1073741824 bytes) out of sync; 9 pages, 9 blank (out of sync)
";

#[test]
fn a_good_store_is_told_in_full() {
    let superblock = superblock(Placement::External, 31);
    let (memory, _) = store(&superblock);
    let expected = GOOD.replace("TAG", &superblock.tag().to_string());
    assert_eq!(dump(&memory, Placement::External), expected);
}

#[test]
fn internal_metadata_is_found_from_the_devices_size() {
    let device_bytes = Layout::device_bytes_for(DATA, 7).unwrap();
    let placement = Placement::Internal { device_bytes };
    let (mut memory, _) = store(&superblock(placement, 7));
    memory
        .bytes
        .resize(usize::try_from(device_bytes).unwrap(), 0);
    let text = dump(&memory, placement);
    assert!(text.contains("4 hot"), "{text}");
    assert!(
        text.contains("1.0 MiB (1048576 bytes) out of sync"),
        "{text}"
    );
}

#[test]
fn every_bad_block_is_named() {
    let (mut memory, layout) = store(&superblock(Placement::External, 31));
    memory.flip(100);
    memory.flip(layout.ring_offsets(2)[0] + 2000);
    memory.flip(layout.page_offset(0, 0).unwrap() + 2000);
    memory.broken = layout.page_offset(1, 0);
    let text = dump(&memory, Placement::External);
    for line in [
        "superblock A at 0: BAD: bad checksum",
        "verdict: usable, write 5",
        "block 2 of ring copy A is missing or bad",
        "page 0: BAD, all its bits count as set: bad checksum",
        "124.0 MiB (130023424 bytes) out of sync",
        "page 0: UNREADABLE, its bits count as set",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn a_lost_identity_and_an_unusable_log_are_told() {
    let (mut memory, layout) = store(&superblock(Placement::External, 31));
    for offset in layout.ring_offsets(1) {
        memory.flip(offset + 2000);
    }
    let text = dump(&memory, Placement::External);
    assert!(
        text.contains("UNUSABLE, all counts as hot: block 1"),
        "{text}"
    );
    memory.flip(100);
    memory.flip(65536 + 100);
    let text = dump(&memory, Placement::External);
    assert!(
        text.contains("verdict: IDENTITY LOST: no usable superblock"),
        "{text}"
    );
    let empty = Memory {
        bytes: vec![0; 1 << 20],
        broken: Some(0),
    };
    let text = dump(&empty, Placement::External);
    assert!(text.contains("superblock A at 0: UNREADABLE"), "{text}");
    assert!(text.contains("superblock B at 65536: BAD: empty"), "{text}");
    let text = dump(&empty, Placement::Internal { device_bytes: 4096 });
    assert!(
        text.contains("no metadata: a device of 4096 bytes is too small"),
        "{text}"
    );
}
