//! Every behaviour of the voters' agreement within small bounds, by breadth-first search over the very
//! step function that runs in production (RULES section 4).
//!
//! A message that was ever sent may arrive at any time, any number of times and in any order, or
//! never. A disk write is done at any time after it was asked for, in order. A voter restarts at any
//! time, also between a write and what it allows to be sent. Time stands still: a time-out ends
//! whenever it likes. Voters are alike, so the first one to stand is called 1 and the first to hear of
//! it 2.
//!
//! What is left out: asking before an election (PreVote) happens in one step, as it changes nothing in
//! those who are asked; the random walk beside the core has it message by message.

use controller::core::consensus::{
    Action, CommandId, Consensus, Content, Decision, Entry, Envelope, Event, Message, Position,
    Promise, Settings, Term, Voter, VoterId,
};
use controller::core::mutation::{self, Mutation};
use stateright::{Checker, HasDiscoveries, Model, Property};
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use vocabulary::{NodeId, Time};

const NOW: Time = Time(1);
const SETTINGS: Settings = Settings {
    beat_ms: 0,
    election_ms: 0,
};
/// Voters that a model may have, present and future ones.
const MOST: u8 = 4;

/// A document: who votes, and how it came to be, an octal digit for each change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Doc {
    voters: u8,
    log: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Change {
    Put,
    Same,
    Add(u8),
    Remove(u8),
}

/// Voters by set.
static VOTERS: LazyLock<Vec<Vec<Voter>>> = LazyLock::new(|| {
    let set = |set: u8| {
        (1..=MOST)
            .filter(|n| set & bit(*n) != 0)
            .map(voter)
            .collect()
    };
    (0..1 << MOST).map(set).collect()
});

const fn bit(number: u8) -> u8 {
    1 << (number - 1)
}

fn voter(number: u8) -> Voter {
    Voter {
        node: NodeId::new(number).expect("a node"),
        id: VoterId(u64::from(number)),
    }
}

impl Doc {
    fn descends_from(self, other: Self) -> bool {
        let mut log = self.log;
        while log > other.log {
            log >>= 3;
        }
        log == other.log
    }
}

impl Content for Doc {
    type Command = Change;
    type Refused = ();

    fn voters(&self) -> &[Voter] {
        &VOTERS[usize::from(self.voters)]
    }

    fn apply(&self, change: &Change) -> Result<Self, ()> {
        let (voters, digit) = match *change {
            Change::Same => return Ok(*self),
            Change::Put => (self.voters, 1),
            Change::Add(number) if self.voters & bit(number) == 0 => {
                (self.voters | bit(number), 1 + number)
            }
            Change::Remove(number)
                if self.voters & bit(number) != 0 && self.voters != bit(number) =>
            {
                (self.voters & !bit(number), 1 + number)
            }
            Change::Add(_) | Change::Remove(_) => return Err(()),
        };
        let log = self.log << 3 | u64::from(digit);
        Ok(Self { voters, log })
    }
}

/// A voter with its disk.
#[derive(Clone, Debug, PartialEq, Hash)]
struct Place {
    core: Consensus<Doc>,
    disk: Promise<Doc>,
    writes: Vec<(u64, Promise<Doc>)>,
}

/// Something with its hash, which is made once.
#[derive(Clone, Debug, PartialEq)]
struct Hashed<T>(u64, Arc<T>);

impl<T: Hash> Hashed<T> {
    fn new(value: T) -> Self {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        Self(hasher.finish(), Arc::new(value))
    }
}

impl<T> Hash for Hashed<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

/// A rule that a step has broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Broken {
    TwoLeaders,
    CommittedLost,
    NoticeOfAnother,
    AnsweredFirst,
    DecidedByOldKnowledge,
}

#[derive(Clone, Debug, PartialEq, Hash)]
struct State {
    places: Vec<Hashed<Place>>,
    /// Every message that was ever sent, and may matter yet; by hash.
    mail: Vec<Hashed<Envelope<Doc>>>,
    restarts: u8,
    late: u8,
    /// Commands given, and what was committed when each was.
    asked: Vec<Option<Position>>,
    /// The history: who led, what was committed.
    leaders: Vec<(Term, VoterId)>,
    committed: Vec<(Position, Doc)>,
    confirmed: bool,
    broken: Option<Broken>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// Asks, is supported, and becomes a candidate.
    Stand(u8),
    Deliver(u64),
    /// The oldest write is done.
    Written(u8),
    Restart(u8),
    Beat(u8),
    Command(u8, Change),
}

/// The bounds.
#[derive(Clone, Debug)]
struct Bounds {
    name: &'static str,
    /// Voters at first, and nodes at all.
    voters: u8,
    places: u8,
    terms: u64,
    restarts: u8,
    /// Times that writes of a voter wait for later steps of its own, or are lost in a restart.
    late: u8,
    commands: usize,
    menu: &'static [Change],
    /// A rule is broken on purpose.
    mutation: Option<Mutation>,
}

impl Bounds {
    fn first(&self, number: u8) -> Promise<Doc> {
        let voters = if number <= self.voters {
            (1..=self.voters).map(bit).sum()
        } else {
            0
        };
        Promise {
            voter: VoterId(u64::from(number)),
            term: Term(0),
            vote: None,
            entry: Entry {
                at: Position::default(),
                content: Doc { voters, log: 0 },
            },
        }
    }

    fn start(&self, number: u8, promise: Promise<Doc>) -> Place {
        let node = voter(number).node;
        let core = Consensus::new(node, promise.clone(), SETTINGS, 0, NOW);
        Place {
            core,
            disk: promise,
            writes: Vec::new(),
        }
    }

    /// Rounds matter only where something is confirmed by them.
    fn without_rounds(&self) -> bool {
        !self.menu.contains(&Change::Same)
    }

    /// Among voters that nothing has happened to, the next is the one with the lowest number.
    fn is_next(&self, state: &State, number: u8) -> bool {
        let untouched = |n: u8| state.places[usize::from(n - 1)].1.core.promise().term == Term(0);
        number == 1 || number > self.voters || !untouched(number - 1) || !untouched(number)
    }
}

impl State {
    fn place(&self, number: u8) -> &Place {
        &self.places[usize::from(number - 1)].1
    }

    /// Can a message still do anything? Terms of a disk never go back.
    fn matters(&self, envelope: &Envelope<Doc>, last: Term) -> bool {
        let number = u8::try_from(envelope.to.0).expect("a voter");
        let place = self.place(number);
        let sender = self.place(u8::try_from(envelope.from.id.0).expect("a voter"));
        let over = place.disk.term >= envelope.term;
        let same = place.core.promise().term == envelope.term;
        match envelope.message {
            Message::VoteAnswer { granted } => !over || same && granted && place.core.stands(),
            Message::Stored { .. } => !over || same && (place.core.stands() || place.core.leads()),
            // All that comes of it is that the sender learns of a term that it knows.
            _ => place.disk.term <= envelope.term || sender.disk.term < last,
        }
    }
}

/// Carries out a step.
struct Run<'a> {
    bounds: &'a Bounds,
    state: State,
}

impl Run<'_> {
    fn handle(&mut self, number: u8, event: Event<Doc>) {
        let mut place = self.state.place(number).clone();
        let mut out = Vec::new();
        let led = place.core.leads();
        place.core.handle(NOW, event, &mut out);
        let mut sent = Vec::new();
        let mut knows = None;
        for action in out {
            match action {
                Action::Persist { number, promise } => place.writes.push((number, promise)),
                Action::Send { envelope, .. } => sent.push(envelope),
                Action::Committed { at, content } => {
                    let led = led || place.core.leads();
                    self.committed(at, content, led);
                    knows = Some(at);
                }
                Action::Answer { id, decision } => {
                    if matches!(decision, Decision::Committed | Decision::Refused(())) {
                        let place = usize::try_from(id.0).expect("few commands");
                        let known = knows.unwrap_or_else(|| {
                            let committed = place_committed(
                                &self.state.committed,
                                &place_doc(&self.state, number),
                            );
                            committed.unwrap_or_default()
                        });
                        if self.state.asked[place].is_some_and(|at| known < at) {
                            self.state.broken = Some(Broken::DecidedByOldKnowledge);
                        }
                        self.state.confirmed = true;
                    }
                }
                Action::Leader(_) => {}
            }
        }
        if place.core.leads() && !led {
            let (term, id) = (place.core.promise().term, place.core.me().id);
            let other = self
                .state
                .leaders
                .iter()
                .any(|&(t, who)| t == term && who != id);
            if other {
                self.state.broken = Some(Broken::TwoLeaders);
            }
            self.state.leaders.push((term, id));
            let content = place.core.promise().entry.content;
            if self
                .state
                .committed
                .iter()
                .any(|&(at, doc)| at.term < term && !content.descends_from(doc))
            {
                self.state.broken = Some(Broken::CommittedLost);
            }
        }
        let forget = self.bounds.without_rounds();
        for envelope in sent {
            self.send(&place, envelope, forget);
        }
        let done = place.core.reduce(forget);
        for (number, _) in &mut place.writes {
            *number -= done;
        }
        self.state.places[usize::from(number - 1)] = Hashed::new(place);
    }

    fn send(&mut self, place: &Place, mut envelope: Envelope<Doc>, forget: bool) {
        let disk = &place.disk;
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
        // With that fault switched on it is what comes of it that has to be noticed.
        let on_purpose = self.bounds.mutation == Some(Mutation::AnswerBeforePersist);
        if !(durable && disk.term >= envelope.term) && !on_purpose {
            self.state.broken = Some(Broken::AnsweredFirst);
        }
        if matches!(
            envelope.message,
            Message::PreVote { .. } | Message::PreVoteAnswer { .. }
        ) {
            return;
        }
        if forget {
            envelope.message.without_round();
        }
        let hashed = Hashed::new(envelope);
        if let Err(place) = self.state.mail.binary_search_by_key(&hashed.0, |m| m.0) {
            self.state.mail.insert(place, hashed);
        }
    }

    fn committed(&mut self, at: Position, content: Doc, led: bool) {
        let known = self.state.committed.iter().find(|(other, _)| *other == at);
        match known {
            Some((_, other)) if *other != content => {
                self.state.broken = Some(Broken::CommittedLost);
            }
            Some(_) => {}
            None if !led => self.state.broken = Some(Broken::NoticeOfAnother),
            None => {
                for &(other_at, other) in &self.state.committed {
                    let (early, late) = if other_at < at {
                        (other, content)
                    } else {
                        (content, other)
                    };
                    if !late.descends_from(early) {
                        self.state.broken = Some(Broken::CommittedLost);
                    }
                }
                self.state.committed.push((at, content));
                self.state.committed.sort_unstable_by_key(|(at, _)| *at);
            }
        }
    }

    /// The oldest write is done.
    fn written(&mut self, number: u8) {
        let mut place = self.state.place(number).clone();
        let (write, promise) = place.writes.remove(0);
        place.disk = promise;
        self.state.places[usize::from(number - 1)] = Hashed::new(place);
        self.handle(number, Event::Persisted(write));
    }

    /// Asking takes one step: it changes nothing in those who are asked.
    fn stand(&mut self, number: u8) -> bool {
        let last = self.state.place(number).core.promise().entry.at;
        let term = self.state.place(number).core.promise().term;
        self.handle(number, Event::Tick);
        for other in (1..=self.bounds.places).filter(|other| *other != number) {
            let envelope = Envelope {
                from: voter(number),
                to: VoterId(u64::from(other)),
                term,
                message: Message::PreVote { last },
            };
            let mut asked = self.state.place(other).core.clone();
            let mut out = Vec::new();
            asked.handle(NOW, Event::Message(envelope), &mut out);
            for action in out {
                if let Action::Send { envelope, .. } = action
                    && matches!(envelope.message, Message::PreVoteAnswer { granted: true })
                {
                    self.handle(number, Event::Message(envelope));
                }
            }
        }
        self.state.place(number).core.stands()
    }
}

fn place_doc(state: &State, number: u8) -> (Position, bool) {
    let core = &state.place(number).core;
    (core.promise().entry.at, core.is_committed())
}

/// The newest committed place that a voter knows of when it answers without a new document.
fn place_committed(_: &[(Position, Doc)], (at, committed): &(Position, bool)) -> Option<Position> {
    committed.then_some(*at)
}

impl Model for Bounds {
    type State = State;
    type Action = (Step, bool);

    fn init_states(&self) -> Vec<State> {
        let place = |number| Hashed::new(self.start(number, self.first(number)));
        vec![State {
            places: (1..=self.places).map(place).collect(),
            mail: Vec::new(),
            restarts: 0,
            late: 0,
            asked: Vec::new(),
            leaders: Vec::new(),
            committed: Vec::new(),
            confirmed: false,
            broken: None,
        }]
    }

    fn actions(&self, state: &State, all: &mut Vec<(Step, bool)>) {
        let mut steps = Vec::new();
        if state.broken.is_some() {
            return;
        }
        for number in 1..=self.places {
            let place = state.place(number);
            let leads = place.core.leads();
            if !place.writes.is_empty() {
                steps.push(Step::Written(number));
            }
            if !leads && place.core.promise().term.0 < self.terms && self.is_next(state, number) {
                steps.push(Step::Stand(number));
            }
            if state.restarts < self.restarts {
                steps.push(Step::Restart(number));
            }
            if leads {
                steps.push(Step::Beat(number));
                if state.asked.len() < self.commands {
                    let commands = self.menu.iter();
                    steps.extend(commands.map(|change| Step::Command(number, *change)));
                }
            }
        }
        for Hashed(hash, envelope) in &state.mail {
            let to = u8::try_from(envelope.to.0).expect("a voter");
            if self.is_next(state, to) {
                steps.push(Step::Deliver(*hash));
            }
        }
        for step in steps {
            all.push((step, false));
            let writes = !matches!(step, Step::Written(_) | Step::Restart(_));
            if writes && state.late < self.late {
                all.push((step, true));
            }
        }
    }

    fn next_state(&self, last: &State, (step, late): (Step, bool)) -> Option<State> {
        mutation::activate(self.mutation);
        let mut run = Run {
            bounds: self,
            state: last.clone(),
        };
        let at = match step {
            Step::Stand(number) => {
                if !run.stand(number) {
                    return None;
                }
                number
            }
            Step::Deliver(hash) => {
                let place = last.mail.binary_search_by_key(&hash, |m| m.0).ok()?;
                let envelope = Envelope::clone(&last.mail[place].1);
                let to = u8::try_from(envelope.to.0).expect("a voter");
                run.handle(to, Event::Message(envelope));
                to
            }
            Step::Written(number) => {
                run.written(number);
                number
            }
            Step::Restart(number) => {
                let promise = if self.mutation == Some(Mutation::BlankVoterVotes) {
                    self.first(number)
                } else {
                    last.place(number).disk.clone()
                };
                let mut place = self.start(number, promise);
                place.core.reduce(true);
                run.state.places[usize::from(number - 1)] = Hashed::new(place);
                run.state.restarts += 1;
                number
            }
            Step::Beat(number) => {
                run.handle(number, Event::Tick);
                number
            }
            Step::Command(number, command) => {
                let id = CommandId(last.asked.len() as u64);
                let committed = last.committed.last().map(|(at, _)| *at);
                let remember = command == Change::Same;
                run.state.asked.push(committed.filter(|_| remember));
                run.handle(number, Event::Command { id, command });
                number
            }
        };
        // Writes are done at once, unless this one is late or an earlier one is.
        let behind = !last.place(at).writes.is_empty();
        if late {
            if behind || run.state.place(at).writes.is_empty() {
                return None;
            }
            run.state.late += 1;
        } else if !behind {
            while !run.state.place(at).writes.is_empty() {
                run.written(at);
            }
        }
        let mut state = run.state;
        let mail = std::mem::take(&mut state.mail);
        let matters = |message: &Hashed<Envelope<Doc>>| state.matters(&message.1, Term(self.terms));
        state.mail = mail.into_iter().filter(matters).collect();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("one leader in a term", |_, state: &State| {
                state.broken != Some(Broken::TwoLeaders)
            }),
            Property::always("what is committed is never lost", |_, state: &State| {
                state.broken != Some(Broken::CommittedLost)
            }),
            Property::always("a notice is of what is stored", |_, state: &State| {
                state.broken != Some(Broken::NoticeOfAnother)
            }),
            Property::always("durable before answered", |_, state: &State| {
                state.broken != Some(Broken::AnsweredFirst)
            }),
            Property::always("nothing is decided by old knowledge", |_, state: &State| {
                state.broken != Some(Broken::DecidedByOldKnowledge)
            }),
        ];
        if self.mutation.is_some() {
            return properties;
        }
        properties.push(Property::sometimes(
            "an election is won",
            |_, state: &State| !state.leaders.is_empty(),
        ));
        if self.terms > 1 {
            properties.push(Property::sometimes(
                "two elections are won",
                |_, state: &State| state.leaders.len() > 1,
            ));
        }
        properties.push(Property::sometimes(
            "a follower learns of it",
            |_, state: &State| {
                let knows = |p: &Hashed<Place>| p.1.core.is_committed() && !p.1.core.leads();
                state.places.iter().any(knows)
            },
        ));
        if self.menu.contains(&Change::Put) {
            properties.push(Property::sometimes(
                "a command is committed",
                |_, state: &State| state.committed.iter().any(|(_, doc)| doc.log != 0),
            ));
        }
        if self.menu.contains(&Change::Same) {
            properties.push(Property::sometimes(
                "a question is answered",
                |_, state: &State| state.confirmed,
            ));
        }
        if self
            .menu
            .iter()
            .any(|c| matches!(c, Change::Add(_) | Change::Remove(_)))
        {
            properties.push(Property::sometimes(
                "voters are changed",
                |model: &Self, state: &State| {
                    let first = model.first(1).entry.content.voters;
                    state.committed.iter().any(|(_, doc)| doc.voters != first)
                },
            ));
        }
        properties
    }
}

fn check(bounds: Bounds) {
    let began = Instant::now();
    let text = format!("{bounds:?}");
    let name = bounds.name;
    let checker = bounds
        .checker()
        .threads(1)
        .timeout(Duration::from_secs(300))
        .spawn_bfs()
        .join();
    println!(
        "{name}: {} states ({} generated), {} steps deep, {:.1} s; {text}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f64()
    );
    assert!(checker.is_done(), "not all states were seen");
    checker.assert_properties();
}

/// The fault is noticed: says by which rule, and after how many steps at least.
fn notices(bounds: Bounds) {
    let began = Instant::now();
    let mutation = bounds.mutation.expect("a fault");
    let checker = bounds
        .checker()
        .threads(1)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let found = checker.discoveries();
    let Some((rule, path)) = found.into_iter().next() else {
        panic!(
            "{mutation:?} goes unnoticed in {} states",
            checker.unique_state_count()
        );
    };
    println!(
        "{mutation:?}: not \"{rule}\" after {} steps, {} states, {:.1} s",
        path.into_actions().len(),
        checker.unique_state_count(),
        began.elapsed().as_secs_f64()
    );
}

const PLAIN: Bounds = Bounds {
    name: "plain",
    voters: 3,
    places: 3,
    terms: 2,
    restarts: 1,
    late: 1,
    commands: 1,
    menu: &[Change::Put],
    mutation: None,
};

#[test]
fn one_term_with_late_writes_and_a_restart() {
    check(Bounds {
        name: "one term",
        terms: 1,
        ..PLAIN
    });
}

#[test]
fn two_terms_with_a_command() {
    check(Bounds {
        name: "two terms, a command",
        restarts: 0,
        late: 0,
        ..PLAIN
    });
}

#[test]
fn two_terms_with_a_restart() {
    check(Bounds {
        name: "two terms, a restart",
        late: 0,
        commands: 0,
        menu: &[],
        ..PLAIN
    });
}

#[test]
fn two_terms_in_which_a_voter_leaves() {
    check(Bounds {
        name: "a voter leaves",
        restarts: 0,
        late: 0,
        menu: &[Change::Remove(3)],
        ..PLAIN
    });
}

#[test]
fn two_terms_in_which_a_voter_joins() {
    check(Bounds {
        name: "a voter joins, a restart",
        voters: 2,
        late: 0,
        menu: &[Change::Add(3)],
        ..PLAIN
    });
}

#[test]
fn a_voter_that_answers_before_its_promise_is_durable_is_noticed() {
    notices(Bounds {
        name: "answers early",
        commands: 0,
        menu: &[],
        mutation: Some(Mutation::AnswerBeforePersist),
        ..PLAIN
    });
}

#[test]
fn a_lower_entry_that_is_accepted_is_noticed() {
    notices(Bounds {
        name: "lower entry",
        restarts: 0,
        late: 0,
        mutation: Some(Mutation::LowerEntryAccepted),
        ..PLAIN
    });
}
