//! Oracles that look at the whole cluster at once, past every message: what the disks really hold
//! against what the record, the core and the rules say. Each answers with a [`Violation`] that names
//! its rule.

use crate::checker::{Checker, Impossible, WriteId};
use crate::node::Node;
use crate::payload::SECTOR;
use std::collections::BTreeSet;
use std::fmt;
use vocabulary::{BLOCK_BYTES, ByteRange, NodeId, Record, VolumeId};

/// What a run must hold, in the words of RULES.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Rule 1.
    Ack,
    /// Rule 2.
    Fence,
    /// Rule 3, and the incarnation of section 1.
    Eligible,
    /// Rule 4.
    Lease,
    /// Rule 5.
    Overlap,
    /// Rule 6.
    Window,
    /// Rule 7.
    Dirty,
    /// Rule 9, seen at rest: replicas that are up to date hold the same bytes.
    Equal,
    /// Rule 10.
    Bounded,
    /// Rule 11.
    Intact,
    /// Rule 12.
    Session,
    /// What clients saw can be explained.
    Linearizable,
    /// Section 4: what is committed is one chain, and a term has one leader.
    Agreement,
    /// Section 1: what is configured is what the document says.
    Configured,
    /// Section 1: primaryship does not survive the process; one node serves in an epoch.
    OnePrimary,
    /// An assertion of the core.
    Assertion,
}

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// How it shows.
    pub what: String,
}

impl Violation {
    /// The rule is broken.
    pub fn new(rule: Rule, what: impl Into<String>) -> Self {
        Self {
            rule,
            what: what.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {:?}: {}", self.rule, self.what)
    }
}

impl From<Impossible> for Violation {
    fn from(e: Impossible) -> Self {
        Self::new(Rule::Linearizable, e.to_string())
    }
}

/// The members of the record whose disks really are what the record takes them for.
pub fn valid_members<'a>(record: &'a Record, nodes: &'a [Node]) -> impl Iterator<Item = &'a Node> {
    record.in_sync.iter().filter_map(|member| {
        nodes
            .iter()
            .find(|n| n.id == member.node)
            .filter(|n| n.backs(member))
    })
}

/// Rule 1: an answered write is on every in-sync disk; `stable`: and survives whatever a power loss
/// leaves of the cache.
///
/// # Errors
/// Names the disk that lacks it.
pub fn write_is_everywhere(
    checker: &Checker,
    write: WriteId,
    record: &Record,
    nodes: &[Node],
    stable: bool,
) -> Result<(), Violation> {
    let Some((volume, first, count)) = checker.extent_of(write) else {
        return Ok(());
    };
    if !checker.is_current(write) {
        return Ok(());
    }
    // What is stable stays so on a disk whose caches were lost: there the word of an older incarnation
    // must have been true. What is only written is looked for where nothing was lost.
    let members = record.in_sync.iter().filter_map(|m| {
        let node = nodes.iter().find(|n| n.id == m.node && n.disk == m.disk)?;
        (stable || node.backs(m)).then_some(node)
    });
    for node in members {
        let Some(store) = node.volume(volume) else {
            continue;
        };
        for sector in first..first + count {
            let now = store.data.sector(sector);
            let lacking = if stable {
                store
                    .data
                    .possible(sector)
                    .find(|stamp| !checker.holds_or_newer(write, sector, *stamp))
            } else {
                Some(now).filter(|stamp| !checker.holds_or_newer(write, sector, *stamp))
            };
            if let Some(stamp) = lacking {
                return Err(Violation::new(
                    Rule::Ack,
                    format!(
                        "{write:?} is answered{}, but node {} holds {stamp:#x} at volume {volume} sector {sector} (in-sync set {:?})",
                        if stable { " as stable" } else { "" },
                        node.id,
                        record.members(),
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// Blocks in which two nodes' disks differ.
#[must_use]
pub fn differing(a: &Node, b: &Node, volume: VolumeId) -> Vec<u64> {
    let (Some(a), Some(b)) = (a.volume(volume), b.volume(volume)) else {
        return Vec::new();
    };
    let touched: BTreeSet<u64> = a.data.touched().chain(b.data.touched()).collect();
    touched
        .into_iter()
        .filter(|block| {
            let (x, y) = (a.data.block(*block), b.data.block(*block));
            let common = x.len().min(y.len());
            x[..common] != y[..common]
        })
        .collect()
}

fn covers(ranges: &[ByteRange], block: u64) -> bool {
    let block = ByteRange::between(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
    ranges.iter().any(|range| range.overlaps(block))
}

/// Rules 6 and 7 against the disks: two members differ only within the union of their windows; where a
/// replica outside the in-sync set differs from a member, that member's bits or window, or the
/// replica's own, say so. Looks only at nodes whose processes run and know the present record.
///
/// # Errors
/// Names the block that nobody remembers.
pub fn differences_are_known(record: &Record, nodes: &[Node]) -> Result<(), Violation> {
    let informed = |node: &Node| {
        node.is_running()
            && node
                .core
                .as_ref()
                .is_some_and(|core| core.generation() == record.generation)
    };
    let members: Vec<&Node> = valid_members(record, nodes)
        .filter(|n| informed(n))
        .collect();
    for (i, sizes) in record.sizes.iter().enumerate() {
        let volume = VolumeId(u16::try_from(i).unwrap_or(0));
        if *sizes == 0 {
            continue;
        }
        for (at, a) in members.iter().enumerate() {
            let Some(core) = &a.core else { continue };
            for b in &members[at + 1..] {
                let Some(other) = &b.core else { continue };
                let window = core.may_differ(b.id, volume);
                let theirs = other.may_differ(a.id, volume);
                if let Some(block) = differing(a, b, volume)
                    .into_iter()
                    .find(|block| !covers(&window, *block) && !covers(&theirs, *block))
                {
                    return Err(Violation::new(
                        Rule::Window,
                        format!(
                            "members {} and {} differ in block {block} of volume {volume}, which is in neither's window",
                            a.id, b.id
                        ),
                    ));
                }
            }
            for absent in nodes.iter().filter(|n| {
                record.replicas.contains(n.id) && record.member(n.id).is_none() && informed(n)
            }) {
                let Some(other) = &absent.core else { continue };
                let known = core.may_differ(absent.id, volume);
                let own = other.may_differ(a.id, volume);
                if let Some(block) = differing(a, absent, volume)
                    .into_iter()
                    .find(|block| !covers(&known, *block) && !covers(&own, *block))
                {
                    return Err(Violation::new(
                        Rule::Dirty,
                        format!(
                            "replica {} differs from member {} in block {block} of volume {volume}, and neither knows",
                            absent.id, a.id
                        ),
                    ));
                }
            }
        }
    }
    Ok(())
}

/// At rest every replica holds the same bytes.
///
/// # Errors
/// Names the first block that differs.
pub fn replicas_are_equal(record: &Record, nodes: &[Node]) -> Result<(), Violation> {
    let members: Vec<&Node> = valid_members(record, nodes).collect();
    let Some((first, rest)) = members.split_first() else {
        return Ok(());
    };
    for (i, _) in record.sizes.iter().enumerate() {
        let volume = VolumeId(u16::try_from(i).unwrap_or(0));
        for other in rest {
            if let Some(block) = differing(first, other, volume).first() {
                let sectors = |node: &Node| {
                    node.volume(volume)
                        .map(|v| format!("{:x?}", v.data.block(*block)))
                        .unwrap_or_default()
                };
                return Err(Violation::new(
                    Rule::Equal,
                    format!(
                        "at rest nodes {} and {} differ in block {block} of volume {volume} (byte {}): {} and {}",
                        first.id,
                        other.id,
                        block * BLOCK_BYTES / SECTOR * SECTOR,
                        sectors(first),
                        sectors(other),
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// Rule 3 at a promotion: the promoted node's disk is what the record took it for, or every member's
/// caches were lost and the history is another.
///
/// # Errors
/// Says which of the two was missing.
pub fn promotion_was_allowed(
    before: &Record,
    after: &Record,
    nodes: &[Node],
    primary: NodeId,
) -> Result<(), Violation> {
    let new_history = before.history != after.history;
    // A disk that failed for lack of space has lost nothing, but its replica can't know that and has
    // declared a newer incarnation all the same.
    let valid: Vec<NodeId> = valid_members(before, nodes)
        .filter(|n| {
            before
                .member(n.id)
                .is_some_and(|m| n.incarnation <= m.incarnation)
        })
        .map(|n| n.id)
        .collect();
    if new_history && !valid.is_empty() {
        return Err(Violation::new(
            Rule::Eligible,
            format!("a new history began although {valid:?} had lost nothing"),
        ));
    }
    if !new_history && !valid.contains(&primary) {
        return Err(Violation::new(
            Rule::Eligible,
            format!(
                "node {primary} was promoted though its disk is not what the record took it for"
            ),
        ));
    }
    Ok(())
}
