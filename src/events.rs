//! What happened lately, for `lockstep events`: a bounded ring in memory, and a stream of what comes.

use controller::core::failover::{Action, Cause};
use replicator::core::api::{EvictReason, LossReason, Notice, StopReason};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Events kept; older ones are forgotten (they are in the log).
const KEPT: usize = 1024;

/// Something that happened on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EventRecord {
    /// Counts the events of this daemon from 1. A gap: some were forgotten before they were read.
    pub(crate) sequence: u64,
    /// Milliseconds since 1970, UTC.
    pub(crate) time_ms: u64,
    /// The node that tells it.
    pub(crate) node: String,
    /// The resource, where there is one.
    pub(crate) resource: Option<String>,
    /// A word for scripts.
    pub(crate) event: String,
    /// A sentence for people.
    pub(crate) text: String,
}

/// The events of a daemon.
#[derive(Debug)]
pub(crate) struct Events {
    node: String,
    ring: Mutex<VecDeque<EventRecord>>,
    newest: watch::Sender<u64>,
}

impl Events {
    pub(crate) fn new(node: String) -> Self {
        Self {
            node,
            ring: Mutex::default(),
            newest: watch::Sender::new(0),
        }
    }

    /// Something happened.
    pub(crate) fn push(&self, resource: Option<&str>, event: &str, text: String) {
        let time_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| {
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            });
        tracing::info!(resource = resource.unwrap_or("-"), event, "{text}");
        let mut ring = self
            .ring
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        let sequence = ring.back().map_or(0, |last| last.sequence) + 1;
        if ring.len() == KEPT {
            ring.pop_front();
        }
        ring.push_back(EventRecord {
            sequence,
            time_ms,
            node: self.node.clone(),
            resource: resource.map(str::to_owned),
            event: event.to_owned(),
            text,
        });
        self.newest.send_replace(sequence);
    }

    /// Events after this one that are still known.
    pub(crate) fn after(&self, sequence: u64) -> Vec<EventRecord> {
        let ring = self
            .ring
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        ring.iter()
            .filter(|event| event.sequence > sequence)
            .cloned()
            .collect()
    }

    /// Changes with each event.
    pub(crate) fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

/// A notice of the engine as a word and a sentence; `name` gives nodes their names.
pub(crate) fn describe(
    notice: &Notice,
    name: impl Fn(vocabulary::NodeId) -> String,
) -> (&'static str, String) {
    use crate::size::show_size;
    match notice {
        Notice::Serving => ("serving", "this node is primary and serves".to_owned()),
        Notice::StoppedServing { why } => (
            "stopped-serving",
            format!(
                "this node serves no more: {}",
                match why {
                    StopReason::Demoted => "it demoted",
                    StopReason::Superseded => "another node was promoted",
                    StopReason::DiskFailed => "its disk failed",
                    StopReason::Closed => "the resource is closed",
                }
            ),
        ),
        Notice::PeerConnected { node } => {
            ("peer-connected", format!("{} is connected", name(*node)))
        }
        Notice::PeerLost { node, why } => (
            "peer-lost",
            format!(
                "{} is gone: {}",
                name(*node),
                match why {
                    LossReason::Broken => "the connection broke",
                    LossReason::Silent => "nothing was heard of it in time",
                    LossReason::Slow => "it did not finish its writes in time",
                    LossReason::DiskFailed => "its disk failed",
                    LossReason::Protocol => "it sent what the protocol does not allow",
                    LossReason::Operator => "disconnected by command",
                }
            ),
        ),
        Notice::PeerRefused { node, why } => (
            "peer-refused",
            format!("{} refused the session: {why:?}", name(*node)),
        ),
        Notice::ResyncStarted { node, bytes } => (
            "resync-started",
            format!(
                "{} lacks up to {}, resync begins",
                name(*node),
                show_size(*bytes)
            ),
        ),
        Notice::ResyncDone { node, sent_bytes } => (
            "resync-done",
            format!(
                "{} is in sync again, {} were sent",
                name(*node),
                show_size(*sent_bytes)
            ),
        ),
        Notice::Evicted { node, why } => (
            "evicted",
            format!(
                "{} has left the in-sync set: {}",
                name(*node),
                match why {
                    EvictReason::Gone => "it is not connected",
                    EvictReason::NoLease => "it acknowledges no beacons",
                    EvictReason::Invalidated => "an operator has invalidated its data",
                    EvictReason::Removed => "an operator has removed its replica",
                }
            ),
        ),
        Notice::DiskFailed { volume, error } => (
            "disk-failed",
            format!("the local disk of volume {volume} failed: {error:?}"),
        ),
        Notice::Repaired {
            volume,
            range,
            from,
        } => (
            "repaired",
            format!(
                "{} bytes at {} of volume {volume} could not be read and were restored from {}",
                range.len,
                range.offset,
                name(*from)
            ),
        ),
        Notice::Differs {
            node,
            volume,
            range,
            repaired,
        } => (
            "differs",
            format!(
                "{} differs in {} bytes at {} of volume {volume}{}",
                name(*node),
                range.len,
                range.offset,
                if *repaired { ", repaired" } else { "" }
            ),
        ),
        Notice::VerifyDone {
            bytes,
            differing_bytes,
        } => (
            "verify-done",
            format!(
                "verify is done: {} compared, {} differed",
                show_size(*bytes),
                show_size(*differing_bytes)
            ),
        ),
        Notice::Suspended { waiting_for } => (
            "suspended",
            format!(
                "writes wait for {}",
                waiting_for.iter().map(name).collect::<Vec<_>>().join(", ")
            ),
        ),
        Notice::Resumed => ("resumed", "writes go on".to_owned()),
        Notice::MetadataDamaged { volume } => (
            "metadata-damaged",
            format!(
                "metadata of volume {volume} was damaged; the safe reading was taken and more will be resynced"
            ),
        ),
        Notice::Resized { volume, size_bytes } => (
            "resized",
            format!("volume {volume} has now {}", show_size(*size_bytes)),
        ),
    }
}

/// What this node's controller has decided about a role, as a word and a sentence.
pub(crate) fn describe_role(
    action: &Action,
    name: impl Fn(vocabulary::NodeId) -> String,
) -> Option<(&'static str, String)> {
    let because = |why: &Cause| match why {
        Cause::Named => "an operator has named it".to_owned(),
        Cause::Vacant => "nobody is primary".to_owned(),
        Cause::Again => "it is the last primary itself".to_owned(),
        Cause::Faulty(node) => format!("the replica of the primary, {}, can't serve", name(*node)),
        Cause::Silent(node, Some(ms)) => {
            format!(
                "the primary, {}, has answered nothing for {ms} ms",
                name(*node)
            )
        }
        Cause::Silent(node, None) => {
            format!(
                "the primary, {}, has not been heard since this node's start",
                name(*node)
            )
        }
        Cause::NoLease(node) => format!(
            "the primary, {}, asks for no lease: it can't reach a replica that it needs",
            name(*node)
        ),
        Cause::Down => "an operator has demoted the resource".to_owned(),
        Cause::Moves(node) => format!("an operator has named {}", name(*node)),
        Cause::Standby => "this node is on standby".to_owned(),
    };
    match action {
        Action::Promote { why, drop, .. } => {
            let without: Vec<String> = drop.iter().map(&name).collect();
            let without = if without.is_empty() {
                String::new()
            } else {
                format!("; without {}, out of reach", without.join(", "))
            };
            let text = format!("this node stands in as primary: {}{without}", because(why));
            Some(("promoting", text))
        }
        Action::Demote { why, .. } => {
            Some(("demoting", format!("this node lets go: {}", because(why))))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_events_are_forgotten_and_numbers_tell() {
        let events = Events::new("node1".to_owned());
        for number in 0..KEPT + 3 {
            events.push(Some("r0"), "resumed", number.to_string());
        }
        let all = events.after(0);
        assert_eq!((all.len(), all[0].sequence), (KEPT, 4));
        assert_eq!(events.after(KEPT as u64 + 2).len(), 1);
        assert_eq!(*events.newest().borrow(), KEPT as u64 + 3);
    }

    #[test]
    fn notices_name_nodes_by_their_names() {
        let node = vocabulary::NodeId::new(1).unwrap();
        let (event, text) = describe(
            &Notice::PeerLost {
                node,
                why: LossReason::Slow,
            },
            |node| format!("node{}", node.get() + 1),
        );
        assert_eq!(event, "peer-lost");
        assert_eq!(text, "node2 is gone: it did not finish its writes in time");
    }
}
