//! The seam between the simulator and the core: what the simulator asks of a replica's state machine
//! and of its metadata. The production implementation is in [`crate::production`]; tests of the
//! simulator itself put small machines of their own here.

use crate::node::Volume;
use crate::payload::Stamps;
use replicator::core::api::{Action, Event, Settings};
use replicator::core::status::{Standing, Status};
use std::fmt::Debug;
use std::hash::Hasher;
use vocabulary::{
    ByteRange, ClusterId, DiskId, Epoch, Generation, HistoryId, Member, NodeId, NodeSet,
    ResourceId, Time, VolumeId,
};

/// One resource on one node.
pub trait Core: Debug {
    /// Hands in an event.
    fn handle(&mut self, now: Time, event: Event<Stamps>, out: &mut Vec<Action<Stamps>>);
    /// The time-out of [`Self::poll_timeout`] is due.
    fn handle_timeout(&mut self, now: Time, out: &mut Vec<Action<Stamps>>);
    /// When to call [`Self::handle_timeout`].
    fn poll_timeout(&self) -> Option<Time>;
    /// What an operator sees.
    fn status(&self, now: Time) -> Status;
    /// What leases and fail-over need to know of it.
    fn standing(&self) -> Standing;
    /// Up to when it answers with success, as things are (RULES 4).
    fn answers_until(&self) -> Time;
    /// Epoch and history of the newest record that it knows.
    fn known(&self) -> Option<(Epoch, HistoryId)>;
    /// Generation of the newest record known here (stands in every frame that it sends).
    fn generation(&self) -> Generation;
    /// Where the node may differ, as known here: its bits and the window (RULES 7).
    fn may_differ(&self, node: NodeId, volume: VolumeId) -> Vec<ByteRange>;
    /// Puts what decides its future into the hasher.
    fn fingerprint(&self, hasher: &mut dyn Hasher);
    /// The same machine once more, for the exploration.
    fn fork(&self) -> Box<dyn Core>;
}

impl Clone for Box<dyn Core> {
    fn clone(&self) -> Self {
        self.fork()
    }
}

/// A replica to be created.
#[derive(Clone, Debug)]
pub struct NewReplica {
    /// The cluster.
    pub cluster: ClusterId,
    /// The resource.
    pub resource: ResourceId,
    /// The node.
    pub node: NodeId,
    /// The disk's contents.
    pub disk: DiskId,
    /// Size of each volume in bytes.
    pub sizes: Vec<u64>,
    /// Every configured replica.
    pub replicas: NodeSet,
    /// Extents that the activity log holds.
    pub al_extents: u16,
    /// The machine's present boot.
    pub boot: u128,
    /// The stores are empty and the resource was never written: nothing needs copying.
    pub pristine: bool,
}

/// Who an attach expects to find.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// The cluster.
    pub cluster: ClusterId,
    /// The resource.
    pub resource: ResourceId,
    /// The node.
    pub node: NodeId,
    /// The machine's present boot.
    pub boot: u128,
    /// Limits and time-outs for the machine that starts.
    pub settings: Settings,
}

/// Metadata writes: volume, offset, bytes; in this order, each durable before the next.
pub type MetaWrites = Vec<(VolumeId, u64, Vec<u8>)>;

/// A replica whose metadata was read.
pub trait Attached: Debug {
    /// What must be written before [`Self::start`].
    fn writes(&self) -> MetaWrites;
    /// What the node declares to the configuration store.
    fn member(&self) -> Member;
    /// The state machine.
    fn start(self: Box<Self>, now: Time) -> Box<dyn Core>;
    /// The same once more, for the exploration.
    fn fork(&self) -> Box<dyn Attached>;
}

impl Clone for Box<dyn Attached> {
    fn clone(&self) -> Self {
        self.fork()
    }
}

/// The metadata does not make a replica any more: both copies of a superblock are bad, or something
/// in between is. In words, for the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityLost(pub String);

/// Makes replicas.
pub trait Factory: Debug {
    /// The metadata of a new replica.
    fn create(&self, new: &NewReplica) -> MetaWrites;
    /// Reads a replica's metadata, one area per volume.
    ///
    /// # Errors
    /// Where both copies of the superblock of a volume are bad or it is another replica's.
    fn attach(
        &self,
        areas: &[&Volume],
        expected: &Expected,
        now: Time,
    ) -> Result<Box<dyn Attached>, IdentityLost>;

    /// The epochs promised in the copies of a volume's superblock that can be read.
    fn promised(&self, volume: &Volume) -> Vec<Epoch>;
}
