//! What the resource looks like from this node: the answer of `status`. It only looks.

use super::super::status::{
    DiskState, PeerStatus, ReplicationState, Role as RoleName, Standing, Status, VolumeStatus,
};
use super::*;
use crate::core::primary::{Link, Peer, Regions};

impl<P: Payload> Resource<P> {
    /// Up to when this node answers requests with success, as things are; for tests of RULES 4.
    #[must_use]
    pub fn answers_until(&self) -> Time {
        match &self.role {
            Role::Primary(primary) => primary.answers_until(),
            Role::Secondary(_) => Time(0),
        }
    }

    /// Where in a range the store's own word (what it has allocated) is not what clients would read, as
    /// things are: nothing of what it says counts there. `None`: nowhere does it count, because this
    /// node is not the primary or has no lease (RULES 4). To be asked after the store was.
    pub(crate) fn unsettled(
        &self,
        now: Time,
        volume: VolumeId,
        range: ByteRange,
    ) -> Option<Regions> {
        match &self.role {
            Role::Primary(primary) if now < primary.answers_until() && !self.local.failed() => {
                primary.unsettled(volume, range)
            }
            _ => None,
        }
    }

    /// Where in a range a configured replica may lack bytes, as far as the range was looked at. `None`:
    /// only the primary knows.
    pub(crate) fn out_of_sync(&self, volume: VolumeId, range: ByteRange) -> Option<Regions> {
        match (&self.role, &self.record) {
            (Role::Primary(primary), Some(record)) if volume.index() < self.local.volumes() => {
                Some(primary.out_of_sync(&self.local, record, volume, range))
            }
            _ => None,
        }
    }

    /// What leases and fail-over need to know of this replica. Cheap.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let (primary, required) = match &self.role {
            Role::Primary(p) if p.stage() != Stage::Demoting => (Some(p.epoch()), p.required()),
            _ => (None, NodeSet::EMPTY),
        };
        Standing {
            failed: self.local.failed(),
            primary,
            required,
        }
    }

    /// What the resource looks like from here. Always answers.
    #[must_use]
    pub fn status(&self, now: Time) -> Status {
        let me = self.identity.node;
        let record = self.record.as_ref();
        let in_sync = record.map_or(NodeSet::EMPTY, Record::members);
        let volumes = self
            .local
            .volume_ids()
            .map(|volume| VolumeStatus {
                volume,
                size_bytes: self
                    .volume_size(volume)
                    .unwrap_or_else(|| self.local.size(volume)),
                hot_extents: self.local.hot_extents(volume),
            })
            .collect();
        let (role, waiting_for, verify) = match &self.role {
            Role::Secondary(_) => (RoleName::Secondary, NodeSet::EMPTY, None),
            Role::Primary(primary) => {
                let role = match primary.stage() {
                    Stage::Promising | Stage::Gathering => RoleName::Starting,
                    Stage::Serving => RoleName::Primary,
                    Stage::Draining | Stage::Demoting => RoleName::Demoting,
                };
                (role, primary.waiting_for(), primary.verify_progress(now))
            }
        };
        Status {
            node: me,
            role,
            disk_state: self.own_disk_state(now),
            disk: self.identity.disk,
            incarnation: self.identity.incarnation,
            replication: self.own_replication(now),
            generation: record.map_or(Generation(0), |r| r.generation),
            epoch: record.map_or(Epoch(0), |r| r.epoch),
            primary: record.and_then(|r| r.primary),
            in_sync,
            volumes,
            peers: self.peer_status(now),
            waiting_for,
            verify,
        }
    }

    fn own_disk_state(&self, now: Time) -> DiskState {
        let me = self.identity;
        let member = self
            .record
            .as_ref()
            .and_then(|r| r.member(me.node))
            .is_some_and(|m| m.disk == me.disk && m.incarnation == me.incarnation);
        match &self.role {
            _ if self.local.failed() => DiskState::Failed,
            _ if member => DiskState::UpToDate,
            Role::Secondary(s) if s.copied_lately(now) => DiskState::Inconsistent,
            _ => DiskState::Outdated,
        }
    }

    fn own_replication(&self, now: Time) -> ReplicationState {
        match &self.role {
            Role::Secondary(s) if s.primary().is_none() => ReplicationState::Off,
            Role::Secondary(s) => {
                if self.own_disk_state(now) != DiskState::UpToDate {
                    ReplicationState::SyncTarget
                } else if s.digested_lately(now) {
                    ReplicationState::VerifyT
                } else {
                    ReplicationState::Established
                }
            }
            Role::Primary(p) => {
                if p.peers().any(|peer| peer.sync.is_some()) {
                    ReplicationState::SyncSource
                } else if p.verify_progress(now).is_some() {
                    ReplicationState::VerifyS
                } else {
                    ReplicationState::Established
                }
            }
        }
    }

    fn peer_status(&self, now: Time) -> Vec<PeerStatus> {
        let Some(record) = &self.record else {
            return Vec::new();
        };
        let others = record.replicas.without(self.identity.node);
        others
            .iter()
            .map(|node| {
                let peer = match &self.role {
                    Role::Primary(p) => p.peers().find(|peer| peer.node == node),
                    Role::Secondary(_) => None,
                };
                let member = record.member(node);
                let identity = peer.and_then(|p| p.identity);
                let sync = peer.and_then(|p| p.sync.as_ref());
                let is_member =
                    member.is_some() && (identity.is_none() || identity.as_ref() == member);
                let live = peer.is_some_and(Peer::is_live);
                let disk_state = match (is_member, live) {
                    (true, _) => DiskState::UpToDate,
                    (false, true) if sync.is_some() => DiskState::Inconsistent,
                    (false, true) => DiskState::Outdated,
                    (false, false) => DiskState::Unknown,
                };
                let replication = match peer.map(|p| &p.link) {
                    None | Some(Link::Down { .. }) => ReplicationState::Off,
                    Some(Link::Dialing | Link::Greeting(_)) => ReplicationState::Connecting,
                    Some(Link::Live(_)) if sync.is_some() => ReplicationState::SyncTarget,
                    Some(Link::Live(_)) => ReplicationState::Established,
                };
                let volumes = || self.local.volume_ids();
                PeerStatus {
                    node,
                    disk: identity
                        .map(|i| i.disk)
                        .or_else(|| self.local.bound_disk(node)),
                    disk_state,
                    replication,
                    out_of_sync_bytes: volumes()
                        .map(|volume| match sync {
                            Some(sync) => sync.left_of(volume),
                            None if is_member => 0,
                            None => self.local.marked_bytes(node, volume),
                        })
                        .collect(),
                    progress: volumes()
                        .map(|volume| sync.map(|s| s.progress(volume, now)))
                        .collect(),
                }
            })
            .collect()
    }
}
