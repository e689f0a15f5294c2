//! The data plane's thread: one ring, and everything that is on it. Completions become events of the
//! state machines, their actions become operations, and what a turn of the loop has gathered is
//! submitted at once. No locks and no allocation on the path of a request; no decisions about
//! replication.

mod actions;
mod block_status;
mod clients;
mod handle;
mod peers;
mod pulse;
mod replies;
#[cfg(test)]
mod tests;

pub use handle::{
    Machine, MakeMachine, NewResource, PlaneConfig, PlaneError, PlaneHandle, PlaneStats, Reply,
    Report, ReportSink,
};
pub use pulse::Pulse;

use self::handle::Control;
use super::client::{Client, ClientOp, ClientProtocol, OpenClient};
use super::disk::Disk;
use super::disk::io::{DiskIo, JobId, Outcome, Request};
use super::look::Looker;
use super::mailbox::{Mailbox, mailbox};
use super::peer::{CrcCache, Peer, PeerAddress};
use super::pool::{Pool, PoolBuf};
use super::ring::{Completion, Fd, Op, Ring, Wait};
use super::tls::PeerCredentials;
use super::worker::{WorkDone, Worker};
use crate::core::api::{Action, Command, CommandId, DiskError, Event, FastZeroes, OpId};
use crate::core::status::Standing;
use nix::time::{ClockId, clock_gettime};
use slab::Slab;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;
use vocabulary::{ClusterId, Epoch, Generation, NodeId, ResourceId, Time};

/// Deadlines of connections are looked at this often, in ms: they are seconds.
const SCAN_MS: u64 = 100;

/// The age of disk requests is looked at this often, in ms: finding the oldest means looking at all.
const LOOK_MS: u64 = 20;

/// A shutdown waits this long for clients' last answers and for disks, in ms.
const SHUTDOWN_MS: u64 = 5_000;

/// Looking for work before sleeping goes on only while it pays: hits give credit, misses take it.
const POLL_CREDIT_MAX: u32 = 32;
const POLL_CREDIT_HIT: u32 = 2;
/// Without credit, one sleep in this many is preceded by a look all the same.
const POLL_PROBE_EVERY: u64 = 32;

/// The ring's word for an operation.
#[derive(Clone, Copy, Debug)]
enum Token {
    Mail,
    Disk(JobId),
    Accept(usize),
    ClientRecv(usize),
    ClientSend(usize),
    PeerConnect(usize),
    PeerRecv(usize),
    PeerSend(usize),
}

impl From<JobId> for Token {
    fn from(job: JobId) -> Self {
        Self::Disk(job)
    }
}

/// A resource's place in the table, and which one it was: places are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    index: usize,
    serial: u64,
}

/// Whom the answer of a disk request belongs to.
#[derive(Clone, Copy, Debug)]
struct DiskKey {
    place: Place,
    op: OpId,
    meta: bool,
}

/// Whom the answer of background work belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkKey {
    place: Place,
    op: OpId,
}

struct ResourceSlot {
    serial: u64,
    cluster: ClusterId,
    id: ResourceId,
    machine: Box<dyn Machine>,
    disks: Vec<Arc<Disk>>,
    meta_bytes: fn(u64) -> u64,
    /// As the machine was told.
    fast_zeroes: FastZeroes,
    /// Disk requests and background work under way.
    pending: usize,
    reported: Option<(bool, Epoch, Generation, Standing)>,
    removed: Option<Reply<Result<(), PlaneError>>>,
}

enum Listener {
    Clients {
        fd: Fd,
        protocol: Box<dyn ClientProtocol>,
        armed: bool,
        /// Others hold the socket too.
        shared: bool,
    },
    Peers {
        fd: Fd,
        cluster: ClusterId,
        armed: bool,
    },
}

/// A client's request that the core has.
struct Pending {
    client: usize,
    serial: u64,
    op: ClientOp,
}

struct Plane {
    ring: Ring<Token>,
    pool: Pool,
    io: DiskIo<DiskKey>,
    worker: Worker<WorkKey>,
    looker: Looker<WorkKey>,
    mailbox: Mailbox<Control>,
    report: ReportSink,
    now: Time,
    serial: u64,
    resources: Slab<ResourceSlot>,
    listeners: Slab<Listener>,
    clients: Slab<Client>,
    peers: Slab<Peer>,
    credentials: Option<Arc<dyn PeerCredentials>>,
    addresses: BTreeMap<NodeId, Vec<PeerAddress>>,
    /// Counts dials, so that each takes another address.
    dials: usize,
    requests: Slab<Pending>,
    /// Payload bytes of the reads among them.
    read_bytes: usize,
    /// A client had to wait for memory since this was last looked at.
    scarce: bool,
    commands: BTreeMap<CommandId, (Place, Reply<Result<(), PlaneError>>)>,
    /// Used again for each event.
    actions: Vec<Action<PoolBuf>>,
    /// Events that came up while actions were carried out.
    events: VecDeque<(Place, Event<PoolBuf>)>,
    /// Writes of stores with the plain engine: after the peers' sends are on their way.
    deferred: Vec<(Arc<Disk>, DiskKey, Request)>,
    dirty_clients: Vec<usize>,
    dirty_peers: Vec<usize>,
    stalled_clients: Vec<usize>,
    stalled_peers: Vec<usize>,
    gated: Vec<usize>,
    crcs: CrcCache,
    next_scan: Time,
    pulse: Arc<Pulse>,
    next_look: Time,
    busy_poll_us: u64,
    poll_credit: u32,
    shutdown: Option<Time>,
    stats: PlaneStats,
}

/// The thread. Dropping it ends the data plane and waits for that.
#[derive(Debug)]
pub struct PlaneThread {
    handle: PlaneHandle,
    thread: Option<JoinHandle<()>>,
}

impl PlaneThread {
    /// A way to talk to it.
    #[must_use]
    pub fn handle(&self) -> PlaneHandle {
        self.handle.clone()
    }
}

impl Drop for PlaneThread {
    fn drop(&mut self) {
        self.handle.shutdown();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the data plane's thread panicked");
        }
    }
}

/// Starts a data plane without resources and listeners.
///
/// # Errors
/// [`PlaneError::Ring`], [`PlaneError::Start`].
pub fn start(config: PlaneConfig) -> Result<PlaneThread, PlaneError> {
    let (post, mailbox) = mailbox()?;
    let handle = PlaneHandle::new(post, Arc::new(Pulse::new(boot_time())));
    let (started, wait) = sync_channel(1);
    let for_worker = handle.clone();
    let body = move || match Plane::new(config, mailbox, for_worker) {
        Ok(mut plane) => {
            let _ = started.send(Ok(()));
            plane.run();
        }
        Err(error) => {
            let _ = started.send(Err(error));
        }
    };
    let thread = std::thread::Builder::new()
        .name("lockstep-data".to_owned())
        .spawn(body)?;
    match wait.recv() {
        Ok(Ok(())) => Ok(PlaneThread {
            handle,
            thread: Some(thread),
        }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(PlaneError::Stopped),
    }
}

/// The time that cores are given: never goes back, and counts a pause of the machine (RULES 4).
#[must_use]
pub fn boot_time() -> Time {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    Time(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

impl Plane {
    fn new(
        config: PlaneConfig,
        mailbox: Mailbox<Control>,
        handle: PlaneHandle,
    ) -> Result<Self, PlaneError> {
        let pulse = handle.pulse();
        let ring = Ring::new()?;
        let pool = Pool::new(config.pool_bytes, config.keep_bytes);
        let for_looker = handle.clone();
        let looker = Looker::start(move |key, holes| for_looker.looked(key, holes))?;
        let worker = Worker::start(pool.clone(), move |key, done| {
            handle.work(key, done);
        })?;
        let stats = PlaneStats {
            ring: ring.stats(),
            pool: pool.stats(),
            clients: 0,
            peers: 0,
            requests: 0,
            turns: 0,
            sleeps: 0,
            polls_hit: 0,
            polls_missed: 0,
        };
        Ok(Self {
            ring,
            io: DiskIo::new(pool.clone()),
            pool,
            worker,
            looker,
            mailbox,
            report: config.report,
            now: boot_time(),
            serial: 0,
            resources: Slab::new(),
            listeners: Slab::new(),
            clients: Slab::new(),
            peers: Slab::new(),
            credentials: config.credentials,
            addresses: BTreeMap::new(),
            dials: 0,
            requests: Slab::new(),
            read_bytes: 0,
            scarce: false,
            commands: BTreeMap::new(),
            actions: Vec::new(),
            events: VecDeque::new(),
            deferred: Vec::new(),
            dirty_clients: Vec::new(),
            dirty_peers: Vec::new(),
            stalled_clients: Vec::new(),
            stalled_peers: Vec::new(),
            gated: Vec::new(),
            crcs: CrcCache::default(),
            next_scan: Time(0),
            pulse,
            next_look: Time(0),
            busy_poll_us: config.busy_poll_us,
            poll_credit: POLL_CREDIT_MAX,
            shutdown: None,
            stats,
        })
    }

    fn run(&mut self) {
        self.listen_to_mail();
        loop {
            self.stats.turns += 1;
            let worked = self.turn();
            if self
                .shutdown
                .is_some_and(|until| self.is_idle() || self.now >= until)
            {
                return;
            }
            // Peers and disks get theirs first; stores with the plain engine run meanwhile.
            let result = if worked || !self.deferred.is_empty() {
                self.ring.submit(Wait::No)
            } else {
                self.sleep()
            };
            if let Err(error) = result {
                tracing::error!(%error, "the ring is unusable; the data plane stops");
                return;
            }
            self.run_deferred();
        }
    }

    /// One turn: all that is there is taken in and its consequences are prepared. True where it is
    /// worth another one before sleeping.
    fn turn(&mut self) -> bool {
        let mut left = self.ring.ready();
        let worked = left > 0;
        // The time is read after the last event that is handled at this time: where a reply depends on
        // a lease (RULES 4), an event may be older than the time that it gets, and never younger.
        self.now = boot_time();
        self.beat();
        while let Some(done) = self.ring.take_of(&mut left) {
            self.completed(done);
        }
        self.settle();
        self.timeouts();
        self.retry_stalled();
        self.open_gates();
        self.scan();
        self.settle();
        self.end_turn();
        self.flush();
        self.crcs.clear();
        worked
    }

    /// Feeds what came up while feeding, until nothing does.
    fn settle(&mut self) {
        loop {
            if let Some((key, outcome)) = self.io.take() {
                self.disk_done(key, outcome);
            } else if self.io.take_slowed() {
                self.tell_fast_zeroes();
            } else if let Some((place, event)) = self.events.pop_front() {
                self.feed(place, event);
            } else {
                return;
            }
        }
    }

    /// Shows whoever watches that the loop turns and how old its disk requests are.
    fn beat(&mut self) {
        self.pulse.turn(self.now);
        if self.now >= self.next_look {
            self.next_look = self.now.plus_ms(LOOK_MS);
            self.pulse.oldest(self.io.oldest());
        }
    }

    fn run_deferred(&mut self) {
        for (disk, key, request) in self.deferred.drain(..) {
            self.io.start(&mut self.ring, self.now, &disk, key, request);
        }
    }

    /// Waits for a completion or the next time limit; looks for work for a moment first.
    fn sleep(&mut self) -> std::io::Result<()> {
        let now = boot_time();
        let mut until = self
            .resources
            .iter()
            .filter_map(|(_, slot)| slot.machine.poll_timeout())
            .min();
        if !self.clients.is_empty() || !self.peers.is_empty() || !self.listeners.is_empty() {
            let scan = self.next_scan.max(now);
            until = Some(until.map_or(scan, |at| at.min(scan)));
        }
        if let Some(end) = self.shutdown {
            until = Some(until.map_or(end, |at| at.min(end)));
        }
        if until.is_some_and(|at| at <= now) || self.io.has_done() || !self.events.is_empty() {
            return self.ring.submit(Wait::No);
        }
        let poll = self.busy_poll_us > 0
            && (self.poll_credit > 0 || self.stats.sleeps.is_multiple_of(POLL_PROBE_EVERY));
        if poll {
            self.ring.submit(Wait::No)?;
            let end = Time(
                now.0
                    .saturating_add(self.busy_poll_us.saturating_mul(1_000)),
            );
            loop {
                if self.ring.is_ready() {
                    self.stats.polls_hit += 1;
                    self.poll_credit = (self.poll_credit + POLL_CREDIT_HIT).min(POLL_CREDIT_MAX);
                    return self.ring.submit(Wait::No);
                }
                if boot_time() >= end {
                    break;
                }
                // Whoever is to send what this thread waits for may need the core.
                std::thread::yield_now();
            }
            self.stats.polls_missed += 1;
            self.poll_credit = self.poll_credit.saturating_sub(1);
        }
        self.stats.sleeps += 1;
        match until {
            None => self.ring.submit(Wait::Forever),
            Some(at) => {
                let left = at.0.saturating_sub(boot_time().0);
                self.ring.submit(Wait::For(Duration::from_nanos(left)))
            }
        }
    }

    fn completed(&mut self, done: Completion<Token>) {
        let Completion { token, op, result } = done;
        match token {
            Token::Mail => {
                self.mailbox.hear();
                while let Some(control) = self.mailbox.take() {
                    self.control(control);
                }
                self.listen_to_mail();
            }
            Token::Disk(job) => self.io.completed(&mut self.ring, self.now, job, op, result),
            Token::Accept(index) => self.accepted(index, op, result),
            Token::ClientRecv(index) => self.client_received(index, op, result),
            Token::ClientSend(index) => self.client_sent(index, op, result),
            Token::PeerConnect(index) => self.peer_connected(index, result),
            Token::PeerRecv(index) => self.peer_received(index, op, result),
            Token::PeerSend(index) => self.peer_sent(index, op, result),
        }
    }

    fn listen_to_mail(&mut self) {
        let fd = self.mailbox.event().clone();
        self.ring.start(
            Token::Mail,
            Op::ReadEvent {
                fd,
                value: Box::new(0),
            },
        );
    }

    fn timeouts(&mut self) {
        for index in 0..self.resources.capacity() {
            let Some(slot) = self.resources.get_mut(index) else {
                continue;
            };
            if slot.removed.is_some() || slot.machine.poll_timeout().is_none_or(|at| at > self.now)
            {
                continue;
            }
            let mut actions = std::mem::take(&mut self.actions);
            slot.machine.handle_timeout(self.now, &mut actions);
            let place = Place {
                index,
                serial: slot.serial,
            };
            self.carry_out(place, &mut actions);
            self.actions = actions;
        }
    }

    /// Lets every resource say what it gathered during the turn.
    fn end_turn(&mut self) {
        for index in 0..self.resources.capacity() {
            let Some(slot) = self.resources.get_mut(index) else {
                continue;
            };
            let serial = slot.serial;
            let mut actions = std::mem::take(&mut self.actions);
            slot.machine.end_turn(self.now, &mut actions);
            if !actions.is_empty() {
                self.carry_out(Place { index, serial }, &mut actions);
            }
            self.actions = actions;
        }
    }

    /// Hands an event to its resource and does what that asks for.
    fn feed(&mut self, place: Place, event: Event<PoolBuf>) {
        let Some(slot) = self.resources.get_mut(place.index) else {
            return;
        };
        if slot.serial != place.serial || slot.removed.is_some() {
            return;
        }
        let mut actions = std::mem::take(&mut self.actions);
        slot.machine.handle(self.now, event, &mut actions);
        self.carry_out(place, &mut actions);
        self.actions = actions;
    }

    fn disk_done(&mut self, key: DiskKey, outcome: Outcome) {
        let DiskKey { place, op, meta } = key;
        self.less_pending(place);
        let event = match outcome {
            Outcome::Read(result) => Event::ReadDone { op, result },
            Outcome::Done(result) if meta => Event::MetaDone { op, result },
            Outcome::Done(result) => Event::DiskDone { op, result },
        };
        self.feed(place, event);
    }

    fn work_done(&mut self, key: WorkKey, done: WorkDone) {
        let WorkKey { place, op } = key;
        self.less_pending(place);
        let event = match done {
            WorkDone::Hash(result) => Event::HashDone { op, result },
            WorkDone::Grow(result) => Event::GrowDone { op, result },
            WorkDone::MetadataMoved(result) => Event::MetadataMoved { op, result },
        };
        self.feed(place, event);
    }

    fn less_pending(&mut self, place: Place) {
        if let Some(slot) = self.resources.get_mut(place.index)
            && slot.serial == place.serial
        {
            slot.pending = slot.pending.saturating_sub(1);
            self.forget_if_removed(place.index);
        }
    }

    fn forget_if_removed(&mut self, index: usize) {
        let over = |slot: &ResourceSlot| slot.removed.is_some() && slot.pending == 0;
        if self.resources.get(index).is_some_and(over) {
            let slot = self.resources.remove(index);
            let reply = slot.removed;
            drop((slot.machine, slot.disks));
            if let Some(reply) = reply {
                reply(Ok(()));
            }
        }
    }

    const fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn place_of(&self, resource: ResourceId) -> Option<Place> {
        self.resources
            .iter()
            .find(|(_, slot)| slot.id == resource && slot.removed.is_none())
            .map(|(index, slot)| Place {
                index,
                serial: slot.serial,
            })
    }

    fn control(&mut self, control: Control) {
        match control {
            Control::Add(new, reply) => reply(self.add(*new)),
            Control::Remove(resource, reply) => match self.place_of(resource) {
                Some(place) => self.remove(place, reply),
                None => reply(Err(PlaneError::Unknown(resource))),
            },
            Control::Access(resource, access) => {
                if let Some(place) = self.place_of(resource) {
                    self.feed(place, Event::Access(access));
                }
            }
            Control::Terms(resource, terms) => {
                if let Some(place) = self.place_of(resource) {
                    self.feed(place, Event::Terms(terms));
                }
            }
            Control::Peers(addresses) => self.addresses = addresses,
            Control::Record(record) => {
                if let Some(place) = self.place_of(record.resource) {
                    self.feed(place, Event::Record(*record));
                }
            }
            Control::Refused {
                resource,
                based_on,
                refusal,
            } => {
                if let Some(place) = self.place_of(resource) {
                    self.feed(place, Event::Refused { based_on, refusal });
                }
            }
            Control::Lease(resource, lease) => {
                if let Some(place) = self.place_of(resource) {
                    self.feed(place, lease.into());
                }
            }
            Control::Command(resource, command, reply) => self.command(resource, command, reply),
            Control::HandOver(resource, to, reply) => {
                let users = self
                    .open_clients()
                    .filter(|c| c.target.resource == resource);
                let users: Vec<OpenClient> = users.collect();
                if users.is_empty() {
                    self.command(resource, Command::Demote { to: Some(to) }, reply);
                } else {
                    reply(Err(PlaneError::InUse(users)));
                }
            }
            Control::Clients(reply) => reply(self.open_clients().collect()),
            Control::Status(reply) => {
                let now = self.now;
                let live = self
                    .resources
                    .iter()
                    .filter(|(_, slot)| slot.removed.is_none());
                reply(
                    live.map(|(_, slot)| (slot.id, slot.machine.status(now)))
                        .collect(),
                );
            }
            Control::Stats(reply) => reply(PlaneStats {
                ring: self.ring.stats(),
                pool: self.pool.stats(),
                clients: self.clients.len(),
                peers: self.peers.len(),
                ..self.stats
            }),
            Control::ListenClients {
                listener,
                protocol,
                shared,
            } => {
                self.listen(Listener::Clients {
                    fd: Arc::new(listener),
                    protocol,
                    armed: false,
                    shared,
                });
            }
            Control::ListenPeers(fd, cluster) => {
                self.listen(Listener::Peers {
                    fd: Arc::new(fd),
                    cluster,
                    armed: false,
                });
            }
            Control::Work(key, done) => self.work_done(key, done),
            Control::Looked(key, holes) => self.looked(key, holes),
            Control::Shutdown => self.begin_shutdown(),
        }
    }

    fn command(
        &mut self,
        resource: ResourceId,
        command: Command,
        reply: Reply<Result<(), PlaneError>>,
    ) {
        match self.place_of(resource) {
            Some(place) => {
                let id = CommandId(self.next_serial());
                self.commands.insert(id, (place, reply));
                self.feed(place, Event::Command { id, command });
            }
            None => reply(Err(PlaneError::Unknown(resource))),
        }
    }

    fn open_clients(&self) -> impl Iterator<Item = OpenClient> {
        self.clients.iter().filter_map(|(_, client)| client.open())
    }

    fn add(&mut self, new: NewResource) -> Result<(), PlaneError> {
        let known = |(_, slot): (usize, &ResourceSlot)| slot.id == new.resource;
        if self.resources.iter().any(known) {
            return Err(PlaneError::Known(new.resource));
        }
        let serial = self.next_serial();
        let index = self.resources.insert(ResourceSlot {
            serial,
            cluster: new.cluster,
            id: new.resource,
            machine: (new.machine)(self.now),
            disks: new.disks,
            meta_bytes: new.meta_bytes,
            fast_zeroes: FastZeroes::default(),
            pending: 0,
            reported: None,
            removed: None,
        });
        self.report_state(index);
        self.tell_fast_zeroes();
        Ok(())
    }

    /// Tells machines what their stores zero without writing, where that is something else than before.
    fn tell_fast_zeroes(&mut self) {
        for (index, slot) in &mut self.resources {
            let each = slot.disks.iter().map(|disk| disk.fast_zeroes());
            let fast = each.fold(FastZeroes::ALL, FastZeroes::and);
            if std::mem::replace(&mut slot.fast_zeroes, fast) != fast {
                let serial = slot.serial;
                let event = Event::FastZeroes(fast);
                self.events.push_back((Place { index, serial }, event));
            }
        }
    }

    fn remove(&mut self, place: Place, reply: Reply<Result<(), PlaneError>>) {
        self.resources[place.index].removed = Some(reply);
        self.close_peers_of(place);
        let resource = self.resources[place.index].id;
        self.close_clients_of(resource);
        let (gone, rest) = std::mem::take(&mut self.commands)
            .into_iter()
            .partition(|(_, (owner, _))| *owner == place);
        self.commands = rest;
        let gone: BTreeMap<_, (Place, Reply<_>)> = gone;
        for (_, reply) in gone.into_values() {
            reply(Err(PlaneError::Stopped));
        }
        self.forget_if_removed(place.index);
    }

    fn begin_shutdown(&mut self) {
        self.shutdown = Some(self.now.plus_ms(SHUTDOWN_MS));
        for (_, listener) in &self.listeners {
            match listener {
                Listener::Clients { shared: true, .. } => {}
                Listener::Clients { fd, .. } | Listener::Peers { fd, .. } => {
                    super::socket::shut(fd);
                }
            }
        }
        self.shut_clients_down();
    }

    /// At a shutdown: nothing is left to wait for.
    fn is_idle(&self) -> bool {
        self.clients.is_empty() && self.io.in_flight() == 0 && self.deferred.is_empty()
    }

    /// Deadlines of connections, and listeners that could not accept.
    fn scan(&mut self) {
        if self.now < self.next_scan {
            return;
        }
        self.next_scan = self.now.plus_ms(SCAN_MS);
        self.scan_clients();
        self.scan_peers();
        for index in 0..self.listeners.capacity() {
            self.arm_listener(index);
        }
    }

    fn flush(&mut self) {
        while let Some(index) = self.dirty_peers.pop() {
            self.flush_peer(index);
        }
        while let Some(index) = self.dirty_clients.pop() {
            self.flush_client(index);
        }
    }

    fn disk_failed(&mut self, place: Place, op: OpId, error: DiskError, read: bool) {
        let event = if read {
            Event::ReadDone {
                op,
                result: Err(error),
            }
        } else {
            Event::DiskDone {
                op,
                result: Err(error),
            }
        };
        self.events.push_back((place, event));
    }
}
