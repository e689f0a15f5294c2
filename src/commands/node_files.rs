//! Commands that work on a node's files, without a daemon.

use super::Outcome;
use crate::config::Config;
use crate::daemon::create_cluster;
use std::path::Path;
use std::process::ExitCode;

pub(super) fn init(path: &Path, json: bool) -> Outcome {
    let config = Config::load(path)?;
    create_cluster(&config)?;
    let message = format!(
        "cluster {} is created; start `lockstep daemon --config {}` and the other nodes' daemons",
        config.cluster_name,
        path.display()
    );
    if json {
        println!("{}", serde_json::json!({ "message": message }));
    } else {
        println!("{message}");
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn dump_metadata(file: &Path, device_size: Option<u64>) -> Outcome {
    print!("{}", crate::metadata::dump(file, device_size)?);
    Ok(ExitCode::SUCCESS)
}
