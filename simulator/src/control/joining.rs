//! Nodes without a vote: they learn from others what is committed and who leads, and ask for a vote. One
//! whose voter's state was lost comes back as another voter (section 4); one that was fenced has lost
//! its vote, whatever its own old document says.

use super::*;
use controller::core::mutation::{Mutation, mutated};

/// How often a node looks after its vote, in ms.
const ROUNDS_MS: u64 = 150;
/// What was said of a leader holds for so long, in ms.
const SAID_MS: u64 = 500;

impl Seat {
    /// Its state has not been lost since it last got a vote.
    fn is_whole(&self) -> bool {
        self.copies.iter().any(Option::is_some)
    }

    /// The identity of a voter whose state was lost.
    pub(super) fn blank(&self, random: u64) -> VoterId {
        if mutated(Mutation::BlankVoterVotes) {
            self.voter
        } else {
            VoterId(random)
        }
    }
}

impl Mind {
    /// Has it a vote? Its stored document may be an old one, or one that was never committed.
    fn votes(&self) -> bool {
        let me = self.voter.me().id;
        let mut voters = self.known.iter().flat_map(|known| &known.voters);
        self.voter.votes() && (self.known.is_none() || voters.any(|voter| voter.id == me))
    }
}

impl World {
    /// May a voter's state be lost, without the loss of a majority of voters for good?
    pub(crate) fn can_forget(&self) -> bool {
        self.control.as_ref().is_some_and(|control| {
            let voters = &control.newest.voters;
            let there = |voter: &Voter| {
                let seat = control.seats.get(voter.node.index());
                seat.is_some_and(|seat| seat.voter == voter.id && seat.is_whole())
            };
            voters.len() >= 3 && voters.iter().all(there)
        })
    }

    /// The state of the node's voter is lost.
    pub(crate) fn forget(&mut self, id: NodeId) {
        if let Some(control) = &mut self.control {
            control.seats[id.index()].copies = [None, None];
        }
    }

    /// Who leads, as far as the node knows.
    pub(super) fn leader_known_to(&mut self, id: NodeId) -> Option<NodeId> {
        let now = self.now;
        let mind = self.mind(id)?;
        if mind.votes() {
            return mind.voter.leader();
        }
        let said = mind.said.filter(|(_, at)| now.ms_since(*at) < SAID_MS);
        said.map(|(leader, _)| leader)
    }

    /// Tells fail-over who leads and whether the voter is up to date, where that has changed.
    pub(super) fn tell_leader(&mut self, id: NodeId) {
        let leader = self.leader_known_to(id);
        let Some(mind) = self.mind(id) else { return };
        let current = mind.voter.is_current();
        let led = std::mem::replace(&mut mind.leader, leader);
        let was_current = std::mem::replace(&mut mind.current, current);
        if led != leader {
            self.pass(id, Lane::VoterToBeacons, Word::Leader(leader.is_some()));
        }
        if current && !was_current {
            self.pass(id, Lane::VoterToBeacons, Word::Current);
        }
    }

    /// Tells the others what is committed, and asks for one where this node has none.
    pub(super) fn rounds(&mut self, id: NodeId) {
        let process = self.node(id).process();
        self.after_us(
            ROUNDS_MS * 1000,
            Occurrence::Word(process, Box::new(Word::Rounds)),
        );
        self.tell_leader(id);
        let now = self.now;
        let Some(mind) = self.mind(id) else { return };
        let (me, leads) = (mind.voter.me(), mind.voter.leads());
        // An answer may be lost.
        let waits = |a: &Asked| matches!(a.origin, Origin::Vote) && now < a.until;
        let asks = mind.asked.values().any(waits);
        let Some(known) = mind.known.clone() else {
            return;
        };
        for node in known.nodes.iter().filter(|node| node.id != id) {
            self.post(id, node.id, Word::Told(id, leads, Rc::clone(&known)));
        }
        let present = known.voters.iter().find(|voter| voter.node == id);
        let command = match present {
            Some(voter) if voter.id == me.id => return,
            Some(voter) => Command::RemoveVoter { id: voter.id },
            None => Command::AddVoter { voter: me },
        };
        if !asks {
            self.ask(id, command, Origin::Vote);
        }
    }

    /// Another node says what is committed, and whether it leads.
    pub(super) fn told(&mut self, id: NodeId, from: NodeId, leads: bool, document: Rc<Document>) {
        let now = self.now;
        if let Some(mind) = self.mind(id) {
            match mind.said {
                _ if leads => mind.said = Some((from, now)),
                Some((leader, _)) if leader == from => mind.said = None,
                _ => {}
            }
        }
        self.learned(id, document);
        self.tell_leader(id);
    }
}
