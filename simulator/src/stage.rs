//! A cluster that does only what a script says: no operator, no clients, no bad luck of its own. The
//! words of the scripted tests, each of which waits, with a bound, until what it asks for is there.

use crate::client::Ask;
use crate::control::Whole;
use crate::disk::Loss;
use crate::faults::Repair;
use crate::payload::ZERO;
use crate::production::Production;
use crate::rng::Rng;
use crate::rules::{differences_are_known, replicas_are_equal};
use crate::world::{Config, Occurrence, World};
use controller::core::{consensus, failover};
use replicator::core::api::{Command, CommandError, Notice, Settings};
use replicator::core::status::Status;
use std::rc::Rc;
use vocabulary::{BLOCK_BYTES, ByteRange, EXTENT_BYTES, NodeId, NodeSet, VolumeId};

/// The only volume of most scripts.
pub const V: VolumeId = VolumeId(0);
/// Virtual time within which everything that a script asks for must happen.
const PATIENCE_MS: u64 = 20_000;

/// The node of this number.
///
/// # Panics
/// Where there can be none.
#[must_use]
#[allow(clippy::expect_used)]
pub fn node(number: u8) -> NodeId {
    NodeId::new(number).expect("a small number")
}

/// A block of 4 KiB.
#[must_use]
pub const fn block(number: u64) -> ByteRange {
    ByteRange::between(number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES)
}

/// A scripted cluster.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The cluster.
    pub world: World,
}

impl Stage {
    /// Nodes 0.. with a replica of this many bytes each, all running; node 0 serves.
    #[must_use]
    pub fn of(nodes: u8, bytes: u64, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Self::config(nodes, bytes);
        change(&mut config);
        let mut stage = Self::made(config);
        stage.wait("all run", |w| {
            w.nodes
                .iter()
                .all(|n| n.core.as_ref().is_some_and(|c| c.generation().0 > 0))
        });
        stage.promote(0);
        stage.rest();
        stage
    }

    fn config(nodes: u8, bytes: u64) -> Config {
        Config {
            follow: false,
            whole: None,
            nodes,
            sizes: vec![bytes],
            al_extents: 8,
            min_redundancy: 1,
            settings: Settings {
                lease_ms: crate::production::NO_LEASES_MS,
                ping_interval_ms: 60,
                peer_timeout_ms: 300,
                write_timeout_ms: 600,
                evict_after_ms: 100,
                reconnect_min_ms: 10,
                reconnect_max_ms: 100,
                propose_again_ms: 40,
                command_timeout_ms: 3_000,
                window_writes: 1024,
                window_bytes: 4 << 20,
                window_age_ms: 200,
                extent_idle_ms: 300,
                chunk_bytes: 16 << 10,
                max_chunks: 1,
                admit_below_bytes: 4 << 10,
                zero_piece_bytes: 32 << 20,
                no_primary_ms: Settings::default().no_primary_ms,
                no_quorum_errors: false,
            },
        }
    }

    fn made(config: Config) -> Self {
        let mut world = World::new(config, Rc::new(Production), Rng::new(1));
        world.load.left = 0;
        world.operator.promotes = false;
        world.operator.keep_notices = true;
        Self { world }
    }

    /// Whole nodes, with so many witnesses besides, and with fence agents or not; whoever wants to serves.
    #[must_use]
    pub fn whole(nodes: u8, witnesses: u8, agents: bool) -> Self {
        let mut config = Self::config(nodes, EXTENT_BYTES);
        let lease_ms = 150;
        config.settings.lease_ms = lease_ms;
        config.whole = Some(Whole {
            witnesses,
            agents,
            consensus: consensus::Settings {
                beat_ms: 30,
                election_ms: 120,
            },
            failover: failover::Settings {
                stagger_ms: 50,
                fence_delay_ms: 3_000,
                ..failover::Settings::with_lease(lease_ms)
            },
            turn_limit_ms: lease_ms / 2,
            disk_limit_ms: lease_ms,
        });
        let mut stage = Self::made(config);
        stage.rest();
        stage
    }

    /// Two extents on each of so many nodes.
    #[must_use]
    pub fn new(nodes: u8) -> Self {
        Self::of(nodes, 2 * EXTENT_BYTES, |_| {})
    }

    /// Two nodes, of which 1 is cut off and lacks so many blocks from block 10 on, which are stable on 0.
    #[must_use]
    pub fn behind(blocks: u64) -> Self {
        let mut stage = Self::new(2);
        stage.evict(0, 1);
        stage.write_blocks(0, 10, blocks);
        stage.flush(0);
        stage.forget_notices();
        stage
    }

    /// Runs until the condition holds.
    ///
    /// # Panics
    /// Where it does not in time, or a rule is broken.
    #[track_caller]
    pub fn wait(&mut self, what: &str, done: impl FnMut(&World) -> bool) {
        let ok = self.world.run_until(PATIENCE_MS, done);
        self.check();
        assert!(
            ok,
            "never: {what}; {:?}; {:?}",
            self.world.record(),
            self.world.why_not_at_rest()
        );
    }

    /// Runs for a while.
    #[track_caller]
    pub fn pass(&mut self, ms: u64) {
        self.world.run_ms(ms);
        self.check();
    }

    /// No rule is broken, and what replicas lack is known (RULES 6 and 7).
    #[track_caller]
    pub fn check(&self) {
        if let Some(violation) = &self.world.violation {
            panic!("{violation}");
        }
    }

    /// Compares the disks with what the cores know of them.
    #[track_caller]
    pub fn audit(&self) {
        if let Err(violation) = differences_are_known(self.world.record(), &self.world.nodes) {
            panic!("{violation}");
        }
    }

    /// Waits until all replicas are in sync and nothing is left to do; then they hold the same bytes.
    #[track_caller]
    pub fn rest(&mut self) {
        self.wait("rest", World::is_at_rest);
        self.audit();
        if let Err(violation) = replicas_are_equal(self.world.record(), &self.world.nodes) {
            panic!("{violation}");
        }
    }

    // --- requests ---

    /// Sends a request.
    pub fn ask(&mut self, number: u8, ask: Ask) -> u64 {
        self.world.request(0, node(number), V, ask)
    }

    /// Sends a request and waits for its answer: was it a success?
    #[track_caller]
    pub fn asked(&mut self, number: u8, ask: Ask) -> bool {
        let served = self.world.clients.served;
        let id = self.ask(number, ask);
        self.wait("an answer", |w| !w.clients.pending.contains_key(&id));
        self.world.clients.served > served
    }

    /// Begins to write a range.
    pub fn begin_write(&mut self, number: u8, range: ByteRange) -> u64 {
        self.ask(number, Ask::Write(range, false))
    }

    /// Writes a range.
    #[track_caller]
    pub fn write(&mut self, number: u8, range: ByteRange) {
        assert!(self.asked(number, Ask::Write(range, false)), "write failed");
    }

    /// Writes a number of blocks, apart from each other.
    #[track_caller]
    pub fn write_blocks(&mut self, number: u8, first: u64, count: u64) {
        for at in 0..count {
            self.write(number, block(first + 2 * at));
        }
    }

    /// Reads a range; the checker compares.
    #[track_caller]
    pub fn read(&mut self, number: u8, range: ByteRange) {
        assert!(self.asked(number, Ask::Read(range)), "read failed");
    }

    /// Flushes.
    #[track_caller]
    pub fn flush(&mut self, number: u8) {
        assert!(self.asked(number, Ask::Flush), "flush failed");
    }

    /// What a node's core says of the resource.
    #[must_use]
    pub fn status(&self, number: u8) -> Option<Status> {
        let now = self.world.now;
        let core = self.world.node(node(number)).core.as_ref();
        core.map(|core| core.status(now))
    }

    /// Is this request unanswered?
    #[must_use]
    pub fn is_open(&self, id: u64) -> bool {
        self.world.clients.pending.contains_key(&id)
    }

    // --- commands ---

    /// Gives a command and waits for its answer.
    ///
    /// # Errors
    /// As the core answers.
    ///
    /// # Panics
    /// Where it does not answer.
    #[track_caller]
    pub fn command(&mut self, number: u8, command: Command) -> Result<(), CommandError> {
        let id = self.world.command(node(number), command);
        self.wait("an answer", |w| w.operator.answers.contains_key(&id));
        self.world.operator.answers.remove(&id).unwrap_or(Ok(()))
    }

    /// Promotes a node, leaving out members that can't be reached, and waits until it serves.
    #[track_caller]
    pub fn promote(&mut self, number: u8) {
        let me = node(number);
        let members = self.world.record().members().without(me);
        let drop: NodeSet = members
            .iter()
            .filter(|m| !self.world.node(*m).is_running() || !self.world.net.joined(me, *m))
            .collect();
        let command = self.world.promotion(me, drop);
        let result = self.command(number, command);
        assert_eq!(result, Ok(()), "promotion of {me}");
        self.wait("serving", |w| w.serving() == Some(me));
    }

    /// The replicas are these from now on; of a cluster without controllers.
    pub fn configure(&mut self, replicas: &[u8]) {
        let min_redundancy = self.world.record().min_redundancy;
        let replicas = replicas.iter().map(|&number| node(number)).collect();
        self.world.store.configure(replicas, min_redundancy);
    }

    // --- bad luck ---

    /// Cuts a node off from another, both ways.
    pub fn cut(&mut self, a: u8, b: u8) {
        self.world.net.cut(node(a), node(b));
        self.world.net.cut(node(b), node(a));
    }

    /// Mends what [`Self::cut`] did.
    pub fn mend(&mut self, a: u8, b: u8) {
        for (a, b) in [(node(a), node(b)), (node(b), node(a))] {
            self.world.repair(Repair::Link(a, b));
        }
    }

    /// Breaks the connections between two nodes; the links stay.
    pub fn break_conns(&mut self, a: u8, b: u8) {
        self.world.break_conns(node(a), node(b));
    }

    /// Cuts a member off and waits until it is evicted.
    #[track_caller]
    pub fn evict(&mut self, primary: u8, gone: u8) {
        self.cut(primary, gone);
        self.wait_out(gone);
    }

    /// Waits until a node is in the in-sync set.
    #[track_caller]
    pub fn wait_in(&mut self, number: u8) {
        self.wait("admitted", |w| w.record().members().contains(node(number)));
    }

    /// Waits until a node is not in the in-sync set any more.
    #[track_caller]
    pub fn wait_out(&mut self, number: u8) {
        self.wait("evicted", |w| !w.record().members().contains(node(number)));
    }

    /// The process dies.
    pub fn kill(&mut self, number: u8) {
        self.world.kill_process(node(number));
    }

    /// The process starts, or the machine with its process.
    #[track_caller]
    pub fn start(&mut self, number: u8) {
        self.world.power_on(node(number));
        self.world.start_process(node(number));
        self.wait("runs", |w| {
            let node = w.node(node(number));
            node.core.as_ref().is_some_and(|c| c.generation().0 > 0)
        });
    }

    /// The power goes, and what was not flushed with it.
    pub fn power_off(&mut self, number: u8) {
        self.world.power_off(node(number), Loss::All);
    }

    /// The node's disk, to make it fail.
    pub fn health(&mut self, number: u8) -> &mut crate::disk::Health {
        self.world.faults.disk_was_bad = true;
        &mut self.world.node_mut(node(number)).health
    }

    /// The node's disk is well again; a process that had given it up starts anew.
    pub fn mend_disk(&mut self, number: u8) {
        self.world.repair(Repair::Disk(node(number)));
    }

    /// Something else is written to a block of the node's disk, behind everybody's back.
    pub fn scribble(&mut self, number: u8, at: u64) {
        let volume = &mut self.world.node_mut(node(number)).volumes[V.index()];
        volume.data.write(block(at).offset, &[u64::MAX; 8], true);
    }

    /// Another disk is put in and the process started.
    #[track_caller]
    pub fn replace_disk(&mut self, number: u8) {
        self.world.replace_disk(node(number));
        self.start(number);
    }

    // --- what happened ---

    /// Waits until a resync has started, since the notices were forgotten.
    #[track_caller]
    pub fn wait_for_resync(&mut self) {
        self.wait("a resync", |w| {
            let started = |n: &Notice| matches!(n, Notice::ResyncStarted { .. });
            w.notices.iter().any(|(_, notice)| started(notice))
        });
    }

    /// Forgets the notices so far.
    pub fn forget_notices(&mut self) {
        self.world.notices.clear();
    }

    /// Bytes that resyncs of a node were to compare, and bytes that were sent, since the notices were
    /// forgotten; each resync once.
    #[must_use]
    pub fn resynced(&self, number: u8) -> (u64, u64) {
        let mut sums = (0, 0);
        for (_, notice) in &self.world.notices {
            match notice {
                Notice::ResyncStarted { node: n, bytes } if *n == node(number) => sums.0 += bytes,
                Notice::ResyncDone {
                    node: n,
                    sent_bytes,
                } if *n == node(number) => {
                    sums.1 += sent_bytes;
                }
                _ => {}
            }
        }
        sums
    }

    /// Was there such a notice?
    pub fn noticed(&self, wanted: impl Fn(&Notice) -> bool) -> bool {
        self.world.notices.iter().any(|(_, notice)| wanted(notice))
    }

    /// Does the block read as zeroes on the node's disk?
    #[must_use]
    pub fn is_blank(&self, number: u8, at: u64) -> bool {
        let volume = self.world.node(node(number)).volume(V);
        volume.is_some_and(|v| v.data.block(at).iter().all(|stamp| *stamp == ZERO))
    }

    /// Do two nodes' disks hold the same in this block?
    #[must_use]
    pub fn same(&self, a: u8, b: u8, at: u64) -> bool {
        let of = |n: u8| self.world.node(node(n)).volume(V);
        match (of(a), of(b)) {
            (Some(a), Some(b)) => a.data.block(at) == b.data.block(at),
            _ => false,
        }
    }

    /// Lets the audit run by itself from now on.
    pub fn audit_often(&mut self) {
        self.world.after_us(1000, Occurrence::Audit);
    }
}
