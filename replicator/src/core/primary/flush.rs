//! Making writes stable and letting them leave the windows. A flush has a place in the stream and
//! covers all before it, so stability is a prefix: one place per replica says it all. One flush is
//! under way at a time; clients' flushes that come meanwhile share the next one.

use super::membership::AdmitStage;
use super::*;

/// A release waits this long for replicas outside *required* that have not said yet that they are
/// stable, so that they need not be marked for what they are about to acknowledge.
const RELEASE_LAG_MS: u64 = 200;

#[derive(Clone, Debug)]
struct Flush {
    seq: Seq,
    requests: Vec<usize>,
    here: Here,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Here {
    /// Writes before it are still on their way to the local disk.
    Waiting,
    Flushing,
    Done,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Flushes {
    under_way: Option<Flush>,
    /// Flushes that are done here and wait for a member whose word does not count yet. Its admit needs
    /// a flush of its own, so they must not stand in the way of the next.
    parked: Vec<Flush>,
    /// Clients' flushes for the next one.
    waiting: Vec<usize>,
    /// Somebody else wants one (window bound, admit, reconcile).
    wanted: bool,
    /// Everything before this place is stable here.
    own_stable: Seq,
    /// Completed flushes whose writes are still in the windows, since when.
    release: Option<(Seq, Time)>,
    released: Seq,
    last: Time,
}

impl Flushes {
    pub(super) fn under_way(&self) -> Option<Seq> {
        self.under_way.as_ref().map(|f| f.seq)
    }
}

impl<P: Payload> Primary<P> {
    /// A client asks for a flush.
    pub(super) fn flush_request(&mut self, cx: &mut Cx<'_, '_, P>, key: usize) {
        self.flushes.waiting.push(key);
        self.start_flush(cx);
    }

    /// The engine wants all that is done now to become stable soon.
    pub(super) fn want_flush(&mut self) {
        self.flushes.wanted = true;
    }

    pub(super) fn start_flush(&mut self, cx: &mut Cx<'_, '_, P>) {
        let idle = self.flushes.waiting.is_empty() && !self.flushes.wanted;
        if idle || cx.local.failed() {
            return;
        }
        if let Some(flush) = &self.flushes.under_way {
            if flush.here != Here::Done || !self.flushes.wanted || self.admitting.is_none() {
                return;
            }
            self.flushes.parked.extend(self.flushes.under_way.take());
        }
        let seq = self.take_seq();
        self.flushes.wanted = false;
        self.flushes.last = cx.now();
        let requests = std::mem::take(&mut self.flushes.waiting);
        self.flushes.under_way = Some(Flush {
            seq,
            requests,
            here: Here::Waiting,
        });
        for peer in self.peers.values_mut() {
            if peer.is_live() {
                peer.flush_since = Some(cx.step.now);
                peer.send(cx.step, Message::Flush { seq });
            }
        }
        self.own_flush(cx);
    }

    /// Starts the local part once every earlier write is on the local disk.
    pub(super) fn own_flush(&mut self, cx: &mut Cx<'_, '_, P>) {
        if let Some(flush) = &mut self.flushes.under_way
            && flush.here == Here::Waiting
            && self.own.done_before(flush.seq)
        {
            flush.here = Here::Flushing;
            cx.local.flush(cx.step, Tag::Flush(flush.seq));
        }
    }

    pub(super) fn own_flushed(&mut self, cx: &mut Cx<'_, '_, P>, seq: Seq, ok: bool) {
        let Some(flush) = self.flushes.under_way.as_mut().filter(|f| f.seq == seq) else {
            return;
        };
        if ok {
            flush.here = Here::Done;
            self.flushes.own_stable = seq;
        } else if cx.other_members().is_empty() {
            // The last member answers the error; the disk stays Failed.
            let mut requests = std::mem::take(&mut flush.requests);
            self.flushes.under_way = None;
            for parked in std::mem::take(&mut self.flushes.parked) {
                requests.extend(parked.requests);
            }
            for key in requests {
                self.reply(cx, key, Err(ClientError::Io));
            }
        }
        self.check_flush(cx);
    }

    pub(super) fn peer_flushed(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId, seq: Seq) {
        let Some(peer) = self.peers.get_mut(&node) else {
            return;
        };
        if seq.0 >= self.next_seq || seq <= peer.stable {
            return;
        }
        peer.stable = seq;
        peer.flush_since = None;
        self.copies_stable(cx, node, seq);
        self.changed |= self.admitting.is_some();
        self.check_flush(cx);
    }

    /// Everything before this place is on stable storage on all of *required*.
    fn stable_on_required(&self, cx: &Cx<'_, '_, P>, seq: Seq) -> bool {
        self.required
            .without(self.node)
            .iter()
            .all(|node| self.stable_on(cx, node) >= seq)
            && self.flushes.own_stable >= seq
    }

    /// Up to where everything is stable on a replica whose word counts. A member that is being renewed
    /// lacks what its old incarnation lost until that is copied and flushed; it stands in the record all
    /// the while, and should every other member lose its caches too, it may be promoted (RULES 3).
    fn stable_on(&self, cx: &Cx<'_, '_, P>, node: NodeId) -> Seq {
        let Some(peer) = self.peers.get(&node) else {
            return Seq(0);
        };
        let renewing = cx.record.member(node).is_some();
        let lacks = self
            .admitting
            .as_ref()
            .filter(|a| renewing && a.member.node == node)
            .is_some_and(|a| match a.stage {
                AdmitStage::Copying => true,
                AdmitStage::Flushing { after } => peer.stable < after,
                AdmitStage::HandingOver { .. } | AdmitStage::Proposed => false,
            });
        if lacks || !self.counting.contains(node) {
            return Seq(0);
        }
        peer.stable
    }

    /// Completes the flush under way when it is, and lets writes leave.
    pub(super) fn check_flush(&mut self, cx: &mut Cx<'_, '_, P>) {
        if let Some(seq) = self.flushes.under_way()
            && self.stable_on_required(cx, seq)
            && let Some(flush) = self.flushes.under_way.take()
        {
            let parked = std::mem::take(&mut self.flushes.parked);
            for flush in parked.into_iter().chain([flush]) {
                for key in flush.requests {
                    self.reply(cx, key, Ok(None));
                }
            }
            let since = self.flushes.release.map_or(cx.now(), |(_, since)| since);
            self.flushes.release = Some((seq, since));
            self.changed |= self.reconciling || self.admitting.is_some();
            self.start_flush(cx);
        } else if self.flushes.under_way.is_none() {
            self.start_flush(cx);
        }
        self.release(cx);
    }

    /// Sends the release notice: what is stable on all of *required* leaves the windows and is marked
    /// for every configured replica that is not named (RULES 7).
    fn release(&mut self, cx: &mut Cx<'_, '_, P>) {
        let Some((upto, since)) = self.flushes.release else {
            return;
        };
        // *required* may have grown since the flush was complete. A member whose new incarnation is
        // not admitted yet keeps everything in the windows.
        let renewing = cx.record.in_sync.iter().any(|member| {
            let peer = self.peers.get(&member.node);
            peer.is_some_and(|p| p.identity.as_ref() != Some(member))
        });
        if renewing || !self.stable_on_required(cx, upto) {
            return;
        }
        let lag = cx.now().ms_since(since) < RELEASE_LAG_MS;
        if lag && self.peers.values().any(|p| p.is_live() && p.stable < upto) {
            return;
        }
        self.flushes.release = None;
        let released = std::mem::replace(&mut self.flushes.released, upto);
        let mut stable_on = NodeSet::only(self.node);
        for peer in self.peers.values() {
            // A replica that joined later was not sent what came before: stable says nothing of it.
            let sent_all = peer.is_live() && peer.sent_from.0 <= released.0 + 1;
            // A member has it from its admit; one on its way in may still lack it.
            let member = cx.record.member(peer.node) == peer.identity.as_ref();
            if peer.stable >= upto && (sent_all || member && peer.identity.is_some()) {
                stable_on.insert(peer.node);
            }
        }
        rule!(
            "7: a release notice names every member",
            cx.record.members().is_subset_of(stable_on)
        );
        let settled = !self.reconciling && upto >= self.settled_after;
        let replicas = cx.record.replicas;
        let named = if mutated(Mutation::ReleaseWithoutNames) {
            replicas
        } else {
            stable_on
        };
        let old = settled.then(|| cx.record.members());
        cx.local.release(cx.step, upto, old, named, replicas);
        for peer in self.peers.values_mut() {
            let member = cx.record.member(peer.node) == peer.identity.as_ref();
            let old = settled && member && peer.sync.is_none() && upto >= peer.old_after;
            peer.send(
                cx.step,
                Message::Release {
                    upto,
                    old,
                    stable_on,
                },
            );
        }
        if !self.gated.is_empty() {
            self.changed = true;
        }
    }

    /// Bounds the window: a flush when it is large or has held something for a while.
    pub(super) fn tick_flush(&mut self, cx: &mut Cx<'_, '_, P>) {
        let window = cx.local.window();
        let holds = window.live_len() > 0
            || (window.has_old() && !self.reconciling)
            || self
                .peers
                .values()
                .any(|p| p.sync.as_ref().is_some_and(Sync::has_unstable));
        let old_enough = cx.now().ms_since(self.flushes.last) >= self.settings.window_age_ms;
        // One that demotes has drained, or never served: then a flush would forget where members may differ.
        if holds && old_enough && matches!(self.stage, Stage::Serving | Stage::Draining) {
            self.want_flush();
        }
        self.check_flush(cx);
    }

    /// The window has grown to its bound between two ticks.
    pub(super) fn check_window(&mut self, cx: &mut Cx<'_, '_, P>) {
        if self.flushes.under_way.is_some() {
            // It covers what is there. Were it given up for a newer one each time that this looks, none
            // would ever be old enough to have been answered.
            return;
        }
        let window = cx.local.window();
        if window.live_len() >= self.settings.window_writes
            || window.live_bytes() >= self.settings.window_bytes
            || window.live_extents() >= cx.local.log_capacity() / 4
        {
            self.want_flush();
            self.start_flush(cx);
        }
    }

    /// Is nothing left to flush or to release?
    pub(super) fn all_released(&self, cx: &Cx<'_, '_, P>) -> bool {
        let window = cx.local.window();
        self.flushes.under_way.is_none()
            && self.flushes.release.is_none()
            && window.live_len() == 0
            && !window.has_old()
    }
}

use super::copier::Sync;
