//! The voters of whole nodes: what they ask for is written to a disk and sent, what they commit is held
//! against the one chain of documents; and how a command finds its leader.

use super::*;

impl World {
    pub(super) fn voter(&mut self, id: NodeId, event: Event<Document>) {
        let now = self.clock(id);
        let run = self.node(id).run;
        let Some(mind) = self.mind(id) else { return };
        let mut out = Vec::new();
        mind.voter.handle(now, event, &mut out);
        if mind.voter.leads() {
            let (term, me) = (mind.voter.promise().term, mind.voter.me().id);
            let leaders = self.control.as_mut().map(|c| &mut c.leaders);
            let first = leaders.map_or(me, |leaders| *leaders.entry(term).or_insert(me));
            if first != me {
                let what = format!("{me:?} leads in {term:?}, as {first:?} did");
                self.broken(Rule::Agreement, what);
                return;
            }
        }
        for action in out {
            let chance = match &action {
                Action::Persist { .. } => 40,
                Action::Committed { .. } => 100,
                Action::Send { .. } => 4,
                Action::Answer { .. } | Action::Leader(_) => 0,
            };
            match action {
                Action::Persist { number, promise } => {
                    if let Some(mind) = self.mind(id) {
                        mind.pending = Some((number, promise));
                    }
                    self.write(id);
                }
                Action::Send { node, envelope } => self.post(id, node, Word::Envelope(envelope)),
                Action::Committed { content, .. } => self.learned(id, Rc::new(content)),
                Action::Answer {
                    id: CommandId(job),
                    decision,
                } => {
                    let Some(mind) = self.mind(id) else { return };
                    if let Some((asker, number)) = mind.jobs.remove(&job) {
                        if asker.node == id {
                            self.decided(id, number, decision);
                        } else {
                            self.post(id, asker.node, Word::Decided(number, decision));
                        }
                    }
                }
                Action::Leader(_) => {}
            }
            let eager = if self.faults.is_active() {
                self.faults.eager * chance
            } else {
                0
            };
            if eager > 0 && self.rng.per_10k(eager) {
                self.strike(id);
            }
            if self.violation.is_some() || self.node(id).run != run || !self.node(id).is_running() {
                return;
            }
        }
        self.tell_leader(id);
        self.arm(id);
    }

    /// Begins to write the newest promise, where none is being written.
    pub(super) fn write(&mut self, id: NodeId) {
        let slower = self.node(id).health.slower.max(1);
        let us = self.rng.between(50, 600) * slower.min(20);
        let process = self.node(id).process();
        let Some(control) = &mut self.control else {
            return;
        };
        let seat = &mut control.seats[id.index()];
        let Some(mind) = &mut seat.mind else { return };
        if mind.write.is_some() {
            return;
        }
        let Some((number, promise)) = mind.pending.take() else {
            return;
        };
        seat.writes += 1;
        mind.write = Some(Write {
            number,
            promise,
            copies: 0,
        });
        self.after_us(us, Occurrence::Word(process, Box::new(Word::Written)));
    }

    pub(super) fn written(&mut self, id: NodeId) {
        let us = self.rng.between(50, 600);
        let process = self.node(id).process();
        let Some(control) = &mut self.control else {
            return;
        };
        let seat = &mut control.seats[id.index()];
        let Some(mind) = &mut seat.mind else { return };
        let Some(write) = &mut mind.write else { return };
        seat.copies[write.copies] = Some((seat.writes, write.promise.clone()));
        write.copies += 1;
        if write.copies < 2 {
            self.after_us(us, Occurrence::Word(process, Box::new(Word::Written)));
            return;
        }
        let number = write.number;
        mind.write = None;
        self.write(id);
        self.voter(id, Event::Persisted(number));
    }

    /// This node's voter knows that a document is committed, or another node says so.
    pub(super) fn learned(&mut self, id: NodeId, content: Rc<Document>) {
        self.observe(&content);
        let Some(mind) = self.mind(id) else { return };
        if mind
            .known
            .as_ref()
            .is_some_and(|known| content.version <= known.version)
        {
            return;
        }
        mind.known = Some(Rc::clone(&content));
        self.pass(
            id,
            Lane::VoterToBeacons,
            Word::Document(Rc::clone(&content)),
        );
        self.follow(id, &content);
    }

    /// Section 4: what is committed is one chain; and what it means for the resource.
    pub(super) fn observe(&mut self, content: &Rc<Document>) {
        let Some(control) = &mut self.control else {
            return;
        };
        if let Some(known) = control.chain.get(&content.version) {
            if known != content {
                let what = format!("two documents are committed as {:?}", content.version);
                self.broken(Rule::Agreement, what);
            }
            return;
        }
        if content.version < control.newest.version {
            let what = format!(
                "{:?} is committed after {:?}",
                content.version, control.newest.version
            );
            self.broken(Rule::Agreement, what);
            return;
        }
        control.chain.insert(content.version, Rc::clone(content));
        let last = std::mem::replace(&mut control.newest, Rc::clone(content));
        self.shape_is_kept(&last, content);
        let Some(resource) = content.resources.first() else {
            return;
        };
        let Some(record) = resource.record.clone() else {
            return;
        };
        let before = self.store.record().clone();
        if record.generation == before.generation {
            self.store.learn(record, resource.declared());
            return;
        }
        self.say(|| format!("store  commits {record:?}"));
        // A document may be the work of several commands.
        let changes = content.version.0 - last.version.0;
        let newer = record.generation.0.checked_sub(before.generation.0);
        if newer.is_none_or(|newer| newer > changes) {
            let what = format!("{:?} follows {:?}", record.generation, before.generation);
            self.broken(Rule::Agreement, what);
            return;
        }
        let promoted = record.epoch != before.epoch;
        match self.store.learn(record, resource.declared()) {
            Some((from, change)) => self.committed(from, &before, &change),
            None if promoted => {
                let what = format!("nobody asked for {:?}", self.store.record());
                self.broken(Rule::OnePrimary, what);
            }
            None => {}
        }
    }

    /// The engine proposes a change.
    pub(crate) fn propose(&mut self, id: NodeId, based_on: Generation, change: Change) {
        let Some(resource) = self.control.as_ref().map(|c| c.resource) else {
            return;
        };
        let command = Command::Propose {
            resource,
            based_on,
            change,
        };
        self.ask(id, command, Origin::Engine(based_on));
    }

    pub(super) fn ask(&mut self, id: NodeId, command: Command, origin: Origin) {
        let until = self.now.plus_ms(SEARCH_MS);
        let Some(control) = &mut self.control else {
            return;
        };
        control.next += 1;
        let number = control.next;
        if let Some(mind) = control.mind(id) {
            mind.asked.insert(
                number,
                Asked {
                    command,
                    origin,
                    until,
                },
            );
            let process = self.node(id).process();
            let us = self.rng.between(2, 100);
            self.after_us(us, Occurrence::Word(process, Box::new(Word::Again(number))));
        }
    }

    pub(super) fn route(&mut self, id: NodeId, number: u64) {
        let now = self.now;
        let process = self.node(id).process();
        let Some(mind) = self.mind(id) else { return };
        mind.asked
            .retain(|_, a| now < a.until || matches!(a.origin, Origin::Declaration));
        let Some(asked) = mind.asked.get(&number) else {
            return;
        };
        let command = asked.command.clone();
        let declares = matches!(asked.origin, Origin::Declaration);
        match self.leader_known_to(id) {
            Some(leader) if leader == id => self.take(id, process, number, command),
            Some(leader) => self.post(id, leader, Word::Ask(process, number, command)),
            None => return self.again(id, number, AGAIN_MS),
        }
        if declares {
            // Until it is decided: the answer may be lost.
            self.again(id, number, DECLARE_MS);
        }
    }

    pub(super) fn again(&mut self, id: NodeId, number: u64, ms: u64) {
        let process = self.node(id).process();
        self.after_us(
            ms * 1000,
            Occurrence::Word(process, Box::new(Word::Again(number))),
        );
    }

    /// A command comes to the voter that is taken for the leader.
    pub(super) fn take(&mut self, id: NodeId, from: Process, number: u64, command: Command) {
        let Some(control) = &mut self.control else {
            return;
        };
        control.next += 1;
        let job = control.next;
        if let Some(mind) = control.mind(id) {
            mind.jobs.insert(job, (from, number));
            let id_of = CommandId(job);
            self.voter(id, Event::Command { id: id_of, command });
        }
    }

    pub(super) fn decided(&mut self, id: NodeId, number: u64, decision: Decision<Refused>) {
        let Some(control) = &mut self.control else {
            return;
        };
        let resource = control.resource;
        let Some(asked) = control.mind(id).and_then(|mind| mind.asked.get(&number)) else {
            return;
        };
        let origin = asked.origin.clone();
        match decision {
            // A declaration is repeated anyhow.
            Decision::NotLeader { .. } if matches!(origin, Origin::Declaration) => return,
            Decision::NotLeader { .. } => return self.again(id, number, AGAIN_MS),
            Decision::Committed | Decision::Undecided => {}
            Decision::Refused(refused) => {
                if let Origin::Engine(based_on) = origin {
                    let refusal = match refused {
                        Refused::Record(refusal) => refusal,
                        _ => Refusal::NoResource { resource },
                    };
                    self.tell_engine(
                        id,
                        Lane::VoterToEngine,
                        api::Event::Refused { based_on, refusal },
                    );
                }
            }
        }
        if let Some(mind) = self.mind(id) {
            mind.asked.remove(&number);
        }
    }
}
