//! The operator of a simulation: promotes where nobody serves (in this issue promotion is by command),
//! starts what has stopped, now and then does something silly, and at the end, when the faults have
//! stopped, sees to it that the cluster comes to rest.

use crate::engine::IdentityLost;
use crate::liveness::Liveness;
use crate::node::Node;
use crate::rng::Rng;
use crate::rules::{Rule, replicas_are_equal};
use crate::store::Process;
use crate::world::{Occurrence, World};
use replicator::core::api::{Command, CommandError, CommandId, Event};
use replicator::core::status::{DiskState, ReplicationState, Role};
use std::collections::BTreeMap;
use vocabulary::{Epoch, NodeId, NodeSet, Record, Time, VolumeId};

/// A command without an answer.
#[derive(Clone, Debug)]
struct Asked {
    process: Process,
    command: Command,
    at: Time,
}

/// The operator.
#[derive(Clone, Debug)]
pub struct Operator {
    asked: BTreeMap<u64, Asked>,
    next: u64,
    pub(crate) last_promote: Time,
    rng: Rng,
    /// Promotes even while an old primary may be alive somewhere, in percent of its looks.
    pub supersede: u64,
    /// Does something unneeded, in percent of its looks.
    pub silly: u64,
    /// Changes what is configured, in percent of its looks.
    pub shapes: u64,
    /// Promotes by itself.
    pub promotes: bool,
    /// The faults have stopped.
    pub healing: bool,
    /// Somebody was promoted by force.
    pub forced: bool,
    /// Everything was found at rest.
    pub at_rest: bool,
    /// How long clients are without service.
    pub liveness: Liveness,
    /// Notices are kept for scripts.
    pub keep_notices: bool,
    /// Answers to commands, for scripts.
    pub answers: BTreeMap<u64, Result<(), CommandError>>,
    disconnected: Vec<(NodeId, NodeId)>,
}

/// No command takes longer than its time limit, with some slack for a stopped process (RULES 10).
const COMMAND_SLACK_MS: u64 = 5_000;

impl Operator {
    /// An operator who promotes where nobody serves and does nothing else.
    #[must_use]
    pub fn new(rng: &mut Rng) -> Self {
        Self {
            asked: BTreeMap::new(),
            next: 0,
            last_promote: Time(0),
            rng: rng.fork(),
            supersede: 0,
            silly: 0,
            shapes: 0,
            promotes: true,
            healing: false,
            forced: false,
            at_rest: false,
            liveness: Liveness::default(),
            keep_notices: false,
            answers: BTreeMap::new(),
            disconnected: Vec::new(),
        }
    }

    /// A process gets this command; its id.
    pub(crate) fn note(&mut self, process: Process, command: Command, at: Time) -> CommandId {
        self.next += 1;
        let asked = Asked {
            process,
            command,
            at,
        };
        self.asked.insert(self.next, asked);
        CommandId(self.next)
    }

    /// The process is dead: it answers nothing any more.
    pub fn forget(&mut self, process: Process) {
        self.asked.retain(|_, a| a.process != process);
    }

    fn asks_for_promotion(&self) -> bool {
        self.asked
            .values()
            .any(|a| matches!(a.command, Command::Promote { .. } | Command::Force))
    }
}

impl World {
    /// The command that promotes a node in place of whom it takes for the primary.
    #[must_use]
    pub fn promotion(&self, id: NodeId, drop: NodeSet) -> Command {
        let status = self
            .node(id)
            .core
            .as_ref()
            .map(|c| c.status(self.clock(id)));
        let over = status.map(|status| status.epoch).unwrap_or_default();
        Command::Promote { drop, over }
    }

    /// Gives a node's core a command; its id.
    pub fn command(&mut self, id: NodeId, command: Command) -> u64 {
        let process = self.node(id).process();
        let number = self.operator.note(process, command, self.now);
        if self.node(id).core.is_none() {
            self.operator.asked.remove(&number.0);
            return number.0;
        }
        let event = Event::Command {
            id: number,
            command,
        };
        self.feed(id, event);
        number.0
    }

    pub(crate) fn command_done(
        &mut self,
        id: NodeId,
        command: CommandId,
        result: Result<(), CommandError>,
    ) {
        let Some(asked) = self.operator.asked.remove(&command.0) else {
            self.broken(Rule::Bounded, format!("{command:?} is answered twice"));
            return;
        };
        self.say(|| format!("{id:?} answers {:?}: {result:?}", asked.command));
        if asked.command == Command::Close && result.is_ok() {
            self.node_mut(id).clean = true;
        }
        if self.operator.keep_notices {
            self.operator.answers.insert(command.0, result);
        }
        if asked.command == Command::Close {
            self.closed(id);
        }
    }

    pub(crate) fn operator_tick(&mut self) {
        if self.operator.at_rest {
            return;
        }
        let us = self.operator.rng.between(40_000, 200_000);
        self.after_us(us, Occurrence::Operator);
        self.commands_in_time();
        self.look_at_service();
        if self.operator.healing {
            self.restore_disks();
            if self.is_at_rest() {
                self.operator.at_rest = true;
                let result = replicas_are_equal(self.store.record(), &self.nodes);
                self.expect(result);
                return;
            }
        }
        if self.is_whole() {
            self.operate_whole();
        } else if self.operator.promotes {
            self.promote_if_needed();
        }
        if !self.operator.healing && self.operator.rng.percent(self.operator.silly) {
            self.something_silly();
        }
        if !self.operator.healing && self.operator.rng.percent(self.operator.shapes) {
            self.reshape();
        }
    }

    /// RULES 10: every command answers within a time limit.
    fn commands_in_time(&mut self) {
        let limit = self.config.settings.command_timeout_ms + COMMAND_SLACK_MS;
        let late = self.operator.asked.values().find(|a| {
            let bounded = !matches!(a.command, Command::Verify { .. });
            bounded
                && self.now.ms_since(a.at) > limit
                && self.now.ms_since(self.node(a.process.node).paused_until) > limit
        });
        if let Some(late) = late {
            let what = format!("{late:?} has no answer after {limit} ms");
            self.broken(Rule::Bounded, what);
        }
    }

    /// The node that serves in the record's epoch.
    #[must_use]
    pub fn serving(&self) -> Option<NodeId> {
        let record = self.record();
        self.nodes
            .iter()
            .find(|n| n.serving == Some(record.epoch) && record.primary == Some(n.id))
            .map(|n| n.id)
    }

    fn promote_if_needed(&mut self) {
        if self.operator.asks_for_promotion() {
            return;
        }
        let record = self.record().clone();
        let healthy = self.serving().is_some();
        if healthy && !self.operator.rng.percent(self.operator.supersede) {
            return;
        }
        if healthy && self.operator.healing {
            return;
        }
        // A promotion that is committed but does not serve yet gets some time.
        let patience = if self.operator.healing { 4_000 } else { 700 };
        let promoter = self.store.promoter(record.epoch);
        let under_way = record.epoch != Epoch(0)
            && record.primary.is_some()
            && promoter.is_some_and(|p| self.node(p.node).process() == p)
            && self.now.ms_since(self.operator.last_promote) < patience;
        if under_way {
            return;
        }
        let mut eligible: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|n| n.is_running() && !n.disk_failed && n.paused_until <= self.now)
            .map(|n| n.id)
            .filter(|id| {
                record
                    .eligible(&self.node(*id).member(), self.store.declared())
                    .is_some()
            })
            .collect();
        self.operator.rng.shuffle(&mut eligible);
        let Some(candidate) = eligible.first().copied() else {
            self.force_if_lost(&record);
            return;
        };
        let drop: NodeSet = record
            .members()
            .iter()
            .filter(|m| *m != candidate)
            .filter(|m| !self.node(*m).is_running() || !self.net.joined(candidate, *m))
            .collect();
        self.operator.last_promote = self.now;
        let command = self.promotion(candidate, drop);
        self.command(candidate, command);
    }

    /// A member's disk is gone for good and nobody else is entitled: only the operator's word helps.
    pub(crate) fn force_if_lost(&mut self, record: &Record) {
        let gone = record
            .in_sync
            .iter()
            .any(|m| self.node(m.node).disk != m.disk);
        let all_run = self.nodes.iter().all(Node::is_running)
            && record
                .replicas
                .iter()
                .all(|id| self.node(id).core.is_some());
        let waited = self.now.ms_since(self.operator.last_promote) > 10_000;
        if !(self.operator.healing && gone && all_run && waited && self.serving().is_none()) {
            return;
        }
        let candidate = record
            .in_sync
            .iter()
            .find(|m| self.node(m.node).disk == m.disk)
            .map(|m| m.node)
            .or(record.replicas.iter().next());
        let Some(candidate) = candidate else { return };
        self.operator.last_promote = self.now;
        self.command(candidate, Command::Force);
    }

    fn something_silly(&mut self) {
        let mut rng = self.operator.rng.fork();
        let Some(primary) = self.serving() else {
            return;
        };
        let peer = self.nodes[rng.index(self.replicas())].id;
        let command = match rng.below(10) {
            0 | 1 if self.is_whole() => return self.operate_at_random(),
            0 | 1 => Command::Demote { to: None },
            2 => Command::Verify {
                node: None,
                repair: rng.percent(50),
            },
            3 | 4 if peer != primary => {
                self.operator.disconnected.push((primary, peer));
                Command::Disconnect { node: peer }
            }
            5 => match self.operator.disconnected.pop() {
                Some((node, peer)) => {
                    self.command(node, Command::Connect { node: peer });
                    return;
                }
                None => return,
            },
            6 if peer != primary => Command::Invalidate { node: peer },
            7 => {
                let volume = VolumeId(0);
                let size = self.size_of(volume);
                if size > 40 << 20 {
                    return;
                }
                let size_bytes = size + rng.between(1, 1024) * 4096;
                Command::Resize { volume, size_bytes }
            }
            8 => Command::VerifyStop,
            _ => {
                // Promote somebody who may not be entitled to it.
                let behind = self.is_whole() && peer != primary && rng.percent(50);
                let drop = if behind {
                    NodeSet::only(primary)
                } else {
                    NodeSet::EMPTY
                };
                let command = self.promotion(peer, drop);
                self.command(peer, command);
                return;
            }
        };
        self.command(primary, command);
    }

    /// The faults stop: everything is mended and started; what follows must come to rest.
    pub fn heal(&mut self) {
        self.say(|| "--- the faults stop ---".to_owned());
        self.faults.stop();
        self.operator.healing = true;
        self.repair_all();
        for volume in self.nodes.iter_mut().flat_map(|n| &mut n.volumes) {
            // A block that nobody can read would stay out of sync for ever.
            volume.data.unspoil();
        }
        for (node, peer) in std::mem::take(&mut self.operator.disconnected) {
            self.command(node, Command::Connect { node: peer });
        }
        self.operator.last_promote = self.now;
        if let Some(control) = &mut self.control {
            control.disturb(0, 0);
        }
        for at in 0..self.replicas() {
            let id = self.nodes[at].id;
            for peer in self.record().replicas.without(id).iter() {
                self.command(id, Command::Connect { node: peer });
            }
        }
    }

    /// A process whose disk has failed is started anew once the disk works again.
    fn restore_disks(&mut self) {
        for at in 0..self.nodes.len() {
            let id = self.nodes[at].id;
            if self.nodes[at].disk_failed && !self.nodes[at].unnoted {
                self.kill_process(id);
            }
            self.power_on(id);
            self.start_process(id);
        }
    }

    /// A node's metadata does not tell who it is: its disk is replaced. A single damaged block must not
    /// do that (RULES 11).
    pub(crate) fn identity_lost(&mut self, id: NodeId, lost: &IdentityLost) {
        self.say(|| format!("{id:?} can't attach: {}", lost.0));
        if self.node(id).meta_damage < 2 {
            let what = format!(
                "node {id} can't attach ({}) with {} damaged metadata blocks",
                lost.0,
                self.node(id).meta_damage
            );
            self.broken(Rule::Intact, what);
            return;
        }
        self.replace_disk(id);
        self.start_process(id);
    }

    /// Everything is where it should be when nothing is wrong: one node serves, every replica is in
    /// sync, nothing is out of sync, nothing is unanswered.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.why_not_at_rest().is_none()
    }

    /// What keeps the cluster from rest.
    #[must_use]
    pub fn why_not_at_rest(&self) -> Option<String> {
        let record = self.record();
        let Some(primary) = self.serving() else {
            return Some(format!("nobody serves; the record is {record:?}"));
        };
        if record.members() != record.replicas {
            return Some(format!("only {:?} are in sync", record.members()));
        }
        let backed = crate::rules::valid_members(record, &self.nodes).count();
        if backed != record.in_sync.len() {
            return Some(format!(
                "not all of these disks are there: {:?}",
                record.in_sync
            ));
        }
        if let Some(control) = &self.control {
            let voters = &control.document().voters;
            if voters.len() != self.nodes.len() {
                return Some(format!("only {voters:?} vote"));
            }
        }
        if !self.clients.pending.is_empty() {
            return Some(format!("unanswered: {:?}", self.clients.pending));
        }
        if self.load.left > 0 && self.load.clients > 0 {
            return Some("clients have more to ask".to_owned());
        }
        let core = self.node(primary).core.as_ref()?;
        let status = core.status(self.clock(primary));
        if status.role != Role::Primary || status.disk_state != DiskState::UpToDate {
            return Some(format!("the primary is {status:?}"));
        }
        let behind = status.peers.iter().find(|p| {
            p.disk_state != DiskState::UpToDate
                || p.replication != ReplicationState::Established
                || p.out_of_sync_bytes.iter().any(|b| *b > 0)
        });
        behind.map(|peer| format!("not up to date: {peer:?}"))
    }
}
