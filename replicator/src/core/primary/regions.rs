//! What clients may be told of a range besides its bytes: where the store's own word is not theirs, and
//! where another replica may lack bytes. It only looks.

use super::*;
use vocabulary::BLOCK_BYTES;

/// Most ranges in one answer: who wants more asks again from where it ended.
pub(crate) const MAX_REGIONS: usize = 4096;

/// Ranges in ascending order, disjoint and not empty, and up to where they were looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regions {
    /// The ranges, whole blocks or cut at the volume's end.
    pub ranges: Vec<ByteRange>,
    /// Nothing is said of what lies at or after this offset.
    pub end: u64,
}

impl Regions {
    /// There is none up to here.
    #[must_use]
    pub const fn none_up_to(end: u64) -> Self {
        let ranges = Vec::new();
        Self { ranges, end }
    }

    /// The first range that is not what it should be.
    pub(crate) fn first_improper(&self) -> Option<ByteRange> {
        let mut from = 0;
        let improper = |run: &&ByteRange| {
            let follows = run.offset >= from && !run.is_empty() && run.end() <= self.end;
            from = run.end();
            !follows
        };
        self.ranges.iter().find(improper).copied()
    }
}

/// Puts the runs that lie in the range into `into`. `false` once there are too many.
fn gather(
    runs: impl Iterator<Item = ByteRange>,
    range: ByteRange,
    into: &mut BlockSet,
) -> Result<(), u64> {
    for (count, run) in runs.enumerate() {
        if run.offset >= range.end() {
            break;
        }
        if let Some(part) = run.intersection(range) {
            if count >= MAX_REGIONS {
                return Err(part.offset);
            }
            into.insert(part);
        }
    }
    Ok(())
}

/// The runs of a set from an offset on.
fn runs_from(set: &BlockSet, from: u64) -> impl Iterator<Item = ByteRange> {
    let mut from = from / BLOCK_BYTES * BLOCK_BYTES;
    std::iter::from_fn(move || {
        let run = set.next(from)?;
        from = run.end();
        Some(run)
    })
}

fn answer(set: &BlockSet, range: ByteRange, end: u64) -> Regions {
    let inside = ByteRange::between(range.offset, end);
    let ranges = set.ranges().filter_map(|run| run.intersection(inside));
    Regions {
        ranges: ranges.collect(),
        end,
    }
}

impl<P: Payload> Primary<P> {
    /// Where a reader would have to wait at this moment: what is being written or zeroed and may still
    /// come to nothing (RULES 5), and what members are not known to hold alike (RULES 8). Elsewhere the
    /// store holds what every required replica holds. `None`: in too many places.
    pub(crate) fn unsettled(&self, volume: VolumeId, range: ByteRange) -> Option<Regions> {
        let index = volume.index();
        let mut set = BlockSet::default();
        let written = self.locks.get(index)?.exclusive();
        let written = written.filter(|(key, _)| !matches!(key, Key::Copy(_)));
        for (_, run) in written {
            if let Some(part) = run.intersection(range) {
                set.insert(part);
            }
        }
        for doubt in [&self.unreconciled[index], &self.unrenewed[index]] {
            gather(runs_from(doubt, range.offset), range, &mut set).ok()?;
        }
        Some(answer(&set, range, range.end()))
    }

    /// Where a configured replica may lack bytes that this node has (RULES 7).
    pub(crate) fn out_of_sync(
        &self,
        local: &Local<P>,
        record: &Record,
        volume: VolumeId,
        range: ByteRange,
    ) -> Regions {
        let mut set = BlockSet::default();
        let mut end = range.end();
        let others = record.replicas.without(self.node);
        for node in others.iter() {
            let inside = ByteRange::between(range.offset, end);
            let peer = self.peers.get(&node);
            let sync = peer.and_then(|peer| peer.sync.as_ref());
            let is_member = record.member(node).is_some();
            let gathered = match sync {
                Some(sync) => match sync.todo.get(volume.index()) {
                    Some(todo) => gather(runs_from(todo, range.offset), inside, &mut set),
                    None => Ok(()),
                },
                None if is_member => Ok(()),
                None => {
                    let window = local.window_ranges().filter(|at| at.volume == volume);
                    for part in window.filter_map(|at| at.range.intersection(inside)) {
                        set.insert(part);
                    }
                    gather(
                        local.marked_from(node, volume, range.offset),
                        inside,
                        &mut set,
                    )
                }
            };
            if let Err(reached) = gathered {
                end = reached;
            }
        }
        answer(&set, range, end)
    }
}
