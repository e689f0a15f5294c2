//! How a [`ClusterView`] is shown: a table for people and the JSON that scripts depend on (DESIGN
//! section 5). Both are pinned by tests.

use crate::size::show_size;
use crate::view::{ClusterView, NodeView, ReplicaView, ResourceView, VolumeView};
use serde::Serialize;
use std::fmt::Write;

/// So many clients of a replica are named in the table; the JSON has all.
const SHOWN_CLIENTS: usize = 3;

#[derive(Serialize)]
struct StatusJson<'a> {
    nodes: &'a [NodeView],
    resources: Vec<ResourceJson<'a>>,
}

#[derive(Serialize)]
struct ResourceJson<'a> {
    name: &'a str,
    generation: u64,
    epoch: u64,
    primary: Option<&'a str>,
    in_sync: &'a [String],
    volumes: &'a [VolumeView],
}

/// The JSON of `status --json`: these names and no others.
pub(crate) fn json(view: &ClusterView) -> serde_json::Result<String> {
    serde_json::to_string(&StatusJson {
        nodes: &view.nodes,
        resources: view
            .resources
            .iter()
            .map(|resource| ResourceJson {
                name: &resource.name,
                generation: resource.generation,
                epoch: resource.epoch,
                primary: resource.primary.as_deref(),
                in_sync: &resource.in_sync,
                volumes: &resource.volumes,
            })
            .collect(),
    })
}

/// Only this resource, where one is named. False: there is none of that name.
pub(crate) fn narrow(view: &mut ClusterView, resource: Option<&str>) -> bool {
    let Some(name) = resource else { return true };
    view.resources.retain(|resource| resource.name == name);
    !view.resources.is_empty()
}

/// The table of `status`.
pub(crate) fn text(view: &ClusterView) -> String {
    let mut out = String::new();
    for note in &view.notes {
        line(&mut out, &format!("! {note}"));
    }
    let mut rows = vec![row(["NODE", "STATE", "ROLE IN THE CONFIGURATION STORE"])];
    for node in &view.nodes {
        rows.push(row([
            &node.name,
            if node.online { "online" } else { "offline" },
            match (node.voter, node.leader) {
                (true, true) => "voter, leader",
                (true, false) => "voter",
                (false, _) => "-",
            },
        ]));
    }
    table(&mut out, &rows, "");
    if view.resources.is_empty() {
        line(
            &mut out,
            "\nno resources; `lockstep resource create` makes one",
        );
    }
    for resource in &view.resources {
        resource_text(&mut out, resource);
    }
    out
}

fn resource_text(out: &mut String, resource: &ResourceView) {
    line(
        out,
        &format!(
            "\n{}: primary {}, in sync: {} (generation {}, epoch {})",
            resource.name,
            resource.primary.as_deref().unwrap_or("none"),
            match resource.in_sync.join(", ") {
                none if none.is_empty() && resource.generation == 0 => "none yet".to_owned(),
                none if none.is_empty() => "not known".to_owned(),
                members => members,
            },
            resource.generation,
            resource.epoch
        ),
    );
    for volume in &resource.volumes {
        line(
            out,
            &format!(
                "  volume {}: {}",
                volume.volume,
                show_size(volume.size_bytes)
            ),
        );
        let mut rows = vec![row([
            "REPLICA",
            "ROLE",
            "DISK",
            "REPLICATION",
            "OUT OF SYNC",
            "RESYNC",
            "CLIENTS",
        ])];
        rows.extend(volume.replicas.iter().map(replica_row));
        table(out, &rows, "    ");
    }
    if let Some(verify) = resource.verify {
        line(
            out,
            &format!(
                "  verify: {:.1} % done, {} left{}, {} differ so far",
                verify.progress.percent(),
                show_size(verify.progress.left_bytes),
                time_left(verify.progress.seconds_left),
                show_size(verify.differing_bytes)
            ),
        );
    }
    if let Some(reason) = &resource.reason {
        line(out, &format!("  ! {reason}"));
    }
    if !resource.waiting_for.is_empty() {
        line(
            out,
            &format!(
                "  ! waits for {}: its return resumes the work by itself",
                resource.waiting_for.join(", ")
            ),
        );
    }
    for (node, problem) in &resource.problems {
        line(out, &format!("  ! {node}: {problem}"));
    }
}

fn replica_row(replica: &ReplicaView) -> Vec<String> {
    let resync = replica.resync.as_ref().map_or_else(
        || "-".to_owned(),
        |resync| {
            format!(
                "{:.1} %, {} left{}",
                resync.percent,
                show_size(resync.bytes_left),
                time_left(resync.seconds_left)
            )
        },
    );
    row([
        replica.node.as_str(),
        &replica.role,
        &replica.disk_state,
        &replica.replication_state,
        &show_size(replica.out_of_sync_bytes),
        &resync,
        &clients(&replica.clients),
    ])
}

/// How many connections, and who they are: each once, as many as fit.
fn clients(connections: &[String]) -> String {
    if connections.is_empty() {
        return "-".to_owned();
    }
    let mut names: Vec<&str> = connections.iter().map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let more = if names.len() > SHOWN_CLIENTS {
        names.truncate(SHOWN_CLIENTS);
        ", …"
    } else {
        ""
    };
    format!("{}: {}{more}", connections.len(), names.join(", "))
}

fn time_left(seconds: Option<u64>) -> String {
    match seconds {
        None => String::new(),
        Some(s @ 0..60) => format!(" ({s} s)"),
        Some(s @ 60..3600) => format!(" ({} min {} s)", s / 60, s % 60),
        Some(s) => format!(" ({} h {} min)", s / 3600, s / 60 % 60),
    }
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn line(out: &mut String, text: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "{text}");
}

/// Columns as wide as their widest cell, two spaces between them, no spaces at the end of a line.
pub(crate) fn table(out: &mut String, rows: &[Vec<String>], indent: &str) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let mut text = indent.to_owned();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(text, "{cell:<width$}  ");
        }
        line(out, text.trim_end());
    }
}

#[cfg(test)]
mod tests;
