//! Bad luck: what goes wrong, when, and when it is mended. Faults come at random times and, more
//! often, right after a core has done something that matters (RULES section 5: schedules are biased
//! towards changes of the record with requests half done).

use crate::disk::Loss;
use crate::payload::Stamps;
use crate::rng::Rng;
use crate::rules::valid_members;
use crate::world::{Occurrence, World};
use replicator::core::api::Action;
use replicator::core::message::Message;
use vocabulary::{NodeId, VolumeId};

/// What is mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// A process starts.
    Start(NodeId),
    /// A machine gets power.
    Power(NodeId),
    /// A link, one way.
    Link(NodeId, NodeId),
    /// A disk.
    Disk(NodeId),
    /// The store, or the way to it.
    Store,
    /// The way from a node to the store.
    StoreLink(NodeId),
}

/// How a run's bad luck is shaped.
#[derive(Clone, Debug)]
pub struct Faults {
    active: bool,
    /// Mean time between faults out of the blue, in µs; 0: none.
    pub interval_us: u64,
    /// Faults right after something that matters: multiplies its chance; 0: none.
    pub eager: u64,
    /// Faults left.
    pub left: u32,
    /// Percent of store messages that are lost or doubled.
    pub store_loss: u64,
    /// Longest usual delay of a store message in µs.
    pub store_delay_us: u64,
    /// Percent of proposals that are delayed very long.
    pub store_late: u64,
    /// Disk requests that take much longer than the others under way, in parts of 10 000.
    pub laggards: u64,
    /// Relative weights of `Kind`s.
    pub weights: Weights,
    /// A disk was made to fail at some time.
    pub disk_was_bad: bool,
}

/// How often each kind of fault comes, relative to the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weights {
    /// A process dies.
    pub kill: u64,
    /// A machine loses power.
    pub power: u64,
    /// All machines lose power.
    pub blackout: u64,
    /// A link is cut, in one direction or both.
    pub link: u64,
    /// A connection breaks.
    pub conn: u64,
    /// A disk is slow or stuck.
    pub slow: u64,
    /// A disk answers errors.
    pub errors: u64,
    /// A sector can't be read.
    pub sector: u64,
    /// A metadata block of a stopped node rots.
    pub rot: u64,
    /// A process is stopped for a while.
    pub pause: u64,
    /// The store does not answer.
    pub store: u64,
    /// A disk is replaced.
    pub replace: u64,
    /// A data plane's thread stands still for a while.
    pub stall: u64,
    /// A voter's state is lost.
    pub forget: u64,
}

impl Weights {
    /// Everything now and then.
    #[must_use]
    pub fn mixed() -> Self {
        Self {
            kill: 20,
            power: 12,
            blackout: 2,
            link: 14,
            conn: 14,
            slow: 6,
            errors: 4,
            sector: 3,
            rot: 2,
            pause: 5,
            store: 4,
            replace: 2,
            stall: 0,
            forget: 0,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Kill,
    Power,
    Blackout,
    Link,
    Conn,
    Slow,
    Errors,
    Sector,
    Rot,
    Pause,
    Store,
    Replace,
    Stall,
    Forget,
}

impl Faults {
    /// No bad luck.
    #[must_use]
    pub fn none() -> Self {
        Self {
            active: false,
            interval_us: 0,
            eager: 0,
            left: 0,
            store_loss: 0,
            store_delay_us: 1000,
            store_late: 0,
            laggards: 0,
            weights: Weights::default(),
            disk_was_bad: false,
        }
    }

    /// Bad luck of a random shape.
    #[must_use]
    pub fn random(rng: &mut Rng) -> Self {
        let mut weights = Weights::mixed();
        // Some runs have one main trouble.
        match rng.below(8) {
            0 => weights.power += 60,
            1 => weights.kill += 60,
            2 => weights.link += 60,
            3 => weights.conn += 80,
            4 => weights.errors += 20,
            5 => weights.blackout += 20,
            _ => {}
        }
        Self {
            active: true,
            interval_us: [30_000, 150_000, 600_000][rng.index(3)],
            eager: [0, 1, 1, 3][rng.index(4)],
            left: u32::try_from(rng.between(2, 25)).unwrap_or(2),
            store_loss: [0, 5, 30][rng.index(3)],
            store_delay_us: [500, 3000, 40_000][rng.index(3)],
            store_late: [0, 10, 30][rng.index(3)],
            laggards: [0, 0, 10, 100][rng.index(4)],
            weights,
            disk_was_bad: false,
        }
    }

    /// Does chance, in this many of 100 cases, play a part in how store and nodes exchange what they have?
    pub fn chance(&self, percent: u64, rng: &mut Rng) -> bool {
        self.active && rng.percent(percent)
    }

    /// No more bad luck.
    pub fn stop(&mut self) {
        self.active = false;
        self.store_loss = 0;
        self.store_delay_us = 1000;
        self.store_late = 0;
        self.laggards = 0;
    }

    pub(crate) fn is_active(&self) -> bool {
        self.active && self.left > 0
    }

    /// How much longer than usual a disk request takes, in µs.
    pub(crate) fn lag_us(&self, rng: &mut Rng) -> u64 {
        if self.active && rng.per_10k(self.laggards) {
            rng.between(5_000, 200_000)
        } else {
            0
        }
    }

    pub(crate) fn dial_fails(&self, rng: &mut Rng) -> bool {
        self.active && rng.percent(5)
    }

    /// How often a store message arrives.
    pub(crate) fn copies(&self, rng: &mut Rng) -> usize {
        match rng.below(100) {
            dice if dice < self.store_loss / 2 => 0,
            dice if dice < self.store_loss => 2,
            _ => 1,
        }
    }

    pub(crate) fn store_us(&self, rng: &mut Rng) -> u64 {
        rng.between(100, self.store_delay_us)
    }

    pub(crate) fn proposal_us(&self, rng: &mut Rng) -> u64 {
        if rng.percent(self.store_late) {
            rng.between(50_000, 1_500_000)
        } else {
            self.store_us(rng)
        }
    }

    /// How likely a fault is right after this, in parts of 10 000.
    pub(crate) fn interest(&self, action: &Action<Stamps>) -> u64 {
        if !self.active || self.eager == 0 || self.left == 0 {
            return 0;
        }
        let chance = match action {
            Action::Propose { .. } => 500,
            Action::Notice(_) => 100,
            Action::MetaWrite { .. } | Action::Flush { .. } => 30,
            Action::Reply { .. } => 10,
            Action::Send { message, .. } => match message {
                Message::HandOverEnd { .. } | Message::HandOverDone { .. } => 400,
                Message::WelcomeEnd | Message::Welcome { .. } | Message::Hello { .. } => 150,
                Message::Record { .. } | Message::Touch { .. } => 200,
                Message::Flush { .. } | Message::FlushAck { .. } | Message::Release { .. } => 40,
                Message::HashRequest { .. } | Message::HashReply { .. } => 20,
                Message::Write { .. } | Message::Zero { .. } | Message::Acks { .. } => 6,
                _ => 0,
            },
            _ => 0,
        };
        chance * self.eager
    }

    fn choose(&self, rng: &mut Rng) -> Option<Kind> {
        let w = &self.weights;
        let table = [
            (w.kill, Kind::Kill),
            (w.power, Kind::Power),
            (w.blackout, Kind::Blackout),
            (w.link, Kind::Link),
            (w.conn, Kind::Conn),
            (w.slow, Kind::Slow),
            (w.errors, Kind::Errors),
            (w.sector, Kind::Sector),
            (w.rot, Kind::Rot),
            (w.pause, Kind::Pause),
            (w.store, Kind::Store),
            (w.replace, Kind::Replace),
            (w.stall, Kind::Stall),
            (w.forget, Kind::Forget),
        ];
        let mut dice = rng.below(table.iter().map(|(weight, _)| weight).sum());
        for (weight, kind) in table {
            if dice < weight {
                return Some(kind);
            }
            dice -= weight;
        }
        None
    }
}

impl World {
    /// Lets bad luck begin.
    pub fn start_faults(&mut self, faults: Faults) {
        let us = faults.interval_us;
        self.faults = faults;
        if us > 0 {
            self.after_us(us, Occurrence::Fault);
        }
    }

    pub(crate) fn fault(&mut self) {
        if !self.faults.active || self.faults.left == 0 {
            return;
        }
        let us = self.rng.between(1000, self.faults.interval_us * 2);
        self.after_us(us, Occurrence::Fault);
        let at = self.rng.index(self.nodes.len());
        let node = self.nodes[at].id;
        self.strike(node);
    }

    /// Something happens to this node, or to one that it works with.
    pub(crate) fn strike(&mut self, near: NodeId) {
        if !self.faults.active || self.faults.left == 0 {
            return;
        }
        let mut rng = self.rng.fork();
        let Some(kind) = self.faults.choose(&mut rng) else {
            return;
        };
        if self.nodes.iter().any(|n| n.unnoted) {
            return;
        }
        self.faults.left -= 1;
        let node = if rng.percent(60) {
            near
        } else {
            self.nodes[rng.index(self.nodes.len())].id
        };
        self.say(|| format!("!! {kind:?} at {node:?}"));
        self.inflict(kind, node, &mut rng);
    }

    fn inflict(&mut self, kind: Kind, node: NodeId, rng: &mut Rng) {
        let vote_only = matches!(
            kind,
            Kind::Kill | Kind::Power | Kind::Blackout | Kind::Link | Kind::Pause | Kind::Forget
        );
        if self.node(node).witness && !vote_only {
            return;
        }
        let short = rng.between(2_000, 150_000);
        let long = rng.between(50_000, 2_500_000);
        let us = if rng.percent(50) { short } else { long };
        match kind {
            Kind::Kill => {
                self.kill_process(node);
                self.after_us(us, Occurrence::Repair(Repair::Start(node)));
            }
            Kind::Power => {
                let loss = random_loss(rng);
                self.power_off(node, loss);
                self.after_us(us, Occurrence::Repair(Repair::Power(node)));
            }
            Kind::Blackout => {
                for at in 0..self.nodes.len() {
                    let id = self.nodes[at].id;
                    let loss = random_loss(rng);
                    self.power_off(id, loss);
                    let us = us + rng.between(1000, 500_000);
                    self.after_us(us, Occurrence::Repair(Repair::Power(id)));
                }
            }
            Kind::Link => {
                let other = self.nodes[rng.index(self.nodes.len())].id;
                let everybody = rng.percent(30);
                let both = rng.percent(60);
                for at in 0..self.nodes.len() {
                    let id = self.nodes[at].id;
                    if id == node || !(everybody || id == other) {
                        continue;
                    }
                    self.net.cut(node, id);
                    self.after_us(us, Occurrence::Repair(Repair::Link(node, id)));
                    if both {
                        self.net.cut(id, node);
                        self.after_us(us, Occurrence::Repair(Repair::Link(id, node)));
                    }
                }
                if everybody && rng.percent(50) {
                    self.store_cut[node.index()] = true;
                    self.after_us(us, Occurrence::Repair(Repair::StoreLink(node)));
                }
            }
            Kind::Conn => {
                let process = self.node(node).process();
                let conns: Vec<u64> = self
                    .net
                    .conns()
                    .filter(|(_, c)| c.end_of(process).is_some())
                    .map(|(id, _)| id)
                    .collect();
                if let Some(conn) = rng.pick(&conns) {
                    let due = self.net.break_off(*conn, self.now, rng);
                    self.due(due);
                }
            }
            Kind::Slow => {
                if rng.percent(30) {
                    self.node_mut(node).health.stuck = true;
                } else {
                    self.node_mut(node).health.slower = rng.between(10, 200);
                }
                self.after_us(us, Occurrence::Repair(Repair::Disk(node)));
            }
            Kind::Errors => {
                // A device that can't even take down that it has failed is gone, not repaired.
                if !self.can_lose(node) || self.node(node).health != crate::disk::Health::default()
                {
                    return;
                }
                self.faults.disk_was_bad = true;
                let health = &mut self.node_mut(node).health;
                match rng.below(5) {
                    0 => health.write_errors = true,
                    1 => health.flush_errors = true,
                    2 => health.read_errors = true,
                    3 => health.meta_errors = true,
                    _ => health.full = true,
                }
                self.after_us(us, Occurrence::Repair(Repair::Disk(node)));
            }
            Kind::Sector => {
                if !self.can_lose(node) {
                    return;
                }
                self.faults.disk_was_bad = true;
                let spots = self.load.spots.clone();
                if let Some((volume, first, span)) = rng.pick(&spots) {
                    let sector = crate::disk::sectors(first + rng.below(*span));
                    if let Some(store) = self.node_mut(node).volumes.get_mut(volume.index()) {
                        store.data.spoil(sector);
                    }
                }
            }
            Kind::Rot => {
                let loss = random_loss(rng);
                if rng.percent(50) {
                    self.power_off(node, loss);
                } else {
                    self.kill_process(node);
                }
                self.rot_meta(node, rng);
                self.after_us(us, Occurrence::Repair(Repair::Power(node)));
                self.after_us(us, Occurrence::Repair(Repair::Start(node)));
            }
            Kind::Pause => {
                let until = vocabulary::Time(self.now.0 + us * 1000);
                self.node_mut(node).paused_until = until;
            }
            Kind::Stall => {
                let now = self.now;
                let node = self.node_mut(node);
                node.stalled_since = now;
                node.stalled_until = vocabulary::Time(now.0 + us * 1000);
            }
            Kind::Forget => {
                if self.can_forget() {
                    self.kill_process(node);
                    self.forget(node);
                    self.after_us(us, Occurrence::Repair(Repair::Start(node)));
                }
            }
            Kind::Store => {
                self.store.up = false;
                self.after_us(us, Occurrence::Repair(Repair::Store));
            }
            Kind::Replace => {
                if self.can_lose(node) && self.node(node).is_on() {
                    self.replace_disk(node);
                    self.after_us(us, Occurrence::Repair(Repair::Start(node)));
                }
            }
        }
    }

    /// One block of a stopped node's metadata rots, or can't be read: the other copy, or the safe
    /// reading, must do (RULES 11). A second one only where it costs the disk its identity: both
    /// copies of the activity log's last block can't be told from a write that was not finished.
    fn rot_meta(&mut self, node: NodeId, rng: &mut Rng) {
        let target = self.node_mut(node);
        let volume = VolumeId(u16::try_from(rng.index(target.volumes.len())).unwrap_or(0));
        let Some(store) = target.volumes.get_mut(volume.index()) else {
            return;
        };
        let blocks = store.meta.blocks();
        // The first blocks are the superblock's: they deserve attention.
        let block = if rng.percent(40) || target.meta_rots > 0 {
            blocks.first().copied()
        } else {
            rng.pick(&blocks).copied()
        };
        if let Some(block) = block {
            if rng.percent(70) {
                store.meta.rot(block, rng);
            } else {
                store.meta.spoil(block);
            }
        }
        target.meta_rots += 1;
        target.meta_damage += 1;
        target.meta_rotted = true;
    }

    /// Would the data survive the loss of this node's disk? Another member whose disk is sound must
    /// stay, or nobody could promise anything.
    fn can_lose(&self, node: NodeId) -> bool {
        let sound = valid_members(self.record(), &self.nodes)
            .filter(|n| {
                n.id != node && n.health == crate::disk::Health::default() && !n.disk_failed
            })
            .count();
        sound > 0
    }

    pub(crate) fn repair(&mut self, repair: Repair) {
        match repair {
            Repair::Start(node) => self.start_process(node),
            Repair::Power(node) => self.power_on(node),
            Repair::Link(a, b) => {
                let due = self.net.mend(a, b, self.now);
                self.due(due);
            }
            Repair::Disk(node) => {
                let n = self.node_mut(node);
                n.health = crate::disk::Health::default();
                let stuck = std::mem::take(&mut n.stuck);
                let process = n.process();
                for op in stuck {
                    let us = self.rng.between(10, 500);
                    self.after_us(us, Occurrence::Disk(process, op));
                }
                if self.node(node).unnoted {
                    self.after_us(1000, Occurrence::Repair(repair));
                } else if self.node(node).disk_failed {
                    self.kill_process(node);
                    self.start_process(node);
                }
            }
            Repair::Store => self.store.up = true,
            Repair::StoreLink(node) => self.store_cut[node.index()] = false,
        }
    }

    /// Mends everything at once.
    pub(crate) fn repair_all(&mut self) {
        let ids: Vec<NodeId> = self.nodes.iter().map(|n| n.id).collect();
        self.repair(Repair::Store);
        for a in &ids {
            self.repair(Repair::StoreLink(*a));
            self.repair(Repair::Disk(*a));
            self.repair(Repair::Power(*a));
            self.repair(Repair::Start(*a));
            for b in &ids {
                self.repair(Repair::Link(*a, *b));
            }
        }
    }
}

pub(crate) fn random_loss(rng: &mut Rng) -> Loss {
    [
        Loss::All,
        Loss::All,
        Loss::Nothing,
        Loss::Random,
        Loss::Suffix,
    ][rng.index(5)]
}
