//! A volume's metadata as text that a person can read (`dump-metadata`): both superblocks with a
//! verdict, the activity log's hot extents, the bytes marked for each peer, and every bad block. Only
//! reads; a block that can't be read is a line of the text, not the end of it.

use std::fmt::{self, Write};
use std::io;

use vocabulary::{BLOCK_BYTES, EXTENT_BYTES, Time};

use super::activity_log::{Unusable, recover};
use super::bitmap::{Bitmap, Blank};
use super::block::{Block, BlockError, METADATA_BLOCK_BYTES, is_blank};
use super::layout::{Layout, MetaCopy, Placement};
use super::superblock::{Superblock, choose};

/// Extent ranges that are listed; of more, only the number is told.
const MAX_LISTED: usize = 32;

/// Where metadata is read from: a metadata file or a device.
pub trait ReadAt {
    /// Fills the buffer from this offset on.
    ///
    /// # Errors
    /// The operating system's; `UnexpectedEof` where the file ends before.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// The text. For internal metadata the placement says the device's size.
#[must_use]
pub fn dump(source: &dyn ReadAt, placement: Placement) -> String {
    let mut text = String::new();
    write(&mut text, source, placement).expect("writing to a String does not fail");
    text
}

fn read(source: &dyn ReadAt, offset: u64) -> io::Result<Block> {
    let mut block = [0; METADATA_BLOCK_BYTES];
    source.read_at(offset, &mut block)?;
    Ok(block)
}

/// A number of bytes with the largest binary unit that it has at least one of.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u32, &str); 5] = [
            (50, "PiB"),
            (40, "TiB"),
            (30, "GiB"),
            (20, "MiB"),
            (10, "KiB"),
        ];
        let Some((shift, unit)) = UNITS.into_iter().find(|(shift, _)| self.0 >> shift > 0) else {
            return write!(f, "{} B", self.0);
        };
        let (whole, rest) = (self.0 >> shift, self.0 & ((1 << shift) - 1));
        let tenths = ((rest >> (shift - 10)) * 10) >> 10;
        write!(f, "{whole}.{tenths} {unit} ({} bytes)", self.0)
    }
}

fn write(text: &mut String, source: &dyn ReadAt, placement: Placement) -> fmt::Result {
    match placement {
        Placement::External => writeln!(text, "metadata: external")?,
        Placement::Internal { device_bytes } => {
            writeln!(
                text,
                "metadata: internal, device of {}",
                Bytes(device_bytes)
            )?;
        }
    }
    // The superblock's place does not depend on the number of slots.
    let probe = match placement {
        Placement::External => Ok(Layout::external()),
        Placement::Internal { device_bytes } => Layout::internal(device_bytes, 1),
    };
    let probe = match probe {
        Ok(layout) => layout,
        Err(error) => return writeln!(text, "no metadata: {error}"),
    };
    let [a, b] = MetaCopy::BOTH.map(|copy| {
        let offset = probe.superblock_offset(copy);
        (
            offset,
            read(source, offset).map(|block| Superblock::decode(&block, copy)),
        )
    });
    for (name, (offset, copy)) in [("A", &a), ("B", &b)] {
        write!(text, "superblock {name} at {offset}: ")?;
        match copy {
            Err(error) => writeln!(text, "UNREADABLE: {error}")?,
            Ok(Err(error)) => writeln!(text, "BAD: {error}")?,
            Ok(Ok(superblock)) => {
                writeln!(text, "good, write {}", superblock.version_count)?;
            }
        }
    }
    // What can't be read is worth as much as what was never written.
    let [a, b] = [a, b].map(|(_, copy)| copy.unwrap_or(Err(BlockError::Empty)));
    if let (Ok(a), Ok(b)) = (&a, &b)
        && a != b
    {
        writeln!(text, "the copies differ: a write was interrupted")?;
    }
    let superblock = match choose(a, b) {
        Ok(chosen) => chosen.superblock,
        Err(error) => return writeln!(text, "verdict: IDENTITY LOST: {error}"),
    };
    writeln!(text, "verdict: usable, write {}", superblock.version_count)?;
    write_superblock(text, &superblock)?;
    if let Placement::Internal { device_bytes } = placement
        && let Err(error) = superblock.check_device(device_bytes)
    {
        return writeln!(text, "verdict: {error}");
    }
    let Ok(layout) = superblock.layout() else {
        return Ok(());
    };
    write_log(text, source, &superblock, &layout)?;
    write_bitmap(text, source, &superblock, &layout)
}

fn write_superblock(text: &mut String, superblock: &Superblock) -> fmt::Result {
    let yes = |is| if is { "yes" } else { "no" };
    writeln!(text, "  cluster:       {}", superblock.cluster)?;
    writeln!(text, "  resource:      {}", superblock.resource)?;
    writeln!(text, "  volume:        {}", superblock.volume)?;
    writeln!(text, "  node:          {}", superblock.node)?;
    writeln!(
        text,
        "  disk:          {} (tag {})",
        superblock.disk,
        superblock.tag()
    )?;
    writeln!(text, "  incarnation:   {}", superblock.incarnation)?;
    writeln!(text, "  epoch:         {}", superblock.epoch)?;
    writeln!(text, "  history:       {}", superblock.history)?;
    writeln!(text, "  boot id:       {:032x}", superblock.boot_id)?;
    writeln!(text, "  open:          {}", yes(superblock.open))?;
    writeln!(text, "  created empty: {}", yes(superblock.created_empty))?;
    writeln!(text, "  never written: {}", yes(superblock.never_written))?;
    writeln!(text, "  whole window:  {}", yes(superblock.whole_window))?;
    writeln!(text, "  failed:        {}", yes(superblock.failed))?;
    writeln!(text, "  size:          {}", Bytes(superblock.data_bytes))?;
    writeln!(text, "  peer slots:    {}", superblock.slots)
}

fn write_log(
    text: &mut String,
    source: &dyn ReadAt,
    superblock: &Superblock,
    layout: &Layout,
) -> fmt::Result {
    let capacity = superblock.log_capacity;
    let mut copies = [Vec::new(), Vec::new()];
    let mut unreadable = 0;
    for index in 0..capacity.ring_blocks() {
        for (copy, offset) in copies.iter_mut().zip(layout.ring_offsets(index)) {
            copy.push(read(source, offset).unwrap_or_else(|_| {
                unreadable += 1;
                [0; METADATA_BLOCK_BYTES]
            }));
        }
    }
    write!(
        text,
        "activity log: {} extents of {}, generation {}: ",
        capacity.get(),
        Bytes(EXTENT_BYTES),
        superblock.ring_generation
    )?;
    let copies = [copies[0].as_slice(), copies[1].as_slice()];
    let tag = superblock.tag();
    match recover(copies, tag, superblock.ring_generation, capacity, Time(0)) {
        Err(error @ Unusable::NewerVersion { .. }) => writeln!(text, "REFUSED: {error}")?,
        Err(error) => writeln!(text, "UNUSABLE, all counts as hot: {error}")?,
        Ok(recovered) => {
            let mut hot: Vec<u32> = recovered.log.hot_extents().collect();
            hot.sort_unstable();
            writeln!(
                text,
                "{} hot, {}",
                hot.len(),
                Bytes(hot.len() as u64 * EXTENT_BYTES)
            )?;
            let runs: Vec<&[u32]> = hot.chunk_by(|a, b| a + 1 == *b).collect();
            for run in runs.iter().take(MAX_LISTED) {
                let (first, last) = (run[0], run[run.len() - 1]);
                let (start, end) = (
                    u64::from(first) * EXTENT_BYTES,
                    (u64::from(last) + 1) * EXTENT_BYTES,
                );
                writeln!(
                    text,
                    "  hot extents {first} to {last}: bytes {start} to {end}"
                )?;
            }
            if let Some(more @ 1..) = runs.len().checked_sub(MAX_LISTED) {
                writeln!(text, "  and {more} ranges more")?;
            }
            for repair in &recovered.repair {
                writeln!(
                    text,
                    "  block {} of ring copy {:?} is missing or bad; the other blocks make up for it",
                    repair.index, repair.copy
                )?;
            }
        }
    }
    if unreadable > 0 {
        writeln!(text, "  {unreadable} blocks could not be read")?;
    }
    Ok(())
}

fn write_bitmap(
    text: &mut String,
    source: &dyn ReadAt,
    superblock: &Superblock,
    layout: &Layout,
) -> fmt::Result {
    let mut bitmap = Bitmap::new(superblock.tag(), superblock.data_bytes);
    for (slot, peer) in (0u8..).zip(&superblock.peers) {
        let Some(peer) = peer else { continue };
        bitmap.open_slot(slot, peer);
        let mut bad = String::new();
        let (mut pages, mut blank) = (0u64, 0u64);
        for (first, range) in layout.page_runs(slot, superblock.data_bytes) {
            for (page, index) in (first..).zip(range.units(BLOCK_BYTES)) {
                pages += 1;
                match read(source, index * BLOCK_BYTES) {
                    Ok(block) => {
                        blank += u64::from(is_blank(&block));
                        if let Err(error) = bitmap.load_page(slot, page, &block) {
                            writeln!(
                                bad,
                                "  page {page}: BAD, all its bits count as set: {error}"
                            )?;
                        }
                    }
                    // A sparse file ends with the last page that was written.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => blank += 1,
                    Err(error) => {
                        bitmap.set(slot, page_range(page));
                        writeln!(
                            bad,
                            "  page {page}: UNREADABLE, its bits count as set: {error}"
                        )?;
                    }
                }
            }
        }
        writeln!(
            text,
            "bitmap slot {slot}: node {}, disk {}: {} out of sync; {pages} pages, {blank} blank ({})",
            peer.node,
            peer.disk,
            Bytes(bitmap.count_bytes(slot)),
            match peer.blank {
                Blank::Clear => "in sync",
                Blank::Set => "out of sync",
            }
        )?;
        text.push_str(&bad);
        bitmap.close_slot(slot);
    }
    Ok(())
}

fn page_range(page: u32) -> vocabulary::ByteRange {
    let start = u64::from(page) * super::bitmap::PAGE_COVERS_BYTES;
    vocabulary::ByteRange::between(start, start + super::bitmap::PAGE_COVERS_BYTES)
}

#[cfg(test)]
mod tests;
