//! Metadata of a volume from any bytes: what is understood of a superblock can be written and is read
//! back as the same, and a whole metadata file is told as text, whatever is in it.
//!
//! The input's blocks are both superblocks and then the activity log's; the rest of the file was never written.
//! Blocks get right checksums, since nothing else would be looked at; a block whose checksum begins with
//! an odd byte keeps its own.
#![no_main]

use libfuzzer_sys::fuzz_target;
use replicator::store::layout::MetaCopy;
use replicator::store::{
    Block, Layout, METADATA_BLOCK_BYTES, Placement, ReadAt, Superblock, dump,
};
use std::io;

/// Where a block's checksum is.
const CHECKSUM: std::ops::Range<usize> = 8..12;

/// A metadata file: the input's blocks.
struct File<'a>(&'a [Block]);

impl ReadAt for File<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let layout = Layout::external();
        let [log, _] = layout.ring_offsets(0);
        let index = match offset.checked_sub(log) {
            Some(beyond) => 2 + beyond / METADATA_BLOCK_BYTES as u64,
            None => u64::from(offset != layout.superblock_offset(MetaCopy::A)),
        };
        let block = usize::try_from(index).ok().and_then(|index| self.0.get(index));
        let block = block.unwrap_or(&[0; METADATA_BLOCK_BYTES]);
        buffer.copy_from_slice(&block[..buffer.len()]);
        Ok(())
    }
}

fn seal(block: &mut Block) {
    if block[CHECKSUM.start] & 1 == 0 {
        block[CHECKSUM].fill(0);
        let checksum = crc32c::crc32c(block);
        block[CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
    }
}

fuzz_target!(|input: &[u8]| {
    let mut blocks: Vec<Block> = Vec::new();
    for piece in input.chunks(METADATA_BLOCK_BYTES) {
        let mut block = [0; METADATA_BLOCK_BYTES];
        block[..piece.len()].copy_from_slice(piece);
        seal(&mut block);
        blocks.push(block);
    }
    for (block, copy) in blocks.iter().zip(MetaCopy::BOTH) {
        if let Ok(superblock) = Superblock::decode(block, copy) {
            let written = superblock.encode(copy);
            assert_eq!(Superblock::decode(&written, copy), Ok(superblock));
        }
    }
    let text = dump(&File(&blocks), Placement::External);
    assert!(text.contains("superblock A"));
    assert!(text.len() < 1 << 20);
});
