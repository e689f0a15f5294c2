//! Keeps the data plane in step with the document: attaches and creates this node's replicas,
//! declares their disks, hands records down and proposals up. It decides nothing about replication.

use crate::config::Config;
use crate::events::{Events, describe, describe_role};
use crate::plane::{AttachRequest, Attached, Plane, PlaneEvent, StorePlace};
use crate::users::Names;
use crate::view::{LocalClient, LocalResource, LocalView, reason};
use controller::core::{
    Backing, Command, Document, MetadataKind, Policy, Refused, Report, Resource,
};
use controller::runtime::{CommandError, FailoverHandle, StoreHandle};
use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use vocabulary::{ClusterId, DiskId, Generation, NodeId, Refusal, ResourceId};

/// A replica that can't be attached is tried again after this long, doubling.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// At most this long.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// What was not declared or attached yet is looked at this often.
const TICK: Duration = Duration::from_millis(250);
/// The data plane answers a status within this time or counts as busy.
const STATUS_LIMIT: Duration = Duration::from_millis(500);
/// A replica that is being closed gets this long to demote and flush.
const DETACH_LIMIT: Duration = Duration::from_secs(10);

/// This node's replicas.
#[derive(Debug)]
pub(crate) struct Resources {
    config: Arc<Config>,
    store: StoreHandle,
    failover: FailoverHandle,
    plane: Arc<dyn Plane>,
    events: Arc<Events>,
    replicas: Mutex<BTreeMap<ResourceId, Replica>>,
    /// The node stops: no replica is attached any more. Records go on down, because a primary
    /// learns from one that it is demoted.
    closing: AtomicBool,
}

#[derive(Debug)]
struct Replica {
    name: String,
    phase: Phase,
    /// The disk that was replaced, as far as it was seen to.
    replaced: Option<DiskId>,
    /// The newest record that was handed down.
    told: Generation,
    /// The policy that was, and the lease.
    policy: Option<(Policy, u32)>,
}

#[derive(Debug)]
enum Phase {
    Attaching,
    Attached {
        attached: Attached,
        /// A declaration is on its way.
        declaring: bool,
    },
    Failed {
        problem: String,
        again: Instant,
        wait: Duration,
    },
}

enum Done {
    Attach(ResourceId, Duration, Result<Attached, String>),
    Declare(ResourceId),
}

impl Resources {
    pub(crate) fn new(
        config: Arc<Config>,
        store: StoreHandle,
        failover: FailoverHandle,
        plane: Arc<dyn Plane>,
        events: Arc<Events>,
    ) -> Self {
        Self {
            config,
            store,
            failover,
            plane,
            events,
            replicas: Mutex::default(),
            closing: AtomicBool::new(false),
        }
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    fn replicas(&self) -> std::sync::MutexGuard<'_, BTreeMap<ResourceId, Replica>> {
        self.replicas
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    /// Runs until the data plane is gone.
    pub(crate) async fn run(self: Arc<Self>, mut from_plane: mpsc::UnboundedReceiver<PlaneEvent>) {
        let mut documents = self.store.subscribe();
        documents.mark_changed();
        let (done, mut finished) = mpsc::unbounded_channel();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = from_plane.recv() => match event {
                    Some(event) => self.on_plane(event),
                    None => return,
                },
                Some(done) = finished.recv() => self.on_done(done),
                changed = documents.changed() => if changed.is_err() { return },
                _ = ticks.tick() => {}
            }
            let document = documents.borrow_and_update().clone();
            if let Some(document) = document {
                self.follow(&document, &done);
            }
        }
    }

    /// Makes the data plane's replicas those of the document.
    fn follow(&self, document: &Document, done: &mpsc::UnboundedSender<Done>) {
        self.plane.nodes(&document.nodes);
        let mut replicas = self.replicas();
        let gone: Vec<ResourceId> = replicas
            .keys()
            .copied()
            .filter(|&id| {
                let resource = document.resource(id);
                resource.is_none_or(|resource| resource.replica(self.config.node).is_none())
            })
            .collect();
        for id in gone {
            if let Some(replica) = replicas.remove(&id) {
                let what = match document.resource(id) {
                    None => "the resource was deleted",
                    Some(_) => "this node's replica was removed",
                };
                let text = format!("{what}; its data stay where they are");
                self.events.push(Some(&replica.name), "deleted", text);
                // It closes in its own time; a resource of the same name is another one.
                drop(self.plane.detach(id, self.store.leaders()));
            }
        }
        for resource in &document.resources {
            let Some(placed) = resource.replica(self.config.node) else {
                continue;
            };
            let replica = replicas.entry(resource.id).or_insert_with(|| Replica {
                name: resource.name.to_string(),
                replaced: placed.replaced,
                phase: Phase::Failed {
                    problem: String::new(),
                    again: Instant::now(),
                    wait: Duration::ZERO,
                },
                told: Generation(0),
                policy: None,
            });
            if replica.replaced != placed.replaced && !matches!(replica.phase, Phase::Attaching) {
                replica.replaced = placed.replaced;
                self.give_up_disk(resource, replica);
            }
            match &mut replica.phase {
                Phase::Attaching => {}
                Phase::Failed { again, wait, .. }
                    if *again <= Instant::now() && !self.is_closing() =>
                {
                    let wait = (*wait * 2).clamp(RETRY_MIN, RETRY_MAX);
                    replica.phase = Phase::Attaching;
                    self.attach(resource, &document.former, wait, done.clone());
                }
                Phase::Failed { .. } => {}
                Phase::Attached {
                    attached,
                    declaring,
                } => {
                    if placed.report.map(|report| report.member) != Some(attached.member)
                        && !*declaring
                    {
                        *declaring = true;
                        self.declare(resource.id, *attached, done.clone());
                    }
                    // Before a record in which leases have another length.
                    let policy = (resource.policy, document.timings.lease_ms);
                    if replica.policy != Some(policy) {
                        replica.policy = Some(policy);
                        self.plane.policy(resource.id, policy.0, policy.1);
                    }
                    if let Some(record) = &resource.record
                        && record.generation > replica.told
                    {
                        replica.told = record.generation;
                        self.plane.record(record.clone());
                    }
                }
            }
        }
    }

    /// The replica's disk was replaced: it is let go, and the next attach makes another one.
    fn give_up_disk(&self, resource: &Resource, replica: &mut Replica) {
        if let Phase::Attached { attached, .. } = &replica.phase {
            if Some(attached.member.disk) != replica.replaced {
                return;
            }
            // It closes in its own time; its stores stay locked until then.
            drop(self.plane.detach(resource.id, self.store.leaders()));
        }
        self.events.push(
            Some(&replica.name),
            "disk-replaced",
            "the replica's disk was replaced; a new one is made".to_owned(),
        );
        replica.phase = Phase::Failed {
            problem: String::new(),
            again: Instant::now(),
            wait: Duration::ZERO,
        };
    }

    fn attach(
        &self,
        resource: &Resource,
        former: &[ClusterId],
        wait: Duration,
        done: mpsc::UnboundedSender<Done>,
    ) {
        let Some(placed) = resource.replica(self.config.node) else {
            return;
        };
        let directory = &self.config.file.data_directory;
        let volumes = placed
            .backing
            .iter()
            .zip(resource.sizes())
            .map(|(backing, &size_bytes)| place(directory, backing, size_bytes))
            .collect();
        let id = resource.id;
        let answer = self.plane.attach(AttachRequest {
            resource: id,
            name: resource.name.to_string(),
            former: former.to_vec(),
            volumes,
            create: placed.report.is_none(),
            replaced: placed.replaced,
        });
        tokio::spawn(async move {
            let result = match answer.await {
                Ok(result) => result,
                Err(_) => Err("the data plane has stopped".to_owned()),
            };
            // Nobody to tell: the node stops.
            let _ = done.send(Done::Attach(id, wait, result));
        });
    }

    fn declare(&self, id: ResourceId, attached: Attached, done: mpsc::UnboundedSender<Done>) {
        let store = self.store.clone();
        tokio::spawn(async move {
            let command = Command::Declare {
                resource: id,
                report: Report {
                    member: attached.member,
                    empty: attached.empty,
                },
            };
            match store.command(command).await {
                Ok(_) | Err(CommandError::Unreachable | CommandError::Undecided) => {}
                Err(CommandError::Refused(refused)) => {
                    tracing::warn!(%refused, "the replica's declaration was refused");
                }
            }
            // Tried again with the next tick where it did not get there: a pause between tries.
            tokio::time::sleep(TICK).await;
            let _ = done.send(Done::Declare(id));
        });
    }

    fn on_done(&self, done: Done) {
        let mut replicas = self.replicas();
        match done {
            Done::Attach(id, wait, result) => {
                let replica = replicas.get_mut(&id).filter(|_| !self.is_closing());
                let Some(replica) = replica else {
                    // Deleted meanwhile, or too late.
                    drop(self.plane.detach(id, self.store.leaders()));
                    return;
                };
                replica.phase = match result {
                    Ok(attached) => {
                        let text = format!(
                            "the replica is attached (disk {}, incarnation {})",
                            attached.member.disk, attached.member.incarnation
                        );
                        self.events.push(Some(&replica.name), "attached", text);
                        replica.told = Generation(0);
                        replica.policy = None;
                        Phase::Attached {
                            attached,
                            declaring: false,
                        }
                    }
                    Err(problem) => {
                        let text = format!("the replica can't be attached: {problem}");
                        self.events.push(Some(&replica.name), "attach-failed", text);
                        Phase::Failed {
                            problem,
                            again: Instant::now() + wait,
                            wait,
                        }
                    }
                };
            }
            Done::Declare(id) => {
                if let Some(Replica {
                    phase: Phase::Attached { declaring, .. },
                    ..
                }) = replicas.get_mut(&id)
                {
                    *declaring = false;
                }
            }
        }
    }

    fn node_name(&self, node: NodeId) -> String {
        match self.store.document() {
            Some(document) => document.node_name(node),
            None => format!("node {node}"),
        }
    }

    fn tell(&self, resource: ResourceId, event: &str, text: String) {
        let name = self.replicas().get(&resource).map(|r| r.name.clone());
        self.events.push(name.as_deref(), event, text);
    }

    fn on_plane(&self, event: PlaneEvent) {
        match event {
            PlaneEvent::Propose {
                resource,
                based_on,
                change,
            } => {
                let (store, plane) = (self.store.clone(), Arc::clone(&self.plane));
                tokio::spawn(async move {
                    match store.propose(resource, based_on, change).await {
                        // The committed record comes by the subscription; without a decision the
                        // core proposes again.
                        Ok(_) | Err(CommandError::Unreachable | CommandError::Undecided) => {}
                        Err(CommandError::Refused(refused)) => {
                            let refusal = match refused {
                                Refused::Record(refusal) => refusal,
                                _ => Refusal::NoResource { resource },
                            };
                            plane.refused(resource, based_on, refusal);
                        }
                    }
                });
            }
            PlaneEvent::Role { resource, action } => {
                let described = describe_role(&action, |node| self.node_name(node));
                if let Some((event, text)) = described {
                    self.tell(resource, event, text);
                }
            }
            PlaneEvent::Notice { resource, notice } => {
                let (event, text) = describe(&notice, |node| self.node_name(node));
                self.tell(resource, event, text);
            }
        }
    }

    /// What this node knows. Always answers, also while the data plane is busy.
    pub(crate) async fn view(&self) -> LocalView {
        // The inner `None`: attached.
        let replicas: Vec<(ResourceId, String, Option<LocalResource>)> = self
            .replicas()
            .iter()
            .map(|(&id, replica)| {
                let apart = match &replica.phase {
                    Phase::Attaching => Some(LocalResource::attaching()),
                    // Not tried yet.
                    Phase::Failed { problem, .. } if problem.is_empty() => {
                        Some(LocalResource::attaching())
                    }
                    Phase::Failed { problem, .. } => Some(LocalResource::detached(problem.clone())),
                    Phase::Attached { .. } => None,
                };
                (id, replica.name.clone(), apart)
            })
            .collect();
        let document = self.store.document();
        let mut clients = self.plane.clients();
        let mut found = Vec::new();
        for (id, name, apart) in replicas {
            let mut local = match apart {
                Some(apart) => apart,
                None => match timeout(STATUS_LIMIT, self.plane.status(id)).await {
                    Ok(Ok(status)) => LocalResource::from(&status),
                    Ok(Err(_)) => LocalResource::detached("the replica was closed".to_owned()),
                    Err(_) => LocalResource::detached("the data plane does not answer".to_owned()),
                },
            };
            if let (Some(document), Some(waiting)) = (&document, self.failover.waiting(id).await) {
                local.reason = Some(reason(&waiting, document));
            }
            found.push((id, name, local));
        }
        // Asked before the states, so answered before them.
        let clients = clients.try_recv().unwrap_or_default();
        let names = Names::of(&clients);
        let mut view = LocalView::default();
        for (id, name, mut local) in found {
            let own = clients.iter().filter(|client| client.target.resource == id);
            local.clients = own
                .map(|client| LocalClient {
                    volume: client.target.volume.0,
                    who: names.name(client.address),
                })
                .collect();
            view.resources.insert(name, local);
        }
        view
    }

    /// Why this node's replica is not attached; `None` where it is, or where it has none.
    pub(crate) fn problem(&self, id: ResourceId) -> Option<String> {
        match &self.replicas().get(&id)?.phase {
            Phase::Failed { problem, .. } => Some(problem.clone()),
            Phase::Attaching => Some("it is being attached".to_owned()),
            Phase::Attached { .. } => None,
        }
    }

    /// Closes all replicas in order, within a limit.
    pub(crate) async fn close(&self) {
        let closing: Vec<_> = {
            self.closing.store(true, Ordering::Relaxed);
            let replicas = self.replicas();
            replicas
                .keys()
                .map(|&id| self.plane.detach(id, self.store.leaders()))
                .collect()
        };
        let all = async {
            for closed in closing {
                // An error: it was not attached.
                let _ = closed.await;
            }
        };
        if timeout(DETACH_LIMIT, all).await.is_err() {
            tracing::warn!("not every replica could be closed in order; they recover at the start");
        }
    }
}

/// Where a volume's store and metadata lie on this node: a relative path is taken from the data
/// directory, metadata of files lie beside them and of block devices at their end.
fn place(directory: &Path, backing: &Backing, size_bytes: u64) -> StorePlace {
    let path = directory.join(&backing.path);
    let beside = || {
        let mut name = path.clone().into_os_string();
        name.push(".meta");
        Some(name.into())
    };
    let metadata = match &backing.metadata {
        MetadataKind::Internal => None,
        MetadataKind::External { path: Some(path) } => Some(directory.join(path)),
        MetadataKind::External { path: None } => beside(),
        MetadataKind::Default => {
            let device = std::fs::metadata(&path).is_ok_and(|m| m.file_type().is_block_device());
            if device { None } else { beside() }
        }
    };
    StorePlace {
        path,
        metadata,
        size_bytes,
    }
}
