//! The engine's data plane behind [`Plane`]: opens and creates stores, hands replicas over to the
//! ring thread, and carries answers and reports back.

use crate::config::Config;
use crate::engine::Tell;
use crate::nbd::tls::CurrentTls;
use crate::nbd::{self, ExportTable};
use crate::plane::{
    AttachRequest, Attached, Leader, NotHandedOver, Plane, PlaneEvent, StorePlace, no_majority,
};
use crate::secure::Credentials;
use crate::taken::once_free;
use anyhow::Context;
use controller::core::{Node, OnNoQuorum, Policy};
use replicator::core::Resource;
use replicator::core::api::{Access, Action, Command, CommandError, Event, Settings, Terms};
use replicator::core::attach::{self, AttachError, Expected, NewVolume, Source};
use replicator::core::status::{Role, Standing, Status};
use replicator::runtime::client::OpenClient;
use replicator::runtime::disk::places::Places;
use replicator::runtime::disk::{Disk, DiskConfig, MetaPlace, OpenError};
use replicator::runtime::peer::PeerAddress;
use replicator::runtime::plane::{
    Machine, NewResource, PlaneConfig, PlaneError, PlaneHandle, PlaneThread, Report, boot_time,
    start as start_thread,
};
use replicator::runtime::pool::PoolBuf;
use replicator::store::relocation;
use replicator::store::{
    DEFAULT_PEER_SLOTS, Layout, LayoutError, LogCapacity, METADATA_BLOCK_BYTES, MetaCopy,
    Placement, ReadAt,
};
use std::collections::BTreeMap;
use std::io;
use std::net::{TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use vocabulary::{
    ClusterId, DiskId, Epoch, Generation, Member, NodeId, Record, Refusal, ResourceId, Time,
    VolumeId,
};

/// A primary that is being closed gets this long to demote.
const DEMOTE_LIMIT: Duration = Duration::from_secs(5);
/// Less where the store has had no leader for so long, several elections: nobody can record that.
const NO_MAJORITY_LIMIT: Duration = Duration::from_secs(1);
/// Then this long to flush and mark its stores closed.
const CLOSE_LIMIT: Duration = Duration::from_secs(4);
/// Names of nodes are looked up anew this often.
const LOOK_UP_EVERY: Duration = Duration::from_secs(30);

/// Why a replica can't be attached.
#[derive(Debug, thiserror::Error)]
enum ReplicaError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{}: {source}", path.display())]
    Attach { path: PathBuf, source: AttachError },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Layout { path: PathBuf, source: LayoutError },
    #[error(
        "{} is gone: it was there before; put it back (is its file system mounted?)",
        path.display()
    )]
    Gone { path: PathBuf },
    #[error(
        "{} exists and is not an empty file of Lockstep's making; move it away or name another path",
        path.display()
    )]
    Occupied { path: PathBuf },
    #[error(
        "{} is too small: {found_bytes} bytes, and {needed_bytes} are needed with metadata",
        path.display()
    )]
    TooSmall {
        path: PathBuf,
        found_bytes: u64,
        needed_bytes: u64,
    },
    #[error(
        "{} is the disk that was replaced; name another path, or empty it (for a file: move it away)",
        path.display()
    )]
    Replaced { path: PathBuf },
    #[error("can't read the kernel's boot id: {0}")]
    BootId(io::Error),
    #[error(transparent)]
    Plane(#[from] PlaneError),
}

/// The core's resource as the data plane drives it.
#[derive(Debug)]
struct Driven(Resource<PoolBuf>);

impl Machine for Driven {
    fn handle(&mut self, now: Time, event: Event<PoolBuf>, out: &mut Vec<Action<PoolBuf>>) {
        self.0.handle(now, event, out);
    }

    fn handle_timeout(&mut self, now: Time, out: &mut Vec<Action<PoolBuf>>) {
        self.0.handle_timeout(now, out);
    }

    fn end_turn(&mut self, now: Time, out: &mut Vec<Action<PoolBuf>>) {
        self.0.end_turn(now, out);
    }

    fn poll_timeout(&self) -> Option<Time> {
        self.0.poll_timeout()
    }

    fn status(&self, now: Time) -> Status {
        self.0.status(now)
    }

    fn frame_context(&self) -> (Epoch, Generation) {
        self.0.frame_context()
    }

    fn record(&self) -> Option<&Record> {
        self.0.record()
    }

    fn takes_clients(&self) -> bool {
        self.0.takes_clients()
    }

    fn standing(&self) -> Standing {
        self.0.standing()
    }
}

/// The data plane of this node.
#[derive(Debug)]
pub(crate) struct DataPlane {
    config: Arc<Config>,
    handle: PlaneHandle,
    exports: ExportTable,
    tell: Tell,
    runtime: tokio::runtime::Handle,
    nodes: watch::Sender<Vec<Node>>,
}

/// A data plane and what comes from it. Dropping the thread ends it.
pub(crate) struct Started {
    pub(crate) thread: PlaneThread,
    pub(crate) plane: Arc<DataPlane>,
    /// What NBD is encrypted with.
    pub(crate) nbd_tls: Option<CurrentTls>,
    pub(crate) reports: mpsc::UnboundedReceiver<PlaneEvent>,
    /// For more of them.
    pub(crate) report: mpsc::UnboundedSender<PlaneEvent>,
}

/// Starts the data plane and its listeners. Called within the runtime that answers come to.
pub(crate) fn start(config: &Arc<Config>, tell: &Tell) -> anyhow::Result<Started> {
    let (up, reports) = mpsc::unbounded_channel();
    let report = up.clone();
    let exports = ExportTable::default();
    let table = exports.clone();
    let told = tell.clone();
    let sink = move |resource, report| {
        let event = match report {
            Report::Notice(notice) => PlaneEvent::Notice { resource, notice },
            Report::Propose { based_on, change } => PlaneEvent::Propose {
                resource,
                based_on,
                change,
            },
            Report::State {
                takes_clients,
                record,
                standing,
            } => {
                told.standing(resource, standing);
                return table.update(resource, takes_clients, record.as_ref());
            }
        };
        // Nobody listens any more: the node stops.
        let _ = up.send(event);
    };
    let mut settings = PlaneConfig::new(Box::new(sink));
    if config.file.secure_replication {
        settings.credentials = Some(Arc::new(Credentials(config.identity.peer_tls())));
    } else {
        tracing::warn!(
            "replication is not encrypted ([tls] replication = false): whoever reaches its port can read and write every disk"
        );
    }
    let thread = start_thread(settings)?;
    let handle = thread.handle();
    let nbd_tls = listen(config, &handle, &exports)?;
    let plane = Arc::new(DataPlane {
        config: Arc::clone(config),
        handle,
        exports,
        tell: tell.clone(),
        runtime: tokio::runtime::Handle::current(),
        nodes: watch::Sender::new(config.known_nodes.clone()),
    });
    tokio::spawn(keep_addresses(
        Arc::clone(config),
        plane.handle.clone(),
        plane.nodes.subscribe(),
    ));
    Ok(Started {
        thread,
        plane,
        nbd_tls,
        reports,
        report,
    })
}

pub(crate) fn bind(address: impl ToSocketAddrs) -> io::Result<TcpListener> {
    once_free(
        || TcpListener::bind(&address),
        |error| error.kind() == io::ErrorKind::AddrInUse,
    )
}

fn listen(
    config: &Config,
    handle: &PlaneHandle,
    exports: &ExportTable,
) -> anyhow::Result<Option<CurrentTls>> {
    for address in &config.file.replication.listen {
        let peers = bind(address)
            .with_context(|| format!("can't listen on {address} for the other nodes' replicas"))?;
        handle.listen_peers(OwnedFd::from(peers), config.cluster);
    }
    nbd::listen::start(&config.file, handle, exports)
}

impl Plane for DataPlane {
    fn attach(&self, request: AttachRequest) -> oneshot::Receiver<Result<Attached, String>> {
        let (answer, receiver) = oneshot::channel();
        let (config, handle) = (Arc::clone(&self.config), self.handle.clone());
        let (exports, tell) = (self.exports.clone(), self.tell.clone());
        self.runtime.spawn(async move {
            let (id, name) = (request.resource, request.name.clone());
            let opening = {
                let config = Arc::clone(&config);
                tokio::task::spawn_blocking(move || open_replica(&config, &request))
            };
            let result = match opening.await {
                Err(_) => Err("opening it failed for an internal reason".to_owned()),
                Ok(Err(error)) => Err(error.to_string()),
                Ok(Ok(replica)) => {
                    exports.add(id, &name);
                    tell.attached(id, replica.member(&config));
                    let added = add(&config, &handle, id, replica).await;
                    if added.is_err() {
                        exports.remove(id);
                        tell.detached(id);
                    }
                    added.map_err(|error| error.to_string())
                }
            };
            // The asker may have gone with the node.
            let _ = answer.send(result);
        });
        receiver
    }

    fn detach(&self, resource: ResourceId, leader: Leader) -> oneshot::Receiver<()> {
        let (answer, receiver) = oneshot::channel();
        let (handle, tell) = (self.handle.clone(), self.tell.clone());
        self.exports.remove(resource);
        self.runtime.spawn(async move {
            let primary = status_of(&handle, resource)
                .await
                .is_ok_and(|status| status.role != Role::Secondary);
            if primary {
                // So that the others need not wait for this node's time-outs.
                let demoted = command(&handle, resource, Command::Demote { to: None });
                let demoted = tokio::select! {
                    demoted = timeout(DEMOTE_LIMIT, demoted) => matches!(demoted, Ok(Ok(Ok(())))),
                    () = no_majority(leader, NO_MAJORITY_LIMIT) => false,
                };
                if !demoted {
                    tracing::warn!("a resource is closed without having been demoted");
                }
            }
            let closed = command(&handle, resource, Command::Close);
            if !matches!(timeout(CLOSE_LIMIT, closed).await, Ok(Ok(Ok(())))) {
                tracing::warn!("a resource is let go without having been closed in order");
            }
            let (reply, removed) = oneshot::channel();
            handle.remove_resource(resource, Box::new(|result| drop(reply.send(result))));
            // An error: it was not there.
            let _ = removed.await;
            tell.detached(resource);
            let _ = answer.send(());
        });
        receiver
    }

    fn policy(&self, resource: ResourceId, policy: Policy, lease_ms: u32) {
        let errors = policy.on_no_quorum == OnNoQuorum::Error;
        let access = match policy.access {
            controller::core::Access::Exclusive => Access::Exclusive,
            controller::core::Access::Follow => Access::Follow {
                session: rand::random(),
                errors,
            },
        };
        let terms = Terms {
            lease_ms: u64::from(lease_ms),
            no_quorum_errors: errors,
        };
        self.handle.terms(resource, terms);
        self.handle.access(resource, access);
    }

    fn nodes(&self, nodes: &[Node]) {
        self.nodes.send_if_modified(|known| {
            let changed = known != nodes;
            if changed {
                *known = nodes.to_vec();
            }
            changed
        });
    }

    fn record(&self, record: Record) {
        self.handle.record(record);
    }

    fn refused(&self, resource: ResourceId, based_on: Generation, refusal: Refusal) {
        self.handle.refused(resource, based_on, refusal);
    }

    fn command(
        &self,
        resource: ResourceId,
        what: Command,
    ) -> oneshot::Receiver<Result<(), CommandError>> {
        command(&self.handle, resource, what)
    }

    fn hand_over(
        &self,
        resource: ResourceId,
        to: NodeId,
    ) -> oneshot::Receiver<Result<(), NotHandedOver>> {
        let (reply, receiver) = oneshot::channel();
        let answer = move |result| {
            let result = match result {
                Ok(()) => Ok(()),
                Err(PlaneError::InUse(clients)) => Err(NotHandedOver::InUse(clients)),
                Err(PlaneError::Command(error)) => Err(NotHandedOver::Command(error)),
                // As in `command`.
                Err(_) => return,
            };
            // The asker may have given up.
            let _ = reply.send(result);
        };
        self.handle.hand_over(resource, to, Box::new(answer));
        receiver
    }

    fn clients(&self) -> oneshot::Receiver<Vec<OpenClient>> {
        let (reply, receiver) = oneshot::channel();
        self.handle.clients(Box::new(|all| drop(reply.send(all))));
        receiver
    }

    fn status(&self, resource: ResourceId) -> oneshot::Receiver<Status> {
        status_of(&self.handle, resource)
    }
}

fn command(
    handle: &PlaneHandle,
    resource: ResourceId,
    command: Command,
) -> oneshot::Receiver<Result<(), CommandError>> {
    let (reply, receiver) = oneshot::channel();
    let answer = move |result| {
        let result = match result {
            Ok(()) => Ok(()),
            Err(PlaneError::Command(error)) => Err(error),
            // Not attached: the reply is dropped, which says so.
            Err(_) => return,
        };
        // The asker may have given up.
        let _ = reply.send(result);
    };
    handle.command(resource, command, Box::new(answer));
    receiver
}

fn status_of(handle: &PlaneHandle, resource: ResourceId) -> oneshot::Receiver<Status> {
    let (reply, receiver) = oneshot::channel();
    handle.status(Box::new(move |all| {
        let found = all.into_iter().find(|(id, _)| *id == resource);
        if let Some((_, status)) = found {
            // The asker may have given up.
            let _ = reply.send(status);
        }
    }));
    receiver
}

async fn add(
    config: &Config,
    handle: &PlaneHandle,
    id: ResourceId,
    replica: Replica,
) -> Result<Attached, ReplicaError> {
    let member = replica.member(config);
    let Replica {
        attached,
        disks,
        empty,
    } = replica;
    let settings: Settings = config.file.settings;
    let make = move |now| -> Box<dyn Machine> {
        let resource = Resource::new(attached.identity, settings, attached.volumes, now);
        Box::new(Driven(resource))
    };
    let (reply, added) = oneshot::channel();
    handle.add_resource(
        NewResource {
            cluster: config.cluster,
            resource: id,
            disks,
            machine: Box::new(make),
            meta_bytes: |data_bytes| Layout::external().metadata_bytes(data_bytes),
        },
        Box::new(|result| drop(reply.send(result))),
    );
    added.await.unwrap_or(Err(PlaneError::Stopped))?;
    Ok(Attached { member, empty })
}

/// Looks the other nodes' addresses up again and again, so that a name service that was away at the
/// start, or a node that moved, is no reason for a restart. Ends with the data plane.
async fn keep_addresses(
    config: Arc<Config>,
    handle: PlaneHandle,
    mut nodes: watch::Receiver<Vec<Node>>,
) {
    loop {
        let known = nodes.borrow_and_update().clone();
        let mut peers = BTreeMap::new();
        for node in known.iter().filter(|node| node.id != config.node) {
            peers.insert(node.id, resolve(&config, node).await);
        }
        handle.set_peers(peers);
        if let Ok(Err(_)) = timeout(LOOK_UP_EVERY, nodes.changed()).await {
            return;
        }
    }
}

async fn resolve(config: &Config, node: &Node) -> Vec<PeerAddress> {
    let reach = config.file.reach.get(&node.name);
    let addresses = match reach {
        Some(reach) if !reach.replication.is_empty() => &reach.replication,
        _ => &node.replication,
    };
    let mut found = Vec::new();
    for address in addresses {
        match tokio::net::lookup_host(address).await {
            Ok(some) => found.extend(some.map(PeerAddress::Tcp)),
            Err(error) => {
                tracing::warn!(node = %node.name, address, %error, "address not found");
            }
        }
    }
    found
}

/// An open replica, its attach writes durable.
struct Replica {
    attached: attach::Attached,
    disks: Vec<Arc<Disk>>,
    empty: bool,
}

impl Replica {
    fn member(&self, config: &Config) -> Member {
        Member {
            node: config.node,
            disk: self.attached.identity.disk,
            incarnation: self.attached.identity.incarnation,
        }
    }
}

/// Whether the metadata is in a file of its own stands second.
struct MetaReader<'a>(&'a Disk, bool);

impl ReadAt for MetaReader<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self.0.read_meta(offset, buffer) {
            // Nothing was ever written beyond the end of a metadata file.
            Err(error) if self.1 && error.kind() == io::ErrorKind::UnexpectedEof => {
                buffer.fill(0);
                Ok(())
            }
            result => result,
        }
    }
}

fn boot_id() -> io::Result<u128> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn open_replica(config: &Config, request: &AttachRequest) -> Result<Replica, ReplicaError> {
    let boot_id = boot_id().map_err(ReplicaError::BootId)?;
    let mut disks = Vec::new();
    for (index, place) in request.volumes.iter().enumerate() {
        let disk_config = disk_config(config, request, index);
        if request.create {
            create_files(place, &disk_config)?;
        }
        let exists = std::fs::exists(&place.path).map_err(|source| ReplicaError::Io {
            path: place.path.clone(),
            source,
        })?;
        if !exists {
            return Err(ReplicaError::Gone {
                path: place.path.clone(),
            });
        }
        let disk = once_free(
            || Disk::open(&disk_config),
            |error| matches!(error, OpenError::Locked { .. }),
        )?;
        disks.push(Arc::new(disk));
    }
    // Before metadata are written, which may lie in the same file.
    let empty = request.create && request.volumes.iter().all(is_empty_file);
    if request.create {
        // Random, and the same for all volumes of the replica.
        let disk = DiskId(rand::random());
        for (index, (place, store)) in request.volumes.iter().zip(&disks).enumerate() {
            if is_blank(place, store)? {
                let volume = VolumeId(u16::try_from(index).unwrap_or(u16::MAX));
                let new = NewVolume {
                    cluster: config.cluster,
                    resource: request.resource,
                    volume,
                    node: config.node,
                    disk,
                    data_bytes: place.size_bytes,
                    placement: placement(place, store)?,
                    slots: DEFAULT_PEER_SLOTS,
                    log_capacity: LogCapacity::default(),
                    boot_id,
                    created_empty: is_empty_file(place),
                };
                write_new(place, store, &new)?;
            }
        }
    }
    let attached = attach_all(config.cluster, config.node, request, boot_id, &disks)?;
    Ok(Replica {
        attached,
        disks,
        empty,
    })
}

fn disk_config(config: &Config, request: &AttachRequest, index: usize) -> DiskConfig {
    let place = &request.volumes[index];
    DiskConfig {
        path: place.path.clone(),
        meta: match &place.metadata {
            Some(path) => MetaPlace::SideFile(path.clone()),
            None => MetaPlace::Internal(Places::in_file(
                config
                    .file
                    .data_directory
                    .join("places")
                    .join(format!("{}-{index}", request.resource)),
            )),
        },
        engine: None,
    }
}

/// Makes the files of a volume where there are none.
fn create_files(place: &StorePlace, config: &DiskConfig) -> Result<(), ReplicaError> {
    if std::fs::exists(&place.path).unwrap_or(true) {
        return Ok(());
    }
    let meta_bytes = match place.metadata {
        Some(_) => Layout::external().metadata_bytes(place.size_bytes),
        None => Layout::device_bytes_for(place.size_bytes, DEFAULT_PEER_SLOTS)
            .map_err(|source| layout_error(place, source))?
            .saturating_sub(place.size_bytes),
    };
    Ok(Disk::create_files(config, place.size_bytes, meta_bytes)?)
}

fn layout_error(place: &StorePlace, source: LayoutError) -> ReplicaError {
    ReplicaError::Layout {
        path: place.path.clone(),
        source,
    }
}

/// Where the metadata are; where there are none, where they would be.
fn placement(place: &StorePlace, store: &Disk) -> Result<Placement, ReplicaError> {
    if place.metadata.is_some() {
        return Ok(Placement::External);
    }
    let wrap = |source| ReplicaError::Io {
        path: place.path.clone(),
        source,
    };
    let sizes = store.possible_places().map_err(wrap)?;
    let found = relocation::find(&MetaReader(store, false), &sizes);
    let now = store.store_bytes().map_err(wrap)?;
    Ok(Placement::Internal {
        device_bytes: found.unwrap_or(now),
    })
}

/// Is there no metadata yet, and nothing else that must not be overwritten? A store with metadata is
/// for `attach` to judge: a creation that was interrupted, or somebody else's.
fn is_blank(place: &StorePlace, store: &Disk) -> Result<bool, ReplicaError> {
    let layout = match placement(place, store)? {
        Placement::External => Layout::external(),
        Placement::Internal { device_bytes } => {
            let needed_bytes = Layout::device_bytes_for(place.size_bytes, DEFAULT_PEER_SLOTS)
                .map_err(|source| layout_error(place, source))?;
            if device_bytes < needed_bytes {
                return Err(ReplicaError::TooSmall {
                    path: place.path.clone(),
                    found_bytes: device_bytes,
                    needed_bytes,
                });
            }
            Layout::internal(device_bytes, DEFAULT_PEER_SLOTS)
                .map_err(|source| layout_error(place, source))?
        }
    };
    for copy in MetaCopy::BOTH {
        let mut block = [0; METADATA_BLOCK_BYTES];
        store
            .read_meta(layout.superblock_offset(copy), &mut block)
            .map_err(|source| ReplicaError::Io {
                path: place.path.clone(),
                source,
            })?;
        if block.iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
    }
    if is_block_device(&place.path) || is_empty_file(place) {
        Ok(true)
    } else {
        Err(ReplicaError::Occupied {
            path: place.path.clone(),
        })
    }
}

fn is_block_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device())
}

/// A regular file without a single data block, so that every byte of it reads as zero. (Internal
/// metadata takes blocks: such a file is known to be empty only at its creation.)
fn is_empty_file(place: &StorePlace) -> bool {
    std::fs::metadata(&place.path).is_ok_and(|m| m.is_file() && m.blocks() == 0)
}

fn write_new(place: &StorePlace, store: &Disk, new: &NewVolume) -> Result<(), ReplicaError> {
    let writes = attach::create(new).map_err(|source| layout_error(place, source))?;
    write_all(store, &writes).map_err(|source| ReplicaError::Io {
        path: place.path.clone(),
        source,
    })
}

fn write_all(store: &Disk, writes: &[attach::MetaWrite]) -> io::Result<()> {
    writes
        .iter()
        .try_for_each(|(offset, bytes)| store.write_meta(*offset, bytes))
}

fn attach_all(
    cluster: ClusterId,
    node: NodeId,
    request: &AttachRequest,
    boot_id: u128,
    disks: &[Arc<Disk>],
) -> Result<attach::Attached, ReplicaError> {
    let stores = disks.iter().zip(&request.volumes);
    let readers: Vec<MetaReader<'_>> = stores
        .map(|(disk, place)| MetaReader(disk, place.metadata.is_some()))
        .collect();
    let mut sources = Vec::new();
    for ((place, disk), reader) in request.volumes.iter().zip(disks).zip(&readers) {
        let placement = placement(place, disk)?;
        let store_bytes = match placement {
            Placement::Internal { device_bytes } => device_bytes,
            Placement::External => disk.store_bytes().map_err(|source| ReplicaError::Io {
                path: place.path.clone(),
                source,
            })?,
        };
        sources.push(Source {
            metadata: reader,
            placement,
            store_bytes,
        });
    }
    let expected = Expected {
        cluster,
        former: &request.former,
        resource: request.resource,
        node,
        boot_id,
    };
    let attached = attach::attach(&expected, &sources, boot_time()).map_err(|source| {
        ReplicaError::Attach {
            path: path_of(&source, &request.volumes),
            source,
        }
    })?;
    if request.replaced == Some(attached.identity.disk) {
        let path = request.volumes.first().map(|place| place.path.clone());
        return Err(ReplicaError::Replaced {
            path: path.unwrap_or_default(),
        });
    }
    for (((place, disk), volume), writes) in request
        .volumes
        .iter()
        .zip(disks)
        .zip(&attached.volumes)
        .zip(&attached.writes)
    {
        disk.set_volume_bytes(volume.size_bytes())?;
        let found = match volume.placement() {
            Placement::Internal { device_bytes } => disk.metadata_are_at(device_bytes),
            Placement::External => Ok(()),
        };
        found
            .and_then(|()| write_all(disk, writes))
            .map_err(|source| ReplicaError::Io {
                path: place.path.clone(),
                source,
            })?;
    }
    Ok(attached)
}

/// The store that an error is about.
fn path_of(error: &AttachError, volumes: &[StorePlace]) -> PathBuf {
    let (AttachError::Identity { volume, .. }
    | AttachError::Wrong { volume, .. }
    | AttachError::Mixed { volume, .. }
    | AttachError::NewerVersion { volume, .. }
    | AttachError::Truncated { volume, .. }
    | AttachError::Layout { volume, .. }) = error;
    volumes
        .get(volume.index())
        .map(|place| place.path.clone())
        .unwrap_or_default()
}
