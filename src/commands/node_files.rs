//! Commands that work on a node's files, without a daemon.

use super::Outcome;
use crate::config::NodeFile;
use crate::membership::{create_cluster, join_cluster};
use controller::pki::Token;
use std::path::Path;
use std::process::ExitCode;

pub(super) fn init(path: &Path, json: bool) -> Outcome {
    let file = NodeFile::load(path)?;
    let cluster = create_cluster(&file)?;
    let message = format!(
        "cluster {cluster} is created with the node {name}; start `lockstep daemon --config {config}`, then `lockstep token` lets another machine join\nkeep a copy of {keys}: ca.key in it signs the certificates of nodes that join",
        name = file.name,
        config = path.display(),
        keys = file.keys().display(),
    );
    say(
        &message,
        json,
        &serde_json::json!({ "cluster": cluster.to_string(), "node": 0 }),
    )
}

pub(super) async fn join(path: &Path, token: &str, json: bool) -> Outcome {
    let file = NodeFile::load(path)?;
    let token: Token = token.parse()?;
    let (cluster, node) = join_cluster(&file, &token).await?;
    let message = format!(
        "{} is node {node} of cluster {cluster}; start `lockstep daemon --config {}`",
        file.name,
        path.display()
    );
    let data = serde_json::json!({ "cluster": cluster.to_string(), "node": node.get() });
    say(&message, json, &data)
}

fn say(message: &str, json: bool, data: &serde_json::Value) -> Outcome {
    if json {
        println!(
            "{}",
            serde_json::json!({ "message": message, "data": data })
        );
    } else {
        println!("{message}");
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn dump_metadata(file: &Path, device_size: Option<u64>) -> Outcome {
    print!("{}", crate::metadata::dump(file, device_size)?);
    Ok(ExitCode::SUCCESS)
}
