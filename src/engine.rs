//! The engine as the controller's fail-over sees it: promotions and leases go to the data plane, the
//! state of its replicas comes back. Runs in the beacons' thread and in the data plane's: it only
//! passes on.

use crate::plane::PlaneEvent;
use controller::core::failover::{Action, Local};
use controller::runtime::{Engine, FailoverHandle};
use replicator::core::api::Command;
use replicator::core::status::Standing;
use replicator::runtime::plane::{PlaneError, PlaneHandle, Pulse, boot_time};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use tokio::sync::mpsc;
use vocabulary::{Member, ResourceId};

/// Where the controller's fail-over is told of replicas, once it is there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tell {
    failover: Arc<OnceLock<FailoverHandle>>,
    members: Arc<Mutex<BTreeMap<ResourceId, Member>>>,
}

impl Tell {
    /// The controller has started.
    pub(crate) fn begin(&self, failover: FailoverHandle) {
        // Once a process.
        let _ = self.failover.set(failover);
    }

    fn members(&self) -> std::sync::MutexGuard<'_, BTreeMap<ResourceId, Member>> {
        self.members
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    /// A replica is about to be driven: this is its disk.
    pub(crate) fn attached(&self, resource: ResourceId, member: Member) {
        self.members().insert(resource, member);
    }

    /// This is how it stands.
    pub(crate) fn standing(&self, resource: ResourceId, standing: Standing) {
        let Some(member) = self.members().get(&resource).copied() else {
            return;
        };
        self.replica(
            resource,
            Some(Local {
                member,
                failed: standing.failed,
                primary: standing.primary,
                required: standing.required,
            }),
        );
    }

    /// It is driven no more.
    pub(crate) fn detached(&self, resource: ResourceId) {
        self.members().remove(&resource);
        self.replica(resource, None);
    }

    fn replica(&self, resource: ResourceId, local: Option<Local>) {
        if let Some(failover) = self.failover.get() {
            failover.replica(resource, local);
        }
    }

    fn promotion_ended(&self, resource: ResourceId) {
        if let Some(failover) = self.failover.get() {
            failover.promotion_ended(resource);
        }
    }
}

/// The data plane behind [`Engine`].
#[derive(Debug)]
pub(crate) struct PlaneEngine {
    handle: PlaneHandle,
    pulse: Arc<Pulse>,
    tell: Tell,
    reports: mpsc::UnboundedSender<PlaneEvent>,
    /// The data plane stands still when it has not turned for so long, in ms.
    turn_limit_ms: u64,
    /// A disk request is overdue when it is that old, in ms.
    disk_limit_ms: u64,
}

impl PlaneEngine {
    pub(crate) fn new(
        handle: PlaneHandle,
        tell: Tell,
        reports: mpsc::UnboundedSender<PlaneEvent>,
        turn_limit_ms: u64,
        disk_limit_ms: u64,
    ) -> Self {
        Self {
            pulse: handle.pulse(),
            handle,
            tell,
            reports,
            turn_limit_ms,
            disk_limit_ms,
        }
    }
}

impl Engine for PlaneEngine {
    fn act(&self, action: Action) {
        if let Action::Promote { resource, .. } | Action::Demote { resource, .. } = action {
            let action = action.clone();
            // Nobody to tell: the node stops.
            let _ = self.reports.send(PlaneEvent::Role { resource, action });
        }
        match action {
            Action::Promote {
                resource,
                drop,
                over,
                ..
            } => {
                let tell = self.tell.clone();
                let ended = move |result: Result<(), PlaneError>| {
                    if let Err(error) = result {
                        tracing::info!(%resource, %error, "the promotion has come to nothing");
                    }
                    tell.promotion_ended(resource);
                };
                self.handle
                    .command(resource, Command::Promote { drop, over }, Box::new(ended));
            }
            Action::Demote { resource, .. } => {
                let ended = move |result: Result<(), PlaneError>| {
                    if let Err(error) = result {
                        tracing::warn!(%resource, %error, "the demotion has come to nothing");
                    }
                };
                self.handle
                    .command(resource, Command::Demote { to: None }, Box::new(ended));
            }
            Action::Granted {
                resource,
                node,
                epoch,
                sent,
            } => self.handle.granted(resource, node, epoch, sent),
            Action::Serve { resource, epoch } => self.handle.serve(resource, epoch),
            // The controller's own.
            Action::Send(..) | Action::Fence { .. } => {}
        }
    }

    fn turns(&self) -> bool {
        let now = boot_time();
        let oldest = self.pulse.oldest_request();
        now.ms_since(self.pulse.turned()) < self.turn_limit_ms
            && oldest.is_none_or(|since| now.ms_since(since) < self.disk_limit_ms)
    }
}
