//! The local replica's bookkeeping: turns a role's reads and writes into disk requests in the order
//! that keeps RULES 6 and 7. Before the first byte of a write goes to the disk its range is in the
//! window and its extents are durably in the activity log; before an extent leaves the log its
//! bitmap pages are on disk; a promise is on disk, in both copies, before it is acted in.
//!
//! It decides nothing about peers, and it never retries a failed write (RULES 1).

mod bits;
mod metadata;
mod window;

use super::api::{
    Action, BlockHash, DiskError, FastZeroes, Identity, Notice, OpId, Payload, Settings,
};
use super::attach::AttachedVolume;
use super::block_set::BlockSet;
use super::message::{ClientMark, Seq, VolumeRange, WriteKind};
use super::mutation::{Mutation, mutated};
use super::sessions::Sessions;
use super::window::{Entry, Window};
use super::{Step, Tag};
use crate::store::{ActivityLog, Bitmap, Layout, Pin, Superblock};
use metadata::{LogStep, Moving, Saves, SuperblockStep};
use slab::Slab;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use vocabulary::{EXTENT_BYTES, Epoch, HistoryId, NodeSet, Time, VolumeId};

/// How local I/O ended.
#[derive(Clone, Debug)]
pub(crate) enum Done<P> {
    Ok,
    Data(P),
    Hashes(Vec<BlockHash>, P),
    Failed(DiskError),
}

impl<P> Done<P> {
    pub(crate) fn error(&self) -> Option<DiskError> {
        match self {
            Self::Failed(error) => Some(*error),
            _ => None,
        }
    }
}

/// A write that waits until its extents are hot.
#[derive(Clone, Debug)]
enum Body<P> {
    Write {
        data: P,
        durable: bool,
    },
    Zero {
        hole: bool,
        durable: bool,
    },
    /// Only the window and the log.
    Touch(u64),
}

#[derive(Clone, Debug)]
struct Waiting<P> {
    tag: Tag,
    at: VolumeRange,
    body: Body<P>,
    mark: ClientMark,
}

/// What a request to the driver was for.
#[derive(Clone, Copy, Debug)]
enum Pending {
    Data {
        tag: Tag,
        at: VolumeRange,
        write: bool,
        mark: ClientMark,
    },
    Flush {
        join: u64,
    },
    Log {
        volume: usize,
    },
    Page {
        volume: usize,
        slot: u8,
        page: u32,
    },
    Superblock {
        volume: usize,
    },
    Grow {
        tag: Tag,
        volume: usize,
        size_bytes: u64,
    },
    MoveMetadata {
        volume: usize,
    },
}

/// Several requests that end as one.
#[derive(Clone, Debug)]
struct Join {
    tag: Tag,
    at: Option<VolumeRange>,
    left: usize,
    error: Option<DiskError>,
}

#[derive(Clone, Debug)]
struct Volume<P> {
    layout: Layout,
    superblock: Superblock,
    log: ActivityLog,
    bitmap: Bitmap,
    log_step: LogStep,
    superblock_step: SuperblockStep,
    saves: Saves,
    moving: Option<Moving>,
    /// Extents to activate, in the order of need.
    wanted: BTreeSet<u32>,
    /// Pins of extents that are not hot yet.
    cold_pins: BTreeMap<u32, u32>,
    /// Extents that the old part of the window pins.
    old_pins: BTreeSet<u32>,
    waiting: VecDeque<Waiting<P>>,
}

/// A completion for the role: what it was for, the range, how it ended.
pub(crate) type Completion<P> = (Tag, Option<VolumeRange>, Done<P>);

#[derive(Clone, Debug)]
pub(crate) struct Local<P> {
    identity: Identity,
    volumes: Vec<Volume<P>>,
    window: Window,
    whole_window: bool,
    /// Since when each request to the driver is under way.
    pending: Slab<(Time, Pending)>,
    joins: Slab<Join>,
    done: VecDeque<Completion<P>>,
    /// Data requests under way: what a drain waits for.
    busy: usize,
    failed: bool,
    closing: Closing,
    /// What all stores zero without writing.
    pub(crate) fast_zeroes: FastZeroes,
    /// RULES 12.
    pub(crate) sessions: Sessions,
}

/// How far a clean close is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    No,
    Flushing,
    Saving,
}

impl<P: Payload> Local<P> {
    pub(crate) fn new(identity: Identity, attached: Vec<AttachedVolume>) -> Self {
        let mut whole_window = false;
        let mut volumes = Vec::new();
        let mut old = Vec::new();
        for volume in attached {
            whole_window |= volume.whole_window;
            let mut set = BlockSet::default();
            let mut log = volume.log;
            let mut old_pins = BTreeSet::new();
            // After a restart the log's extents are the window (RULES 6).
            let hot: Vec<u32> = log.hot_extents().collect();
            for extent in hot {
                if mutated(Mutation::LogNotWindow) {
                    continue;
                }
                if log.pin(extent) == Pin::Hot {
                    old_pins.insert(extent);
                }
                let start = u64::from(extent) * EXTENT_BYTES;
                let end = (start + EXTENT_BYTES).min(volume.superblock.data_bytes);
                set.insert(vocabulary::ByteRange::between(start, end));
            }
            if volume.whole_window && !mutated(Mutation::LogNotWindow) {
                set.insert(vocabulary::ByteRange::between(
                    0,
                    volume.superblock.data_bytes,
                ));
            }
            old.push(set);
            volumes.push(Volume {
                layout: volume.layout,
                superblock: volume.superblock,
                log,
                bitmap: volume.bitmap,
                log_step: LogStep::Idle,
                superblock_step: SuperblockStep::default(),
                saves: Saves::default(),
                moving: None,
                wanted: BTreeSet::new(),
                cold_pins: BTreeMap::new(),
                old_pins,
                waiting: VecDeque::new(),
            });
        }
        Self {
            identity,
            volumes,
            window: Window::new(old),
            whole_window,
            pending: Slab::new(),
            joins: Slab::new(),
            done: VecDeque::new(),
            busy: 0,
            failed: false,
            closing: Closing::No,
            fast_zeroes: FastZeroes::default(),
            sessions: Sessions::default(),
        }
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    pub(crate) fn volumes(&self) -> usize {
        self.volumes.len()
    }

    pub(crate) fn volume_ids(&self) -> impl Iterator<Item = VolumeId> + use<P> {
        (0..self.volumes.len()).map(|i| VolumeId(u16::try_from(i).unwrap_or(u16::MAX)))
    }

    pub(crate) fn size(&self, volume: VolumeId) -> u64 {
        self.volumes[volume.index()].superblock.data_bytes
    }

    pub(crate) fn hot_extents(&self, volume: VolumeId) -> u64 {
        self.volumes[volume.index()].log.hot_extents().count() as u64
    }

    /// Is the range within a volume of this replica?
    pub(crate) fn fits(&self, at: VolumeRange) -> bool {
        self.volumes
            .get(at.volume.index())
            .is_some_and(|v| at.range.end() <= v.superblock.data_bytes)
    }

    pub(crate) fn failed(&self) -> bool {
        self.failed
    }

    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    /// The activity log could not be read: everything may have been written.
    pub(crate) fn whole_window(&self) -> bool {
        self.whole_window
    }

    /// Highest epoch that was promised.
    pub(crate) fn promised(&self) -> Epoch {
        self.volumes
            .iter()
            .map(|v| v.superblock.epoch)
            .max()
            .unwrap_or_default()
    }

    pub(crate) fn history(&self) -> HistoryId {
        self.volumes
            .first()
            .map(|v| v.superblock.history)
            .unwrap_or_default()
    }

    /// Is no data request under way?
    pub(crate) fn drained(&self) -> bool {
        self.busy == 0
    }

    pub(crate) fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    pub(crate) fn next_done(&mut self) -> Option<Completion<P>> {
        self.done.pop_front()
    }

    // ---- data ----

    pub(crate) fn write(
        &mut self,
        step: &mut Step<'_, P>,
        tag: Tag,
        at: VolumeRange,
        data: P,
        durable: bool,
        mark: ClientMark,
    ) {
        self.submit(
            step,
            Waiting {
                tag,
                at,
                body: Body::Write { data, durable },
                mark,
            },
        );
    }

    pub(crate) fn zero(
        &mut self,
        step: &mut Step<'_, P>,
        tag: Tag,
        at: VolumeRange,
        hole: bool,
        durable: bool,
        mark: ClientMark,
    ) {
        self.submit(
            step,
            Waiting {
                tag,
                at,
                body: Body::Zero { hole, durable },
                mark,
            },
        );
    }

    fn submit(&mut self, step: &mut Step<'_, P>, job: Waiting<P>) {
        if self.failed {
            return self.fail_job(job);
        }
        self.busy += 1;
        let index = job.at.volume.index();
        if self.volumes[index].is_hot(job.at) {
            self.start(step, job);
        } else {
            self.volumes[index].waiting.push_back(job);
            self.pump_log(step, index);
        }
    }

    fn fail_job(&mut self, job: Waiting<P>) {
        let error = DiskError::Io(5);
        match job.body {
            Body::Touch(join) => self.join_done(join, Some(error)),
            _ => self
                .done
                .push_back((job.tag, Some(job.at), Done::Failed(error))),
        }
    }

    /// The extents are hot: to the disk.
    fn start(&mut self, step: &mut Step<'_, P>, job: Waiting<P>) {
        let Waiting {
            tag,
            at,
            body,
            mark,
        } = job;
        let volume = at.volume;
        let op = match body {
            Body::Touch(join) => {
                self.busy -= 1;
                return self.join_done(join, None);
            }
            _ => self.op(
                step,
                Pending::Data {
                    tag,
                    at,
                    write: true,
                    mark,
                },
            ),
        };
        step.emit(match body {
            Body::Write { data, durable } => Action::Write {
                op,
                volume,
                offset: at.range.offset,
                data,
                durable,
            },
            Body::Zero { hole, durable } => Action::Zero {
                op,
                volume,
                range: at.range,
                hole,
                durable,
            },
            Body::Touch(_) => return,
        });
    }

    pub(crate) fn read(&mut self, step: &mut Step<'_, P>, tag: Tag, at: VolumeRange) {
        self.busy += 1;
        let op = self.op(
            step,
            Pending::Data {
                tag,
                at,
                write: false,
                mark: ClientMark::default(),
            },
        );
        step.emit(Action::Read {
            op,
            volume: at.volume,
            range: at.range,
        });
    }

    pub(crate) fn hash(&mut self, step: &mut Step<'_, P>, tag: Tag, at: VolumeRange) {
        self.busy += 1;
        let op = self.op(
            step,
            Pending::Data {
                tag,
                at,
                write: false,
                mark: ClientMark::default(),
            },
        );
        step.emit(Action::Hash {
            op,
            volume: at.volume,
            range: at.range,
        });
    }

    /// Brings every write that is done to stable storage, on all volumes.
    pub(crate) fn flush(&mut self, step: &mut Step<'_, P>, tag: Tag) {
        if self.failed {
            self.done
                .push_back((tag, None, Done::Failed(DiskError::Io(5))));
            return;
        }
        let left = self.volumes.len();
        let join = self.joins.insert(Join {
            tag,
            at: None,
            left,
            error: None,
        }) as u64;
        for volume in self.volume_ids() {
            self.busy += 1;
            let op = self.op(step, Pending::Flush { join });
            step.emit(Action::Flush { op, volume });
        }
    }

    /// Makes room for a larger volume; first moves internal metadata that are in the way.
    pub(crate) fn grow(
        &mut self,
        step: &mut Step<'_, P>,
        tag: Tag,
        volume: VolumeId,
        size_bytes: u64,
    ) {
        if size_bytes <= self.size(volume) {
            self.done.push_back((tag, None, Done::Ok));
            return;
        }
        let index = volume.index();
        if size_bytes > self.volumes[index].layout.usable_data_bytes() {
            self.move_metadata(step, tag, index, size_bytes);
        } else {
            self.grow_store(step, tag, index, size_bytes);
        }
    }

    fn grow_store(&mut self, step: &mut Step<'_, P>, tag: Tag, index: usize, size_bytes: u64) {
        let layout = self.volumes[index].layout;
        let op = self.op(
            step,
            Pending::Grow {
                tag,
                volume: index,
                size_bytes,
            },
        );
        step.emit(Action::Grow {
            op,
            volume: VolumeId(u16::try_from(index).unwrap_or(u16::MAX)),
            size_bytes,
            layout,
        });
    }

    // ---- completions ----

    fn op(&mut self, step: &Step<'_, P>, pending: Pending) -> OpId {
        OpId(self.pending.insert((step.now, pending)) as u64)
    }

    fn take(&mut self, op: OpId) -> Option<Pending> {
        let (_, pending) = self.pending.try_remove(usize::try_from(op.0).ok()?)?;
        Some(pending)
    }

    /// Since when the oldest request that a device should answer soon is under way. Looks at all.
    pub(crate) fn oldest_request(&self) -> Option<Time> {
        let soon = self.pending.iter().filter(|(_, (_, pending))| {
            !matches!(pending, Pending::Grow { .. } | Pending::MoveMetadata { .. })
        });
        soon.map(|(_, (since, _))| *since).min()
    }

    /// A disk or metadata request is done.
    pub(crate) fn completed(&mut self, step: &mut Step<'_, P>, op: OpId, done: Done<P>) {
        let Some(pending) = self.take(op) else {
            debug_assert!(false, "a completion of nothing: {op:?}");
            return;
        };
        let error = done.error();
        let is_write = !matches!(
            pending,
            Pending::Data { write: false, .. }
                | Pending::Grow { .. }
                | Pending::MoveMetadata { .. }
        );
        if let (Some(error), true) = (error, is_write) {
            let retried =
                mutated(Mutation::FlushRetried) && matches!(pending, Pending::Flush { .. });
            if retried {
                if let Pending::Flush { join } = pending {
                    let op = self.op(step, Pending::Flush { join });
                    step.emit(Action::Flush {
                        op,
                        volume: VolumeId(0),
                    });
                }
                return;
            }
            self.fail(step, &pending, error);
        }
        match pending {
            Pending::Data {
                tag,
                at,
                write,
                mark,
            } => {
                self.busy -= 1;
                if write && error.is_none() {
                    self.sessions.wrote(mark, at);
                }
                self.done.push_back((tag, Some(at), done));
            }
            Pending::Flush { join } => {
                self.busy -= 1;
                self.join_done(join, error);
            }
            Pending::Log { volume } => self.log_written(step, volume, error),
            Pending::Page { volume, slot, page } => {
                self.page_saved(step, volume, slot, page, error);
            }
            Pending::Superblock { volume } => self.superblock_written(step, volume, error),
            Pending::Grow {
                tag,
                volume,
                size_bytes,
            } => match error {
                Some(error) => self.done.push_back((tag, None, Done::Failed(error))),
                None => self.grown(step, tag, volume, size_bytes),
            },
            Pending::MoveMetadata { .. } => debug_assert!(false, "answered by another event"),
        }
    }

    /// A copy of metadata is done.
    pub(crate) fn metadata_moved(
        &mut self,
        step: &mut Step<'_, P>,
        op: OpId,
        result: Result<u64, DiskError>,
    ) {
        match self.take(op) {
            Some(Pending::MoveMetadata { volume }) => self.moved(step, volume, result),
            other => debug_assert!(false, "a completion of {other:?}: {op:?}"),
        }
    }

    fn join_done(&mut self, join: u64, error: Option<DiskError>) {
        let Ok(key) = usize::try_from(join) else {
            return;
        };
        let Some(entry) = self.joins.get_mut(key) else {
            return;
        };
        entry.error = entry.error.or(error);
        entry.left -= 1;
        if entry.left == 0 {
            let entry = self.joins.remove(key);
            let done = entry.error.map_or(Done::Ok, Done::Failed);
            self.done.push_back((entry.tag, entry.at, done));
        }
    }

    /// A failed write makes the disk Failed; nothing is tried again (RULES 1).
    fn fail(&mut self, step: &mut Step<'_, P>, pending: &Pending, error: DiskError) {
        if std::mem::replace(&mut self.failed, true) {
            return;
        }
        let volume = match pending {
            Pending::Data { at, .. } => at.volume,
            Pending::Flush { .. } => VolumeId(0),
            Pending::Log { volume }
            | Pending::Page { volume, .. }
            | Pending::Superblock { volume }
            | Pending::Grow { volume, .. }
            | Pending::MoveMetadata { volume } => {
                VolumeId(u16::try_from(*volume).unwrap_or(u16::MAX))
            }
        };
        step.notice(Notice::DiskFailed { volume, error });
        // A restart must not take this disk for what it was: its caches may have lost writes. If this
        // can't be written either, the device is gone for its successor too.
        for volume in &mut self.volumes {
            volume.superblock.failed = true;
        }
        self.persist(step, Tag::Nobody);
        for index in 0..self.volumes.len() {
            let waiting = std::mem::take(&mut self.volumes[index].waiting);
            self.busy -= waiting.len();
            for job in waiting {
                self.fail_job(job);
            }
        }
    }

    pub(crate) fn tick(&mut self, step: &mut Step<'_, P>, settings: &Settings) {
        for index in 0..self.volumes.len() {
            self.pump_log(step, index);
            self.retire_extents(step, index, settings);
        }
    }
}

impl<P> Volume<P> {
    fn is_hot(&self, at: VolumeRange) -> bool {
        extents(at).all(|extent| self.log.is_hot(extent))
    }

    /// Keeps an extent in the log, or asks for it.
    fn pin(&mut self, extent: u32) {
        if self.log.pin(extent) != Pin::Hot {
            *self.cold_pins.entry(extent).or_insert(0) += 1;
            self.wanted.insert(extent);
        }
    }

    fn unpin(&mut self, extent: u32, now: Time) {
        if let Some(count) = self.cold_pins.get_mut(&extent) {
            *count -= 1;
            if *count == 0 {
                self.cold_pins.remove(&extent);
                self.wanted.remove(&extent);
            }
        } else {
            self.log.unpin(extent, now);
        }
    }
}

fn extents(at: VolumeRange) -> impl Iterator<Item = u32> {
    at.range
        .units(EXTENT_BYTES)
        .map(|e| u32::try_from(e).unwrap_or(u32::MAX))
}
