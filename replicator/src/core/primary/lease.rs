//! The primary's lease (RULES 4): a request is answered with success only while every other replica in
//! *required* has acknowledged a beacon that was sent within the last lease interval, and nothing is
//! served before no earlier primary can answer any more. The beacons themselves are the controller's.
//!
//! A member that grants no lease holds all answers up, so it is evicted like one that was lost.

use super::*;

#[derive(Clone, Debug)]
pub(super) struct Lease<P> {
    /// When the newest beacon was sent that each replica acknowledged in this epoch.
    granted: BTreeMap<NodeId, Time>,
    /// *required* is what it is since then, as far as this process was running: the others get this
    /// long plus a lease before they are held responsible for its lack.
    since: Time,
    /// All of the others in *required* have granted it up to this moment.
    until: Time,
    /// No earlier primary can answer any more.
    pub(super) word: bool,
    /// Requests that are done and wait for a lease, with what they are answered.
    waiting: VecDeque<(usize, Option<P>)>,
}

impl<P> Lease<P> {
    pub(super) fn new(now: Time) -> Self {
        Self {
            granted: BTreeMap::new(),
            since: now,
            until: Time(u64::MAX),
            word: false,
            waiting: VecDeque::new(),
        }
    }

    /// Does the request wait for a lease? Then it does so no more.
    pub(super) fn forget(&mut self, key: usize) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|(waiting, _)| *waiting != key);
        self.waiting.len() < before
    }

    /// Up to when the replica has granted it.
    fn until_of(&self, node: NodeId, lease_ms: u64) -> Time {
        let sent = self.granted.get(&node);
        sent.map_or(Time(0), |sent| sent.plus_ms(lease_ms))
    }
}

impl<P: Payload> Primary<P> {
    /// The replica acknowledged a beacon of this epoch that was sent then.
    pub(crate) fn granted(&mut self, cx: &mut Cx<'_, '_, P>, node: NodeId, sent: Time) {
        if self.lease.granted.get(&node).is_some_and(|at| *at >= sent) {
            return;
        }
        self.lease.granted.insert(node, sent);
        self.changed = true;
        self.check_lease(cx);
    }

    /// No primary of an earlier epoch can answer any more.
    pub(crate) fn may_serve(&mut self) {
        self.lease.word = true;
        self.changed = true;
    }

    /// *required* is another: the lease is relative to it.
    pub(super) fn lease_over(&mut self, cx: &mut Cx<'_, '_, P>) {
        self.lease.since = cx.now();
        self.check_lease(cx);
    }

    /// Sets up to when the lease lasts, and answers what waited for it.
    fn check_lease(&mut self, cx: &mut Cx<'_, '_, P>) {
        let over = if mutated(Mutation::LeaseOverInSyncOnly) {
            cx.other_members()
        } else {
            self.required.without(self.node)
        };
        let lease_ms = self.settings.lease_ms;
        let until = over.iter().map(|node| self.lease.until_of(node, lease_ms));
        self.lease.until = until.min().unwrap_or(Time(u64::MAX));
        self.answer_waiting(cx);
    }

    pub(super) fn answer_waiting(&mut self, cx: &mut Cx<'_, '_, P>) {
        if self.lease.waiting.is_empty() || cx.now() >= self.lease.until {
            return;
        }
        for (key, data) in std::mem::take(&mut self.lease.waiting) {
            self.answer(cx, key, Ok(data));
        }
        // A drain may have waited for them.
        self.changed = true;
    }

    /// Answers a request that is done, or lets it wait for a lease. An error says nothing about the
    /// bytes and needs none.
    pub(super) fn reply(
        &mut self,
        cx: &mut Cx<'_, '_, P>,
        key: usize,
        result: Result<Option<P>, ClientError>,
    ) {
        match result {
            Ok(data) if !self.may_answer(cx, key) => self.lease.waiting.push_back((key, data)),
            result => self.answer(cx, key, result),
        }
    }

    fn may_answer(&self, cx: &Cx<'_, '_, P>, key: usize) -> bool {
        if cx.now() < self.lease.until {
            return true;
        }
        let read = |request: &Request<P>| matches!(request.body, Body::Read);
        let request = self.requests.get(key);
        mutated(Mutation::WriteWithoutLease) && request.is_some_and(|r| !read(r))
            || mutated(Mutation::LeaseCheckedBeforeRead)
                && request.is_some_and(|r| read(r) && r.since < self.lease.until)
    }

    /// What waits is answered otherwise: the primary stops.
    pub(super) fn forget_waiting(&mut self) {
        self.lease.waiting.clear();
    }

    /// Does this replica's lease last?
    pub(super) fn leased_by(&self, node: NodeId, now: Time) -> bool {
        now < self.lease.until_of(node, self.settings.lease_ms)
    }

    /// Since when this replica has owed a lease for longer than one lasts; `None`: it owes none, or the
    /// fault may be here, where no beacon is sent while the process stands still or a disk request is
    /// overdue.
    pub(super) fn lease_owed(&self, cx: &Cx<'_, '_, P>, node: NodeId) -> Option<Time> {
        let now = cx.now();
        let lease_ms = self.settings.lease_ms;
        let until = self.lease.until_of(node, lease_ms);
        if now < until.max(self.lease.since.plus_ms(lease_ms)) || self.stood_still(now) {
            return None;
        }
        let oldest = cx.local.oldest_request();
        let overdue = oldest.is_some_and(|since| now.ms_since(since) >= lease_ms / 2);
        (!overdue).then_some(until)
    }

    fn stood_still(&self, now: Time) -> bool {
        now.ms_since(self.last_tick) >= self.settings.lease_ms / 2
    }

    /// The clock has moved on. Silence that was this process's own is nobody's fault.
    pub(super) fn tick_lease(&mut self, now: Time) {
        if self.stood_still(now) {
            self.lease.since = now;
        }
        self.last_tick = now;
    }

    /// Up to when requests are answered with success, as things are.
    pub(crate) fn answers_until(&self) -> Time {
        match self.stage {
            Stage::Serving | Stage::Draining => self.lease.until,
            Stage::Promising | Stage::Gathering | Stage::Demoting => Time(0),
        }
    }

    /// The next moment at which somebody may owe a lease.
    pub(crate) fn lease_ends(&self) -> Time {
        self.lease
            .until
            .max(self.lease.since.plus_ms(self.settings.lease_ms))
    }
}
