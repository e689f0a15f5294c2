//! Commands that work on a node's files, without a daemon.

use super::Outcome;
use crate::config::NodeFile;
use crate::membership::{create_cluster, join_cluster, rejoin_cluster};
use crate::recovery;
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

pub(super) async fn join(path: &Path, token: &str, rejoin: bool, json: bool) -> Outcome {
    let file = NodeFile::load(path)?;
    let token: Token = token.parse()?;
    let (cluster, node) = if rejoin {
        rejoin_cluster(&file, &token).await?
    } else {
        join_cluster(&file, &token).await?
    };
    let message = format!(
        "{} is node {node} of cluster {cluster}; start `lockstep daemon --config {}`",
        file.name,
        path.display()
    );
    let data = serde_json::json!({ "cluster": cluster.to_string(), "node": node.get() });
    say(&message, json, &data)
}

pub(super) fn recover(path: &Path, accept_data_loss: bool, json: bool) -> Outcome {
    let file = NodeFile::load(path)?;
    let made = recovery::recover(&file, accept_data_loss)?;
    let name = file.name.as_str();
    let mut message = format!(
        "{name} is the cluster {}, alone; what it was is kept in files that end with {}\n",
        made.cluster, made.former
    );
    for known in &made.resources {
        message.push_str(&format!("{}\n", known.text(name)));
    }
    message.push_str(&format!(
        "next:\n  1. `lockstep daemon --config {config}`; keep a copy of {keys}\n  2. each lost node ({lost}) joins again: `lockstep token` here, `lockstep join --config FILE TOKEN --rejoin` there\n  3. for each resource, on the node whose replica is to count: `lockstep promote RESOURCE NODE --accept-data-loss`",
        config = path.display(),
        keys = file.keys().display(),
        lost = made.lost.join(", "),
    ));
    say(&message, json, &serde_json::to_value(&made)?)
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
