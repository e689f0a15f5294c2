//! The configuration store as a state machine: `(document, command) -> document or refusal`. It
//! draws no randomness (ids come in with the command), reads no clock and does no I/O, so that a
//! voter, a replay and a simulation agree on what a command means.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod apply;
mod command;
pub mod consensus;
mod document;
pub mod failover;
pub mod mutation;
mod name;
mod recovery;

pub use command::{Command, MAX_VOLUME_BYTES, Refused};
pub use document::{
    Access, Backing, Document, Fencing, MAX_ADDRESSES, MAX_REPLICAS, MAX_RESOURCES, MAX_VOLUMES,
    MAX_VOTERS, MetadataKind, Node, NodeState, OnNoQuorum, Policy, Replica, Report, Resource,
    Timings, TimingsError, Version,
};
pub use name::{MAX_NAME_BYTES, Name, NameError};
pub use recovery::{MAX_FORMER, RecoveryError};

#[cfg(test)]
mod tests;
