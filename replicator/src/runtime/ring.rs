//! A thin wrapper around one io_uring. Every operation *owns* its buffers and its descriptor in a slab
//! until the kernel's completion is taken out, whatever happens to whoever started it; completions
//! hand the operation back. With `pool` this is the only file with unsafe code of the runtime, and it
//! knows nothing of disks, peers or clients.
//!
//! A ring belongs to the thread that made it (`SINGLE_ISSUER`, and with `DEFER_TASKRUN` completions are
//! made only while that thread is inside [`Ring::submit`]).

mod batch;
pub(crate) mod sys;

pub use batch::SendBatch;

use super::pool::{PoolBuf, PoolMut};
use crate::core::api::Payload;
use io_uring::types::{CancelBuilder, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue, types};
use nix::errno::Errno;
use nix::libc;
use slab::Slab;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A descriptor that operations in flight share with its owner, so that it is closed (and its number
/// used again) only once nothing refers to it.
pub type Fd = Arc<OwnedFd>;

/// Submission queue entries; more wait in a queue of our own. Hundreds of client requests with two or
/// three operations each fit in one turn of the loop.
const ENTRIES: u32 = 1024;
/// Completion queue entries. More operations than this may be in flight: the kernel then keeps
/// completions back (`FEAT_NODROP`) and [`RingStats::overflows`] counts.
const COMPLETIONS: u32 = 8192;
/// How long a ring that is dropped waits for its operations to end before it leaks their buffers.
const DROP_WAIT: Duration = Duration::from_secs(2);
/// User data of operations whose completion nobody waits for.
const NOBODY: u64 = u64::MAX;

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The kernel refuses: too old, or forbidden by sysctl or a container's seccomp profile.
    #[error(
        "io_uring is not available ({0}); it needs Linux 5.19 or later, \
         kernel.io_uring_disabled=0 and a container profile that allows it"
    )]
    Setup(io::Error),
    /// The kernel lacks something that can't be done without.
    #[error("this kernel's io_uring lacks {0}; Linux 5.19 or later is needed")]
    Missing(&'static str),
}

/// What to do. Offsets and lengths are bytes.
#[derive(Debug)]
pub enum Op {
    /// Read at a position into `buffer[from..from + len]`.
    Read {
        /// The file.
        fd: Fd,
        /// Where in the file.
        offset: u64,
        /// Filled in part.
        buffer: PoolMut,
        /// First byte of the buffer to fill.
        from: usize,
        /// Bytes to read.
        len: usize,
    },
    /// Write a payload at a position.
    Write {
        /// The file.
        fd: Fd,
        /// Where in the file.
        offset: u64,
        /// The bytes.
        data: PoolBuf,
        /// On stable storage before the completion (`RWF_DSYNC`).
        durable: bool,
    },
    /// `fdatasync`.
    Sync {
        /// The file.
        fd: Fd,
    },
    /// `fallocate`.
    Allocate {
        /// The file.
        fd: Fd,
        /// Mode flags of fallocate(2).
        mode: i32,
        /// Start.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// Receive what there is into `buffer[from..from + len]`.
    Recv {
        /// The socket.
        fd: Fd,
        /// Filled in part.
        buffer: PoolMut,
        /// First byte of the buffer to fill.
        from: usize,
        /// Most bytes to receive.
        len: usize,
    },
    /// Send what is left of a batch.
    Send {
        /// The socket.
        fd: Fd,
        /// Headers and payloads.
        batch: Box<SendBatch>,
    },
    /// Accept one connection.
    Accept {
        /// The listening socket.
        fd: Fd,
        /// The connection, in the completion.
        accepted: Option<OwnedFd>,
    },
    /// Connect a socket.
    Connect {
        /// The socket.
        fd: Fd,
        /// Where to.
        address: Box<socket2::SockAddr>,
    },
    /// Read an eventfd's counter.
    ReadEvent {
        /// The eventfd.
        fd: Fd,
        /// The counter, in the completion.
        value: Box<u64>,
    },
    /// Wait until a descriptor is ready.
    Poll {
        /// The descriptor.
        fd: Fd,
        /// `POLLIN`, `POLLOUT` and so on.
        events: u32,
    },
    /// Complete after a time, with `ETIME`.
    Timeout {
        /// How long.
        after: Box<Timespec>,
    },
}

/// Names an operation in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpKey(usize);

/// An operation that is done.
#[derive(Debug)]
pub struct Completion<T> {
    /// What was handed in with it.
    pub token: T,
    /// The operation with all that it owned.
    pub op: Op,
    /// Bytes moved, or 0.
    pub result: Result<usize, Errno>,
}

/// How long [`Ring::submit`] waits for a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// At most this long.
    For(Duration),
    /// Until there is one.
    Forever,
}

/// Counters since the ring was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingStats {
    /// Operations started.
    pub started: u64,
    /// Operations completed.
    pub completed: u64,
    /// Calls of `io_uring_enter`.
    pub enters: u64,
    /// Times that the completion queue was found full; the kernel kept those completions.
    pub overflows: u64,
    /// Operations that had to wait for a place in the submission queue.
    pub backlogged: u64,
}

struct InFlight<T> {
    token: T,
    op: Op,
}

/// One io_uring and what is in flight on it. `T` is the caller's word for an operation.
pub struct Ring<T> {
    ring: IoUring,
    ops: Slab<InFlight<T>>,
    backlog: VecDeque<squeue::Entry>,
    deferred: bool,
    stats: RingStats,
}

impl<T> fmt::Debug for Ring<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("in_flight", &self.ops.len())
            .field("deferred", &self.deferred)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl<T> Ring<T> {
    /// A ring for this thread, in the best mode that the kernel has.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn new() -> Result<Self, RingError> {
        let (ring, deferred) = Self::build().map_err(RingError::Setup)?;
        if !ring.params().is_feature_nodrop() {
            return Err(RingError::Missing("FEAT_NODROP"));
        }
        if !ring.params().is_feature_ext_arg() {
            return Err(RingError::Missing("FEAT_EXT_ARG"));
        }
        let mut probe = Probe::new();
        ring.submitter()
            .register_probe(&mut probe)
            .map_err(RingError::Setup)?;
        for (code, name) in [
            (opcode::Read::CODE, "READ"),
            (opcode::Write::CODE, "WRITE"),
            (opcode::Fsync::CODE, "FSYNC"),
            (opcode::Fallocate::CODE, "FALLOCATE"),
            (opcode::Recv::CODE, "RECV"),
            (opcode::SendMsg::CODE, "SENDMSG"),
            (opcode::Accept::CODE, "ACCEPT"),
            (opcode::Connect::CODE, "CONNECT"),
            (opcode::PollAdd::CODE, "POLL_ADD"),
            (opcode::Timeout::CODE, "TIMEOUT"),
            (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
        ] {
            if !probe.is_supported(code) {
                return Err(RingError::Missing(name));
            }
        }
        Ok(Self {
            ring,
            ops: Slab::with_capacity(ENTRIES as usize),
            backlog: VecDeque::new(),
            deferred,
            stats: RingStats::default(),
        })
    }

    fn build() -> io::Result<(IoUring, bool)> {
        let mut best = IoUring::builder();
        best.setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS);
        if let Ok(ring) = best.build(ENTRIES) {
            return Ok((ring, true));
        }
        // 5.19: no DEFER_TASKRUN (6.1), but completions without interrupting the thread.
        let mut older = IoUring::builder();
        older
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all();
        older
            .setup_cqsize(COMPLETIONS)
            .build(ENTRIES)
            .map(|ring| (ring, false))
    }

    /// Are completions made only inside [`submit`](Self::submit)?
    #[must_use]
    pub const fn is_deferred(&self) -> bool {
        self.deferred
    }

    /// Operations in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.ops.len()
    }

    /// Counters.
    #[must_use]
    pub const fn stats(&self) -> RingStats {
        self.stats
    }

    /// Starts an operation with the next [`submit`](Self::submit). It comes back from
    /// [`take`](Self::take) exactly once.
    ///
    /// # Panics
    /// Where an operation's range is not within its buffer.
    pub fn start(&mut self, token: T, op: Op) -> OpKey {
        self.stats.started += 1;
        let place = self.ops.vacant_entry();
        let key = place.key();
        let in_flight = place.insert(InFlight { token, op });
        let entry = entry_of(&mut in_flight.op).user_data(key as u64);
        self.push(entry);
        OpKey(key)
    }

    /// Asks the kernel to stop an operation; both results are reported by the operation itself. Does
    /// nothing where it is done already.
    pub fn cancel(&mut self, key: OpKey) {
        let entry = opcode::AsyncCancel::new(key.0 as u64)
            .build()
            .user_data(NOBODY);
        self.push(entry);
    }

    fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() && self.push_now(&entry) {
            return;
        }
        // The queue is full: hand it to the kernel, which takes all entries at once.
        if self.enter(0, None).is_ok() {
            self.drain_backlog();
        }
        if !self.backlog.is_empty() || !self.push_now(&entry) {
            self.stats.backlogged += 1;
            self.backlog.push_back(entry);
        }
    }

    fn push_now(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the entry refers only to memory and descriptors that its operation owns; that
        // operation stays in the slab until its completion is taken out, and what the kernel sees of
        // it lies on the heap and does not move with the slab.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    fn drain_backlog(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.push_now(&entry) {
                self.backlog.push_front(entry);
                return;
            }
        }
    }

    fn enter(&mut self, want: usize, limit: Option<Duration>) -> io::Result<()> {
        self.stats.enters += 1;
        if self.ring.submission().cq_overflow() {
            self.stats.overflows += 1;
        }
        let result = match limit {
            Some(limit) => {
                let spec = Timespec::new()
                    .sec(limit.as_secs())
                    .nsec(limit.subsec_nanos());
                let args = SubmitArgs::new().timespec(&spec);
                self.ring.submitter().submit_with_args(want, &args)
            }
            None => self.ring.submitter().submit_and_wait(want),
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // ETIME: nothing came in time. EINTR: a signal; the caller looks around and comes
                // back. EBUSY, EAGAIN: completions must be taken out first; entries stay queued.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Hands everything started to the kernel and waits for a completion if told so. Returns early
    /// on signals.
    ///
    /// # Errors
    /// What io_uring_enter(2) reports beyond its passing states: the ring is unusable.
    pub fn submit(&mut self, wait: Wait) -> io::Result<()> {
        loop {
            self.drain_backlog();
            let ready = !self.ring.completion().is_empty() || !self.backlog.is_empty();
            match wait {
                // Nothing to hand over, nothing to run: no system call.
                Wait::No if self.ring.submission().is_empty() && !self.has_kernel_work() => {}
                Wait::No => self.enter(0, None)?,
                _ if ready => self.enter(0, None)?,
                Wait::For(limit) => self.enter(1, Some(limit))?,
                Wait::Forever => self.enter(1, None)?,
            }
            if self.backlog.is_empty() || !self.ring.completion().is_empty() {
                return Ok(());
            }
        }
    }

    /// Is there something to take out, or work of the kernel for this thread that will make it?
    /// Reads shared memory only, no system call.
    #[must_use]
    pub fn is_ready(&mut self) -> bool {
        !self.ring.completion().is_empty() || self.has_kernel_work()
    }

    fn has_kernel_work(&mut self) -> bool {
        let submission = self.ring.submission();
        submission.taskrun() || submission.cq_overflow()
    }

    /// How many are there to [`take`](Self::take) now. More may come while they are taken.
    pub fn ready(&mut self) -> usize {
        self.ring.completion().len()
    }

    /// The next operation that is done.
    pub fn take(&mut self) -> Option<Completion<T>> {
        let mut all = usize::MAX;
        self.take_of(&mut all)
    }

    /// The next one of so many; counts them down.
    pub fn take_of(&mut self, left: &mut usize) -> Option<Completion<T>> {
        loop {
            *left = left.checked_sub(1)?;
            let entry = self.ring.completion().next()?;
            if entry.user_data() == NOBODY {
                continue;
            }
            let key = usize::try_from(entry.user_data()).ok()?;
            let InFlight { token, mut op } = self.ops.remove(key);
            self.stats.completed += 1;
            let result = match u32::try_from(entry.result()) {
                Ok(count) => Ok(usize::try_from(count).unwrap_or(usize::MAX)),
                Err(_) => Err(Errno::from_raw(entry.result().saturating_neg())),
            };
            if let (Op::Accept { accepted, .. }, Ok(_)) = (&mut op, result) {
                // SAFETY: the kernel made this descriptor for us and nobody else knows it.
                *accepted = Some(unsafe { OwnedFd::from_raw_fd(entry.result()) });
            }
            return Some(Completion { token, op, result });
        }
    }
}

impl<T> Drop for Ring<T> {
    /// Stops what is in flight and waits for it. What does not end in time (a stuck disk) keeps its
    /// memory for ever: the kernel may still write to it.
    fn drop(&mut self) {
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::any())
            .build()
            .user_data(NOBODY);
        self.push(cancel);
        let end = Instant::now() + DROP_WAIT;
        while !self.ops.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.submit(Wait::For(left)).is_err() {
                break;
            }
            while self.take().is_some() {}
        }
        if !self.ops.is_empty() {
            tracing::warn!(
                in_flight = self.ops.len(),
                "operations did not end; buffers leaked"
            );
            std::mem::forget(std::mem::take(&mut self.ops));
        }
    }
}

/// The kernel's form of an operation. Pointers go to heap memory that the operation owns.
fn entry_of(op: &mut Op) -> squeue::Entry {
    match op {
        Op::Read {
            fd,
            offset,
            buffer,
            from,
            len,
        } => {
            let space = &mut buffer.space()[*from..*from + *len];
            opcode::Read::new(
                types::Fd(fd.as_raw_fd()),
                space.as_mut_ptr(),
                entry_len(space),
            )
            .offset(*offset)
            .build()
        }
        Op::Write {
            fd,
            offset,
            data,
            durable,
        } => {
            debug_assert!(!data.is_empty());
            let bytes = data.bytes();
            opcode::Write::new(types::Fd(fd.as_raw_fd()), bytes.as_ptr(), entry_len(bytes))
                .offset(*offset)
                .rw_flags(if *durable { libc::RWF_DSYNC } else { 0 })
                .build()
        }
        Op::Sync { fd } => opcode::Fsync::new(types::Fd(fd.as_raw_fd()))
            .flags(FsyncFlags::DATASYNC)
            .build(),
        Op::Allocate {
            fd,
            mode,
            offset,
            len,
        } => opcode::Fallocate::new(types::Fd(fd.as_raw_fd()), *len)
            .offset(*offset)
            .mode(*mode)
            .build(),
        Op::Recv {
            fd,
            buffer,
            from,
            len,
        } => {
            let space = &mut buffer.space()[*from..*from + *len];
            opcode::Recv::new(
                types::Fd(fd.as_raw_fd()),
                space.as_mut_ptr(),
                entry_len(space),
            )
            .build()
        }
        Op::Send { fd, batch } => {
            let message = batch.prepare();
            opcode::SendMsg::new(types::Fd(fd.as_raw_fd()), message)
                .flags(libc::MSG_NOSIGNAL.unsigned_abs())
                .build()
        }
        Op::Accept { fd, .. } => {
            let none = std::ptr::null_mut();
            opcode::Accept::new(types::Fd(fd.as_raw_fd()), none, std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC)
                .build()
        }
        Op::Connect { fd, address } => opcode::Connect::new(
            types::Fd(fd.as_raw_fd()),
            address.as_ptr().cast(),
            address.len(),
        )
        .build(),
        Op::ReadEvent { fd, value } => {
            let pointer: *mut u64 = &raw mut **value;
            opcode::Read::new(types::Fd(fd.as_raw_fd()), pointer.cast(), 8).build()
        }
        Op::Poll { fd, events } => opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), *events).build(),
        Op::Timeout { after } => opcode::Timeout::new(&raw const **after).build(),
    }
}

/// Lengths in entries are 32 bits; buffers are far smaller ([`super::pool::MAX_BUFFER_BYTES`]).
fn entry_len(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
