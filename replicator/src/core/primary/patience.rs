//! How long clients wait for a primary that may not answer, because its lease is missing or a member's
//! loss can't be decided: for ever, or by `on_no_quorum = error` for a while. A write that was given up
//! stays under way among the replicas: it may still happen, as after any error.

use super::*;

impl<P: Payload> Primary<P> {
    /// The resource's terms are others.
    pub(crate) const fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Gives up what has waited for too long. From then on requests are refused at once, since what was
    /// given up still takes memory, until none of that is under way any more: so it can't overtake a
    /// later write either.
    pub(super) fn tick_patience(&mut self, cx: &mut Cx<'_, '_, P>) {
        let now = cx.now();
        let answers = now < self.answers_until() && self.waiting_for.is_empty();
        if answers || !self.settings.no_quorum_errors {
            let given_up =
                |(_, request): (usize, &Request<P>)| request.asked.origin == Origin::Nobody;
            self.refusing = self.refusing && self.requests.iter().any(given_up);
            return;
        }
        let since = now
            .0
            .saturating_sub(self.settings.no_primary_ms * 1_000_000);
        let late: Vec<usize> = self
            .requests
            .iter()
            .filter(|(_, request)| {
                request.since.0 <= since && request.asked.origin != Origin::Nobody
            })
            .map(|(key, _)| key)
            .collect();
        for key in late {
            self.refusing = !mutated(Mutation::GivenUpNotAwaited);
            self.give_up(cx, key);
        }
    }

    fn give_up(&mut self, cx: &mut Cx<'_, '_, P>, key: usize) {
        let error = Err(ClientError::Io);
        let done = self.lease.forget(key);
        let begun = self.requests[key].started;
        if done || !begun {
            self.gated.retain(|&gated| gated != key);
            return self.answer(cx, key, error);
        }
        let request = &mut self.requests[key];
        let asked = request.asked;
        request.asked.origin = Origin::Nobody;
        self.tell(cx, asked, error);
    }
}
