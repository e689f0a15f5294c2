//! Lockstep's replication engine: a sans-IO core, on-disk stores, the peer protocol and the io_uring
//! runtime that drives them.

pub mod core;
pub mod runtime;
pub mod store;
pub mod wire;
