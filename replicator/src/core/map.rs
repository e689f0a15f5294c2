//! What clients ask about a range besides its bytes: where nothing is allocated, and where a replica may
//! lack bytes. The answer is a *map*. Only the primary can make one, of its store as that is now (RULES 4,
//! 5, 8); a node that follows asks it on its link. A question is a read: it has no number of RULES 12, and
//! is simply asked again where an answer was lost.
//!
//! That all is data, and that all may differ, is always true. So a question never ends with an error: what
//! finds no primary that can tell waits for one as long as a fail-over takes, since who asks for a map is
//! about to read by it, and a copy that begins during the pause should not lose its holes; then it gets
//! that answer. Once one had to, later ones do so at once until somebody can tell again.

use super::api::{OpId, RequestId};
use super::message::{MAX_MAP_RANGES, VolumeRange};
use super::{ConnId, Regions};
use std::collections::{BTreeMap, VecDeque};
use vocabulary::{ByteRange, Time};

/// Most of a volume that one map is about; clients go on from there. Bounds the work on the data plane's
/// thread: bitmap pages of 124 MiB, some thousand of them.
pub(crate) const MAX_MAP_BYTES: u64 = 1 << 40;

/// Most looks at a store under way: they are made one after the other.
pub(crate) const MAX_LOOKS: usize = 64;

/// Most questions under way on a link: enough to hide its latency. A node that asks more is not heard.
pub(crate) const MAX_QUESTIONS: usize = 64;

/// What is to be known of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapQuestion {
    /// The range, which is not empty.
    pub at: VolumeRange,
    /// Where is nothing allocated?
    pub holes: bool,
    /// Where may a replica lack bytes?
    pub lacking: bool,
}

/// The answer, from the range's start on, not necessarily to its end. Of what was not asked for it says
/// what is always true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// Nothing is allocated, and it reads as zeroes.
    pub holes: Regions,
    /// A replica may lack bytes.
    pub lacking: Regions,
}

impl Map {
    /// What anybody may say: all is data, and all may differ.
    #[must_use]
    pub fn unknown(range: ByteRange) -> Self {
        let end = range.end();
        Self {
            holes: Regions::none_up_to(end),
            lacking: Regions {
                ranges: vec![range],
                end,
            },
        }
    }

    /// Can it be the answer to a question about this range?
    pub(crate) fn fits(&self, range: ByteRange) -> bool {
        let fit = |regions: &Regions| {
            let told = ByteRange::between(range.offset, regions.end.max(range.offset));
            !told.is_empty()
                && range.contains(told)
                && regions.first_improper().is_none()
                && regions.ranges.iter().all(|run| told.contains(*run))
        };
        fit(&self.holes) && fit(&self.lacking)
    }

    /// As much of it as a message holds.
    pub(crate) fn cut(mut self) -> Self {
        for regions in [&mut self.holes, &mut self.lacking] {
            if let Some(next) = regions.ranges.get(MAX_MAP_RANGES) {
                regions.end = next.offset;
                regions.ranges.truncate(MAX_MAP_RANGES);
            }
        }
        self
    }
}

/// What of the ranges no other one covers; both ascend.
pub(crate) fn without(ranges: &[ByteRange], others: &[ByteRange]) -> Vec<ByteRange> {
    let mut left = Vec::with_capacity(ranges.len());
    let mut others = others.iter().peekable();
    for range in ranges {
        let mut at = range.offset;
        while let Some(other) = others.peek().filter(|other| other.offset < range.end()) {
            if other.offset > at {
                left.push(ByteRange::between(at, other.offset));
            }
            at = at.max(other.end());
            if other.end() > range.end() {
                break;
            }
            others.next();
        }
        if at < range.end() {
            left.push(ByteRange::between(at, range.end()));
        }
    }
    left
}

/// Who waits for a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    Client(RequestId),
    /// A node that follows, which knows the question by this number.
    Node(ConnId, u64),
    /// Whoever asked was answered already, or is gone.
    Nobody,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) asker: Asker,
    pub(crate) question: MapQuestion,
    pub(crate) since: Time,
}

/// Questions of this node's clients and, on the primary, of nodes that follow.
#[derive(Clone, Debug, Default)]
pub(crate) struct Questions {
    last: u64,
    waiting: VecDeque<Asked>,
    /// The store is being looked at.
    looks: BTreeMap<OpId, Asked>,
    /// The primary was asked, on this link.
    sent: BTreeMap<u64, Asked>,
    link: Option<ConnId>,
    /// Nobody could tell in time.
    hopeless: bool,
}

impl Questions {
    pub(crate) fn wait(&mut self, asked: Asked) {
        self.waiting.push_back(asked);
    }

    /// Its turn comes before that of all others.
    pub(crate) fn wait_first(&mut self, asked: Asked) {
        self.waiting.push_front(asked);
    }

    /// Is there something to ask another node?
    pub(crate) fn are_open(&self) -> bool {
        !self.waiting.is_empty() || !self.sent.is_empty()
    }

    pub(crate) fn next(&mut self) -> Option<Asked> {
        self.waiting.pop_front()
    }

    /// The next one to look at the store for, and the look's name.
    pub(crate) fn next_look(&mut self) -> Option<(OpId, MapQuestion)> {
        if self.looks.len() >= MAX_LOOKS {
            return None;
        }
        let asked = self.waiting.pop_front()?;
        self.hopeless = false;
        self.last += 1;
        self.looks.insert(OpId(self.last), asked);
        Some((OpId(self.last), asked.question))
    }

    pub(crate) fn looked(&mut self, op: OpId) -> Option<Asked> {
        self.looks.remove(&op)
    }

    /// The link is another one: what was asked on the one before is asked again.
    pub(crate) fn set_link(&mut self, link: Option<ConnId>) {
        if std::mem::replace(&mut self.link, link) == link {
            return;
        }
        self.hopeless &= link.is_none();
        for asked in std::mem::take(&mut self.sent).into_values().rev() {
            if asked.asker != Asker::Nobody {
                self.waiting.push_front(asked);
            }
        }
    }

    /// The next one to ask on the link, and its number there.
    pub(crate) fn next_sent(&mut self) -> Option<(u64, MapQuestion)> {
        if self.sent.len() >= MAX_QUESTIONS {
            return None;
        }
        let asked = self.waiting.pop_front()?;
        self.hopeless = false;
        self.last += 1;
        self.sent.insert(self.last, asked);
        Some((self.last, asked.question))
    }

    pub(crate) fn told(&mut self, number: u64) -> Option<Asked> {
        self.sent.remove(&number)
    }

    /// How many a node has under way here.
    pub(crate) fn count_of(&self, conn: ConnId) -> usize {
        let mine = |asked: &&Asked| matches!(asked.asker, Asker::Node(of, _) if of == conn);
        self.waiting
            .iter()
            .chain(self.looks.values())
            .filter(mine)
            .count()
    }

    /// A node that asked is gone.
    pub(crate) fn forget(&mut self, conn: ConnId) {
        let mine = |asked: &Asked| matches!(asked.asker, Asker::Node(of, _) if of == conn);
        self.waiting.retain(|asked| !mine(asked));
        for asked in self.looks.values_mut().filter(|asked| mine(asked)) {
            asked.asker = Asker::Nobody;
        }
    }

    /// Takes out what has waited for so long, and what need not wait.
    pub(crate) fn late(&mut self, now: Time, limit_ms: u64) -> Vec<Asked> {
        let is_late = |asked: &Asked| now.ms_since(asked.since) >= limit_ms;
        // In the order in which they were asked, but for those that had their turn and lost it.
        self.hopeless |= self.waiting.iter().any(is_late);
        let mut late = Vec::new();
        self.waiting.retain(|asked| {
            let stays = !self.hopeless && !is_late(asked);
            if !stays {
                late.push(*asked);
            }
            stays
        });
        for asked in self.looks.values_mut().chain(self.sent.values_mut()) {
            if is_late(asked) && asked.asker != Asker::Nobody {
                late.push(*asked);
                asked.asker = Asker::Nobody;
            }
        }
        late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(of: &[(u64, u64)]) -> Vec<ByteRange> {
        of.iter()
            .map(|(from, to)| ByteRange::between(*from, *to))
            .collect()
    }

    #[test]
    fn what_is_taken_away_is_gone_and_nothing_else() {
        for (from, taken, left) in [
            (&[(0, 10)][..], &[][..], &[(0, 10)][..]),
            (&[(0, 10)], &[(0, 10)], &[]),
            (&[(2, 10)], &[(0, 5)], &[(5, 10)]),
            (&[(2, 10)], &[(5, 20)], &[(2, 5)]),
            (&[(2, 10)], &[(3, 4), (6, 7)], &[(2, 3), (4, 6), (7, 10)]),
            (&[(2, 10), (12, 20)], &[(8, 14)], &[(2, 8), (14, 20)]),
            (&[(2, 4), (6, 8), (10, 12)], &[(3, 11)], &[(2, 3), (11, 12)]),
            (&[(2, 4)], &[(4, 6)], &[(2, 4)]),
        ] {
            assert_eq!(without(&ranges(from), &ranges(taken)), ranges(left));
        }
    }

    fn map(of: &[(u64, u64)], end: u64) -> Map {
        let regions = Regions {
            ranges: ranges(of),
            end,
        };
        Map {
            holes: regions.clone(),
            lacking: regions,
        }
    }

    #[test]
    fn a_map_of_something_else_or_that_does_not_add_up_fits_no_question() {
        let asked = ByteRange::between(10, 100);
        for good in [
            map(&[], 100),
            map(&[], 11),
            map(&[(10, 100)], 100),
            map(&[(10, 20), (20, 30), (40, 50)], 50),
            Map::unknown(asked),
        ] {
            assert!(good.fits(asked), "{good:?}");
        }
        for bad in [
            map(&[], 10),
            map(&[], 0),
            map(&[], 101),
            map(&[(9, 20)], 100),
            map(&[(10, 50)], 40),
            map(&[(20, 20)], 100),
            map(&[(30, 40), (20, 25)], 100),
            map(&[(20, 40), (30, 50)], 100),
            Map::unknown(ByteRange::between(0, 100)),
        ] {
            assert!(!bad.fits(asked), "{bad:?}");
        }
    }

    #[test]
    fn a_map_with_too_many_ranges_ends_before_the_next_one() {
        let many: Vec<(u64, u64)> = (0..5000).map(|at| (at * 10, at * 10 + 5)).collect();
        let whole = map(&many, 50_000);
        let cut = whole.cut();
        assert_eq!(cut.holes.ranges.len(), MAX_MAP_RANGES);
        assert_eq!(cut.holes.end, many[MAX_MAP_RANGES].0);
        assert!(cut.fits(ByteRange::between(0, 50_000)));
        assert_eq!(cut.clone().cut(), cut);
    }
}
