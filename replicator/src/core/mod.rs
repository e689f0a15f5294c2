//! The replication engine as a state machine: no I/O, no clock, no threads, no async.

pub mod api;
pub mod message;
pub mod status;
