//! Lockstep's controller. Today it keeps the configuration store: the document that names each
//! resource's primary and in-sync set (RULES sections 1 and 4), with a single voter behind the
//! interface that the full store will have. Heartbeats, election and services come on top of it.
//!
//! - [`core`]: what the document is and how a command changes it. No I/O, no clock, no async.
//! - [`pki`]: keys, certificates and tokens: who belongs to the cluster.
//! - [`store`]: the document on disk, in two copies.
//! - [`runtime`]: sockets and tasks that carry commands to the voter and documents to everyone.

pub mod core;
pub mod pki;
pub mod runtime;
pub mod store;
