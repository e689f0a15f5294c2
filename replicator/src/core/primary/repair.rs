//! A block that can't be read here is fetched from a member, under the range lock, and written anew
//! (RULES 9). Nothing else ever flows towards the primary.

use super::*;

/// A block that could not be read here, on its way from a member.
#[derive(Clone, Debug)]
pub(super) struct Repair<P> {
    pub(super) at: VolumeRange,
    /// The read that met it, answered from what comes.
    pub(super) request: Option<usize>,
    pub(super) locked: bool,
    pub(super) tried: NodeSet,
    pub(super) asked: Option<NodeId>,
    pub(super) found: Option<(NodeId, P)>,
    pub(super) seq: Seq,
}

impl<P: Payload> Primary<P> {
    pub(super) fn start_repair(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        at: VolumeRange,
        request: Option<usize>,
    ) {
        let size = cx.record.sizes[at.volume.index()];
        let whole = at.range.outward(vocabulary::BLOCK_BYTES);
        let range = ByteRange::between(whole.offset, whole.end().min(size));
        let at = VolumeRange {
            volume: at.volume,
            range,
        };
        let id = self.next_repair;
        self.next_repair += 1;
        let locked = self.locks[at.volume.index()].acquire(Key::Repair(id), range, Mode::Exclusive);
        let repair = Repair {
            at,
            request,
            locked: false,
            tried: NodeSet::EMPTY,
            asked: None,
            found: None,
            seq: Seq(0),
        };
        self.repairs.insert(id, repair);
        if locked {
            self.repair_locked(cx, id);
        }
    }

    pub(super) fn repair_locked(&mut self, cx: &mut Cx<'_, '_, P>, id: u64) {
        if let Some(repair) = self.repairs.get_mut(&id) {
            repair.locked = true;
        }
        self.repair_ask(cx, id);
    }

    /// Asks the next member that holds the bytes; gives up when there is none left.
    pub(super) fn repair_ask(&mut self, cx: &mut Cx<'_, '_, P>, id: u64) {
        let Some(repair) = self.repairs.get_mut(&id) else {
            return;
        };
        let at = repair.at;
        let required = self.required;
        let counting = self.counting;
        let source = self.peers.values_mut().find(|peer| {
            peer.is_live()
                && !repair.tried.contains(peer.node)
                && required.contains(peer.node)
                && counting.contains(peer.node)
                && !peer.lacks(at)
        });
        if let Some(peer) = source {
            repair.tried.insert(peer.node);
            repair.asked = Some(peer.node);
            peer.send(cx.step, Message::Fetch { id, at });
            return;
        }
        self.end_repair(cx, id, None);
    }

    pub(super) fn fetched(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        node: NodeId,
        id: u64,
        data: Option<P>,
    ) {
        let Some(repair) = self.repairs.get_mut(&id) else {
            return;
        };
        if repair.asked != Some(node) {
            return;
        }
        repair.asked = None;
        let at = repair.at;
        let Some(data) = data.filter(|d| d.len() as u64 == at.range.len) else {
            return self.repair_ask(cx, id);
        };
        let seq = self.take_seq();
        if let Some(repair) = self.repairs.get_mut(&id) {
            repair.found = Some((node, data.clone()));
            repair.seq = seq;
        }
        cx.local.window_add(cx.step, seq, at, WriteKind::Reconcile);
        self.own.begin(seq);
        let (tag, mark) = (Tag::Repair(id), ClientMark::default());
        cx.local.write(cx.step, tag, at, data, false, mark);
    }

    pub(super) fn repair_written(&mut self, cx: &mut Cx<'_, '_, P>, id: u64, ok: bool) {
        let Some(repair) = self.repairs.get(&id) else {
            return;
        };
        let (at, found, seq) = (repair.at, repair.found.clone(), repair.seq);
        if ok {
            self.own.finish(seq);
            self.own_flush(cx);
        }
        if let (true, Some((from, _))) = (ok, &found) {
            let (volume, range, from) = (at.volume, at.range, *from);
            cx.step.notice(Notice::Repaired {
                volume,
                range,
                from,
            });
        }
        self.end_repair(cx, id, found.map(|(_, data)| data));
    }

    pub(super) fn end_repair(&mut self, cx: &mut Cx<'_, '_, P>, id: u64, data: Option<P>) {
        let Some(repair) = self.repairs.remove(&id) else {
            return;
        };
        self.unlock(cx, repair.at.volume, Key::Repair(id));
        let Some(key) = repair.request else { return };
        let Some(request) = self.requests.get(key) else {
            return;
        };
        let wanted = request.at.range;
        let result = data.and_then(|data| {
            let start = usize::try_from(wanted.offset - repair.at.range.offset).ok()?;
            let len = usize::try_from(wanted.len).ok()?;
            Some(data.slice(start, len))
        });
        self.reply(cx, key, result.map(Some).ok_or(ClientError::Io));
    }
}
