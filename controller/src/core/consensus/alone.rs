//! The one thing that is decided without a majority (RULES section 3): of two voters one is switched off
//! for certain, and the other one goes on alone.

use super::*;

/// Why a voter does not go on alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAlone {
    /// The voters are others than this one and the one that was fenced.
    #[error("the voters are others than this node and the one that was fenced")]
    OtherVoters,
    /// What the others have decided since this voter started is not known to it.
    #[error(
        "this node has not been brought up to date since its start: it may lack what the other one decided alone"
    )]
    NotCurrent,
}

impl<C: Content> Consensus<C> {
    /// Has it, since its start, heard a leader of the present voters confirm what it stores?
    #[must_use]
    pub const fn is_current(&self) -> bool {
        self.current
    }

    /// May it go on alone once this voter is switched off for certain?
    ///
    /// # Errors
    /// Says why not.
    pub fn may_go_on_without(&self, fenced: VoterId) -> Result<(), NotAlone> {
        let voters = self.promise.entry.content.voters();
        let both = voters.len() == 2
            && self.votes()
            && voters.iter().any(|voter| voter.id == fenced)
            && fenced != self.me.id;
        if !both {
            return Err(NotAlone::OtherVoters);
        }
        if !self.current && !mutated(Mutation::BootingNodeFences) {
            return Err(NotAlone::NotCurrent);
        }
        Ok(())
    }

    /// The voter is switched off for certain: its removal is stored in a new term, and from then on this
    /// one is the majority. `removal` is the command that takes it out.
    pub(super) fn go_on_without(
        &mut self,
        now: Time,
        fenced: VoterId,
        removal: &C::Command,
        out: &mut Vec<Action<C>>,
    ) {
        if self.may_go_on_without(fenced).is_err() {
            return;
        }
        let Ok(content) = self.promise.entry.content.apply(removal) else {
            return;
        };
        if content.voters() != [self.me] {
            return;
        }
        self.follow(now, out);
        self.adopt(Term(self.promise.term.0 + 1), Some(self.me.id), out);
        self.lead_with(now, content, out);
    }
}
