//! Feeds a core and carries out what it asks for, in the order of its outbox; checks at each answer
//! and each message what the rules say of it.

use crate::control::FAILOVER_COMMANDS;
use crate::net::End;
use crate::node::OpKind;
use crate::payload::Stamps;
use crate::rules::Rule;
use crate::world::{Occurrence, World};
use replicator::core::api::{Action, ConnId, Event, Notice, OpId};
use replicator::core::message::Message;
use replicator::core::status::Role;
use vocabulary::{Change, Epoch, NodeId, VolumeId};

impl World {
    /// Hands an event to a node's core.
    pub fn feed(&mut self, id: NodeId, event: Event<Stamps>) {
        self.say(|| format!("{id:?} < {event:?}"));
        let now = self.clock(id);
        let Some(mut core) = self.node_mut(id).core.take() else {
            return;
        };
        let mut out = Vec::new();
        core.handle(now, event, &mut out);
        self.node_mut(id).core = Some(core);
        self.carry_out(id, out);
    }

    pub(crate) fn feed_timeout(&mut self, id: NodeId) {
        let now = self.clock(id);
        let Some(mut core) = self.node_mut(id).core.take() else {
            return;
        };
        let mut out = Vec::new();
        core.handle_timeout(now, &mut out);
        self.node_mut(id).core = Some(core);
        self.carry_out(id, out);
    }

    fn carry_out(&mut self, id: NodeId, actions: Vec<Action<Stamps>>) {
        let run = self.node(id).run;
        // What it answers in the same step was decided before.
        let demotes = actions.iter().any(|action| {
            let Action::Propose { based_on, change } = action else {
                return false;
            };
            matches!(change, Change::Demote { .. }) && *based_on == self.record().generation
        });
        let epoch = self.record().epoch;
        for action in actions {
            self.say(|| match &action {
                Action::MetaWrite {
                    op, offset, data, ..
                } => format!("{id:?} > MetaWrite {op:?} {offset}+{}", data.len()),
                _ => format!("{id:?} > {action:?}"),
            });
            let chance = self.faults.interest(&action);
            self.act(id, action);
            if self.violation.is_some() {
                return;
            }
            if chance > 0 && self.rng.per_10k(chance) {
                self.strike(id);
            }
            let node = self.node(id);
            if node.run != run || !node.is_running() {
                // It died in the middle of its outbox.
                return;
            }
        }
        if demotes {
            self.node_mut(id).demoting = Some(epoch);
        }
        self.rearm(id);
        self.tell_standing(id);
    }

    fn submit(&mut self, id: NodeId, op: OpId, volume: VolumeId, kind: OpKind) {
        let us = self.disk_us(id, &kind);
        let process = self.node(id).process();
        let now = self.now;
        match self.node_mut(id).submit(op, volume, kind, now) {
            Ok(()) => self.after_us(us, Occurrence::Disk(process, op.0)),
            Err(what) => {
                let what = format!("node {id} volume {volume}: {what}");
                self.broken(Rule::Overlap, what);
            }
        }
    }

    fn act(&mut self, id: NodeId, action: Action<Stamps>) {
        let process = self.node(id).process();
        match action {
            Action::Read { op, volume, range } => {
                self.submit(id, op, volume, OpKind::Read(range));
            }
            Action::Hash { op, volume, range } => {
                self.submit(id, op, volume, OpKind::Hash(range));
            }
            Action::Write {
                op,
                volume,
                offset,
                data,
                durable,
            } => self.submit(id, op, volume, OpKind::Write(offset, data, durable)),
            Action::Zero {
                op,
                volume,
                range,
                hole,
                durable,
            } => self.submit(id, op, volume, OpKind::Zero(range, hole, durable)),
            Action::Flush { op, volume } => {
                let mark = self
                    .node(id)
                    .volume(volume)
                    .map_or(0, |v| v.data.flush_mark());
                self.submit(id, op, volume, OpKind::Flush(mark));
            }
            Action::MetaWrite {
                op,
                volume,
                offset,
                data,
            } => {
                if data.is_empty() || data.len() % 4096 != 0 || offset % 4096 != 0 {
                    let what = format!("a metadata write of {} bytes at {offset}", data.len());
                    self.broken(Rule::Intact, what);
                    return;
                }
                self.submit(id, op, volume, OpKind::Meta(offset, data));
            }
            Action::MoveMetadata { volume, .. } => {
                let what =
                    format!("node {id} moves the metadata of volume {volume}, which have a file");
                self.broken(Rule::Intact, what);
            }
            Action::Grow {
                op,
                volume,
                size_bytes,
                ..
            } => self.submit(id, op, volume, OpKind::Grow(size_bytes)),
            Action::Look { .. } | Action::Map { .. } => {
                let what = format!("node {id} deals with a question that nobody asked");
                self.broken(Rule::Bounded, what);
            }
            Action::Dial { peer } => {
                let up = self.node(peer).is_on() && self.net.joined(id, peer);
                let us = if up {
                    self.rng.between(100, 2000)
                } else {
                    self.rng.between(50_000, 300_000)
                };
                self.after_us(us, Occurrence::Dial(process, peer));
            }
            Action::Send { conn, message } => {
                self.judge(id, conn, &message);
                self.send(id, conn, message);
            }
            Action::Close { conn } => {
                let Some(end) = self.net.conn(conn.0).and_then(|c| c.end_of(process)) else {
                    return;
                };
                if self.net.conn(conn.0).is_some_and(|c| c.ended(end)) {
                    return;
                }
                let due = self.net.end(conn.0, end, true, self.now, &mut self.rng);
                self.due(due);
                let us = self.rng.between(10, 300);
                self.after_us(us, Occurrence::Closed(process, conn.0));
            }
            Action::Reply {
                id: request,
                result,
            } => self.reply(id, request, result),
            Action::Propose { based_on, change } => {
                self.store.note(process, based_on, &change);
                if self.is_whole() {
                    if matches!(change, Change::Admit { .. }) {
                        self.haunt_admit(id);
                    }
                    self.propose(id, based_on, change);
                    return;
                }
                for _ in 0..self.faults.copies(&mut self.rng) {
                    let us = self.faults.proposal_us(&mut self.rng);
                    let what = Occurrence::Propose(process, based_on, Box::new(change.clone()));
                    self.after_us(us, what);
                }
            }
            Action::CommandDone {
                id: command,
                result,
            } if command.0 >= FAILOVER_COMMANDS => {
                self.say(|| format!("{id:?} answers fail-over: {result:?}"));
                self.failover_answered(id, command.0);
            }
            Action::CommandDone {
                id: command,
                result,
            } => self.command_done(id, command, result),
            // Its clients hold no connections.
            Action::HangUp => {}
            Action::Notice(notice) => self.notice(id, notice),
        }
    }

    /// Requests that nodes forward, and the answers, are held against the rules when they are sent.
    fn judge(&mut self, id: NodeId, conn: ConnId, message: &Message<Stamps>) {
        let process = self.node(id).process();
        match message {
            Message::Forward {
                number,
                volume,
                request,
                ..
            } => self.forwards(process, *number, *volume, request),
            Message::Answer { number, result } => {
                let peer = self.net.conn(conn.0).and_then(|c| {
                    let end = c.end_of(process)?.other();
                    // Of one that is dead, or has let its replica go, nobody gets it.
                    (!c.ended(end)).then_some(c.process(end))
                });
                if let Some(peer) = peer {
                    self.answers(id, peer, *number, result);
                }
            }
            _ => {}
        }
    }

    fn send(&mut self, id: NodeId, conn: ConnId, message: Message<Stamps>) {
        let process = self.node(id).process();
        let Some((end, epoch, peer)) = self.net.conn(conn.0).and_then(|c| {
            let end = c.end_of(process)?;
            Some((end, c.epoch, c.process(end.other())))
        }) else {
            return;
        };
        // RULES 2: whoever has promised an epoch acts in no older one.
        if end == End::Acceptor {
            let promised = self.node(id).promised;
            let acts = matches!(
                message,
                Message::Welcome { .. } | Message::Acks { .. } | Message::FlushAck { .. }
            );
            if acts && epoch < promised {
                let what = format!("node {id} has promised {promised:?} and acts in {epoch:?}");
                self.broken(Rule::Fence, what);
                return;
            }
            if matches!(message, Message::Welcome { .. }) {
                self.node_mut(id).promised = epoch;
                self.promise_is_kept(id, epoch);
            }
        }
        let generation = self
            .node(id)
            .core
            .as_ref()
            .map(|c| c.generation())
            .unwrap_or_default();
        let peer_gone = self
            .net
            .conn(conn.0)
            .is_some_and(|c| c.ended(end.other()) && !c.ended(end));
        let (now, rng) = (self.now, &mut self.rng);
        let due = if peer_gone {
            // The peer's machine is back and does not know the connection: it resets it.
            let known = self.nodes[peer.node.index()].is_on() && self.net.joined(id, peer.node);
            if known {
                self.net.end(conn.0, end.other(), true, now, rng)
            } else {
                None
            }
        } else {
            self.net.send(conn.0, end, generation, message, now, rng)
        };
        self.due(due);
    }

    /// RULES 2 and 11: whoever acts in an epoch has it on disk, in both copies of a superblock of its.
    fn promise_is_kept(&mut self, id: NodeId, epoch: Epoch) {
        let node = self.node(id);
        let kept = node.volumes.iter().any(|volume| {
            let copies = self.factory.promised(volume);
            copies.len() == 2 && copies.iter().all(|promised| *promised >= epoch)
        });
        // A disk that fails while it promises is given up at once; what it says until then is no promise.
        if !kept && !node.meta_rotted && !node.disk_failed {
            let what =
                format!("node {id} acts in {epoch:?}, which is not in both of its superblocks");
            self.broken(Rule::Fence, what);
        }
    }

    /// RULES 4: at no true moment may two nodes answer.
    pub(crate) fn one_may_answer(&mut self) {
        if !self.is_whole() || self.operator.forced {
            return;
        }
        let newest = self.nodes.iter().filter_map(|n| n.serving).max();
        let older = self.nodes.iter().find(|node| {
            let until = node.core.as_ref().map(|core| core.answers_until());
            node.serving < newest
                && node.serving.is_some()
                && until.is_some_and(|until| self.clock(node.id) < until)
        });
        if let Some(older) = older {
            let what = format!(
                "node {} may answer in {:?} while another serves in {newest:?}",
                older.id, older.serving
            );
            self.broken(Rule::Lease, what);
        }
    }

    fn notice(&mut self, id: NodeId, notice: Notice) {
        let now = self.clock(id);
        let process = self.node(id).process();
        match &notice {
            Notice::Serving => {
                let status = self.node(id).core.as_ref().map(|c| c.status(now));
                let Some(status) = status else { return };
                let epoch = status.epoch;
                if status.role != Role::Primary {
                    let what = format!("node {id} serves as {:?}", status.role);
                    self.broken(Rule::OnePrimary, what);
                }
                let other = *self.served.entry(epoch).or_insert(process);
                if other != process {
                    let what = format!("{process:?} serves in {epoch:?}, as {other:?} did");
                    self.broken(Rule::OnePrimary, what);
                }
                if self.record().epoch == epoch && !self.store.entitled(process) {
                    let what = format!(
                        "{process:?} serves in {epoch:?}, which {:?} asked for; the record is {:?}",
                        self.store.promoter(epoch),
                        self.record()
                    );
                    self.broken(Rule::OnePrimary, what);
                }
                self.promise_is_kept(id, epoch);
                let node = self.node_mut(id);
                node.serving = Some(epoch);
                node.promised = node.promised.max(epoch);
                self.one_may_answer();
            }
            Notice::StoppedServing { .. } => self.node_mut(id).serving = None,
            Notice::DiskFailed { .. } => self.node_mut(id).disk_failed = true,
            _ => {}
        }
        if self.operator.keep_notices {
            self.notices.push((id, notice));
        }
    }
}
