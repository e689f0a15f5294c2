//! The secondary's role: one session with one primary at a time, obeyed in order. It never decides
//! anything: it refuses older epochs (RULES 2), remembers what it received (RULES 6), answers when
//! its disk is done (RULES 1) and drains before it changes masters (RULES 5).

mod opening;

use super::api::{Action, BlockHash, ConnId, DiskError, FastZeroes, Notice, Payload, Settings};
use super::local::{Done, Local};
use super::message::{
    ClientMark, MAX_RANGES, Message, RangesOf, RefuseReason, Seq, SessionId, VolumeRange, WriteKind,
};
use super::mutation::{Mutation, mutated};
use super::range_lock::{Mode, RangeLock};
use super::{Outstanding, Step, Tag};
use std::collections::{BTreeMap, VecDeque};
use vocabulary::{ByteRange, Epoch, NodeId, NodeSet, Record, Time};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Write(Seq),
    Read(u64),
}

#[derive(Clone, Debug)]
enum Job<P> {
    Write {
        at: VolumeRange,
        data: P,
        fua: bool,
        mark: ClientMark,
    },
    Zero {
        at: VolumeRange,
        hole: bool,
        fua: bool,
        mark: ClientMark,
    },
    Hash {
        id: u64,
        at: VolumeRange,
    },
    Fetch {
        id: u64,
        at: VolumeRange,
    },
}

/// A Hello that was not refused, on its way to a session.
#[derive(Clone, Debug)]
struct Opening {
    conn: ConnId,
    primary: NodeId,
    session: SessionId,
    epoch: Epoch,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Draining,
    Growing { left: usize },
    Promising,
}

#[derive(Clone, Debug)]
struct Session {
    conn: ConnId,
    primary: NodeId,
    epoch: Epoch,
    id: SessionId,
    last_seq: Seq,
    outstanding: Outstanding,
    flushes: VecDeque<Seq>,
    flushing: Option<Seq>,
    /// Release notices whose writes are still on their way to the disk here.
    releases: VecDeque<(Seq, Option<NodeSet>, NodeSet, NodeSet)>,
    acks: Vec<Seq>,
    heard: Time,
    /// A resync is under way, by the number of copies seen lately (status only).
    copied_at: Option<Time>,
    digested_at: Option<Time>,
}

#[derive(Clone, Debug)]
pub(crate) struct Secondary<P> {
    session: Option<Session>,
    opening: Option<Opening>,
    locks: Vec<RangeLock<Key>>,
    jobs: BTreeMap<Key, Job<P>>,
    next_read: u64,
    grows: BTreeMap<u64, Grow>,
    next_grow: u64,
    granted: Vec<Key>,
}

#[derive(Clone, Copy, Debug)]
enum Grow {
    /// Part of an opening.
    Opening,
    /// The primary asked.
    Asked { conn: ConnId, id: u64 },
}

impl<P: Payload> Secondary<P> {
    pub(crate) fn new(volumes: usize) -> Self {
        Self {
            session: None,
            opening: None,
            locks: (0..volumes).map(|_| RangeLock::default()).collect(),
            jobs: BTreeMap::new(),
            next_read: 0,
            grows: BTreeMap::new(),
            next_grow: 0,
            granted: Vec::new(),
        }
    }

    /// The primary of the present session.
    pub(crate) fn primary(&self) -> Option<NodeId> {
        self.session.as_ref().map(|s| s.primary)
    }

    /// Is it in session with the primary that this record names, or about to be?
    pub(crate) fn is_led_by(&self, record: &Record) -> bool {
        let session = self.session.as_ref().map(|s| (s.primary, s.epoch));
        let opening = self.opening.as_ref().map(|o| (o.primary, o.epoch));
        let leads = |(primary, epoch)| record.primary == Some(primary) && record.epoch == epoch;
        session.is_some_and(leads) || opening.is_some_and(leads)
    }

    pub(crate) fn copied_lately(&self, now: Time) -> bool {
        self.session
            .as_ref()
            .and_then(|s| s.copied_at)
            .is_some_and(|t| now.ms_since(t) < 1000)
    }

    pub(crate) fn digested_lately(&self, now: Time) -> bool {
        self.session
            .as_ref()
            .and_then(|s| s.digested_at)
            .is_some_and(|t| now.ms_since(t) < 1000)
    }

    /// Is this the connection of the present session?
    pub(crate) fn in_session(&self, conn: ConnId) -> bool {
        self.session.as_ref().is_some_and(|s| s.conn == conn)
    }

    /// Its stores have changed what they zero without writing.
    pub(crate) fn tell_fast_zeroes(&self, step: &mut Step<'_, P>, fast: FastZeroes) {
        if let Some(session) = &self.session {
            let message = Message::FastZeroes { fast };
            let conn = session.conn;
            step.emit(Action::Send { conn, message });
        }
    }

    pub(crate) fn disconnected(
        &mut self,
        step: &mut Step<'_, P>,
        local: &mut Local<P>,
        conn: ConnId,
    ) {
        if self.in_session(conn) {
            self.end_session(step, local);
        } else if self.opening.as_ref().is_some_and(|o| o.conn == conn) {
            self.opening = None;
        }
    }

    /// A message of the present session (but Hello and Record, which the resource takes itself).
    /// `members`: the in-sync set, where this replica is in it.
    pub(crate) fn message(
        &mut self,
        step: &mut Step<'_, P>,
        local: &mut Local<P>,
        conn: ConnId,
        message: Message<P>,
        replicas: NodeSet,
        members: Option<NodeSet>,
    ) {
        let Some(session) = self.session.as_mut().filter(|s| s.conn == conn) else {
            return;
        };
        session.heard = step.now;
        match message {
            Message::Write {
                seq,
                volume,
                offset,
                data,
                fua,
                kind,
                mark,
            } => {
                let Some(range) = ByteRange::new(offset, data.len() as u64) else {
                    return self.protocol_error(step, local);
                };
                let at = VolumeRange { volume, range };
                local.sessions.seen(mark.session);
                let job = Job::Write {
                    at,
                    data,
                    fua,
                    mark,
                };
                self.received(step, local, seq, at, kind, job);
            }
            Message::Zero {
                seq,
                at,
                hole,
                fua,
                kind,
                mark,
            } => {
                local.sessions.seen(mark.session);
                let job = Job::Zero {
                    at,
                    hole,
                    fua,
                    mark,
                };
                self.received(step, local, seq, at, kind, job);
            }
            Message::Touch { seq, ranges } => {
                if seq <= session.last_seq || ranges.iter().any(|at| !local.fits(*at)) {
                    return self.protocol_error(step, local);
                }
                session.last_seq = seq;
                session.outstanding.begin(seq);
                local.touch(step, Tag::Touch(seq), &ranges);
            }
            Message::Flush { seq } => {
                if seq <= session.last_seq {
                    return self.protocol_error(step, local);
                }
                session.last_seq = seq;
                session.flushes.push_back(seq);
                self.start_flush(step, local);
            }
            Message::Release {
                upto,
                old,
                stable_on,
            } => {
                if upto > session.last_seq {
                    return self.protocol_error(step, local);
                }
                let named = if mutated(Mutation::ReleaseWithoutNames)
                    || mutated(Mutation::BitsOnlyOnPrimary)
                {
                    replicas
                } else {
                    stable_on
                };
                session
                    .releases
                    .push_back((upto, members.filter(|_| old), named, replicas));
                self.take_releases(step, local);
            }
            Message::HashRequest { id, at } => {
                session.digested_at = Some(step.now);
                self.read_job(step, local, at, Job::Hash { id, at });
            }
            Message::Fetch { id, at } => self.read_job(step, local, at, Job::Fetch { id, at }),
            Message::Ranges {
                of: RangesOf::BitsFor { node, disk },
                ranges,
            } => {
                if ranges.iter().any(|at| !local.fits(*at)) {
                    return self.protocol_error(step, local);
                }
                local.take_over_bits(step, node, disk, &ranges);
            }
            Message::Numbers { era, entries } => {
                if entries.iter().any(|entry| !local.fits(entry.at)) {
                    return self.protocol_error(step, local);
                }
                local.sessions.told(era, &entries);
            }
            Message::Settled => local.sessions.settled(),
            Message::HandOverEnd { id } => local.save_bits(step, Tag::Bits(id)),
            Message::Grow {
                id,
                volume,
                size_bytes,
            } => {
                if volume.index() >= local.volumes() {
                    return self.protocol_error(step, local);
                }
                let number = self.next_grow;
                self.next_grow += 1;
                self.grows.insert(number, Grow::Asked { conn, id });
                local.grow(step, Tag::Grow(number), volume, size_bytes);
            }
            Message::Ping { token } => {
                step.emit(Action::Send {
                    conn,
                    message: Message::Pong { token },
                });
            }
            Message::Pong { .. } => {}
            _ => self.protocol_error(step, local),
        }
    }

    fn protocol_error(&mut self, step: &mut Step<'_, P>, local: &mut Local<P>) {
        self.end_session(step, local);
    }

    /// A write arrived: into the window, then its turn at the range, then the disk.
    fn received(
        &mut self,
        step: &mut Step<'_, P>,
        local: &mut Local<P>,
        seq: Seq,
        at: VolumeRange,
        kind: WriteKind,
        job: Job<P>,
    ) {
        let Some(session) = &mut self.session else {
            return;
        };
        if seq <= session.last_seq || !local.fits(at) || at.range.is_empty() {
            return self.protocol_error(step, local);
        }
        session.last_seq = seq;
        session.outstanding.begin(seq);
        if kind == WriteKind::Copy {
            session.copied_at = Some(step.now);
        }
        if !(kind == WriteKind::Copy && mutated(Mutation::CopiesOutsideWindow)) {
            local.window_add(step, seq, at, kind);
        }
        let key = Key::Write(seq);
        if self.locks[at.volume.index()].acquire(key, at.range, Mode::Exclusive) {
            start(step, local, key, job);
        } else {
            self.jobs.insert(key, job);
        }
    }

    fn read_job(
        &mut self,
        step: &mut Step<'_, P>,
        local: &mut Local<P>,
        at: VolumeRange,
        job: Job<P>,
    ) {
        if !local.fits(at) || at.range.is_empty() {
            return self.protocol_error(step, local);
        }
        let key = Key::Read(self.next_read);
        self.next_read += 1;
        let held = self.locks[at.volume.index()].acquire(key, at.range, Mode::Shared);
        if held {
            start_read(step, local, key, &job);
        }
        self.jobs.insert(key, job);
    }

    /// A range leaves the window once its write is done here, whatever others have.
    fn take_releases(&mut self, step: &mut Step<'_, P>, local: &mut Local<P>) {
        let Some(session) = &mut self.session else {
            return;
        };
        while let Some((upto, old, named, replicas)) = session.releases.front().copied() {
            if !session.outstanding.done_before(Seq(upto.0 + 1)) {
                break;
            }
            session.releases.pop_front();
            local.release(step, upto, old, named, replicas);
        }
    }

    fn start_flush(&mut self, step: &mut Step<'_, P>, local: &mut Local<P>) {
        let Some(session) = &mut self.session else {
            return;
        };
        if session.flushing.is_some() {
            return;
        }
        // One flush covers all that wait and whose writes are done.
        let mut covered = None;
        while let Some(seq) = session.flushes.front().copied() {
            if !session.outstanding.done_before(seq) {
                break;
            }
            covered = session.flushes.pop_front();
        }
        if let Some(seq) = covered {
            session.flushing = Some(seq);
            local.flush(step, Tag::Flush(seq));
        }
    }

    /// Local I/O is done.
    pub(crate) fn done(
        &mut self,
        step: &mut Step<'_, P>,
        local: &mut Local<P>,
        tag: Tag,
        at: Option<VolumeRange>,
        done: Done<P>,
        record: Option<&Record>,
    ) {
        match tag {
            Tag::Write(seq) => {
                if let Some(at) = at {
                    self.unlock(step, local, Key::Write(seq), at);
                }
                self.finish(step, local, seq, done.error());
            }
            Tag::Touch(seq) => self.finish(step, local, seq, done.error()),
            Tag::Flush(seq) => {
                if let Some(session) = &mut self.session
                    && session.flushing == Some(seq)
                {
                    session.flushing = None;
                    if done.error().is_none() {
                        let conn = session.conn;
                        flush_acks(step, session);
                        step.emit(Action::Send {
                            conn,
                            message: Message::FlushAck { seq },
                        });
                    }
                }
                self.start_flush(step, local);
            }
            Tag::Read(number) | Tag::Hash(number) => {
                let key = Key::Read(number);
                let job = self.jobs.remove(&key);
                if let Some(at) = at {
                    self.unlock(step, local, key, at);
                }
                if let (Some(job), Some(session)) = (job, &self.session) {
                    answer_read(step, session.conn, job, done);
                }
            }
            Tag::Promise(epoch) if done.error().is_none() => self.promised(step, local, epoch),
            Tag::Bits(id) => {
                if let Some(session) = &self.session
                    && done.error().is_none()
                {
                    let message = Message::HandOverDone { id };
                    step.emit(Action::Send {
                        conn: session.conn,
                        message,
                    });
                }
            }
            Tag::Grow(number) => self.grown(step, local, number, done.error(), record),
            Tag::Promise(_) | Tag::Repair(_) | Tag::WholeSettled | Tag::Close | Tag::Nobody => {}
        }
        if local.failed() {
            self.disk_failed(step, local);
        } else if let Some(record) = record {
            self.advance_opening(step, local, record);
        }
    }

    fn grown(
        &mut self,
        step: &mut Step<'_, P>,
        local: &mut Local<P>,
        number: u64,
        error: Option<DiskError>,
        record: Option<&Record>,
    ) {
        match self.grows.remove(&number) {
            Some(Grow::Asked { conn, id }) if self.in_session(conn) => {
                let message = Message::Grown {
                    id,
                    ok: error.is_none(),
                };
                step.emit(Action::Send { conn, message });
            }
            Some(Grow::Opening) => {
                let Some(opening) = &mut self.opening else {
                    return;
                };
                let Stage::Growing { left } = &mut opening.stage else {
                    return;
                };
                if error.is_some() {
                    let conn = opening.conn;
                    let reason = RefuseReason::WrongSize;
                    step.emit(Action::Send {
                        conn,
                        message: Message::Refuse { reason },
                    });
                    step.emit(Action::Close { conn });
                    self.opening = None;
                    return;
                }
                *left -= 1;
                if let Some(record) = record {
                    self.advance_opening(step, local, record);
                }
            }
            _ => {}
        }
    }

    /// Says so to the primary and obeys nobody until the disk is replaced.
    fn disk_failed(&mut self, step: &mut Step<'_, P>, local: &mut Local<P>) {
        if let Some(session) = &self.session {
            step.emit(Action::Send {
                conn: session.conn,
                message: Message::DiskFailed,
            });
        }
        self.stop(step, local);
    }

    fn finish(
        &mut self,
        step: &mut Step<'_, P>,
        local: &mut Local<P>,
        seq: Seq,
        error: Option<DiskError>,
    ) {
        let Some(session) = &mut self.session else {
            return;
        };
        if error.is_none() {
            session.outstanding.finish(seq);
            session.acks.push(seq);
            self.take_releases(step, local);
            self.start_flush(step, local);
        }
    }

    fn unlock(&mut self, step: &mut Step<'_, P>, local: &mut Local<P>, key: Key, at: VolumeRange) {
        let mut granted = std::mem::take(&mut self.granted);
        self.locks[at.volume.index()].release(key, &mut granted);
        for key in granted.drain(..) {
            match key {
                Key::Write(_) => {
                    if let Some(job) = self.jobs.remove(&key) {
                        start(step, local, key, job);
                    }
                }
                Key::Read(_) => {
                    if let Some(job) = self.jobs.get(&key) {
                        start_read(step, local, key, job);
                    }
                }
            }
        }
        self.granted = granted;
    }

    /// Acknowledgements leave together.
    pub(crate) fn end_turn(&mut self, step: &mut Step<'_, P>) {
        if let Some(session) = &mut self.session {
            flush_acks(step, session);
        }
    }

    pub(crate) fn tick(
        &mut self,
        step: &mut Step<'_, P>,
        local: &mut Local<P>,
        settings: &Settings,
    ) {
        // The primary pings; a silence of several of its time-outs means that it is gone.
        let silent = self
            .session
            .as_ref()
            .is_some_and(|s| step.now.ms_since(s.heard) > 3 * settings.peer_timeout_ms);
        if silent {
            self.end_session(step, local);
        }
    }
}

fn flush_acks<P>(step: &mut Step<'_, P>, session: &mut Session) {
    if !session.acks.is_empty() {
        let seqs = std::mem::take(&mut session.acks);
        step.emit(Action::Send {
            conn: session.conn,
            message: Message::Acks { seqs },
        });
    }
}

fn start<P: Payload>(step: &mut Step<'_, P>, local: &mut Local<P>, key: Key, job: Job<P>) {
    let Key::Write(seq) = key else { return };
    match job {
        Job::Write {
            at,
            data,
            fua,
            mark,
        } => local.write(step, Tag::Write(seq), at, data, fua, mark),
        Job::Zero {
            at,
            hole,
            fua,
            mark,
        } => local.zero(step, Tag::Write(seq), at, hole, fua, mark),
        Job::Hash { .. } | Job::Fetch { .. } => {}
    }
}

fn start_read<P: Payload>(step: &mut Step<'_, P>, local: &mut Local<P>, key: Key, job: &Job<P>) {
    let Key::Read(number) = key else { return };
    match job {
        Job::Hash { at, .. } => local.hash(step, Tag::Hash(number), *at),
        Job::Fetch { at, .. } => local.read(step, Tag::Read(number), *at),
        Job::Write { .. } | Job::Zero { .. } => {}
    }
}

fn answer_read<P>(step: &mut Step<'_, P>, conn: ConnId, job: Job<P>, done: Done<P>) {
    let message = match (job, done) {
        (Job::Hash { id, .. }, Done::Hashes(hashes, _)) => {
            let hashes: Option<Vec<BlockHash>> = Some(hashes);
            Message::HashReply { id, hashes }
        }
        (Job::Hash { id, .. }, _) => Message::HashReply { id, hashes: None },
        (Job::Fetch { id, .. }, Done::Data(data)) => Message::Fetched {
            id,
            data: Some(data),
        },
        (Job::Fetch { id, .. }, _) => Message::Fetched { id, data: None },
        (Job::Write { .. } | Job::Zero { .. }, _) => return,
    };
    step.emit(Action::Send { conn, message });
}

/// Sends ranges in messages of bounded size.
pub(crate) fn send_ranges<P>(
    step: &mut Step<'_, P>,
    conn: ConnId,
    of: RangesOf,
    ranges: impl Iterator<Item = VolumeRange>,
) {
    let mut batch = Vec::new();
    for range in ranges {
        batch.push(range);
        if batch.len() == MAX_RANGES {
            let ranges = std::mem::take(&mut batch);
            step.emit(Action::Send {
                conn,
                message: Message::Ranges { of, ranges },
            });
        }
    }
    if !batch.is_empty() {
        step.emit(Action::Send {
            conn,
            message: Message::Ranges { of, ranges: batch },
        });
    }
}
