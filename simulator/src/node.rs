//! One machine of a simulation: its power, its process with the core in it, its disk and the disk
//! operations under way. Decides what an operation does to the storage when it completes, when the
//! process dies and when the power goes; when that happens is the world's business.

use crate::disk::{DataArea, Health, Loss, MetaArea};
use crate::engine::{Attached, Core};
use crate::payload::{Stamps, digests};
use crate::rng::Rng;
use crate::store::Process;
use replicator::core::api::{DiskError, Event, OpId, Payload};
use std::collections::{BTreeMap, VecDeque};
use vocabulary::{
    BLOCK_BYTES, ByteRange, DiskId, Epoch, Incarnation, Member, NodeId, Time, VolumeId,
};

/// Where the two copies of the superblock lie in a metadata area of its own.
const SUPERBLOCKS: [u64; 2] = [0, 64 << 10];
/// EIO.
const EIO: i32 = 5;

/// A volume's storage on a node.
#[derive(Clone, Debug)]
pub struct Volume {
    /// The data area.
    pub data: DataArea,
    /// The metadata area.
    pub meta: MetaArea,
}

/// What a disk operation does.
#[derive(Clone, Debug)]
pub enum OpKind {
    /// Read data.
    Read(ByteRange),
    /// Read data and digest it.
    Hash(ByteRange),
    /// Write data.
    Write(u64, Stamps, bool),
    /// Zero data: range, hole, durable.
    Zero(ByteRange, bool, bool),
    /// Flush what was written up to this mark.
    Flush(u64),
    /// Write metadata.
    Meta(u64, Vec<u8>),
    /// Grow to this size.
    Grow(u64),
}

impl OpKind {
    /// The data that it touches and whether it only reads.
    fn data(&self) -> Option<(ByteRange, bool)> {
        match self {
            Self::Read(range) | Self::Hash(range) => Some((*range, true)),
            Self::Write(offset, data, _) => {
                let len = u64::try_from(data.len()).unwrap_or(u64::MAX);
                Some((ByteRange::between(*offset, offset + len), false))
            }
            Self::Zero(range, ..) => Some((*range, false)),
            Self::Flush(_) | Self::Meta(..) | Self::Grow(_) => None,
        }
    }

    /// How long it takes, in units of a plain write.
    #[must_use]
    pub fn weight(&self) -> u64 {
        match self {
            Self::Write(_, _, true) | Self::Zero(_, _, true) | Self::Meta(..) => 3,
            Self::Flush(_) => 6,
            Self::Read(_) | Self::Hash(_) | Self::Write(..) | Self::Zero(..) | Self::Grow(_) => 1,
        }
    }
}

/// A disk operation under way.
#[derive(Clone, Debug)]
pub struct InFlight {
    /// Since when.
    pub since: Time,
    /// The volume.
    pub volume: VolumeId,
    /// What it does.
    pub kind: OpKind,
}

/// A machine's clock against true time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// It showed this,
    pub base: Time,
    /// at this true time,
    pub at: Time,
    /// and runs fast by so many millionths.
    pub ppm: i64,
}

impl Clock {
    const MILLION: i128 = 1_000_000;

    /// What it shows.
    #[must_use]
    pub fn shows(&self, now: Time) -> Time {
        let passed = i128::from(now.0) - i128::from(self.at.0);
        let shown = passed * (Self::MILLION + i128::from(self.ppm)) / Self::MILLION;
        Time(u64::try_from(i128::from(self.base.0) + shown).unwrap_or(0))
    }

    /// The true time at which it shows this, or a little later.
    #[must_use]
    pub fn when(&self, shown: Time) -> Time {
        if self.ppm == 0 && self.base == self.at {
            return shown;
        }
        let passed = i128::from(shown.0) - i128::from(self.base.0);
        let passed = passed * Self::MILLION / (Self::MILLION + i128::from(self.ppm)) + 1;
        let mut at = Time(u64::try_from(i128::from(self.at.0) + passed).unwrap_or(0));
        while self.shows(at) < shown {
            at.0 += 1;
        }
        at
    }
}

/// What the process is doing.
#[derive(Clone, Debug)]
pub enum State {
    /// The machine has no power.
    Off,
    /// The machine is on, the process is not.
    Down,
    /// The process reads and renews its metadata.
    Attaching {
        /// The replica to start.
        attached: Box<dyn Attached>,
        /// What must still be written first.
        left: VecDeque<(VolumeId, u64, Vec<u8>)>,
    },
    /// The process runs.
    Running,
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Number of the process's run; another with every start.
    pub run: u64,
    /// Random, another with every boot.
    pub boot: u128,
    /// What the process does.
    pub state: State,
    /// The state machine while the process runs.
    pub core: Option<Box<dyn Core>>,
    /// Storage.
    pub volumes: Vec<Volume>,
    /// How the device behaves.
    pub health: Health,
    /// Operations that the process waits for.
    pub ops: BTreeMap<u64, InFlight>,
    /// Those of them that a stuck device holds back.
    pub stuck: Vec<u64>,
    /// Operations of a dead process that the kernel may still carry out.
    orphans: Vec<InFlight>,
    /// The disk that is in the machine.
    pub disk: DiskId,
    /// Incarnation of the last attach.
    pub incarnation: Incarnation,
    /// Caches were lost (power, or a failed flush) while the disk had this incarnation: what stands in the record with it, or
    /// an older one, is worth nothing.
    pub lost: Option<Incarnation>,
    /// The core closed the disk in order and nothing ran since.
    pub clean: bool,
    /// Highest epoch that the disk has promised to anybody.
    pub promised: Epoch,
    /// The epoch in which the process says it serves.
    pub serving: Option<Epoch>,
    /// The epoch in which the process has proposed its demotion.
    pub demoting: Option<Epoch>,
    /// The process has reported a failed disk.
    pub disk_failed: bool,
    /// A flush failed and no superblock was written since: what the disk lost is known to this
    /// process only, and no rule can save what a second fault at this moment would cost.
    pub unnoted: bool,
    /// Blocks of metadata that were damaged, or may have been torn, since the last attach: one may
    /// cost nothing (RULES 11).
    pub meta_damage: u32,
    /// Of these, blocks that rotted.
    pub meta_rots: u32,
    /// A block of its metadata was damaged at some time.
    pub meta_rotted: bool,
    /// The process is stopped until then.
    pub paused_until: Time,
    /// Its data plane's thread stands still since and until then.
    pub stalled_since: Time,
    /// See there.
    pub stalled_until: Time,
    /// The machine's clock.
    pub clock: Clock,
    /// It holds no replica, only a vote.
    pub witness: bool,
    /// The earliest timer that is scheduled.
    pub armed: Option<Time>,
    /// Timers that fired at one moment: a core that does not get on is caught.
    pub spins: (Time, u32),
}

impl Node {
    /// A machine that is on, with this disk and no process yet.
    #[must_use]
    pub fn new(id: NodeId, disk: DiskId, sizes: &[u64], boot: u128) -> Self {
        Self {
            id,
            run: 0,
            boot,
            state: State::Down,
            core: None,
            volumes: sizes
                .iter()
                .map(|size| Volume {
                    data: DataArea::new(*size),
                    meta: MetaArea::default(),
                })
                .collect(),
            health: Health::default(),
            ops: BTreeMap::new(),
            stuck: Vec::new(),
            orphans: Vec::new(),
            disk,
            incarnation: Incarnation(0),
            lost: None,
            clean: true,
            promised: Epoch(0),
            serving: None,
            demoting: None,
            disk_failed: false,
            unnoted: false,
            meta_damage: 0,
            meta_rots: 0,
            meta_rotted: false,
            paused_until: Time(0),
            stalled_since: Time(0),
            stalled_until: Time(0),
            clock: Clock::default(),
            witness: false,
            armed: None,
            spins: (Time(0), 0),
        }
    }

    /// Its disk as a record would name it.
    #[must_use]
    pub fn member(&self) -> Member {
        Member {
            node: self.id,
            disk: self.disk,
            incarnation: self.incarnation,
        }
    }

    /// The present run of its process.
    #[must_use]
    pub fn process(&self) -> Process {
        Process {
            node: self.id,
            run: self.run,
        }
    }

    /// Does its process run?
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running)
    }

    /// Is the machine on?
    #[must_use]
    pub fn is_on(&self) -> bool {
        !matches!(self.state, State::Off)
    }

    /// Does this member of a record stand for what the disk really holds: same disk, caches not lost
    /// since?
    #[must_use]
    pub fn backs(&self, member: &Member) -> bool {
        member.node == self.id
            && member.disk == self.disk
            && self.lost.is_none_or(|lost| member.incarnation > lost)
    }

    /// The volume's storage.
    #[must_use]
    pub fn volume(&self, volume: VolumeId) -> Option<&Volume> {
        self.volumes.get(volume.index())
    }

    /// Takes up an operation. The answer names another one under way that it must not meet (RULES 5).
    ///
    /// # Errors
    /// The overlapping operation.
    pub fn submit(
        &mut self,
        op: OpId,
        volume: VolumeId,
        kind: OpKind,
        now: Time,
    ) -> Result<(), String> {
        if let Some((range, reads)) = kind.data() {
            let mine = range.outward(BLOCK_BYTES);
            for other in self.ops.values().filter(|o| o.volume == volume) {
                if let Some((theirs, other_reads)) = other.kind.data()
                    && theirs.outward(BLOCK_BYTES).overlaps(mine)
                    && !(reads && other_reads)
                {
                    return Err(format!("{:?} while {:?} is under way", kind, other.kind));
                }
            }
        }
        let flight = InFlight {
            since: now,
            volume,
            kind,
        };
        if self.ops.insert(op.0, flight).is_some() {
            return Err(format!("{op:?} is used twice"));
        }
        Ok(())
    }

    /// An operation completes: it takes place, and the event says how it went.
    pub fn complete(&mut self, op: OpId, rng: &mut Rng) -> Option<Event<Stamps>> {
        let InFlight { volume, kind, .. } = self.ops.remove(&op.0)?;
        let health = &self.health;
        let store = self.volumes.get_mut(volume.index())?;
        let failed = DiskError::Io(EIO);
        Some(match kind {
            OpKind::Read(range) => Event::ReadDone {
                op,
                result: match store.data.read(range).filter(|_| !health.read_errors) {
                    Some(stamps) => Ok(Stamps::new(stamps.to_vec())),
                    None => Err(failed),
                },
            },
            OpKind::Hash(range) => Event::HashDone {
                op,
                result: match store.data.read(range).filter(|_| !health.read_errors) {
                    Some(stamps) => Ok((digests(stamps), Stamps::new(stamps.to_vec()))),
                    None => Err(failed),
                },
            },
            OpKind::Write(offset, data, durable) => Event::DiskDone {
                op,
                result: if health.write_errors || (durable && health.flush_errors) {
                    store.data.write_torn(offset, data.as_slice(), rng);
                    Err(failed)
                } else if health.full {
                    Err(DiskError::NoSpace)
                } else if store.data.write(offset, data.as_slice(), durable) {
                    Ok(())
                } else {
                    Err(failed)
                },
            },
            OpKind::Zero(range, hole, durable) => Event::DiskDone {
                op,
                result: if health.write_errors || (durable && health.flush_errors) {
                    Err(failed)
                } else if health.full && !hole {
                    Err(DiskError::NoSpace)
                } else if store.data.zero(range, hole, durable) {
                    Ok(())
                } else {
                    Err(failed)
                },
            },
            OpKind::Flush(mark) => Event::DiskDone {
                op,
                result: if health.flush_errors {
                    store.data.flush_failed(rng);
                    // What it had said it holds may be gone, as after a power loss.
                    self.lost = Some(self.incarnation);
                    self.unnoted = !self.disk_failed;
                    Err(failed)
                } else {
                    store.data.flush_done(mark);
                    Ok(())
                },
            },
            OpKind::Meta(offset, data) => Event::MetaDone {
                op,
                result: if health.meta_errors {
                    store.meta.write_torn(offset, &data, rng);
                    Err(failed)
                } else {
                    store.meta.write(offset, &data);
                    self.unnoted &= !SUPERBLOCKS.contains(&offset);
                    Ok(())
                },
            },
            OpKind::Grow(size) => Event::GrowDone {
                op,
                result: if health.full {
                    Err(DiskError::NoSpace)
                } else {
                    store.data.grow(size);
                    Ok(())
                },
            },
        })
    }

    /// An operation whose completion nobody will hear takes place, in part or not at all.
    fn maybe(&mut self, flight: InFlight, rng: &mut Rng) {
        let fate = rng.below(10);
        if fate < 3 {
            return;
        }
        let whole = fate < 8;
        let Some(store) = self.volumes.get_mut(flight.volume.index()) else {
            return;
        };
        match flight.kind {
            OpKind::Read(_) | OpKind::Hash(_) => {}
            OpKind::Write(offset, data, durable) if whole => {
                store.data.write(offset, data.as_slice(), durable);
            }
            OpKind::Write(offset, data, _) => store.data.write_torn(offset, data.as_slice(), rng),
            OpKind::Zero(range, hole, durable) => {
                let len = if whole {
                    range.len
                } else {
                    rng.below(range.len / 512 + 1) * 512
                };
                let part = ByteRange::between(range.offset, range.offset + len);
                store.data.zero(part, hole, durable && whole);
            }
            OpKind::Flush(mark) => {
                if whole {
                    store.data.flush_done(mark);
                }
            }
            OpKind::Meta(offset, data) if whole => store.meta.write(offset, &data),
            OpKind::Meta(offset, data) => store.meta.write_torn(offset, &data, rng),
            OpKind::Grow(size) => {
                if whole {
                    store.data.grow(size);
                }
            }
        }
    }

    /// The process dies (kill -9, or on its own). What it had handed to the kernel may still take place
    /// now or later, but before a next process gets the lock (RULES 5).
    pub fn kill(&mut self, rng: &mut Rng) {
        if let State::Attaching { left, .. } = &mut self.state
            && let Some((volume, offset, data)) = left.pop_front()
        {
            self.meta_damage += 1;
            self.orphans.push(InFlight {
                since: Time(0),
                volume,
                kind: OpKind::Meta(offset, data),
            });
        }
        let mut flights: Vec<InFlight> = std::mem::take(&mut self.ops).into_values().collect();
        rng.shuffle(&mut flights);
        let just_lost = self.lost == Some(self.incarnation);
        for flight in flights {
            // A process that dies between the failure of a flush and the note of it in the superblock
            // leaves a disk that nobody can know to have lost something: the kernel reports such an
            // error once. That note is taken to arrive.
            if let (OpKind::Meta(offset, data), true) = (&flight.kind, just_lost)
                && let Some(store) = self.volumes.get_mut(flight.volume.index())
            {
                store.meta.write(*offset, data);
                continue;
            }
            if matches!(flight.kind, OpKind::Meta(..)) {
                self.meta_damage += 1;
            }
            if rng.percent(40) {
                self.orphans.push(flight);
            } else {
                self.maybe(flight, rng);
            }
        }
        self.stuck.clear();
        self.core = None;
        self.state = State::Down;
        self.serving = None;
        self.demoting = None;
        self.disk_failed = false;
        self.unnoted = false;
        self.armed = None;
        self.paused_until = Time(0);
        self.stalled_until = Time(0);
    }

    /// The process goes on without its replica.
    pub fn let_go(&mut self, rng: &mut Rng) {
        self.kill(rng);
        self.state = State::Running;
    }

    /// The power goes, with it the device's cache.
    pub fn power_off(&mut self, loss: Loss, rng: &mut Rng) {
        if self.is_running() || matches!(self.state, State::Attaching { .. }) {
            self.kill(rng);
        }
        self.settle(rng);
        for volume in &mut self.volumes {
            volume.data.power_loss(loss, rng);
        }
        if !self.clean {
            self.lost = Some(self.incarnation);
        }
        self.state = State::Off;
    }

    /// What dead processes left to the kernel has taken place, or never will.
    pub fn settle(&mut self, rng: &mut Rng) {
        let mut orphans = std::mem::take(&mut self.orphans);
        rng.shuffle(&mut orphans);
        for flight in orphans {
            self.maybe(flight, rng);
        }
    }

    /// Another disk is put into the machine: empty, of these sizes.
    pub fn replace_disk(&mut self, disk: DiskId, sizes: &[u64]) {
        self.orphans.clear();
        let fresh = Self::new(self.id, disk, sizes, self.boot);
        self.volumes = fresh.volumes;
        self.disk = disk;
        self.incarnation = Incarnation(0);
        self.lost = None;
        self.clean = true;
        self.meta_damage = 0;
        self.meta_rots = 0;
        self.promised = Epoch(0);
        self.health = Health::default();
    }
}
