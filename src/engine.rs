//! The engine as the controller's fail-over sees it: promotions and leases go to the data plane, the
//! state of its replicas comes back. Runs in the beacons' thread and in the data plane's: it only
//! passes on.

use controller::core::failover::{Action, Local};
use controller::runtime::{Engine, FailoverHandle};
use replicator::core::api::Command;
use replicator::runtime::plane::PlaneHandle;
use std::sync::{Arc, OnceLock};
use vocabulary::ResourceId;

/// Where the controller's fail-over is told of replicas, once it is there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tell(Arc<OnceLock<FailoverHandle>>);

impl Tell {
    /// The controller has started.
    pub(crate) fn begin(&self, failover: FailoverHandle) {
        // Once a process.
        let _ = self.0.set(failover);
    }

    /// This is the replica now; `None`: it is not attached.
    pub(crate) fn replica(&self, resource: ResourceId, local: Option<Local>) {
        if let Some(failover) = self.0.get() {
            failover.replica(resource, local);
        }
    }

    fn promotion_ended(&self, resource: ResourceId) {
        if let Some(failover) = self.0.get() {
            failover.promotion_ended(resource);
        }
    }
}

/// The data plane behind [`Engine`].
#[derive(Debug)]
pub(crate) struct PlaneEngine {
    pub(crate) handle: PlaneHandle,
    pub(crate) tell: Tell,
}

impl Engine for PlaneEngine {
    fn act(&self, action: Action) {
        match action {
            Action::Promote {
                resource,
                drop,
                over,
            } => {
                tracing::info!(%resource, ?drop, "this node stands in as primary");
                let tell = self.tell.clone();
                let ended = move |result: Result<(), replicator::runtime::plane::PlaneError>| {
                    if let Err(error) = result {
                        tracing::info!(%resource, %error, "the promotion has come to nothing");
                    }
                    tell.promotion_ended(resource);
                };
                self.handle
                    .command(resource, Command::Promote { drop, over }, Box::new(ended));
            }
            Action::Demote { resource } => {
                let ended = move |result: Result<(), replicator::runtime::plane::PlaneError>| {
                    if let Err(error) = result {
                        tracing::warn!(%resource, %error, "the demotion has come to nothing");
                    }
                };
                self.handle
                    .command(resource, Command::Demote, Box::new(ended));
            }
            Action::Granted { .. }
            | Action::Serve { .. }
            | Action::Send(..)
            | Action::Fence { .. } => {}
        }
    }

    fn turns(&self) -> bool {
        true
    }
}
