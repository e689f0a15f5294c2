//! NBD on the data plane: translates between the NBD frontend's pure connection and what the data
//! plane asks of a client protocol, and keeps the list of exports. Knows nothing of sockets.

pub(crate) mod listen;
pub(crate) mod tls;

use nbd_frontend::{
    BASE_ALLOCATION, Command, CommandFlags, Connection, Contexts, ExportError, ExportInfo,
    ExportListing, Exports, Extent, HOLE, Limits, NbdError, Outcome, Piece, Request, Step, TlsMode,
    ZERO,
};
use replicator::core::api::ClientError;
use replicator::runtime::client::{
    ClientCommand, ClientConnection, ClientOp, ClientProtocol, ClientStatus, ClientStep, DataPiece,
    ExportTarget, StatusExtent,
};
use rustls::ServerConfig;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tls::CurrentTls;
use vocabulary::{ByteRange, Record, ResourceId, VolumeId};

/// Our own metadata context: which blocks a replica may lack.
const OUT_OF_SYNC: &str = "lockstep:out-of-sync";
/// Its one bit: some replica may lack bytes of these blocks.
const LACKING: u32 = 1;

/// Metadata contexts of every export, and their places.
const CONTEXTS: [&str; 2] = [BASE_ALLOCATION, OUT_OF_SYNC];
const ALLOCATION_PLACE: usize = 0;
const OUT_OF_SYNC_PLACE: usize = 1;

/// The exports of this node. Shared between the data plane, which reads it when a client opens one,
/// and whoever learns of resources.
#[derive(Clone, Debug, Default)]
pub(crate) struct ExportTable(Arc<Mutex<BTreeMap<ResourceId, Exported>>>);

#[derive(Debug)]
struct Exported {
    name: String,
    sizes: Vec<u64>,
    serves: bool,
}

impl ExportTable {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<ResourceId, Exported>> {
        self.0.lock().unwrap_or_else(|broken| broken.into_inner())
    }

    /// A replica is attached; it does not serve yet.
    pub(crate) fn add(&self, id: ResourceId, name: &str) {
        let entry = Exported {
            name: name.to_owned(),
            sizes: Vec::new(),
            serves: false,
        };
        self.entries().insert(id, entry);
    }

    /// It is attached no more.
    pub(crate) fn remove(&self, id: ResourceId) {
        self.entries().remove(&id);
    }

    /// Its state has changed.
    pub(crate) fn update(&self, id: ResourceId, serves: bool, record: Option<&Record>) {
        if let Some(entry) = self.entries().get_mut(&id) {
            entry.serves = serves;
            if let Some(record) = record {
                entry.sizes.clone_from(&record.sizes);
            }
        }
    }

    /// The volume behind a name, as exports are named: `RESOURCE` or `RESOURCE/VOLUME`; none at all
    /// where there is only one resource.
    fn lookup(&self, name: &str) -> Result<(ExportTarget, ExportInfo), ExportError> {
        let entries = self.entries();
        let (resource, volume) = match name.rsplit_once('/') {
            Some((resource, number)) => (resource, number.parse::<u16>().ok()),
            None => (name, Some(0)),
        };
        let only = name.is_empty() && entries.len() == 1;
        let unknown = || ExportError::Unknown {
            asked: name.to_owned(),
            valid: entries.values().flat_map(names).collect(),
        };
        let (&id, entry) = entries
            .iter()
            .find(|(_, entry)| only || entry.name == resource)
            .ok_or_else(unknown)?;
        let volume = VolumeId(volume.ok_or_else(unknown)?);
        let own_name = export_name(&entry.name, volume);
        if !entry.serves {
            return Err(ExportError::Refused {
                export: own_name,
                reason: "this node is not its primary; connect to the primary, which `lockstep status` names, or make this node primary (`lockstep attach` does so when nobody uses it there)".to_owned(),
            });
        }
        let size_bytes = *entry.sizes.get(volume.index()).ok_or_else(unknown)?;
        let info = ExportInfo {
            description: format!("volume {volume} of {}, mirrored by lockstep", entry.name),
            // A flush covers what was answered on every connection (RULES 1).
            can_multi_conn: true,
            // Each request finds out whether all replicas are fast as they are then.
            can_fast_zero: true,
            meta_contexts: &CONTEXTS,
            ..ExportInfo::new(own_name, size_bytes)
        };
        let resource = id;
        Ok((ExportTarget { resource, volume }, info))
    }
}

fn export_name(resource: &str, volume: VolumeId) -> String {
    match volume.0 {
        0 => resource.to_owned(),
        number => format!("{resource}/{number}"),
    }
}

fn names(entry: &Exported) -> Vec<String> {
    let volumes = (0u16..).zip(entry.sizes.iter().take(usize::from(u16::MAX)));
    volumes
        .map(|(number, _)| export_name(&entry.name, VolumeId(number)))
        .collect()
}

impl Exports for ExportTable {
    fn list(&self) -> Vec<ExportListing> {
        let entries = self.entries();
        let serving = entries.values().filter(|entry| entry.serves);
        serving
            .flat_map(names)
            .map(|name| ExportListing {
                name,
                description: String::new(),
            })
            .collect()
    }

    fn find(&self, name: &str) -> Result<ExportInfo, ExportError> {
        self.lookup(name).map(|(_, info)| info)
    }
}

/// NBD for a listener of the data plane.
#[derive(Debug)]
pub(crate) struct NbdProtocol {
    pub(crate) exports: ExportTable,
    pub(crate) tls_mode: TlsMode,
    /// There unless the mode is off.
    pub(crate) tls: Option<CurrentTls>,
}

impl ClientProtocol for NbdProtocol {
    fn connect(&mut self, out: &mut Vec<u8>) -> Box<dyn ClientConnection> {
        Box::new(NbdConnection {
            connection: Connection::new(Limits::default(), self.tls_mode, out),
            exports: self.exports.clone(),
            tls: self.tls.as_ref().map(CurrentTls::get),
        })
    }
}

#[derive(Debug)]
struct NbdConnection {
    connection: Connection,
    exports: ExportTable,
    tls: Option<Arc<ServerConfig>>,
}

impl ClientConnection for NbdConnection {
    fn receive(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, ClientStep) {
        let (taken, step) = self.connection.receive(input, &self.exports, out);
        let step = match step {
            Step::NeedMore => ClientStep::NeedMore,
            Step::Answered => ClientStep::Answered,
            Step::Secure => ClientStep::Secure,
            Step::AtLimit => ClientStep::AtLimit,
            Step::Request(request) => ClientStep::Request(to_op(&request)),
            Step::Write(request) => ClientStep::Write(to_op(&request)),
            Step::Close(reason) => {
                if !reason.is_orderly() {
                    tracing::info!(%reason, "an NBD client is disconnected");
                }
                ClientStep::Close
            }
            Step::Opened => {
                let opened = self.connection.export().map(|info| info.name.as_str());
                match self.exports.lookup(opened.unwrap_or_default()) {
                    Ok((target, _)) => ClientStep::Opened(target),
                    // Demoted or deleted between two lines of code.
                    Err(_) => ClientStep::Close,
                }
            }
        };
        (taken, step)
    }

    fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.clone()
    }

    fn reply(&mut self, op: &ClientOp, outcome: Result<(), ClientError>, out: &mut Vec<u8>) {
        let outcome = match outcome {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::Failed(to_nbd(error, op)),
        };
        let _no_data = self.connection.reply(&to_request(op), outcome, out);
    }

    fn reply_data(
        &mut self,
        op: &ClientOp,
        data: &[u8],
        from: usize,
        out: &mut Vec<u8>,
    ) -> DataPiece {
        let Piece { send, next } = self
            .connection
            .reply_piece(&to_request(op), data, from, out);
        DataPiece { send, next }
    }

    fn reply_status(&mut self, op: &ClientOp, status: &ClientStatus, out: &mut Vec<u8>) {
        let request = to_request(op);
        let told = |place| {
            let (extents, flags) = match place {
                ALLOCATION_PLACE => (&status.holes, HOLE | ZERO),
                _ => (&status.out_of_sync, LACKING),
            };
            let extent = |StatusExtent { len, is }: &StatusExtent| Extent {
                length: *len,
                flags: if *is { flags } else { 0 },
            };
            (place, extents.iter().map(extent).collect())
        };
        let answers: Vec<_> = request.contexts.places().map(told).collect();
        self.connection.reply_status(&request, &answers, out);
    }

    fn shut_down(&mut self) {
        self.connection.shut_down();
    }
}

/// What the lowest byte of `ClientOp::word` says: which of NBD's commands it was. The next two are its
/// flags, the one after them its contexts.
const COMMANDS: [Command; 7] = [
    Command::Read,
    Command::Write,
    Command::Flush,
    Command::Trim,
    Command::WriteZeroes,
    Command::Cache,
    Command::BlockStatus,
];
const FLAGS_SHIFT: u32 = 8;
const CONTEXTS_SHIFT: u32 = 24;

fn to_op(request: &Request) -> ClientOp {
    let number: u64 = match request.command {
        Command::Read => 0,
        Command::Write => 1,
        Command::Flush => 2,
        Command::Trim => 3,
        Command::WriteZeroes => 4,
        Command::Cache => 5,
        Command::BlockStatus => 6,
    };
    let word = number
        | u64::from(request.flags.bits()) << FLAGS_SHIFT
        | u64::from(request.contexts.bits()) << CONTEXTS_SHIFT;
    let command = match request.command {
        Command::Read => ClientCommand::Read,
        Command::Write => ClientCommand::Write,
        Command::Flush => ClientCommand::Flush,
        Command::Trim => ClientCommand::Zero {
            hole: true,
            fast: false,
        },
        Command::WriteZeroes => ClientCommand::Zero {
            hole: !request.flags.no_hole(),
            fast: request.flags.fast_zero(),
        },
        Command::Cache => ClientCommand::Nothing,
        Command::BlockStatus => ClientCommand::Status {
            allocation: request.contexts.contains(ALLOCATION_PLACE),
            out_of_sync: request.contexts.contains(OUT_OF_SYNC_PLACE),
        },
    };
    ClientOp {
        cookie: request.cookie,
        word,
        command,
        // Checked against the export's size already.
        range: ByteRange {
            offset: request.offset,
            len: request.length,
        },
        fua: request.flags.fua(),
    }
}

/// The request again, for its reply.
fn to_request(op: &ClientOp) -> Request {
    let [number, low, high, contexts, ..] = op.word.to_le_bytes();
    let command = COMMANDS.get(usize::from(number));
    Request {
        cookie: op.cookie,
        command: command.copied().unwrap_or(Command::Cache),
        offset: op.range.offset,
        length: op.range.len,
        flags: CommandFlags::from_bits(u16::from_le_bytes([low, high])),
        contexts: Contexts::from_bits(contexts),
    }
}

const fn to_nbd(error: ClientError, op: &ClientOp) -> NbdError {
    match error {
        ClientError::NotPrimary => NbdError::NotPermitted,
        ClientError::OutOfRange => match op.command {
            ClientCommand::Write | ClientCommand::Zero { .. } => NbdError::NoSpace,
            _ => NbdError::Invalid,
        },
        ClientError::Io => NbdError::Io,
        ClientError::NoSpace => NbdError::NoSpace,
        ClientError::Shutdown => NbdError::ShuttingDown,
        ClientError::NotFast => NbdError::NotSupported,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vocabulary::{Epoch, Generation, HistoryId, NodeSet};

    fn record(id: u128, sizes: &[u64]) -> Record {
        Record {
            resource: ResourceId(id),
            generation: Generation(1),
            epoch: Epoch(0),
            history: HistoryId(0),
            sizes: sizes.to_vec(),
            primary: None,
            in_sync: Vec::new(),
            replicas: NodeSet::EMPTY,
            min_redundancy: 1,
        }
    }

    fn table() -> ExportTable {
        let table = ExportTable::default();
        table.add(ResourceId(1), "r0");
        table.update(ResourceId(1), true, Some(&record(1, &[4096, 8192])));
        table
    }

    #[test]
    fn volumes_are_found_by_their_names() {
        let table = table();
        for (name, volume, size) in [
            ("r0", 0, 4096),
            ("r0/0", 0, 4096),
            ("r0/1", 1, 8192),
            ("", 0, 4096),
        ] {
            let (target, info) = table.lookup(name).unwrap();
            assert_eq!(
                (target.volume, info.size_bytes),
                (VolumeId(volume), size),
                "{name}"
            );
            assert!(info.is_coherent());
        }
        assert_eq!(table.list().len(), 2);
        for name in ["r1", "r0/2", "r0/x", "r0/", "/"] {
            assert!(
                matches!(table.lookup(name), Err(ExportError::Unknown { .. })),
                "{name}"
            );
        }
        // With two resources there is no default.
        table.add(ResourceId(2), "r1");
        assert!(table.lookup("").is_err());
    }

    #[test]
    fn a_secondary_refuses_and_says_where_to_go() {
        let table = table();
        table.update(ResourceId(1), false, None);
        let error = table.lookup("r0").unwrap_err().to_string();
        assert!(error.contains("not its primary"), "{error}");
        assert!(table.list().is_empty());
        table.remove(ResourceId(1));
        assert!(matches!(
            table.lookup("r0"),
            Err(ExportError::Unknown { .. })
        ));
    }

    #[test]
    fn a_request_survives_the_way_to_the_data_plane_and_back() {
        for command in COMMANDS {
            let request = Request {
                cookie: 7,
                command,
                offset: 512,
                length: 1024,
                flags: CommandFlags::from_bits(0x8009),
                contexts: Contexts::from_bits(0x83),
            };
            assert_eq!(to_request(&to_op(&request)), request);
        }
        let fua = Request {
            cookie: 1,
            command: Command::Write,
            offset: 0,
            length: 1,
            flags: CommandFlags::FUA,
            contexts: Contexts::NONE,
        };
        assert!(to_op(&fua).fua);
        let zero = |flags| {
            to_op(&Request {
                command: Command::WriteZeroes,
                flags: CommandFlags::from_bits(flags),
                ..fua
            })
        };
        let zeroes = |hole, fast| ClientCommand::Zero { hole, fast };
        assert_eq!(zero(0).command, zeroes(true, false));
        assert_eq!(zero(0b10).command, zeroes(false, false));
        assert_eq!(zero(0b1_0000).command, zeroes(true, true));
        assert_eq!(zero(0b1_0010).command, zeroes(false, true));
    }

    #[test]
    fn errors_are_those_that_clients_of_a_disk_expect() {
        let op = |command| ClientOp {
            cookie: 0,
            word: 0,
            command,
            range: ByteRange::between(0, 1),
            fua: false,
        };
        let write = op(ClientCommand::Write);
        let read = op(ClientCommand::Read);
        assert_eq!(to_nbd(ClientError::OutOfRange, &write), NbdError::NoSpace);
        assert_eq!(to_nbd(ClientError::OutOfRange, &read), NbdError::Invalid);
        assert_eq!(
            to_nbd(ClientError::NotPrimary, &read),
            NbdError::NotPermitted
        );
        assert_eq!(to_nbd(ClientError::Shutdown, &read), NbdError::ShuttingDown);
        assert_eq!(to_nbd(ClientError::NotFast, &write), NbdError::NotSupported);
    }
}
