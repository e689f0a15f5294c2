//! Deterministic simulation of whole Lockstep clusters: the production cores on simulated disks,
//! network, store and clients, all from one seed, checked against RULES. A test tool, not shipped.

pub mod checker;
pub mod client;
pub mod control;
pub mod deviate;
pub mod disk;
mod drive;
pub mod engine;
pub mod executions;
pub mod explore;
pub mod faults;
pub mod fingerprint;
pub mod hunt;
pub mod liveness;
pub mod net;
pub mod node;
pub mod operator;
pub mod payload;
pub mod production;
mod requests;
pub mod rng;
pub mod rules;
pub mod run;
pub mod stage;
pub mod store;
pub mod world;
