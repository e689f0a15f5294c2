//! Messages between controllers. The side that connects speaks: voters' messages, commands for the
//! configuration store, operators' commands for the other node. The other side answers commands and
//! tells each newly committed document and who leads. Each node connects to every other one, so
//! voters' messages go one way on each connection.

use crate::core::consensus::Envelope;
use crate::core::{Command, Document, Name, Refused};
use crate::pki::Identity;
use serde::{Deserialize, Serialize};
use vocabulary::{ClusterId, NodeId};

/// Who a node is, for the greeting, and how it proves that.
#[derive(Clone, Debug)]
pub(super) struct Who {
    pub(super) cluster: ClusterId,
    pub(super) node: NodeId,
    pub(super) name: Name,
    pub(super) identity: Identity,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ToServer {
    /// First on a connection.
    Hello {
        node: NodeId,
        name: Name,
        /// The node that the sender wants to talk to.
        to: NodeId,
        /// Committed documents and leaders are wanted.
        subscribe: bool,
    },
    /// From the sender's voter to this node's.
    Consensus(Envelope<Document>),
    /// A command for the configuration store.
    Command { id: u64, command: Command },
    /// An operator's command for this node, in the API's words.
    Forward { id: u64, body: Vec<u8> },
    /// Still there?
    Ping,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromServer {
    /// The greeting is accepted.
    Welcome { node: NodeId },
    /// It is not; the connection closes.
    NotMe { node: NodeId },
    /// The sender of the greeting was removed from the cluster; the connection closes.
    Departed,
    /// What became of a command.
    Decided { id: u64, result: Decision },
    /// The answer to a forwarded command.
    Forwarded { id: u64, body: Vec<u8> },
    /// This is committed.
    Document(Document),
    /// Who leads the configuration store, as far as this node knows.
    Leader(Option<NodeId>),
    /// Yes.
    Pong,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Decision {
    /// Committed, in the document of this version or an earlier one.
    Committed { version: u64 },
    /// Refused.
    Refused(Refused),
    /// Nothing was done: another node leads the store, as far as this one knows.
    NotLeader { leader: Option<NodeId> },
    /// The leader lost its place meanwhile; what became of the command is not known.
    Undecided,
}
