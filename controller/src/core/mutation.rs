//! Deliberate faults of the controller's cores: each breaks one rule, and a test shows that a check
//! notices (RULES section 5). Compiled in only with the feature `mutations`, which no shipped build
//! has.

/// A fault that can be switched on for the present thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Mutation {
    /// A voter answers before its promise is durable.
    AnswerBeforePersist,
    /// A commit notice is matched by the index alone.
    NoticeByIndexOnly,
    /// An entry at a lower place replaces a higher one.
    LowerEntryAccepted,
    /// A leader sends its entry of an older term as it is, and counts it as committed.
    OldEntryCommitted,
    /// A change of voters is sent before the last one is committed.
    TwoVoterChanges,
    /// A voter whose state was lost votes under its old identity. A fault of whoever keeps the state, so
    /// checks commit it themselves.
    BlankVoterVotes,
    /// A lease counts from when the answer came.
    LeaseFromReceipt,
    /// A beacon that comes after this node's promotion is granted its lease, and this node serves at
    /// once.
    LateBeaconAcknowledged,
    /// A restarted node does not wait for leases that it may have granted before.
    NoGraceAfterRestart,
    /// Beacons go out although the data plane stands still.
    BeaconsDespiteDeadPlane,
    /// A node that was not brought up to date since its start fences and goes on alone.
    BootingNodeFences,
    /// A replica that is removed stays in the in-sync set.
    RemovedStaysInSync,
    /// The length of leases changes while there is a primary.
    LeaseChangesUnderAPrimary,
    /// A lease of another length than this node counts is granted.
    UnequalLeaseGranted,
}

impl Mutation {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::AnswerBeforePersist,
        Self::NoticeByIndexOnly,
        Self::LowerEntryAccepted,
        Self::OldEntryCommitted,
        Self::TwoVoterChanges,
        Self::BlankVoterVotes,
        Self::LeaseFromReceipt,
        Self::LateBeaconAcknowledged,
        Self::NoGraceAfterRestart,
        Self::BeaconsDespiteDeadPlane,
        Self::BootingNodeFences,
        Self::RemovedStaysInSync,
        Self::LeaseChangesUnderAPrimary,
        Self::UnequalLeaseGranted,
    ];
}

#[cfg(any(test, feature = "mutations"))]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Mutation>> = const { std::cell::Cell::new(None) };
}

/// Switches a fault on for this thread, or all off.
#[cfg(any(test, feature = "mutations"))]
pub fn activate(mutation: Option<Mutation>) {
    ACTIVE.set(mutation);
}

/// Is it on? For checks too, which commit those faults that are not the cores'.
#[cfg(any(test, feature = "mutations"))]
#[must_use]
pub fn mutated(mutation: Mutation) -> bool {
    ACTIVE.get() == Some(mutation)
}

/// This build has none.
#[cfg(not(any(test, feature = "mutations")))]
#[must_use]
pub const fn mutated(_: Mutation) -> bool {
    false
}
