//! The metadata's ways to disk: activity log transactions, bitmap pages and the superblock. One of
//! each kind is under way at a time per volume; what comes meanwhile shares the next one.

use super::*;
use crate::store::activity_log::MAX_TRANSACTION_UPDATES;
use crate::store::{MetaCopy, Transaction};
use vocabulary::Time;

/// Extents that one background transaction retires at most.
const RETIRE_BATCH: usize = 64;

#[derive(Clone, Debug, Default)]
pub(super) enum LogStep {
    #[default]
    Idle,
    /// The pages of the extents that leave go first.
    SavingBits(Transaction),
    Writing {
        transaction: Transaction,
        left: usize,
    },
}

/// Who waits for pages to be saved.
#[derive(Clone, Copy, Debug)]
pub(super) enum SaveFor {
    Join(u64),
    Log,
}

#[derive(Clone, Debug)]
pub(super) struct SaveRequest {
    pages: Vec<(u8, u32)>,
    who: SaveFor,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Saves {
    left: usize,
    current: Vec<SaveFor>,
    queue: Vec<SaveRequest>,
}

/// The superblock's writes: copy A, then copy B, one after the other (RULES 11).
#[derive(Clone, Debug, Default)]
pub(super) struct SuperblockStep {
    writing: Option<MetaCopy>,
    /// Changed since the present write began.
    dirty: bool,
    current: Vec<u64>,
    queue: Vec<u64>,
    /// What the present write puts on disk.
    image: Option<Box<Superblock>>,
}

/// Internal metadata on their way to the new end of the device, because a larger volume needs their
/// place (`store::relocation`). What is to be written to them waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moving {
    tag: Tag,
    size_bytes: u64,
    stage: MoveStage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MoveStage {
    /// Writes that are under way end; no other begins, but for the pages that a transaction waits for.
    Draining,
    /// All but the superblock is being copied.
    Copying,
    /// The superblock is written to the new place.
    Switching,
}

impl<P: Payload> Local<P> {
    fn meta_write(
        &mut self,
        step: &mut Step<'_, P>,
        pending: Pending,
        volume: usize,
        offset: u64,
        data: Vec<u8>,
    ) {
        let op = self.op(step, pending);
        let volume = VolumeId(u16::try_from(volume).unwrap_or(u16::MAX));
        step.emit(Action::MetaWrite {
            op,
            volume,
            offset,
            data,
        });
    }

    // ---- activity log ----

    /// Starts a transaction if extents are wanted and none is open.
    pub(super) fn pump_log(&mut self, step: &mut Step<'_, P>, index: usize) {
        let volume = &mut self.volumes[index];
        let idle = matches!(volume.log_step, LogStep::Idle) && volume.moving.is_none();
        if self.failed || !idle || volume.wanted.is_empty() {
            return;
        }
        let mut cold: Vec<u32> = volume
            .wanted
            .iter()
            .copied()
            .take(MAX_TRANSACTION_UPDATES)
            .collect();
        let transaction = loop {
            match volume.log.begin(&cold) {
                Ok(Some(transaction)) => break transaction,
                // Hot already: activated for another write meanwhile.
                Ok(None) => {
                    self.extents_hot(step, index, &cold);
                    return;
                }
                // All others are in use: a release or a retirement makes room.
                Err(full) if full.room == 0 => return,
                Err(full) => cold.truncate(full.room),
            }
        };
        self.begin_transaction(step, index, transaction);
    }

    /// Retires extents that have been idle for a while, so that a crash resyncs what was written
    /// lately and not what the log remembers.
    pub(super) fn retire_extents(
        &mut self,
        step: &mut Step<'_, P>,
        index: usize,
        settings: &Settings,
    ) {
        let volume = &mut self.volumes[index];
        let idle = matches!(volume.log_step, LogStep::Idle) && volume.moving.is_none();
        if self.failed || !idle {
            return;
        }
        let idle_ns = settings.extent_idle_ms.saturating_mul(1_000_000);
        let Some(before) = step.now.0.checked_sub(idle_ns) else {
            return;
        };
        if let Some(transaction) = volume.log.retire(Time(before), RETIRE_BATCH) {
            self.begin_transaction(step, index, transaction);
        }
    }

    fn begin_transaction(
        &mut self,
        step: &mut Step<'_, P>,
        index: usize,
        transaction: Transaction,
    ) {
        let volume = &mut self.volumes[index];
        let mut pages: Vec<(u8, u32)> = transaction
            .evicted
            .iter()
            .flat_map(|extent| volume.bitmap.unsaved_pages_of(*extent))
            .collect();
        pages.sort_unstable();
        pages.dedup();
        volume.log_step = LogStep::SavingBits(transaction);
        if pages.is_empty() || mutated(Mutation::ExtentLeavesBeforeBits) {
            self.write_transaction(step, index);
        } else {
            volume.saves.queue.push(SaveRequest {
                pages,
                who: SaveFor::Log,
            });
            self.pump_saves(step, index);
        }
    }

    fn write_transaction(&mut self, step: &mut Step<'_, P>, index: usize) {
        let volume = &mut self.volumes[index];
        let LogStep::SavingBits(transaction) = std::mem::take(&mut volume.log_step) else {
            return;
        };
        let layout = volume.layout;
        let blocks: Vec<(u32, Vec<u8>)> = transaction
            .blocks
            .iter()
            .map(|(i, block)| (*i, block.to_vec()))
            .collect();
        volume.log_step = LogStep::Writing {
            transaction,
            left: blocks.len() * 2,
        };
        for (ring_index, block) in blocks {
            for offset in layout.ring_offsets(ring_index) {
                self.meta_write(
                    step,
                    Pending::Log { volume: index },
                    index,
                    offset,
                    block.clone(),
                );
            }
        }
    }

    pub(super) fn log_written(
        &mut self,
        step: &mut Step<'_, P>,
        index: usize,
        error: Option<DiskError>,
    ) {
        if error.is_some() {
            return;
        }
        let volume = &mut self.volumes[index];
        if let LogStep::Writing { left, .. } = &mut volume.log_step {
            *left -= 1;
            if *left > 0 {
                return;
            }
        }
        if let LogStep::Writing { transaction, .. } = std::mem::take(&mut volume.log_step) {
            let activated = transaction.activated.clone();
            volume.log.commit(transaction, step.now);
            self.extents_hot(step, index, &activated);
        }
        self.pump_log(step, index);
        self.pump_move(step, index);
    }

    /// The extents are durably hot: what waits for them starts.
    fn extents_hot(&mut self, step: &mut Step<'_, P>, index: usize, activated: &[u32]) {
        let volume = &mut self.volumes[index];
        for extent in activated {
            volume.wanted.remove(extent);
            for _ in 0..volume.cold_pins.remove(extent).unwrap_or(0) {
                let pin = volume.log.pin(*extent);
                debug_assert_eq!(pin, Pin::Hot);
            }
        }
        let waiting = std::mem::take(&mut volume.waiting);
        for job in waiting {
            if self.volumes[index].is_hot(job.at) {
                self.start(step, job);
            } else {
                self.volumes[index].waiting.push_back(job);
            }
        }
    }

    // ---- bitmap pages ----

    /// Brings every mark made so far to disk, with the superblock that says whose they are.
    pub(crate) fn save_bits(&mut self, step: &mut Step<'_, P>, tag: Tag) {
        let join = self.joins.insert(Join {
            tag,
            at: None,
            left: 1,
            error: None,
        }) as u64;
        self.save_bits_for(step, join);
    }

    /// The same as one part of a join.
    pub(super) fn save_bits_for(&mut self, step: &mut Step<'_, P>, join: u64) {
        if let Some(join) = usize::try_from(join)
            .ok()
            .and_then(|key| self.joins.get_mut(key))
        {
            join.left += self.volumes.len() * 2;
        }
        for index in 0..self.volumes.len() {
            self.volumes[index].superblock_step.queue.push(join);
            self.pump_superblock(step, index);
            let pages: Vec<(u8, u32)> = self.volumes[index].bitmap.unsaved_pages().collect();
            let who = SaveFor::Join(join);
            self.volumes[index]
                .saves
                .queue
                .push(SaveRequest { pages, who });
            self.pump_saves(step, index);
        }
        self.join_done(join, None);
    }

    fn pump_saves(&mut self, step: &mut Step<'_, P>, index: usize) {
        let volume = &mut self.volumes[index];
        let held = volume
            .moving
            .is_some_and(|moving| moving.stage != MoveStage::Draining);
        if held || volume.saves.left > 0 || volume.saves.queue.is_empty() {
            return;
        }
        let mut pages = Vec::new();
        for request in volume.saves.queue.drain(..) {
            pages.extend(request.pages);
            volume.saves.current.push(request.who);
        }
        pages.sort_unstable();
        pages.dedup();
        let mut writes = Vec::new();
        for (slot, page) in pages {
            if !volume.bitmap.open_slots().any(|open| open == slot)
                || volume.bitmap.is_saved(slot, page)
            {
                continue;
            }
            if let (Some(offset), Some(block)) = (
                volume.layout.page_offset(slot, page),
                volume.bitmap.encode_page(slot, page),
            ) {
                writes.push((slot, page, offset, block.to_vec()));
            }
        }
        volume.saves.left = writes.len();
        for (slot, page, offset, block) in writes {
            self.meta_write(
                step,
                Pending::Page {
                    volume: index,
                    slot,
                    page,
                },
                index,
                offset,
                block,
            );
        }
        self.check_saves(step, index);
    }

    pub(super) fn page_saved(
        &mut self,
        step: &mut Step<'_, P>,
        index: usize,
        slot: u8,
        page: u32,
        error: Option<DiskError>,
    ) {
        let volume = &mut self.volumes[index];
        if volume.bitmap.open_slots().any(|open| open == slot) {
            match error {
                None => volume.bitmap.saved(slot, page),
                Some(_) => volume.bitmap.save_failed(slot, page),
            }
        }
        volume.saves.left -= 1;
        self.check_saves(step, index);
    }

    fn check_saves(&mut self, step: &mut Step<'_, P>, index: usize) {
        if self.volumes[index].saves.left > 0 {
            return;
        }
        for who in std::mem::take(&mut self.volumes[index].saves.current) {
            match who {
                SaveFor::Join(join) => {
                    let error = self.failed.then_some(DiskError::Io(5));
                    self.join_done(join, error);
                }
                SaveFor::Log if !self.failed => self.write_transaction(step, index),
                SaveFor::Log => {}
            }
        }
        self.pump_saves(step, index);
        self.pump_move(step, index);
    }

    // ---- superblock ----

    /// Stores the promise of an epoch in every volume's superblock, both copies.
    pub(crate) fn promise(&mut self, step: &mut Step<'_, P>, tag: Tag, epoch: Epoch) {
        for volume in &mut self.volumes {
            rule!(
                "2: a promise never goes back",
                volume.superblock.epoch <= epoch
            );
            volume.superblock.epoch = volume.superblock.epoch.max(epoch);
            // With a primary there may be writes.
            volume.superblock.never_written = false;
        }
        self.persist(step, tag);
    }

    /// The contents belong to this history from now on.
    pub(crate) fn set_history(&mut self, step: &mut Step<'_, P>, history: HistoryId) {
        if self.history() != history {
            for volume in &mut self.volumes {
                volume.superblock.history = history;
            }
            self.persist(step, Tag::Nobody);
        }
    }

    /// Says in the superblock that all is on disk. Nothing may be written after it.
    pub(crate) fn close(&mut self, step: &mut Step<'_, P>) {
        for volume in &mut self.volumes {
            volume.superblock.open = false;
        }
        self.persist(step, Tag::Close);
    }

    /// Writes all superblocks.
    pub(super) fn persist(&mut self, step: &mut Step<'_, P>, tag: Tag) {
        let left = self.volumes.len();
        let join = self.joins.insert(Join {
            tag,
            at: None,
            left,
            error: None,
        }) as u64;
        for index in 0..self.volumes.len() {
            let superblock = &mut self.volumes[index].superblock_step;
            superblock.dirty = true;
            superblock.queue.push(join);
            self.pump_superblock(step, index);
        }
    }

    fn pump_superblock(&mut self, step: &mut Step<'_, P>, index: usize) {
        let volume = &mut self.volumes[index];
        let held = volume
            .moving
            .is_some_and(|moving| moving.stage != MoveStage::Switching);
        let state = &mut volume.superblock_step;
        if held || state.writing.is_some() {
            return;
        }
        if !state.dirty {
            // What is asked for is on disk already.
            for join in std::mem::take(&mut state.queue) {
                self.join_done(join, None);
            }
            return;
        }
        state.dirty = false;
        state.current = std::mem::take(&mut state.queue);
        volume.superblock.version_count += 1;
        state.image = Some(Box::new(volume.superblock.clone()));
        self.write_superblock(step, index, MetaCopy::A);
    }

    fn write_superblock(&mut self, step: &mut Step<'_, P>, index: usize, copy: MetaCopy) {
        let volume = &mut self.volumes[index];
        volume.superblock_step.writing = Some(copy);
        let Some(image) = &volume.superblock_step.image else {
            return;
        };
        let block = image.encode(copy).to_vec();
        let offset = volume.layout.superblock_offset(copy);
        self.meta_write(
            step,
            Pending::Superblock { volume: index },
            index,
            offset,
            block,
        );
    }

    pub(super) fn superblock_written(
        &mut self,
        step: &mut Step<'_, P>,
        index: usize,
        error: Option<DiskError>,
    ) {
        let state = &mut self.volumes[index].superblock_step;
        let copy = state.writing.take();
        if copy == Some(MetaCopy::A) && error.is_none() && !mutated(Mutation::OneCopyUsed) {
            self.write_superblock(step, index, MetaCopy::B);
            return;
        }
        for join in std::mem::take(&mut state.current) {
            self.join_done(join, error);
        }
        self.switched(step, index, error);
        self.pump_superblock(step, index);
        self.pump_move(step, index);
    }

    // ---- a new place ----

    /// Internal metadata make room for a volume of this size.
    pub(super) fn move_metadata(
        &mut self,
        step: &mut Step<'_, P>,
        tag: Tag,
        index: usize,
        size_bytes: u64,
    ) {
        /// EBUSY.
        const BUSY: DiskError = DiskError::Io(16);
        if self.volumes[index].moving.is_some() {
            self.done.push_back((tag, None, Done::Failed(BUSY)));
            return;
        }
        self.volumes[index].moving = Some(Moving {
            tag,
            size_bytes,
            stage: MoveStage::Draining,
        });
        self.pump_move(step, index);
    }

    /// Copies once no write to the metadata is under way.
    fn pump_move(&mut self, step: &mut Step<'_, P>, index: usize) {
        let volume = &mut self.volumes[index];
        let drained = matches!(volume.log_step, LogStep::Idle)
            && volume.saves.left == 0
            && volume.saves.queue.is_empty()
            && volume.superblock_step.writing.is_none();
        let Some(moving) = &mut volume.moving else {
            return;
        };
        if !drained || moving.stage != MoveStage::Draining {
            return;
        }
        moving.stage = MoveStage::Copying;
        let (from, size_bytes) = (volume.layout, moving.size_bytes);
        let op = self.op(step, Pending::MoveMetadata { volume: index });
        step.emit(Action::MoveMetadata {
            op,
            volume: VolumeId(u16::try_from(index).unwrap_or(u16::MAX)),
            from,
            size_bytes,
        });
    }

    /// All but the superblock is at the new place: that is written there, and from then on it holds.
    pub(super) fn moved(
        &mut self,
        step: &mut Step<'_, P>,
        index: usize,
        result: Result<u64, DiskError>,
    ) {
        let failed = self.failed;
        let volume = &mut self.volumes[index];
        let new = result.and_then(|device_bytes| {
            let layout = volume.layout.grown(device_bytes);
            layout.map_err(|_| DiskError::NoSpace)
        });
        match (new, &mut volume.moving) {
            (Ok(layout), Some(moving))
                if !failed && layout.usable_data_bytes() >= moving.size_bytes =>
            {
                moving.stage = MoveStage::Switching;
                volume.layout = layout;
                volume.superblock.placement = layout.placement();
                volume.superblock_step.dirty = true;
                self.pump_superblock(step, index);
            }
            (new, _) => self.end_move(step, index, Err(new.err().unwrap_or(DiskError::NoSpace))),
        }
    }

    /// A superblock was written; at the new place, that was the switch.
    fn switched(&mut self, step: &mut Step<'_, P>, index: usize, error: Option<DiskError>) {
        let moving = self.volumes[index].moving;
        if moving.is_some_and(|m| m.stage == MoveStage::Switching) {
            self.end_move(step, index, error.map_or(Ok(()), Err));
        }
    }

    fn end_move(&mut self, step: &mut Step<'_, P>, index: usize, result: Result<(), DiskError>) {
        let Some(moving) = self.volumes[index].moving.take() else {
            return;
        };
        match result {
            Ok(()) => self.grow_store(step, moving.tag, index, moving.size_bytes),
            Err(error) => self.done.push_back((moving.tag, None, Done::Failed(error))),
        }
        self.pump_superblock(step, index);
        self.pump_saves(step, index);
        self.pump_log(step, index);
    }

    /// The store has grown: the metadata takes the new size over.
    pub(super) fn grown(
        &mut self,
        step: &mut Step<'_, P>,
        tag: Tag,
        index: usize,
        size_bytes: u64,
    ) {
        let volume = &mut self.volumes[index];
        volume.superblock.data_bytes = size_bytes;
        // What a peer outside the in-sync set lacks beyond the old size is marked when the size is
        // committed.
        volume.bitmap.resize(size_bytes, false);
        self.persist(step, tag);
    }
}
