//! The leader's part: its entry to the voters, commands into the next entry, and the end of it when
//! no majority answers.

use super::*;
use std::collections::{BTreeMap, VecDeque};

/// A voter as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Follower {
    node: NodeId,
    stored: Position,
    heard: Time,
    /// The last entry that was sent, and when.
    sent: Option<(Position, Time)>,
    /// The newest round that it has answered.
    round: u64,
}

type Answers<R> = Vec<(CommandId, Option<R>)>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Leader<C: Content> {
    followers: BTreeMap<VoterId, Follower>,
    pub(super) queue: VecDeque<(CommandId, C::Command)>,
    /// Commands of the entry that is on its way; `Some`: refused.
    batch: Answers<C::Refused>,
    /// Commands that changed nothing, answered once this round confirms that this leader still is one.
    confirming: Vec<(u64, Answers<C::Refused>)>,
    round: u64,
    /// Of its own: what commands cause in between does not put it off, nor thus CheckQuorum.
    pub(super) next_beat: Time,
}

impl<C: Content> Leader<C> {
    #[cfg(feature = "mutations")]
    pub(super) fn without_rounds(&mut self) {
        self.round = 0;
        for follower in self.followers.values_mut() {
            follower.round = 0;
        }
    }

    /// It is over: what is on its way may happen or not, what waits will not.
    pub(super) fn give_up(self, out: &mut Vec<Action<C>>) {
        let open = self.batch.into_iter();
        let open = open.chain(self.confirming.into_iter().flat_map(|(_, answers)| answers));
        for (id, _) in open {
            let decision = Decision::Undecided;
            out.push(Action::Answer { id, decision });
        }
        for (id, _) in self.queue {
            let decision = Decision::NotLeader { leader: None };
            out.push(Action::Answer { id, decision });
        }
    }
}

impl<C: Content> Consensus<C> {
    /// The election is won: the document is stamped anew before anything else, so that only entries of
    /// this term are ever sent or counted.
    pub(super) fn lead(&mut self, now: Time, out: &mut Vec<Action<C>>) {
        let content = self.promise.entry.content.clone();
        self.lead_with(now, content, out);
    }

    /// The same with this document.
    pub(super) fn lead_with(&mut self, now: Time, content: C, out: &mut Vec<Action<C>>) {
        self.role = Role::Leader(Box::new(Leader {
            followers: BTreeMap::new(),
            queue: VecDeque::new(),
            batch: Vec::new(),
            confirming: Vec::new(),
            round: 0,
            next_beat: now.plus_ms(self.settings.beat_ms),
        }));
        self.set_leader(Some(self.me), out);
        if !mutated(Mutation::OldEntryCommitted) {
            self.next_entry(now, content, out);
        } else {
            self.meet_followers(now);
            self.beat(now, out);
        }
    }

    fn next_entry(&mut self, now: Time, content: C, out: &mut Vec<Action<C>>) {
        self.promise.entry = Entry {
            at: Position {
                term: self.promise.term,
                index: self.promise.entry.at.index + 1,
            },
            content,
        };
        self.committed = false;
        self.save(out);
        self.meet_followers(now);
        self.beat(now, out);
        self.check_committed(now, out);
    }

    /// Keeps a follower for every other voter of the stored document.
    fn meet_followers(&mut self, now: Time) {
        let voters = self.promise.entry.content.voters();
        let me = self.me.id;
        if let Role::Leader(leader) = &mut self.role {
            let is_voter = |id: &VoterId| voters.iter().any(|voter| voter.id == *id);
            leader.followers.retain(|id, _| is_voter(id));
            for voter in voters.iter().filter(|voter| voter.id != me) {
                leader.followers.entry(voter.id).or_insert(Follower {
                    node: voter.node,
                    stored: Position::default(),
                    heard: now,
                    sent: None,
                    round: 0,
                });
            }
        }
    }

    pub(super) fn tick_leader(&mut self, now: Time, out: &mut Vec<Action<C>>) {
        let Role::Leader(leader) = &self.role else {
            return;
        };
        if now < leader.next_beat {
            return;
        }
        // CheckQuorum: a leader that hears no majority is none.
        let limit = 2 * self.settings.election_ms;
        let heard = |id: VoterId| {
            id == self.me.id
                || leader
                    .followers
                    .get(&id)
                    .is_some_and(|follower| now.ms_since(follower.heard) <= limit)
        };
        if !self.is_majority(heard) {
            self.follow(now, out);
            return;
        }
        if let Role::Leader(leader) = &mut self.role {
            leader.next_beat = now.plus_ms(self.settings.beat_ms);
        }
        self.beat(now, out);
    }

    /// To every voter: the entry where it lacks it, else that the leader lives.
    fn beat(&mut self, now: Time, out: &mut Vec<Action<C>>) {
        let again_ms = 2 * self.settings.beat_ms;
        let entry = self.promise.entry.clone();
        let committed = self.committed.then_some(entry.at);
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        leader.round += 1;
        let round = leader.round;
        let mut messages = Vec::new();
        for (&id, follower) in &mut leader.followers {
            let on_its_way = follower
                .sent
                .is_some_and(|(at, when)| at == entry.at && now.ms_since(when) < again_ms);
            let to = Voter {
                node: follower.node,
                id,
            };
            let message = if follower.stored == entry.at || on_its_way {
                Message::Beat { committed, round }
            } else {
                follower.sent = Some((entry.at, now));
                Message::Entry {
                    entry: entry.clone(),
                    round,
                }
            };
            messages.push((to, message));
        }
        for (to, message) in messages {
            self.send(to, message, self.persist_vote, out);
        }
    }

    /// A voter has said what it stores.
    pub(super) fn stored(
        &mut self,
        now: Time,
        from: VoterId,
        at: Position,
        round: u64,
        out: &mut Vec<Action<C>>,
    ) {
        let newest = self.promise.entry.at;
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(follower) = leader.followers.get_mut(&from) else {
            return;
        };
        follower.heard = now;
        follower.round = follower.round.max(round);
        if follower.stored < at {
            follower.stored = at;
        }
        let lacks = follower.stored != newest && follower.sent.is_none_or(|(at, _)| at != newest);
        if lacks {
            self.beat(now, out);
        }
        self.check_committed(now, out);
    }

    /// Commits the entry once a majority stores it, answers, and takes up the next commands.
    pub(super) fn check_committed(&mut self, now: Time, out: &mut Vec<Action<C>>) {
        let at = self.promise.entry.at;
        let own = self.persisted >= self.persist;
        let Role::Leader(leader) = &self.role else {
            return;
        };
        let stores = |id: VoterId| {
            if id == self.me.id {
                own
            } else {
                let follower = leader.followers.get(&id);
                follower.is_some_and(|follower| follower.stored == at)
            }
        };
        if !self.committed && self.is_majority(stores) {
            self.commit(out);
            self.beat(now, out);
            if let Role::Leader(leader) = &mut self.role {
                answer(std::mem::take(&mut leader.batch), out);
            }
            if !self.votes() {
                // Its own removal is committed.
                self.follow(now, out);
                return;
            }
            self.take_commands(now, out);
        }
        self.check_confirmed(out);
    }

    /// Answers what waited for a round that a majority has answered by now.
    fn check_confirmed(&mut self, out: &mut Vec<Action<C>>) {
        let Role::Leader(leader) = &self.role else {
            return;
        };
        let Some((first, _)) = leader.confirming.first() else {
            return;
        };
        let round = *first;
        let confirms = |id: VoterId| {
            id == self.me.id
                || leader
                    .followers
                    .get(&id)
                    .is_some_and(|follower| follower.round >= round)
        };
        if !self.is_majority(confirms) {
            return;
        }
        if let Role::Leader(leader) = &mut self.role {
            let (_, answers) = leader.confirming.remove(0);
            answer(answers, out);
            self.check_confirmed(out);
        }
    }

    /// Makes the next entry of the commands that wait, once the last one is committed.
    pub(super) fn take_commands(&mut self, now: Time, out: &mut Vec<Action<C>>) {
        if !self.committed && !mutated(Mutation::TwoVoterChanges) {
            return;
        }
        let before = self.promise.entry.content.clone();
        let mut next = before.clone();
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let mut answers = Vec::new();
        while let Some((id, command)) = leader.queue.pop_front() {
            match next.apply(&command) {
                Ok(content) => {
                    next = content;
                    answers.push((id, None));
                }
                Err(refused) => answers.push((id, Some(refused))),
            }
            // One change of voters at a time.
            if next.voters() != before.voters() {
                break;
            }
        }
        if answers.is_empty() {
            return;
        }
        if next == before {
            let round = leader.round + 1;
            leader.confirming.push((round, answers));
            self.beat(now, out);
            self.check_confirmed(out);
            return;
        }
        leader.batch = answers;
        self.next_entry(now, next, out);
    }
}

fn answer<C: Content>(answers: Answers<C::Refused>, out: &mut Vec<Action<C>>) {
    for (id, refused) in answers {
        let decision = refused.map_or(Decision::Committed, Decision::Refused);
        out.push(Action::Answer { id, decision });
    }
}
