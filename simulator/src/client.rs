//! What clients ask: reads, writes, zeroes, discards and flushes, with and without FUA, unaligned to
//! blocks, on a few hot spots so that they overlap. Chooses requests and remembers what is unanswered;
//! whether the answers are right is the checker's business.

use crate::checker::{Tick, WriteId};
use crate::payload::SECTOR;
use crate::rng::Rng;
use crate::store::Process;
use std::collections::BTreeMap;
use vocabulary::{ByteRange, EXTENT_BYTES, Epoch, HistoryId, Time, VolumeId};

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Read.
    Read(ByteRange),
    /// Write: range, FUA.
    Write(ByteRange, bool),
    /// Zero: range, hole, FUA.
    Zero(ByteRange, bool, bool),
    /// Flush.
    Flush,
}

/// A request without an answer.
#[derive(Clone, Debug)]
pub struct Pending {
    /// The client.
    pub client: usize,
    /// Where it went.
    pub process: Process,
    /// The volume.
    pub volume: VolumeId,
    /// What it was.
    pub ask: Ask,
    /// When it was sent.
    pub invoked: Tick,
    /// The same by the clock.
    pub at: Time,
    /// The write that it is, if it is one.
    pub write: Option<WriteId>,
    /// The epoch and the history that its node knew when it came there, and its turn among arrivals.
    pub arrived: Option<Arrival>,
    /// Where what its node has forwarded of it begins: a long write of zeroes goes in pieces.
    pub forwarded: Vec<u64>,
}

/// A request has come to its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Counts arrivals.
    pub turn: u64,
    /// What the node knew of the resource.
    pub known: Option<(Epoch, HistoryId)>,
}

/// A request as its node forwards it: to primaries that node is the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The volume.
    pub volume: VolumeId,
    /// What it is.
    pub ask: Ask,
    /// When it was first sent.
    pub invoked: Tick,
    /// The write that it is, if it is one.
    pub write: Option<WriteId>,
    /// The history that its node knew when the request came there.
    pub history: Option<HistoryId>,
    /// It is a piece of the write only.
    pub piece: bool,
}

impl Ask {
    /// Is it the other one, or a piece of that?
    #[must_use]
    pub fn is_part_of(&self, whole: &Self) -> bool {
        match (self, whole) {
            (Self::Zero(part, a, b), Self::Zero(range, c, d)) => {
                (a, b) == (c, d) && range.intersection(*part) == Some(*part)
            }
            _ => self == whole,
        }
    }
}

impl Sent {
    /// By the node itself.
    #[must_use]
    pub fn of(pending: &Pending) -> Self {
        Self {
            volume: pending.volume,
            ask: pending.ask.clone(),
            invoked: pending.invoked,
            write: pending.write,
            history: pending.history(),
            piece: false,
        }
    }
}

impl Pending {
    /// The history that its node knew when it came there.
    #[must_use]
    pub fn history(&self) -> Option<HistoryId> {
        Some(self.arrived?.known?.1)
    }
}

/// How clients behave in a run.
#[derive(Clone, Debug)]
pub struct Load {
    /// How many clients there are.
    pub clients: usize,
    /// Most requests that one of them has under way.
    pub depth: usize,
    /// Longest pause between two requests, in µs.
    pub pause_us: u64,
    /// Requests left in this run.
    pub left: u64,
    /// Percent of reads.
    pub reads: u64,
    /// Percent of flushes.
    pub flushes: u64,
    /// Percent of zeroes and discards.
    pub zeroes: u64,
    /// Percent of FUA among writes.
    pub fua: u64,
    /// Longest request in sectors.
    pub max_sectors: u64,
    /// Where they write: volume, first byte, bytes.
    pub spots: Vec<(VolumeId, u64, u64)>,
}

impl Load {
    /// Clients for volumes of these sizes.
    #[must_use]
    pub fn new(sizes: &[u64], rng: &mut Rng) -> Self {
        let mut spots = Vec::new();
        for (i, size) in sizes.iter().enumerate() {
            let volume = VolumeId(u16::try_from(i).unwrap_or(0));
            for _ in 0..rng.between(1, 4) {
                let extents = size.div_ceil(EXTENT_BYTES);
                let span = rng.between(8, 128) * SECTOR;
                let within = match rng.below(3) {
                    0 => 0,
                    // Across the border of two extents.
                    1 => EXTENT_BYTES - span / 2 / SECTOR * SECTOR,
                    _ => rng.below(EXTENT_BYTES / SECTOR) * SECTOR,
                };
                let first = (rng.below(extents) * EXTENT_BYTES + within).min(size - SECTOR);
                spots.push((volume, first, span.min(size - first)));
            }
        }
        Self {
            clients: rng.index(4) + 1,
            depth: rng.index(6) + 1,
            pause_us: [200, 1000, 5000, 20_000][rng.index(4)],
            left: rng.between(150, 800),
            reads: rng.between(15, 45),
            flushes: rng.between(0, 10),
            zeroes: rng.between(0, 15),
            fua: rng.between(0, 20),
            max_sectors: [1, 8, 16, 64][rng.index(4)],
            spots,
        }
    }

    /// The next request.
    pub fn choose(&self, rng: &mut Rng) -> Option<(VolumeId, Ask)> {
        let (volume, first, span) = *rng.pick(&self.spots)?;
        let spot_sectors = span / SECTOR;
        let at = rng.below(spot_sectors);
        let len = rng.between(1, self.max_sectors.min(spot_sectors - at));
        let mut range = ByteRange::between(first + at * SECTOR, first + (at + len) * SECTOR);
        if rng.percent(40) {
            // Whole blocks, as most clients do.
            let aligned = range.outward(vocabulary::BLOCK_BYTES);
            let fits =
                first.div_ceil(4096) * 4096 <= aligned.offset && aligned.end() <= first + span;
            if fits {
                range = aligned;
            }
        }
        let fua = rng.percent(self.fua);
        let dice = rng.below(100);
        let ask = if dice < self.reads {
            Ask::Read(range)
        } else if dice < self.reads + self.flushes {
            Ask::Flush
        } else if dice < self.reads + self.flushes + self.zeroes {
            Ask::Zero(range, rng.percent(60), fua)
        } else {
            Ask::Write(range, fua)
        };
        Some((volume, ask))
    }
}

/// What the clients have under way.
#[derive(Clone, Debug, Default)]
pub struct Clients {
    /// Unanswered requests by their id.
    pub pending: BTreeMap<u64, Pending>,
    /// What nodes have forwarded, by node and number.
    pub sent: BTreeMap<(Process, u64), Sent>,
    /// The request whose answer is just being brought to its node.
    pub brought: Option<Sent>,
    next: u64,
    turns: u64,
    /// Requests that were answered with success.
    pub served: u64,
    /// Requests that were answered with an error.
    pub refused: u64,
}

impl Clients {
    /// Takes up a request; its id.
    pub fn begin(&mut self, pending: Pending) -> u64 {
        self.next += 1;
        self.pending.insert(self.next, pending);
        self.next
    }

    /// A request comes to its node, which knows this of the resource.
    pub fn arrived(&mut self, id: u64, known: Option<(Epoch, HistoryId)>) {
        self.turns += 1;
        let turn = self.turns;
        if let Some(pending) = self.pending.get_mut(&id) {
            pending.arrived = Some(Arrival { turn, known });
        }
    }

    /// A node forwards this, under this number: one of its requests that match and have none yet, or a
    /// piece of it; false where there is none. Which of several that are the same does not matter.
    pub fn numbered(
        &mut self,
        from: Process,
        number: u64,
        invoked: Tick,
        ask: Ask,
        matches: impl Fn(&Pending) -> bool,
    ) -> bool {
        let first = match &ask {
            Ask::Read(range) | Ask::Write(range, _) | Ask::Zero(range, ..) => range.offset,
            Ask::Flush => 0,
        };
        let candidates = self.pending.values_mut().filter(|p| {
            let waits = p.arrived.is_some() && !p.forwarded.contains(&first);
            p.process == from && waits && ask.is_part_of(&p.ask) && matches(p)
        });
        let Some(pending) = candidates.min_by_key(|p| p.arrived.map(|a| a.turn)) else {
            return false;
        };
        pending.forwarded.push(first);
        let sent = Sent {
            invoked,
            piece: ask != pending.ask,
            ask,
            ..Sent::of(pending)
        };
        self.sent.insert((from, number), sent);
        true
    }

    /// How many requests a client has under way.
    #[must_use]
    pub fn depth(&self, client: usize) -> usize {
        self.pending.values().filter(|p| p.client == client).count()
    }

    /// The process is dead, or has let its replica go: what it had not answered has an unknown outcome.
    pub fn forget(&mut self, process: Process) {
        self.sent.retain(|(from, _), _| *from != process);
        self.pending.retain(|_, p| p.process != process);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_stay_within_their_volume() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let sizes = [(9 << 20) + 512 * rng.below(20), 1 << 20];
            let load = Load::new(&sizes, &mut rng);
            for _ in 0..100 {
                let (volume, ask) = load.choose(&mut rng).unwrap();
                if let Ask::Read(r) | Ask::Write(r, _) | Ask::Zero(r, ..) = ask {
                    assert!(r.end() <= sizes[volume.index()] && !r.is_empty());
                }
            }
        }
    }
}
