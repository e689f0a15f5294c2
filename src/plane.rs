//! The data plane as the rest of the node sees it. Answers come through channels, since the data
//! plane lives on a thread of its own and never waits for anybody.

use controller::core::failover::Action;
use controller::core::{Node, Policy};
use replicator::core::api::{Command, CommandError, Notice};
use replicator::core::status::Status;
use replicator::runtime::client::OpenClient;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use vocabulary::{
    Change, ClusterId, DiskId, Generation, Member, NodeId, Record, Refusal, ResourceId,
};

/// Who leads the configuration store, as it changes; `None` while a majority is missing.
pub(crate) type Leader = watch::Receiver<Option<NodeId>>;

/// Ends when there was no leader for so long: nothing can be recorded for want of a majority.
pub(crate) async fn no_majority(mut leader: Leader, limit: Duration) {
    loop {
        // Errors: the controller has ended.
        if leader.wait_for(Option::is_none).await.is_err() {
            return;
        }
        let found = timeout(limit, leader.wait_for(Option::is_some));
        if !matches!(found.await, Ok(Ok(_))) {
            return;
        }
    }
}

/// Where a volume's store and its metadata lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StorePlace {
    pub(crate) path: PathBuf,
    /// `None`: at the end of the store.
    pub(crate) metadata: Option<PathBuf>,
    pub(crate) size_bytes: u64,
}

/// A replica to attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AttachRequest {
    pub(crate) resource: ResourceId,
    pub(crate) name: String,
    /// What the cluster was before it was recovered: stores of theirs are taken.
    pub(crate) former: Vec<ClusterId>,
    pub(crate) volumes: Vec<StorePlace>,
    /// Stores may be created: the document has never seen this replica.
    pub(crate) create: bool,
    /// The disk that was replaced: another has to be there.
    pub(crate) replaced: Option<DiskId>,
}

/// A replica that is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attached {
    /// Its disk and present incarnation.
    pub(crate) member: Member,
    /// Lockstep created the stores and they read as zeroes.
    pub(crate) empty: bool,
}

/// What comes from the data plane by itself.
#[derive(Clone, Debug)]
pub(crate) enum PlaneEvent {
    /// A change for the configuration store.
    Propose {
        resource: ResourceId,
        based_on: Generation,
        change: Change,
    },
    /// This node's controller has decided about a role.
    Role {
        resource: ResourceId,
        action: Action,
    },
    /// For operators.
    Notice {
        resource: ResourceId,
        notice: Notice,
    },
}

/// Why a resource was not handed over.
#[derive(Debug)]
pub(crate) enum NotHandedOver {
    /// These have it open.
    InUse(Vec<OpenClient>),
    /// The engine's reason.
    Command(CommandError),
}

/// The data plane.
pub(crate) trait Plane: Send + Sync + std::fmt::Debug {
    /// Opens (or creates) the replica's stores and begins to take part. The error is for people.
    fn attach(&self, request: AttachRequest) -> oneshot::Receiver<Result<Attached, String>>;

    /// Closes a replica in order: no more service, sessions closed, stores marked closed.
    /// A primary demotes before, unless `leader` shows that nobody can record it.
    fn detach(&self, resource: ResourceId, leader: Leader) -> oneshot::Receiver<()>;

    /// How an attached resource is used, and how long a lease is, from now on.
    fn policy(&self, resource: ResourceId, policy: Policy, lease_ms: u32);

    /// The cluster's nodes and where they are.
    fn nodes(&self, nodes: &[Node]);

    /// A record is known to be committed.
    fn record(&self, record: Record);

    /// The store refused a proposal for good.
    fn refused(&self, resource: ResourceId, based_on: Generation, refusal: Refusal);

    /// Carries out a command; a receiver that fails means that the replica is not attached.
    fn command(
        &self,
        resource: ResourceId,
        command: Command,
    ) -> oneshot::Receiver<Result<(), CommandError>>;

    /// Demotes in favour of another node unless clients have the resource open here; a receiver that
    /// fails means that the replica is not attached.
    fn hand_over(
        &self,
        resource: ResourceId,
        to: NodeId,
    ) -> oneshot::Receiver<Result<(), NotHandedOver>>;

    /// Clients of all resources; a receiver that fails means that the data plane has stopped.
    fn clients(&self) -> oneshot::Receiver<Vec<OpenClient>>;

    /// The replica's state; a receiver that fails means that it is not attached.
    fn status(&self, resource: ResourceId) -> oneshot::Receiver<Status>;
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_majority_is_missing_once_there_was_no_leader_for_a_while() {
        let (tell, leader) = watch::channel(NodeId::new(1));
        let led = timeout(SHORT, no_majority(leader.clone(), Duration::ZERO));
        assert!(led.await.is_err(), "there is a leader");

        tell.send_replace(None);
        let not_led = timeout(LONG, no_majority(leader.clone(), SHORT));
        assert!(not_led.await.is_ok(), "there was none for long");
        let election = timeout(SHORT, no_majority(leader.clone(), LONG));
        assert!(election.await.is_err(), "there was none for a moment");

        drop(tell);
        assert!(timeout(LONG, no_majority(leader, LONG)).await.is_ok());
    }
}
