//! Requests on their way: a client asks a node, the node's primary or, with follow access (RULES 12), the
//! primary elsewhere answers. Whoever answers is held against the rules at the moment when it does; an
//! answer that comes by way of another node was judged when the primary sent it.

use crate::client::{Ask, Pending, Sent};
use crate::disk::sectors;
use crate::payload::{SECTOR, Stamps};
use crate::rules::{Rule, write_is_everywhere};
use crate::store::Process;
use crate::world::{Occurrence, World};
use replicator::core::api::{ClientError, ClientRequest, Event, RequestId};
use vocabulary::{ByteRange, Generation, HistoryId, NodeId, VolumeId};

impl World {
    pub(crate) fn client_step(&mut self, client: usize) {
        if self.load.left == 0 {
            return;
        }
        let pause = self.rng.between(self.load.pause_us / 8, self.load.pause_us);
        self.after_us(pause, Occurrence::Client(client));
        if self.clients.depth(client) >= self.load.depth {
            return;
        }
        let target = if self.config.follow {
            self.any_taker(client)
        } else {
            self.any_server()
        };
        let Some(target) = target else { return };
        let mut rng = self.rng.fork();
        if let Some((volume, ask)) = self.load.choose(&mut rng) {
            self.load.left -= 1;
            self.request(client, target, volume, ask);
        }
    }

    /// A node that serves; now and then one that has no business to.
    fn any_server(&mut self) -> Option<NodeId> {
        let epoch = self.record().epoch;
        let serving = self
            .nodes
            .iter()
            .filter(|n| n.serving.is_some())
            .max_by_key(|n| n.serving)
            .map(|n| (n.id, n.serving == Some(epoch)));
        match serving {
            // A superseded primary may have clients that do not know.
            _ if self.rng.percent(2) => {
                let at = self.rng.index(self.replicas());
                Some(self.nodes[at].id)
            }
            Some((node, _)) => {
                let others: Vec<NodeId> = self
                    .nodes
                    .iter()
                    .filter(|n| n.serving.is_some())
                    .map(|n| n.id)
                    .collect();
                Some(*self.rng.pick(&others).unwrap_or(&node))
            }
            None => None,
        }
    }

    /// With follow access every node takes requests that knows the resource; a client mostly stays
    /// with its own.
    fn any_taker(&mut self, client: usize) -> Option<NodeId> {
        let at = if self.rng.percent(80) {
            client % self.replicas()
        } else {
            self.rng.index(self.replicas())
        };
        let core = self.nodes[at].core.as_ref()?;
        (core.generation() > Generation(0)).then_some(self.nodes[at].id)
    }

    /// A client sends a request to a node; its id.
    pub fn request(&mut self, client: usize, node: NodeId, volume: VolumeId, ask: Ask) -> u64 {
        let (invoked, write) = match &ask {
            Ask::Write(range, _) => (0, Some(self.checker.invoke_write(volume, *range, false))),
            Ask::Zero(range, ..) => (0, Some(self.checker.invoke_write(volume, *range, true))),
            Ask::Read(_) | Ask::Flush => (self.checker.tick(), None),
        };
        let pending = Pending {
            client,
            process: self.node(node).process(),
            volume,
            ask,
            invoked,
            at: self.now,
            write,
            arrived: None,
            forwarded: Vec::new(),
        };
        self.say(|| format!("client {client} -> {pending:?}"));
        let id = self.clients.begin(pending);
        let us = self.rng.between(5, 60);
        self.after_us(us, Occurrence::Arrive(id));
        id
    }

    pub(crate) fn request_arrives(&mut self, id: u64) {
        let Some(pending) = self.clients.pending.get(&id).cloned() else {
            return;
        };
        let node = self.node(pending.process.node);
        if node.run != pending.process.run || node.core.is_none() {
            self.clients.pending.remove(&id);
            return;
        }
        if self
            .awake(pending.process, || Occurrence::Arrive(id))
            .is_none()
        {
            return;
        }
        let known = self.node(pending.process.node).core.as_ref();
        let known = known.and_then(|core| core.known());
        self.clients.arrived(id, known);
        let request = match &pending.ask {
            Ask::Read(range) => ClientRequest::Read { range: *range },
            Ask::Write(range, fua) => ClientRequest::Write {
                range: *range,
                data: Stamps::new(
                    pending
                        .write
                        .map(|w| self.checker.stamps(w))
                        .unwrap_or_default(),
                ),
                fua: *fua,
            },
            Ask::Zero(range, hole, fua) => ClientRequest::Zero {
                range: *range,
                hole: *hole,
                fua: *fua,
                fast: false,
            },
            Ask::Flush => ClientRequest::Flush,
        };
        let event = Event::Client {
            id: RequestId(id),
            volume: pending.volume,
            request,
        };
        self.feed(pending.process.node, event);
    }

    /// A node's core answers a client.
    pub(crate) fn reply(
        &mut self,
        id: NodeId,
        request: RequestId,
        result: Result<Option<Stamps>, ClientError>,
    ) {
        let Some(pending) = self.clients.pending.remove(&request.0) else {
            self.broken(Rule::Bounded, format!("{request:?} is answered twice"));
            return;
        };
        let brought = self
            .clients
            .brought
            .take()
            .filter(|sent| sent.volume == pending.volume && sent.ask.is_part_of(&pending.ask));
        let data = match result {
            Ok(data) => data,
            Err(error) => {
                self.clients.refused += 1;
                self.check_error(&pending, error);
                return;
            }
        };
        self.clients.served += 1;
        let what = format!("{pending:?}");
        let judged = match brought {
            // Judged when the primary sent it.
            Some(sent) if !sent.piece => return,
            // Of each piece it was judged whether the primary might answer.
            Some(_) => true,
            None => self.may_answer(id, &what, pending.history()),
        };
        if judged {
            self.is_answered(id, &what, &Sent::of(&pending), data.as_ref());
        }
    }

    /// A primary answers what another node has forwarded.
    pub(crate) fn answers(
        &mut self,
        id: NodeId,
        to: Process,
        number: u64,
        result: &Result<Option<Stamps>, ClientError>,
    ) {
        let Some(sent) = self.clients.sent.get(&(to, number)).cloned() else {
            let what = format!("node {id} answers number {number} of {to:?}, which has none");
            self.broken(Rule::Session, what);
            return;
        };
        if let Ok(data) = result {
            let what = format!("{sent:?} of {to:?}");
            if self.may_answer(id, &what, sent.history) && !sent.piece {
                self.is_answered(id, &what, &sent, data.as_ref());
            }
        }
    }

    /// A node forwards a request of one of its clients.
    pub(crate) fn forwards(
        &mut self,
        from: Process,
        number: u64,
        volume: VolumeId,
        request: &ClientRequest<Stamps>,
    ) {
        if self.clients.sent.contains_key(&(from, number)) {
            return;
        }
        let invoked = self.checker.tick();
        let (ask, carried) = match request {
            ClientRequest::Read { range } => (Ask::Read(*range), None),
            ClientRequest::Write { range, data, fua } => (Ask::Write(*range, *fua), Some(data)),
            ClientRequest::Zero {
                range, hole, fua, ..
            } => (Ask::Zero(*range, *hole, *fua), None),
            ClientRequest::Flush => (Ask::Flush, None),
        };
        let matches = |pending: &Pending| {
            let same = carried.is_none_or(|data| {
                let stamps = pending.write.map(|w| self.checker.stamps(w));
                stamps.as_deref() == Some(data.as_slice())
            });
            pending.volume == volume && same
        };
        if !self.clients.numbered(from, number, invoked, ask, matches) {
            let what = format!("{from:?} forwards {request:?} as {number}: nobody asked for it");
            self.broken(Rule::Session, what);
        }
    }

    /// May this node, at this moment, answer a request that came when its node knew of this history?
    fn may_answer(&mut self, id: NodeId, request: &str, known: Option<HistoryId>) -> bool {
        let node = self.node(id);
        let Some(epoch) = node.serving else {
            let what = format!("node {id} answers {request} and does not serve");
            self.broken(Rule::OnePrimary, what);
            return false;
        };
        if node.demoting == Some(epoch) {
            let what = format!("node {id} answers {request} after it proposed to demote");
            self.broken(Rule::OnePrimary, what);
            return false;
        }
        if node.promised > epoch {
            let what = format!(
                "node {id} answers {request} in {epoch:?} and has promised {:?}",
                node.promised
            );
            self.broken(Rule::Fence, what);
            return false;
        }
        let history = node.core.as_ref().and_then(|core| core.known());
        let history = history.map(|(_, history)| history);
        if known.is_some() && known != history {
            let what = format!(
                "node {id} answers {request} in {history:?}: its client has not heard that {known:?} is over"
            );
            self.broken(Rule::Session, what);
            return false;
        }
        if self.is_whole() && !self.operator.forced {
            // RULES 4, at this true moment: nobody serves in a later epoch while this one answers.
            let later = self
                .nodes
                .iter()
                .find(|n| n.serving.is_some_and(|e| e > epoch));
            if let Some(later) = later {
                let what = format!(
                    "node {id} answers {request} in {epoch:?} while node {} serves in {:?}",
                    later.id, later.serving
                );
                self.broken(Rule::Lease, what);
                return false;
            }
        }
        true
    }

    /// A request is answered with success: is that possible, and do all hold what they must?
    fn is_answered(&mut self, id: NodeId, request: &str, sent: &Sent, data: Option<&Stamps>) {
        // Without leases a superseded primary may answer reads.
        let superseded = !self.is_whole() && self.node(id).serving != Some(self.record().epoch);
        let (volume, invoked) = (sent.volume, sent.invoked);
        match (&sent.ask, sent.write) {
            (Ask::Read(range), _) => {
                let stamps = data.map_or(&[][..], Stamps::as_slice);
                if stamps.len() != sectors(range.len) {
                    let what = format!("{request} is answered with {} sectors", stamps.len());
                    self.broken(Rule::Linearizable, what);
                    return;
                }
                let result = if superseded {
                    self.checker.ack_stale_read(volume, *range, stamps)
                } else {
                    self.checker.ack_read(volume, *range, invoked, stamps)
                };
                self.expect(result);
            }
            (Ask::Write(_, fua) | Ask::Zero(_, _, fua), Some(write)) => {
                let fua = *fua;
                match self.checker.ack_write(write, fua) {
                    Ok(true) => {
                        let record = self.store.record();
                        let result =
                            write_is_everywhere(&self.checker, write, record, &self.nodes, fua);
                        self.expect(result);
                    }
                    Ok(false) => {}
                    Err(e) => self.expect(Err::<(), _>(e)),
                }
            }
            (Ask::Flush, _) => {
                let covered: Vec<_> = self.checker.covered_by_flush(volume, invoked).collect();
                for write in covered {
                    let record = self.store.record();
                    let result =
                        write_is_everywhere(&self.checker, write, record, &self.nodes, true);
                    self.expect(result);
                }
                self.checker.ack_flush(volume, invoked);
            }
            (Ask::Write(..) | Ask::Zero(..), None) => {}
        }
    }

    /// An error is no secret path around the rules: it must be one that the case allows.
    fn check_error(&mut self, pending: &Pending, error: ClientError) {
        let range = match &pending.ask {
            Ask::Read(range) | Ask::Write(range, _) | Ask::Zero(range, ..) => *range,
            Ask::Flush => ByteRange::between(0, 0),
        };
        let inside = range.end() <= self.size_of(pending.volume) / SECTOR * SECTOR;
        if error == ClientError::OutOfRange && inside {
            let what = format!("{pending:?} is refused as out of range");
            self.broken(Rule::Bounded, what);
        }
        if let Some(write) = pending.write {
            self.checker.give_up(write);
        }
        // What was sent before a change of the primary may have been executed, and nobody knows; and a
        // resource may be set not to wait for a primary that may answer.
        let epoch = pending.arrived.and_then(|a| Some(a.known?.0));
        let nobody_knows = error == ClientError::Io
            && (self.config.settings.no_quorum_errors
                || self.config.follow && epoch != Some(self.record().epoch));
        let faulty = self.faults.disk_was_bad || nobody_knows;
        if matches!(error, ClientError::Io | ClientError::NoSpace) && !faulty {
            let what = format!("{pending:?} is answered {error:?} though no disk ever failed");
            self.broken(Rule::Bounded, what);
        }
    }
}
