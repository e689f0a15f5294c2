//! Requests on backing stores while the data plane runs: each is a short chain of operations (read
//! what shares a block, write, go on after a short write, fall back where the store can't punch) that
//! runs on the ring or, for stores that would only be slowed down by it, by plain system calls on the
//! spot. Never blocks on anything long: zeroing and flushing always go through the ring.
//!
//! Relies on the core's promise that requests under way at one time never overlap within 4 KiB
//! unless all of them are reads (`Action::Write`).

use super::{ALLOCATE_STEP_BYTES, Disk, Engine, ZERO_STEP_BYTES, disk_error};
use crate::core::api::{DiskError, Payload};
use crate::runtime::pool::{Pool, PoolBuf, PoolMut};
use crate::runtime::ring::{Op, Ring, sys};
use nix::errno::Errno;
use nix::libc;
use slab::Slab;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vocabulary::{BLOCK_BYTES, ByteRange, Time};

/// How often the length of a backing file is looked at while it is written to.
const LENGTH_CHECK_MS: u64 = 100;

/// What to do on a store. Offsets are bytes of the volume, or of the metadata.
#[derive(Debug)]
pub enum Request {
    /// Read the range, of any alignment.
    Read(ByteRange),
    /// Write the payload.
    Write {
        /// Where.
        offset: u64,
        /// The bytes.
        data: PoolBuf,
        /// On stable storage before the answer.
        durable: bool,
    },
    /// Zero the range.
    Zero {
        /// Where.
        range: ByteRange,
        /// Free the space where the store can.
        hole: bool,
        /// On stable storage before the answer.
        durable: bool,
    },
    /// Bring what is written to stable storage.
    Flush,
    /// Write whole blocks of metadata durably.
    MetaWrite {
        /// Where.
        offset: u64,
        /// The blocks.
        data: Vec<u8>,
    },
}

/// How a request ended.
#[derive(Debug)]
pub enum Outcome {
    /// A read.
    Read(Result<PoolBuf, DiskError>),
    /// Anything else.
    Done(Result<(), DiskError>),
}

/// The ring's word for an operation of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobId(usize);

/// Which way a range is zeroed; each falls back to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ZeroBy {
    Hole,
    ZeroRange,
    Writes,
}

/// A piece of the range to zero.
#[derive(Clone, Copy, Debug)]
struct ZeroTask {
    /// What is left.
    left: ByteRange,
    by: ZeroBy,
    durable: bool,
}

#[derive(Debug)]
enum Step {
    /// Reading `wide`; `got` bytes are in the buffer.
    Read {
        range: ByteRange,
        wide: ByteRange,
        got: usize,
    },
    /// Reading what shares a unit with the payload's ends into a buffer of `wide`.
    Merge {
        wide: ByteRange,
        offset: u64,
        data: PoolBuf,
        durable: bool,
        tail: bool,
        zero: Option<ZeroTask>,
    },
    /// Writing; the operation holds what is left. `zero`: goes on with that afterwards.
    Write {
        zero: Option<ZeroTask>,
    },
    /// `fallocate` of a piece of `task.left`.
    Allocate {
        task: ZeroTask,
        len: u64,
    },
    Sync,
}

#[derive(Debug)]
struct Job<K> {
    key: K,
    since: Time,
    disk: Arc<Disk>,
    /// Metadata blocks that the job writes.
    meta: Option<ByteRange>,
    step: Step,
}

enum Next {
    Op(Op),
    Finish(Outcome),
}

fn finish(result: Result<(), DiskError>) -> Next {
    Next::Finish(Outcome::Done(result))
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn bytes(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// All requests of a data plane on all of its stores. `K` names a request.
#[derive(Debug)]
pub struct DiskIo<K> {
    jobs: Slab<Job<K>>,
    done: VecDeque<(K, Outcome)>,
    /// Metadata writes that overlap one under way, in their order.
    waiting: VecDeque<(Arc<Disk>, K, u64, Vec<u8>)>,
    pool: Pool,
    zeroes: PoolBuf,
    /// A store zeroes less without writing than was known.
    slowed: bool,
}

impl<K> DiskIo<K> {
    /// No requests yet; buffers come from the pool.
    ///
    /// # Panics
    /// Never: the zeroes are a buffer of a size that pools have.
    #[must_use]
    pub fn new(pool: Pool) -> Self {
        let zeroes = pool
            .zeroes(ZERO_STEP_BYTES)
            .expect("a size that pools have");
        Self {
            jobs: Slab::new(),
            done: VecDeque::new(),
            waiting: VecDeque::new(),
            pool,
            zeroes,
            slowed: false,
        }
    }

    /// Requests under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.jobs.len() + self.waiting.len()
    }

    /// Since when the oldest request under way is. Looks at all of them.
    #[must_use]
    pub fn oldest(&self) -> Option<Time> {
        self.jobs.iter().map(|(_, job)| job.since).min()
    }

    /// Has a request ended that was not taken yet?
    #[must_use]
    pub fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// The next request that ended: each comes exactly once.
    pub fn take(&mut self) -> Option<(K, Outcome)> {
        self.done.pop_front()
    }

    /// Has a store come to zero less without writing ([`Disk::fast_zeroes`]) since this was last asked?
    pub fn take_slowed(&mut self) -> bool {
        std::mem::take(&mut self.slowed)
    }

    /// Begins a request. It may be done on return; [`take`](Self::take) tells.
    pub fn start<T: From<JobId>>(
        &mut self,
        ring: &mut Ring<T>,
        now: Time,
        disk: &Arc<Disk>,
        key: K,
        request: Request,
    ) {
        if let Err(error) = check(disk, now, &request) {
            let outcome = match request {
                Request::Read(_) => Outcome::Read(Err(error)),
                _ => Outcome::Done(Err(error)),
            };
            self.done.push_back((key, outcome));
            return;
        }
        let mut meta = None;
        let (step, op) = match request {
            Request::Read(range) => {
                let wide = range.outward(disk.align);
                let Some(buffer) = self.pool.get(index(wide.len)) else {
                    return self
                        .done
                        .push_back((key, Outcome::Read(Err(disk_error(Errno::EINVAL)))));
                };
                let op = read_op(disk, wide.offset, buffer, 0, index(wide.len));
                (
                    Step::Read {
                        range,
                        wide,
                        got: 0,
                    },
                    op,
                )
            }
            Request::Write {
                offset,
                data,
                durable,
            } => match self.write(disk, offset, data, durable, None) {
                Ok(first) => first,
                Err(error) => return self.done.push_back((key, Outcome::Done(Err(error)))),
            },
            Request::Zero {
                range,
                hole,
                durable,
            } => {
                let by = if hole {
                    ZeroBy::Hole
                } else {
                    ZeroBy::ZeroRange
                };
                let task = ZeroTask {
                    left: range,
                    by,
                    durable,
                };
                match self.zero(disk, task) {
                    Ok(first) => first,
                    Err(outcome) => return self.done.push_back((key, Outcome::Done(outcome))),
                }
            }
            Request::Flush if disk.in_memory => {
                return self.done.push_back((key, Outcome::Done(Ok(()))));
            }
            Request::Flush => (
                Step::Sync,
                Op::Sync {
                    fd: disk.data.clone(),
                },
            ),
            Request::MetaWrite { offset, data } => {
                let range = ByteRange {
                    offset,
                    len: bytes(data.len()),
                };
                if self.overlaps_meta(disk, range) {
                    self.waiting.push_back((disk.clone(), key, offset, data));
                    return;
                }
                let Some(data) = self.pool.copy_of(&data) else {
                    return self
                        .done
                        .push_back((key, Outcome::Done(Err(disk_error(Errno::EINVAL)))));
                };
                meta = Some(range);
                let fd = disk.meta.clone();
                (
                    Step::Write { zero: None },
                    Op::Write {
                        fd,
                        offset,
                        data,
                        durable: true,
                    },
                )
            }
        };
        let job = self.jobs.insert(Job {
            key,
            since: now,
            disk: disk.clone(),
            meta,
            step,
        });
        self.run(ring, now, job, op);
    }

    /// An operation of a request is done.
    pub fn completed<T: From<JobId>>(
        &mut self,
        ring: &mut Ring<T>,
        now: Time,
        job: JobId,
        op: Op,
        result: Result<usize, Errno>,
    ) {
        match self.step(job.0, op, result) {
            Next::Op(op) => self.run(ring, now, job.0, op),
            Next::Finish(outcome) => self.finish(ring, now, job.0, outcome),
        }
    }

    /// Carries out an operation and, where it is done on the spot, those that follow.
    fn run<T: From<JobId>>(&mut self, ring: &mut Ring<T>, now: Time, job: usize, mut op: Op) {
        loop {
            let this = &self.jobs[job];
            let zeroing = matches!(
                this.step,
                Step::Write { zero: Some(_) } | Step::Merge { zero: Some(_), .. }
            );
            let inline = this.disk.engine == Engine::Sync
                && !zeroing
                && (this.meta.is_none() || this.disk.in_memory)
                && matches!(op, Op::Read { .. } | Op::Write { .. });
            if !inline {
                ring.start(T::from(JobId(job)), op);
                return;
            }
            let result = perform(&mut op);
            match self.step(job, op, result) {
                Next::Op(next) => op = next,
                Next::Finish(outcome) => return self.finish(ring, now, job, outcome),
            }
        }
    }

    fn finish<T: From<JobId>>(
        &mut self,
        ring: &mut Ring<T>,
        now: Time,
        job: usize,
        outcome: Outcome,
    ) {
        let Job { key, meta, .. } = self.jobs.remove(job);
        self.done.push_back((key, outcome));
        if meta.is_some() {
            // Those that still overlap go to the end of the queue in their order.
            for (disk, key, offset, data) in std::mem::take(&mut self.waiting) {
                self.start(ring, now, &disk, key, Request::MetaWrite { offset, data });
            }
        }
    }

    fn overlaps_meta(&self, disk: &Arc<Disk>, range: ByteRange) -> bool {
        let busy =
            |other: &Arc<Disk>, at: ByteRange| Arc::ptr_eq(other, disk) && at.overlaps(range);
        self.jobs
            .iter()
            .any(|(_, job)| job.meta.is_some_and(|at| busy(&job.disk, at)))
            || self.waiting.iter().any(|(other, _, offset, data)| {
                busy(
                    other,
                    ByteRange {
                        offset: *offset,
                        len: bytes(data.len()),
                    },
                )
            })
    }

    /// The first operation of a write: the write itself where the device takes it as it is.
    fn write(
        &self,
        disk: &Disk,
        offset: u64,
        data: PoolBuf,
        durable: bool,
        zero: Option<ZeroTask>,
    ) -> Result<(Step, Op), DiskError> {
        let fd = disk.data.clone();
        let range = ByteRange {
            offset,
            len: bytes(data.len()),
        };
        let wide = range.outward(disk.align);
        if wide == range {
            let data = if data.is_aligned(index(disk.align)) {
                data
            } else {
                self.pool
                    .copy_of(data.bytes())
                    .ok_or(disk_error(Errno::EINVAL))?
            };
            return Ok((
                Step::Write { zero },
                Op::Write {
                    fd,
                    offset,
                    data,
                    durable,
                },
            ));
        }
        let buffer = self
            .pool
            .get(index(wide.len))
            .ok_or(disk_error(Errno::EINVAL))?;
        let tail = offset == wide.offset;
        let from = if tail { wide.len - disk.align } else { 0 };
        let op = read_op(
            disk,
            wide.offset + from,
            buffer,
            index(from),
            index(disk.align),
        );
        Ok((
            Step::Merge {
                wide,
                offset,
                data,
                durable,
                tail,
                zero,
            },
            op,
        ))
    }

    /// The next operation of a zeroing, or how it ended. One `fallocate` or one step of writes.
    fn zero(&self, disk: &Disk, task: ZeroTask) -> Result<(Step, Op), Result<(), DiskError>> {
        let ZeroTask { left, by, durable } = task;
        if left.is_empty() {
            if durable && !disk.in_memory {
                return Ok((
                    Step::Sync,
                    Op::Sync {
                        fd: disk.data.clone(),
                    },
                ));
            }
            return Err(Ok(()));
        }
        // Files take any range; devices whole logical blocks, so their edges are written.
        let unit = if disk.is_device {
            disk.align.max(512)
        } else {
            1
        };
        let start = left.offset.next_multiple_of(unit);
        if by != ZeroBy::Writes && start == left.offset {
            let inner = left.inward(unit);
            if !inner.is_empty() {
                let len = inner.len.min(ALLOCATE_STEP_BYTES);
                let mode = match by {
                    ZeroBy::Hole => libc::FALLOC_FL_PUNCH_HOLE,
                    _ => libc::FALLOC_FL_ZERO_RANGE,
                } | libc::FALLOC_FL_KEEP_SIZE;
                let fd = disk.data.clone();
                let op = Op::Allocate {
                    fd,
                    mode,
                    offset: left.offset,
                    len,
                };
                return Ok((Step::Allocate { task, len }, op));
            }
        }
        // By writes: up to the next place where something better can go on.
        let end = if by == ZeroBy::Writes || start == left.offset {
            left.end()
        } else {
            left.end().min(start)
        };
        let step_end = (left.offset + bytes(ZERO_STEP_BYTES)) / BLOCK_BYTES * BLOCK_BYTES;
        let end = end.min(step_end);
        let data = self.zeroes.slice(0, index(end - left.offset));
        let rest = ZeroTask {
            left: ByteRange::between(end, left.end()),
            by,
            durable,
        };
        self.write(disk, left.offset, data, false, Some(rest))
            .map_err(Err)
    }

    /// What follows an operation.
    fn step(&mut self, job: usize, op: Op, result: Result<usize, Errno>) -> Next {
        let disk = self.jobs[job].disk.clone();
        let step = std::mem::replace(&mut self.jobs[job].step, Step::Sync);
        if result == Err(Errno::EINTR) {
            self.jobs[job].step = step;
            return Next::Op(op);
        }
        let (next, step) = match (step, op) {
            (Step::Read { range, wide, got }, Op::Read { buffer, .. }) => {
                read_on(&disk, range, wide, got, buffer, result)
            }
            (
                Step::Merge {
                    wide,
                    offset,
                    data,
                    durable,
                    tail,
                    zero,
                },
                Op::Read { buffer, .. },
            ) => match result {
                Ok(count) if bytes(count) == disk.align => {
                    merge(&disk, wide, offset, data, durable, tail, zero, buffer)
                }
                Ok(_) => (finish(Err(ended(&disk))), Step::Sync),
                Err(errno) => (finish(Err(disk_error(errno))), Step::Sync),
            },
            (
                Step::Write { zero },
                Op::Write {
                    fd,
                    offset,
                    data,
                    durable,
                },
            ) => match result {
                Ok(count) if count == data.len() => match zero {
                    Some(rest) => self.zero_on(&disk, rest),
                    None => (finish(Ok(())), Step::Sync),
                },
                Ok(0) => (finish(Err(disk_error(Errno::EIO))), Step::Sync),
                Ok(count) => {
                    let data = data.slice(count, data.len() - count);
                    let offset = offset + bytes(count);
                    (
                        Next::Op(Op::Write {
                            fd,
                            offset,
                            data,
                            durable,
                        }),
                        Step::Write { zero },
                    )
                }
                Err(errno) => (finish(Err(disk_error(errno))), Step::Sync),
            },
            (Step::Allocate { task, len }, _) => {
                let rest = match (result, task.by) {
                    (Ok(_), _) => {
                        let left = ByteRange::between(task.left.offset + len, task.left.end());
                        ZeroTask { left, ..task }
                    }
                    (Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL), tried) => {
                        let hole = tried == ZeroBy::Hole;
                        self.slowed |= disk.zeroing.refused(hole);
                        let by = if hole {
                            ZeroBy::ZeroRange
                        } else {
                            ZeroBy::Writes
                        };
                        ZeroTask { by, ..task }
                    }
                    (Err(errno), _) => {
                        self.jobs[job].step = Step::Sync;
                        return finish(Err(disk_error(errno)));
                    }
                };
                self.zero_on(&disk, rest)
            }
            (Step::Sync, _) => {
                let result = result.map(drop).map_err(disk_error);
                (
                    finish(result.and_then(|()| disk.check_length())),
                    Step::Sync,
                )
            }
            // A job has one operation at a time, made for its step.
            (_, _) => unreachable!("a completion that does not belong to the job's step"),
        };
        self.jobs[job].step = step;
        next
    }

    fn zero_on(&self, disk: &Disk, rest: ZeroTask) -> (Next, Step) {
        match self.zero(disk, rest) {
            Ok((step, op)) => (Next::Op(op), step),
            Err(result) => (finish(result), Step::Sync),
        }
    }
}

/// Refuses what can't go well: beyond the volume, or on a store that was cut short.
fn check(disk: &Disk, now: Time, request: &Request) -> Result<(), DiskError> {
    let range = match request {
        Request::Read(range) | Request::Zero { range, .. } => Some(*range),
        Request::Write { offset, data, .. } => ByteRange::new(*offset, bytes(data.len())),
        Request::Flush | Request::MetaWrite { .. } => None,
    };
    if let Some(range) = range
        && (range.is_empty() || range.end() > disk.volume_bytes())
    {
        return Err(disk_error(Errno::EINVAL));
    }
    if disk.failed.load(Ordering::Relaxed) {
        return Err(DiskError::Io(libc::EIO));
    }
    if matches!(request, Request::Write { .. } | Request::Zero { .. }) {
        let checked = Time(disk.checked.load(Ordering::Relaxed));
        if now.ms_since(checked) >= LENGTH_CHECK_MS {
            disk.checked.store(now.0, Ordering::Relaxed);
            return disk.check_length();
        }
    }
    Ok(())
}

/// The store ended before the request did: EIO, and it is looked at as a whole.
fn ended(disk: &Disk) -> DiskError {
    disk.check_length()
        .err()
        .unwrap_or(DiskError::Io(libc::EIO))
}

fn read_op(disk: &Disk, offset: u64, buffer: PoolMut, from: usize, len: usize) -> Op {
    Op::Read {
        fd: disk.data.clone(),
        offset,
        buffer,
        from,
        len,
    }
}

fn read_on(
    disk: &Disk,
    range: ByteRange,
    wide: ByteRange,
    got: usize,
    buffer: PoolMut,
    result: Result<usize, Errno>,
) -> (Next, Step) {
    let fail = |error| (Next::Finish(Outcome::Read(Err(error))), Step::Sync);
    let count = match result {
        Ok(count) => count,
        Err(errno) => return fail(disk_error(errno)),
    };
    let got = got + count;
    let skip = index(range.offset - wide.offset);
    // The last unit of a device may reach beyond the volume; what was asked for must be there.
    if got >= skip + index(range.len) {
        let payload = buffer.freeze(skip, index(range.len));
        return (Next::Finish(Outcome::Read(Ok(payload))), Step::Sync);
    }
    if count == 0 || !bytes(got).is_multiple_of(disk.align) {
        return fail(ended(disk));
    }
    let op = read_op(
        disk,
        wide.offset + bytes(got),
        buffer,
        got,
        index(wide.len) - got,
    );
    (Next::Op(op), Step::Read { range, wide, got })
}

/// One end of an unaligned write was read: the other end, or the write of the whole.
#[expect(
    clippy::too_many_arguments,
    reason = "the fields of Step::Merge, taken apart once"
)]
fn merge(
    disk: &Disk,
    wide: ByteRange,
    offset: u64,
    data: PoolBuf,
    durable: bool,
    tail: bool,
    zero: Option<ZeroTask>,
    mut buffer: PoolMut,
) -> (Next, Step) {
    let end = offset + bytes(data.len());
    if !tail && end != wide.end() && wide.len > disk.align {
        let from = wide.len - disk.align;
        let op = read_op(
            disk,
            wide.offset + from,
            buffer,
            index(from),
            index(disk.align),
        );
        return (
            Next::Op(op),
            Step::Merge {
                wide,
                offset,
                data,
                durable,
                tail: true,
                zero,
            },
        );
    }
    let from = index(offset - wide.offset);
    buffer.space()[from..from + data.len()].copy_from_slice(data.bytes());
    let data = buffer.freeze(0, index(wide.len));
    let fd = disk.data.clone();
    (
        Next::Op(Op::Write {
            fd,
            offset: wide.offset,
            data,
            durable,
        }),
        Step::Write { zero },
    )
}

/// Carries out a read or write by a system call.
fn perform(op: &mut Op) -> Result<usize, Errno> {
    match op {
        Op::Read {
            fd,
            offset,
            buffer,
            from,
            len,
        } => sys::read_at(
            fd.as_fd(),
            *offset,
            &mut buffer.space()[*from..*from + *len],
            0,
        ),
        Op::Write {
            fd,
            offset,
            data,
            durable,
        } => {
            let flags = if *durable { libc::RWF_DSYNC } else { 0 };
            sys::write_at(fd.as_fd(), *offset, data.bytes(), flags)
        }
        _ => Err(Errno::EINVAL),
    }
}
