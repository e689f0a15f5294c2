//! A little cluster of voters on a virtual clock: messages that are late, lost, doubled and out of
//! order, disks that take their time, hang or forget, voters that stop and start again from what their
//! disk holds. What must always hold is checked at every step.

use super::super::*;
use std::collections::{BTreeMap, VecDeque};
use vocabulary::NodeId;

/// A document that remembers how it came to be: one descends from another when it continues its log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Doc {
    pub(super) voters: Vec<Voter>,
    pub(super) log: Vec<Change>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Change {
    Put(u32),
    Add(Voter),
    Remove(VoterId),
    /// Changes nothing.
    Same,
    /// Refused where the number has been put before.
    Unless(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct No;

impl Doc {
    pub(super) fn has(&self, number: u32) -> bool {
        self.log.contains(&Change::Put(number))
    }

    fn descends_from(&self, other: &Self) -> bool {
        self.log.starts_with(&other.log)
    }
}

impl Content for Doc {
    type Command = Change;
    type Refused = No;

    fn voters(&self) -> &[Voter] {
        &self.voters
    }

    fn apply(&self, change: &Change) -> Result<Self, No> {
        let mut next = self.clone();
        match *change {
            Change::Same => return Ok(next),
            Change::Unless(number) if self.has(number) => return Err(No),
            Change::Unless(number) => next.log.push(Change::Put(number)),
            Change::Put(_) => next.log.push(*change),
            Change::Add(voter) => {
                if self.voters.iter().any(|v| v.node == voter.node) {
                    return Err(No);
                }
                next.voters.push(voter);
                next.log.push(*change);
            }
            Change::Remove(id) => {
                if self.voters.len() == 1 || self.voters.iter().all(|v| v.id != id) {
                    return Err(No);
                }
                next.voters.retain(|v| v.id != id);
                next.log.push(*change);
            }
        }
        Ok(next)
    }
}

/// The voter of the node with this number; its id is the number too, unless the test says otherwise.
pub(super) fn voter(number: u8) -> Voter {
    voter_as(number, u64::from(number))
}

pub(super) fn voter_as(number: u8, id: u64) -> Voter {
    Voter {
        node: NodeId::new(number).unwrap(),
        id: VoterId(id),
    }
}

/// The durable state of a new voter. One of a new cluster knows who votes, any other knows nothing.
pub(super) fn blank(me: Voter, voters: &[Voter]) -> Promise<Doc> {
    Promise {
        voter: me.id,
        term: Term(0),
        vote: None,
        entry: Entry {
            at: Position::default(),
            content: Doc {
                voters: voters.to_vec(),
                log: Vec::new(),
            },
        },
    }
}

/// A node.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) core: Option<Consensus<Doc>>,
    pub(super) disk: Promise<Doc>,
    writes: VecDeque<(Time, u64, Promise<Doc>)>,
    /// Nothing that is written gets done.
    pub(super) stuck: bool,
    /// The last document that it was told is committed.
    pub(super) knows: Option<Doc>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Mail,
    Disk(u8),
    Timer(u8),
}

#[derive(Debug)]
pub(super) struct Net {
    pub(super) now: Time,
    pub(super) settings: Settings,
    pub(super) places: BTreeMap<u8, Place>,
    mail: BTreeMap<(Time, u64), Envelope<Doc>>,
    sequence: u64,
    random: u64,
    /// From and to.
    pub(super) cut: BTreeSet<(u8, u8)>,
    pub(super) delay_ms: (u64, u64),
    pub(super) disk_ms: (u64, u64),
    pub(super) loss_percent: u64,
    pub(super) double_percent: u64,
    pub(super) answers: BTreeMap<u64, Decision<No>>,
    commands: u64,
    /// The newest document that was committed when a command came.
    asked: BTreeMap<u64, Position>,
    /// Who voted first.
    first: Vec<Voter>,
    /// Every message that was sent.
    pub(super) sent: Vec<Envelope<Doc>>,
    pub(super) committed: BTreeMap<Position, Doc>,
    pub(super) leaders: BTreeMap<Term, VoterId>,
}

impl Net {
    /// A new cluster of nodes 1 to `count`.
    pub(super) fn new(count: u8, seed: u64) -> Self {
        let mut net = Self {
            now: Time(1_000_000_000),
            settings: Settings::default(),
            places: BTreeMap::new(),
            mail: BTreeMap::new(),
            sequence: 0,
            random: seed,
            cut: BTreeSet::new(),
            delay_ms: (1, 3),
            disk_ms: (1, 2),
            loss_percent: 0,
            double_percent: 0,
            answers: BTreeMap::new(),
            commands: 0,
            asked: BTreeMap::new(),
            first: (1..=count).map(voter).collect(),
            sent: Vec::new(),
            committed: BTreeMap::new(),
            leaders: BTreeMap::new(),
        };
        let voters = net.first.clone();
        for number in 1..=count {
            net.install(number, blank(voter(number), &voters));
        }
        net
    }

    /// A new cluster of which node 1 leads and everybody knows the first document.
    pub(super) fn led_by_1(count: u8, seed: u64) -> Self {
        let mut net = Self::new(count, seed);
        net.elect(1);
        net.until("everybody knows the first document", |net| {
            net.places.values().all(|place| place.knows.is_some())
        });
        net
    }

    /// A node with this durable state starts.
    pub(super) fn install(&mut self, number: u8, promise: Promise<Doc>) {
        let place = Place {
            core: None,
            disk: promise,
            writes: VecDeque::new(),
            stuck: false,
            knows: None,
        };
        self.places.insert(number, place);
        self.start(number);
    }

    pub(super) fn start(&mut self, number: u8) {
        let random = self.random(u64::MAX);
        let (now, settings) = (self.now, self.settings);
        let place = self.place(number);
        let node = NodeId::new(number).unwrap();
        place.core = Some(Consensus::new(
            node,
            place.disk.clone(),
            settings,
            random,
            now,
        ));
    }

    /// The process ends; what it was writing is there or not, in the order of writing.
    pub(super) fn stop(&mut self, number: u8) {
        let left = self.random(4);
        let voters = self.first.clone();
        let place = self.place(number);
        place.core = None;
        place.knows = None;
        let mut writes = std::mem::take(&mut place.writes);
        if left == 0
            && !place.stuck
            && let Some((.., promise)) = writes.pop_front()
        {
            place.disk = promise;
        }
        if mutated(Mutation::BlankVoterVotes) {
            let me = voter_as(number, place.disk.voter.0);
            place.disk = blank(me, &voters);
        }
    }

    pub(super) fn restart(&mut self, number: u8) {
        self.stop(number);
        self.start(number);
    }

    pub(super) fn place(&mut self, number: u8) -> &mut Place {
        self.places.get_mut(&number).unwrap()
    }

    pub(super) fn core(&self, number: u8) -> &Consensus<Doc> {
        self.places[&number].core.as_ref().unwrap()
    }

    pub(super) fn term(&self, number: u8) -> Term {
        self.core(number).promise().term
    }

    pub(super) fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    fn between(&mut self, (least, most): (u64, u64)) -> u64 {
        least + self.random(most - least + 1)
    }

    pub(super) fn cut_off(&mut self, number: u8) {
        let others: Vec<u8> = self.places.keys().copied().collect();
        for other in others.into_iter().filter(|other| *other != number) {
            self.cut.insert((number, other));
            self.cut.insert((other, number));
        }
    }

    pub(super) fn cut_between(&mut self, a: u8, b: u8) {
        self.cut.insert((a, b));
        self.cut.insert((b, a));
    }

    /// The leader of the highest term among running voters.
    pub(super) fn leader(&self) -> Option<u8> {
        let leads = |place: &Place| place.core.as_ref().filter(|core| core.leads()).cloned();
        let leaders = self.places.iter();
        leaders
            .filter_map(|(&number, place)| Some((leads(place)?.promise().term, number)))
            .max()
            .map(|(_, number)| number)
    }

    /// The voter's patience does not end soon.
    pub(super) fn calm(&mut self, number: u8) {
        let until = self.now.plus_ms(1000);
        let core = self.place(number).core.as_mut().unwrap();
        if !core.leads() {
            core.election_at = until;
        }
    }

    /// Makes the voter stand for election at once and waits until it leads.
    pub(super) fn elect(&mut self, number: u8) {
        self.until("an election is won", |net| {
            let due = net.places.iter().filter(|(_, place)| place.core.is_some());
            let others: Vec<u8> = due.map(|(n, _)| *n).filter(|n| *n != number).collect();
            for other in others {
                net.calm(other);
            }
            net.leader() == Some(number)
        });
    }

    /// Gives a command to the node and returns its name.
    pub(super) fn ask(&mut self, number: u8, command: Change) -> u64 {
        self.commands += 1;
        let id = CommandId(self.commands);
        if let Some((&at, _)) = self.committed.last_key_value() {
            self.asked.insert(id.0, at);
        }
        self.handle(number, Event::Command { id, command });
        id.0
    }

    /// A command that somebody commits.
    pub(super) fn commit(&mut self, command: Change) {
        let mut id = None;
        self.until("a command is committed", |net| {
            let done = id.map(|id| net.answers.get(&id).cloned());
            match done {
                Some(Some(Decision::Committed)) => return true,
                Some(None) => return false,
                _ => {}
            }
            if let Some(leader) = net.leader() {
                id = Some(net.ask(leader, command));
            }
            false
        });
    }

    /// A command that 1 stores and nobody else hears of; everybody is cut off from it then.
    pub(super) fn commit_stored_by_1_alone(&mut self, command: Change) {
        self.cut_off(1);
        self.ask(1, command);
        let at = self.core(1).promise().entry.at;
        self.until("1 stores it", |net| net.places[&1].disk.entry.at == at);
    }

    pub(super) fn handle(&mut self, number: u8, event: Event<Doc>) {
        let now = self.now;
        let Some(core) = self.place(number).core.as_mut() else {
            return;
        };
        let mut out = Vec::new();
        let led = core.leads();
        core.handle(now, event, &mut out);
        let led = led || core.leads();
        if core.leads() {
            let (term, id) = (core.promise().term, core.me().id);
            let first = *self.leaders.entry(term).or_insert(id);
            assert_eq!(first, id, "two leaders in {term:?}");
        }
        for action in out {
            self.act(number, led, action);
        }
    }

    fn act(&mut self, number: u8, led: bool, action: Action<Doc>) {
        match action {
            Action::Persist {
                number: persist,
                promise,
            } => {
                let done = self.between(self.disk_ms);
                let now = self.now;
                let place = self.place(number);
                let before = place.writes.back().map_or(now, |(done, ..)| *done);
                let done = before.max(now).plus_ms(done);
                place.writes.push_back((done, persist, promise));
            }
            Action::Send { node, envelope } => self.post(number, node.get(), envelope),
            Action::Committed { at, content } => {
                for (&other_at, other) in &self.committed {
                    let (early, late) = if other_at <= at {
                        (other, &content)
                    } else {
                        (&content, other)
                    };
                    assert!(
                        late.descends_from(early),
                        "{content:?} committed at {at:?} and {other:?} at {other_at:?}"
                    );
                    assert!(other_at != at || *other == content, "one document a place");
                }
                let known = self.committed.contains_key(&at);
                assert!(known || led, "{at:?} committed by a follower first");
                self.committed.insert(at, content.clone());
                self.place(number).knows = Some(content);
            }
            Action::Answer { id, decision } => {
                let decided = matches!(decision, Decision::Committed | Decision::Refused(_));
                if decided && let Some(at) = self.asked.get(&id.0) {
                    let known = self.committed.iter().rev();
                    let mine = self.places[&number].knows.as_ref();
                    let mine = known.into_iter().find(|(_, doc)| Some(*doc) == mine);
                    assert!(
                        mine.is_some_and(|(mine, _)| mine >= at),
                        "decided by what it knew once"
                    );
                }
                let twice = self.answers.insert(id.0, decision);
                assert_eq!(twice, None, "{id:?} answered twice");
            }
            Action::Leader(_) => {}
        }
    }

    fn post(&mut self, from: u8, to: u8, envelope: Envelope<Doc>) {
        let disk = &self.places[&from].disk;
        let durable = match &envelope.message {
            Message::VoteAnswer { granted: true } => {
                disk.term > envelope.term || disk.vote == Some(envelope.to)
            }
            Message::Vote { .. } => {
                disk.term > envelope.term || disk.vote == Some(envelope.from.id)
            }
            Message::Stored { at, .. } => disk.entry.at >= *at,
            _ => true,
        };
        assert!(
            durable && disk.term >= envelope.term,
            "answered before it was durable: {envelope:?}"
        );
        self.sent.push(envelope.clone());
        if self.cut.contains(&(from, to)) || self.random(100) < self.loss_percent {
            return;
        }
        let copies = 1 + u64::from(self.random(100) < self.double_percent);
        for _ in 0..copies {
            let delay = self.between(self.delay_ms);
            self.sequence += 1;
            let key = (self.now.plus_ms(delay), self.sequence);
            self.mail.insert(key, envelope.clone());
        }
    }

    /// Delivers a message that a test has made or kept.
    pub(super) fn deliver(&mut self, to: u8, envelope: Envelope<Doc>) {
        self.handle(to, Event::Message(envelope));
    }

    /// When the next thing happens, and on which node if it is not a message.
    fn next(&self) -> Option<(Time, Next)> {
        let mail = self.mail.keys().next().map(|(at, _)| (*at, Next::Mail));
        let disks = self.places.iter().filter(|(_, place)| !place.stuck);
        let disks = disks.filter_map(|(&n, place)| Some((place.writes.front()?.0, Next::Disk(n))));
        let cores = self.places.iter();
        let timers = cores
            .filter_map(|(&n, place)| Some((place.core.as_ref()?.poll_timeout(), Next::Timer(n))));
        mail.into_iter().chain(disks).chain(timers).min()
    }

    /// The next thing that happens.
    fn step(&mut self) {
        let (at, next) = self.next().expect("something happens some time");
        self.now = self.now.max(at);
        match next {
            Next::Mail => {
                let (_, envelope) = self.mail.pop_first().unwrap();
                let to = self.places.iter().find(|(_, place)| {
                    let core = place.core.as_ref();
                    core.is_some_and(|core| core.me().id == envelope.to)
                });
                if let Some((&number, _)) = to {
                    self.handle(number, Event::Message(envelope));
                }
            }
            Next::Disk(number) => {
                let (_, persist, promise) = self.place(number).writes.pop_front().unwrap();
                self.place(number).disk = promise;
                self.handle(number, Event::Persisted(persist));
            }
            Next::Timer(number) => {
                self.handle(number, Event::Tick);
                let next = self.core(number).poll_timeout();
                assert!(next > self.now, "a time-out that does not end");
            }
        }
    }

    pub(super) fn run_ms(&mut self, ms: u64) {
        let end = self.now.plus_ms(ms);
        while self.next().is_some_and(|(at, _)| at < end) {
            self.step();
        }
        self.now = end;
    }

    /// Goes on until it is so; for a minute at most.
    pub(super) fn until(&mut self, what: &str, mut so: impl FnMut(&mut Self) -> bool) {
        let end = self.now.plus_ms(60_000);
        while !so(self) {
            assert!(
                self.now < end,
                "in a minute not: {what}\n{}",
                self.summary()
            );
            self.step();
        }
    }

    fn summary(&self) -> String {
        let place = |(number, place): (&u8, &Place)| match &place.core {
            Some(core) => format!(
                "{number}: {:?} leads {} {:?} of {:?}\n",
                core.me().id,
                core.leads(),
                (core.promise.term, core.promise.vote, core.promise.entry.at),
                core.promise.entry.content.voters
            ),
            None => format!("{number}: stopped\n"),
        };
        self.places.iter().map(place).collect()
    }

    /// How many of the messages sent so far are of this kind.
    pub(super) fn count(&self, kind: impl Fn(&Envelope<Doc>) -> bool) -> usize {
        self.sent.iter().filter(|envelope| kind(envelope)).count()
    }
}
