//! Deliberate faults: each breaks one rule, and a test shows that the simulator notices
//! (RULES section 5). Compiled in only with the feature `mutations`, which no shipped build has.

/// A fault that can be switched on for the present thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Mutation {
    /// A client is answered when its write is on the local disk.
    AckBeforeReplicas,
    /// A client is answered while the eviction of a member that lacks the write is only proposed.
    AckWhileEvictProposed,
    /// An undecided admit is forgotten when the session breaks.
    LargerSetDroppedOnTimeout,
    /// A target is admitted without a flush.
    AdmitWithoutFlush,
    /// A target is admitted without the bits for third replicas.
    AdmitWithoutHandOver,
    /// A restarted process goes on as primary.
    ResumePrimaryship,
    /// A primary that proposed to demote goes on serving.
    ServeAfterDemote,
    /// The epoch is not stored before it is acted in.
    PromiseNotPersisted,
    /// A machine's reset keeps the disk's incarnation.
    RebootKeepsIncarnation,
    /// Acknowledgements of a new incarnation count for old writes.
    NewIncarnationCounts,
    /// A resync copy does not lock its range.
    CopyWithoutLock,
    /// A write does not wait for reads of its range.
    WriteDoesNotWaitForReads,
    /// A new session begins while the disk still works for the old one.
    NoDrain,
    /// A bit is cleared although the block was written again.
    BitClearedByOlderVersion,
    /// Only the primary marks what an absent replica lacks.
    BitsOnlyOnPrimary,
    /// A release notice counts as stable everywhere.
    ReleaseWithoutNames,
    /// Copies do not enter the target's window.
    CopiesOutsideWindow,
    /// After a restart the activity log is not taken as the window.
    LogNotWindow,
    /// An extent leaves the activity log before its bitmap pages are on disk.
    ExtentLeavesBeforeBits,
    /// A new primary does not reconcile.
    NoReconcile,
    /// What a returning replica's own window holds is not copied.
    RejoinWithoutOwnLog,
    /// A failed flush is tried again and counts when the second try succeeds.
    FlushRetried,
    /// Force does not set all bits.
    ForceWithoutBits,
    /// Only one copy of a promise is written.
    OneCopyUsed,
    /// A write that is sent again is executed again.
    ResentExecutedTwice,
    /// What was sent before the history changed is sent again.
    SessionSurvivesHistory,
    /// A write or flush is answered without a lease.
    WriteWithoutLease,
    /// A replica that is required and not admitted yet need not grant the lease.
    LeaseOverInSyncOnly,
    /// A read is answered when there was a lease as it came.
    LeaseCheckedBeforeRead,
    /// A new primary serves while an earlier one may still answer.
    ServeWithoutWord,
    /// The bits for a replica that was removed are kept, and taken up again when it comes back.
    RemovedKeepsItsBits,
    /// What an admitted replica knew of one that lacks everything is kept.
    HandOverKeepsOldBits,
    /// Requests are taken while others that were given up are still under way.
    GivenUpNotAwaited,
    /// A write of zeroes that is no longer than a piece counts as one write, wherever it lies.
    PiecesByLengthOnly,
}

impl Mutation {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::AckBeforeReplicas,
        Self::AckWhileEvictProposed,
        Self::LargerSetDroppedOnTimeout,
        Self::AdmitWithoutFlush,
        Self::AdmitWithoutHandOver,
        Self::ResumePrimaryship,
        Self::ServeAfterDemote,
        Self::PromiseNotPersisted,
        Self::RebootKeepsIncarnation,
        Self::NewIncarnationCounts,
        Self::CopyWithoutLock,
        Self::WriteDoesNotWaitForReads,
        Self::NoDrain,
        Self::BitClearedByOlderVersion,
        Self::BitsOnlyOnPrimary,
        Self::ReleaseWithoutNames,
        Self::CopiesOutsideWindow,
        Self::LogNotWindow,
        Self::ExtentLeavesBeforeBits,
        Self::NoReconcile,
        Self::RejoinWithoutOwnLog,
        Self::FlushRetried,
        Self::ForceWithoutBits,
        Self::OneCopyUsed,
        Self::ResentExecutedTwice,
        Self::SessionSurvivesHistory,
        Self::WriteWithoutLease,
        Self::LeaseOverInSyncOnly,
        Self::LeaseCheckedBeforeRead,
        Self::ServeWithoutWord,
        Self::RemovedKeepsItsBits,
        Self::HandOverKeepsOldBits,
        Self::GivenUpNotAwaited,
        Self::PiecesByLengthOnly,
    ];
}

#[cfg(feature = "mutations")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Mutation>> = const { std::cell::Cell::new(None) };
}

/// Switches a fault on for this thread, or all off.
#[cfg(feature = "mutations")]
pub fn activate(mutation: Option<Mutation>) {
    ACTIVE.set(mutation);
}

#[cfg(feature = "mutations")]
pub(crate) fn mutated(mutation: Mutation) -> bool {
    ACTIVE.get() == Some(mutation)
}

#[cfg(not(feature = "mutations"))]
pub(crate) const fn mutated(_: Mutation) -> bool {
    false
}
