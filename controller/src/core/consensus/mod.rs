//! Agreement among the voters on one small document (RULES section 4): Raft reduced to what that needs.
//! Every entry is the whole document, so a voter keeps one [`Promise`] and needs neither a log nor
//! snapshots. One step function: `(now, event) -> actions`; what has to be durable before a message
//! leaves is held back here until [`Event::Persisted`] says so. `leader` is the part of a leader.
//!
//! Generic over the document, so that the exhaustive check runs this code on tiny ones.

mod alone;
mod leader;
#[cfg(test)]
mod tests;

use super::mutation::{Mutation, mutated};
pub use alone::NotAlone;
use leader::Leader;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::hash::Hash;
use std::mem::discriminant;
use vocabulary::{NodeId, Time};

/// A voter's identity: random, created with its state, never used again. A node whose state was lost
/// comes back under another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VoterId(pub u64);

impl fmt::Debug for VoterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{:x}", self.0)
    }
}

/// A voter and where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Voter {
    /// Its node.
    pub node: NodeId,
    /// Its identity.
    pub id: VoterId,
}

/// Counts elections.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Term(pub u64);

/// Where an entry stands: the term of the leader that made it, and its place. Ordered by both.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Position {
    /// The leader's term.
    pub term: Term,
    /// Counts entries.
    pub index: u64,
}

/// What the voters agree on.
pub trait Content: Clone + Eq + Hash + fmt::Debug {
    /// A change that can be asked for.
    type Command: Clone + Eq + Hash + fmt::Debug;
    /// Why it may be refused.
    type Refused: Clone + Eq + Hash + fmt::Debug;

    /// Who votes on it.
    fn voters(&self) -> &[Voter];

    /// It with the change.
    ///
    /// # Errors
    /// The reason why it is as it was.
    fn apply(&self, command: &Self::Command) -> Result<Self, Self::Refused>;
}

/// A document at its place.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Entry<C> {
    /// Its place.
    pub at: Position,
    /// The whole document.
    pub content: C,
}

/// A voter's durable state; one promise in the sense of RULES 11.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Promise<C> {
    /// Whose it is.
    pub voter: VoterId,
    /// The highest term that it has seen.
    pub term: Term,
    /// Whom it voted for in that term.
    pub vote: Option<VoterId>,
    /// The newest document that it has stored; committed or not.
    pub entry: Entry<C>,
}

impl<C> Promise<C> {
    /// A voter that has promised nothing yet. With a document that names it as the only voter it begins
    /// a cluster; with one that does not, it waits to be taken into one.
    pub fn new(voter: VoterId, content: C) -> Self {
        Self {
            voter,
            term: Term::default(),
            vote: None,
            entry: Entry {
                at: Position::default(),
                content,
            },
        }
    }
}

/// What voters say to each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Message<C> {
    /// Would you vote for me in the next term?
    PreVote {
        /// The sender's stored entry.
        last: Position,
    },
    /// To that.
    PreVoteAnswer {
        /// Yes.
        granted: bool,
    },
    /// Vote for me in this term.
    Vote {
        /// The sender's stored entry.
        last: Position,
    },
    /// To that.
    VoteAnswer {
        /// Yes, and it is durable.
        granted: bool,
    },
    /// Store this.
    Entry {
        /// Of the sender's own term.
        entry: Entry<C>,
        /// Names the answer.
        round: u64,
    },
    /// The leader lives.
    Beat {
        /// The newest entry that is committed in this term.
        committed: Option<Position>,
        /// Names the answer.
        round: u64,
    },
    /// To an entry or a beat: what the sender stores, durably.
    Stored {
        /// Its place.
        at: Position,
        /// Of the message answered.
        round: u64,
    },
}

#[cfg(feature = "mutations")]
impl<C> Message<C> {
    /// See [`Consensus::reduce`].
    pub const fn without_round(&mut self) {
        if let Self::Entry { round, .. } | Self::Beat { round, .. } | Self::Stored { round, .. } =
            self
        {
            *round = 0;
        }
    }
}

/// A message on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Envelope<C> {
    /// Who says it.
    pub from: Voter,
    /// Whom it is for; anybody else ignores it.
    pub to: VoterId,
    /// The sender's term.
    pub term: Term,
    /// What it says.
    pub message: Message<C>,
}

/// A command, named by the driver; answered at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u64);

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Decision<R> {
    /// It is in the committed document that was handed out before this.
    Committed,
    /// That document does not take it.
    Refused(R),
    /// This voter does not lead; it did not and will not happen through it.
    NotLeader {
        /// Who leads, as far as is known.
        leader: Option<NodeId>,
    },
    /// The leader lost its place meanwhile: it may happen or not.
    Undecided,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event<C: Content> {
    /// A message came.
    Message(Envelope<C>),
    /// [`Action::Persist`] of this number, and all before it, is durable.
    Persisted(u64),
    /// Somebody wants a change.
    Command {
        /// Its name.
        id: CommandId,
        /// The change.
        command: C::Command,
    },
    /// The other one of two voters is switched off for certain (RULES section 3).
    Fenced {
        /// Which.
        voter: VoterId,
        /// The change that takes it out.
        removal: C::Command,
    },
    /// Time has passed (see [`Consensus::poll_timeout`]).
    Tick,
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Action<C: Content> {
    /// Make this durable, in both copies, and say so. A later one replaces it.
    Persist {
        /// Ascending.
        number: u64,
        /// All of it.
        promise: Promise<C>,
    },
    /// Send. It may be lost.
    Send {
        /// Where the receiver runs.
        node: NodeId,
        /// The message.
        envelope: Envelope<C>,
    },
    /// This document is committed.
    Committed {
        /// Its place.
        at: Position,
        /// The document.
        content: C,
    },
    /// A command is decided.
    Answer {
        /// Which.
        id: CommandId,
        /// How.
        decision: Decision<C::Refused>,
    },
    /// Another leader is known, or none.
    Leader(Option<NodeId>),
}

/// Time-outs in ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// A leader is heard this often.
    pub beat_ms: u64,
    /// Without a leader for this long, and up to twice as long by chance, a voter stands for election;
    /// before that it supports no other candidate.
    pub election_ms: u64,
}

impl Settings {
    /// Time-outs that go with this time-out of an election.
    #[must_use]
    pub const fn with_election(election_ms: u64) -> Self {
        Self {
            beat_ms: election_ms / 4,
            election_ms,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        // Below the lease of a primary, so that a store whose leader died together with the primary
        // has the next one when the lease is over.
        Self::with_election(200)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Role<C: Content> {
    Follower,
    /// Asks whether an election would be won.
    Asking(BTreeSet<VoterId>),
    Candidate(BTreeSet<VoterId>),
    Leader(Box<Leader<C>>),
}

/// One voter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Consensus<C: Content> {
    me: Voter,
    settings: Settings,
    promise: Promise<C>,
    role: Role<C>,
    /// The leader of this term, once heard.
    leader: Option<Voter>,
    /// When it was last heard.
    heard: Option<Time>,
    /// An election is called then.
    election_at: Time,
    /// The stored entry is known to be committed.
    committed: bool,
    /// Since its start it has heard that what it stores is committed.
    current: bool,
    /// Number of the last [`Action::Persist`], of the last that changed term or vote, and of the last
    /// that is done.
    persist: u64,
    persist_vote: u64,
    persisted: u64,
    /// Sent once what they promise is durable: number of the persist that they wait for.
    held: Vec<(u64, NodeId, Envelope<C>)>,
    random: u64,
}

impl<C: Content> Consensus<C> {
    /// Time-outs as they are from now on. They concern progress only: voters may differ for a while.
    pub const fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// A voter with its durable state; knows nothing of what is committed. `random` seeds its
    /// election time-outs.
    #[must_use]
    pub fn new(
        node: NodeId,
        promise: Promise<C>,
        settings: Settings,
        random: u64,
        now: Time,
    ) -> Self {
        let mut voter = Self {
            me: Voter {
                node,
                id: promise.voter,
            },
            settings,
            promise,
            role: Role::Follower,
            leader: None,
            heard: None,
            election_at: now,
            committed: false,
            current: false,
            persist: 0,
            persist_vote: 0,
            persisted: 0,
            held: Vec::new(),
            random,
        };
        voter.election_at = voter.election_time(now);
        voter
    }

    /// This voter.
    #[must_use]
    pub const fn me(&self) -> Voter {
        self.me
    }

    /// Its state, durable or on its way there.
    #[must_use]
    pub const fn promise(&self) -> &Promise<C> {
        &self.promise
    }

    /// The node that leads, as far as is known.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.leader.map(|voter| voter.node)
    }

    /// Does it lead?
    #[must_use]
    pub const fn leads(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// Is the stored entry known to be committed?
    #[must_use]
    pub const fn is_committed(&self) -> bool {
        self.committed
    }

    /// When [`Event::Tick`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Time {
        match &self.role {
            Role::Leader(leader) => leader.next_beat,
            _ => self.election_at,
        }
    }

    /// Is it a candidate in its present term?
    #[cfg(feature = "mutations")]
    #[must_use]
    pub const fn stands(&self) -> bool {
        matches!(self.role, Role::Candidate(_))
    }

    /// For an exhaustive check, which compares states: takes out what has no influence on any further
    /// step while time stands still. Numbers of persists begin anew, by as much as is returned; rounds
    /// only where nothing waits for one.
    #[cfg(feature = "mutations")]
    pub fn reduce(&mut self, rounds: bool) -> u64 {
        let done = std::mem::take(&mut self.persisted);
        self.persist -= done;
        self.persist_vote = self.persist_vote.saturating_sub(done);
        for (needs, _, envelope) in &mut self.held {
            *needs -= done;
            if rounds {
                envelope.message.without_round();
            }
        }
        (self.heard, self.leader) = (None, None);
        if let Role::Leader(leader) = &mut self.role
            && rounds
        {
            leader.without_rounds();
        }
        done
    }

    /// One step.
    pub fn handle(&mut self, now: Time, event: Event<C>, out: &mut Vec<Action<C>>) {
        match event {
            Event::Message(envelope) => self.message(now, envelope, out),
            Event::Persisted(number) => self.durable(now, number, out),
            Event::Command { id, command } => match &mut self.role {
                Role::Leader(leader) => {
                    leader.queue.push_back((id, command));
                    self.take_commands(now, out);
                }
                _ => {
                    let leader = self.leader();
                    out.push(Action::Answer {
                        id,
                        decision: Decision::NotLeader { leader },
                    });
                }
            },
            Event::Fenced { voter, removal } => self.go_on_without(now, voter, &removal, out),
            Event::Tick => self.tick(now, out),
        }
    }

    fn tick(&mut self, now: Time, out: &mut Vec<Action<C>>) {
        if matches!(self.role, Role::Leader(_)) {
            self.tick_leader(now, out);
            return;
        }
        if now < self.election_at {
            return;
        }
        self.election_at = self.election_time(now);
        // A leader that was removing itself goes on with it: nobody else may have that document, and none
        // of its voters may lead without.
        if !self.votes() && self.committed || self.promise.entry.content.voters().is_empty() {
            return;
        }
        // Nobody was heard: would an election be won? Asking costs no term (PreVote).
        self.set_leader(None, out);
        self.role = Role::Asking(BTreeSet::from([self.me.id]));
        self.ask_all(
            Message::PreVote {
                last: self.promise.entry.at,
            },
            out,
        );
        self.count_votes(now, out);
    }

    /// Is this voter one by its stored document?
    #[must_use]
    pub fn votes(&self) -> bool {
        let voters = self.promise.entry.content.voters();
        voters.iter().any(|voter| voter.id == self.me.id)
    }

    /// More than half of the voters of the stored document.
    fn is_majority(&self, has: impl Fn(VoterId) -> bool) -> bool {
        let voters = self.promise.entry.content.voters();
        let count = voters.iter().filter(|voter| has(voter.id)).count();
        2 * count > voters.len()
    }

    fn ask_all(&mut self, message: Message<C>, out: &mut Vec<Action<C>>) {
        let (me, voters) = (self.me.id, self.promise.entry.content.voters().to_vec());
        for voter in voters.into_iter().filter(|voter| voter.id != me) {
            self.send(voter, message.clone(), self.persist_vote, out);
        }
    }

    /// An election is won, or goes from asking to voting.
    fn count_votes(&mut self, now: Time, out: &mut Vec<Action<C>>) {
        match &self.role {
            Role::Asking(yes) if self.is_majority(|id| yes.contains(&id)) => {
                let term = Term(self.promise.term.0 + 1);
                self.adopt(term, Some(self.me.id), out);
                self.role = Role::Candidate(BTreeSet::new());
                self.election_at = self.election_time(now);
                self.ask_all(
                    Message::Vote {
                        last: self.promise.entry.at,
                    },
                    out,
                );
            }
            Role::Candidate(yes) if self.is_majority(|id| yes.contains(&id)) => {
                self.lead(now, out);
            }
            _ => {}
        }
    }

    /// A new term, and what is voted in it.
    fn adopt(&mut self, term: Term, vote: Option<VoterId>, out: &mut Vec<Action<C>>) {
        debug_assert!(
            term > self.promise.term || term == self.promise.term && self.promise.vote.is_none(),
            "RULES 4: one vote in a term"
        );
        self.promise.term = term;
        self.promise.vote = vote;
        self.save(out);
        self.persist_vote = self.persist;
    }

    fn save(&mut self, out: &mut Vec<Action<C>>) {
        self.persist += 1;
        out.push(Action::Persist {
            number: self.persist,
            promise: self.promise.clone(),
        });
    }

    /// Sends once the persist of this number is done.
    fn send(&mut self, to: Voter, message: Message<C>, needs: u64, out: &mut Vec<Action<C>>) {
        let envelope = Envelope {
            from: self.me,
            to: to.id,
            term: self.promise.term,
            message,
        };
        if needs <= self.persisted || mutated(Mutation::AnswerBeforePersist) {
            let node = to.node;
            out.push(Action::Send { node, envelope });
            return;
        }
        // However long the disk takes, two of a kind are enough: the first, lest a stream of newer
        // ones keeps all of them back, and the newest.
        let same = |(_, _, held): &(u64, NodeId, Envelope<C>)| {
            held.to == envelope.to && discriminant(&held.message) == discriminant(&envelope.message)
        };
        let mut alike = self.held.iter().enumerate().filter(|(_, held)| same(held));
        if let Some((second, _)) = alike.nth(1) {
            self.held.remove(second);
        }
        self.held.push((needs, to.node, envelope));
    }

    fn durable(&mut self, now: Time, number: u64, out: &mut Vec<Action<C>>) {
        self.persisted = self.persisted.max(number);
        let persisted = self.persisted;
        for (_, node, envelope) in self.held.extract_if(.., |(needs, ..)| *needs <= persisted) {
            out.push(Action::Send { node, envelope });
        }
        if persisted >= self.persist_vote
            && let Role::Candidate(yes) = &mut self.role
            && yes.insert(self.me.id)
        {
            self.count_votes(now, out);
        }
        if persisted == self.persist {
            self.check_committed(now, out);
        }
    }

    fn message(&mut self, now: Time, envelope: Envelope<C>, out: &mut Vec<Action<C>>) {
        let Envelope {
            from,
            to,
            term,
            message,
        } = envelope;
        if to != self.me.id || from.id == self.me.id {
            return;
        }
        // Whoever hears a leader supports nobody else; else a voter that was cut off from the leader
        // alone would depose it again and again.
        let supports = !self.leads()
            && self
                .heard
                .is_none_or(|heard| now.ms_since(heard) >= self.settings.election_ms);
        if let Message::PreVote { last } = message {
            let granted = supports && term >= self.promise.term && last >= self.promise.entry.at;
            let answer = Message::PreVoteAnswer { granted };
            self.send(from, answer, self.persist_vote, out);
            return;
        }
        if let Message::PreVoteAnswer { granted: true } = message {
            // Whatever its term: it only says that an election is worth a try.
            if let Role::Asking(yes) = &mut self.role
                && yes.insert(from.id)
            {
                self.count_votes(now, out);
            }
            return;
        }
        if matches!(message, Message::Vote { .. }) && !supports && term > self.promise.term {
            return;
        }
        if term > self.promise.term {
            self.follow(now, out);
            self.adopt(term, None, out);
        }
        if term < self.promise.term {
            // It has to learn of the newer term, else it would wait for answers for ever.
            let answer = match message {
                Message::Vote { .. } => Message::VoteAnswer { granted: false },
                Message::Entry { round, .. } | Message::Beat { round, .. } => Message::Stored {
                    at: self.promise.entry.at,
                    round,
                },
                _ => return,
            };
            let needs = self.persist;
            self.send(from, answer, needs, out);
            return;
        }
        match message {
            Message::PreVote { .. } | Message::PreVoteAnswer { .. } => {}
            Message::Vote { last } => {
                let free = self.promise.vote.is_none() && !self.leads();
                let granted =
                    last >= self.promise.entry.at && (free || self.promise.vote == Some(from.id));
                if granted && free {
                    self.adopt(term, Some(from.id), out);
                    self.election_at = self.election_time(now);
                }
                let answer = Message::VoteAnswer { granted };
                self.send(from, answer, self.persist_vote, out);
            }
            Message::VoteAnswer { granted } => {
                if let Role::Candidate(yes) = &mut self.role
                    && granted
                    && yes.insert(from.id)
                {
                    self.count_votes(now, out);
                }
            }
            Message::Entry { entry, round } => {
                self.hear(now, from, out);
                self.accept(entry, out);
                let at = self.promise.entry.at;
                self.send(from, Message::Stored { at, round }, self.persist, out);
            }
            Message::Beat { committed, round } => {
                self.hear(now, from, out);
                self.notice(committed, out);
                let at = self.promise.entry.at;
                self.send(from, Message::Stored { at, round }, self.persist, out);
            }
            Message::Stored { at, round } => self.stored(now, from.id, at, round, out),
        }
    }

    /// The leader of this term speaks.
    fn hear(&mut self, now: Time, from: Voter, out: &mut Vec<Action<C>>) {
        debug_assert!(!self.leads(), "RULES 4: one leader in a term");
        self.role = Role::Follower;
        self.heard = Some(now);
        self.election_at = self.election_time(now);
        self.set_leader(Some(from), out);
    }

    /// A newer entry of the present leader is stored; nothing else is.
    fn accept(&mut self, entry: Entry<C>, out: &mut Vec<Action<C>>) {
        let newer = entry.at > self.promise.entry.at
            || mutated(Mutation::LowerEntryAccepted) && entry.at != self.promise.entry.at;
        let own = entry.at.term == self.promise.term || mutated(Mutation::OldEntryCommitted);
        if newer && own {
            self.promise.entry = entry;
            self.committed = false;
            self.save(out);
        }
    }

    /// A commit notice holds only for an equal stored pair.
    fn notice(&mut self, committed: Option<Position>, out: &mut Vec<Action<C>>) {
        let stored = self.promise.entry.at;
        let holds = committed == Some(stored)
            || mutated(Mutation::NoticeByIndexOnly)
                && committed.is_some_and(|at| at.index == stored.index);
        if holds && !self.committed {
            self.commit(out);
        }
    }

    fn commit(&mut self, out: &mut Vec<Action<C>>) {
        self.committed = true;
        self.current = true;
        out.push(Action::Committed {
            at: self.promise.entry.at,
            content: self.promise.entry.content.clone(),
        });
    }

    /// Becomes a follower of nobody yet.
    fn follow(&mut self, now: Time, out: &mut Vec<Action<C>>) {
        if let Role::Leader(leader) = std::mem::replace(&mut self.role, Role::Follower) {
            leader.give_up(out);
        }
        self.set_leader(None, out);
        self.heard = None;
        self.election_at = self.election_time(now);
    }

    fn set_leader(&mut self, leader: Option<Voter>, out: &mut Vec<Action<C>>) {
        if self.leader != leader {
            self.leader = leader;
            out.push(Action::Leader(self.leader()));
        }
    }

    fn election_time(&mut self, now: Time) -> Time {
        let ms = self.settings.election_ms;
        if ms == 0 {
            return now;
        }
        // splitmix64
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        now.plus_ms(ms + (z ^ (z >> 31)) % ms)
    }
}
