//! Messages between controllers. The side that connects asks, the other one answers and, if asked
//! to, tells each newly committed document.

use crate::core::{Command, Document, Name, Refused};
use serde::{Deserialize, Serialize};
use vocabulary::{ClusterId, NodeId};

/// Who a node is, for the greeting.
#[derive(Clone, Debug)]
pub(super) struct Who {
    pub(super) cluster: ClusterId,
    pub(super) node: NodeId,
    pub(super) name: Name,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ToServer {
    /// First on a connection.
    Hello {
        node: NodeId,
        name: Name,
        /// The node that the sender wants to talk to.
        to: NodeId,
        /// Committed documents are wanted.
        subscribe: bool,
    },
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
    Welcome { node: NodeId, voter: bool },
    /// It is not; the connection closes.
    NotMe { node: NodeId },
    /// What became of a command.
    Decided { id: u64, result: Decision },
    /// The answer to a forwarded command.
    Forwarded { id: u64, body: Vec<u8> },
    /// This is committed.
    Document(Document),
    /// Yes.
    Pong,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Decision {
    /// Committed, in the document of this version or an earlier one.
    Committed { version: u64 },
    /// Refused.
    Refused(Refused),
    /// This node keeps no document.
    NotVoter,
    /// The document could not be made durable; what became of the command is not known.
    Undecided,
}
