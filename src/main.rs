//! The `lockstep` binary: one node of a cluster, and the command line to it. Composition only: what
//! replicates is in `replicator`, what keeps the configuration in `controller`.
//!
//! Exit codes: 0 done; 1 refused or failed (the reason is on standard error); 2 the command line is
//! wrong; `demo --exec` exits with its command's status.

mod api;
mod attach;
mod cli;
mod client;
mod commands;
mod config;
mod daemon;
mod data;
mod demo;
mod engine;
mod events;
mod lock;
mod membership;
mod metadata;
mod nbd;
mod node;
mod operation;
mod plane;
mod recovery;
mod resources;
mod secure;
mod service_manager;
mod size;
mod spec;
mod status;
mod successor;
mod taken;
mod users;
mod view;
mod who;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match commands::run(cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lockstep: {error:#}");
            ExitCode::FAILURE
        }
    }
}
