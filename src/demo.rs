//! `lockstep demo`: a whole cluster on loopback, each node a process of its own. Everything lies
//! under DIR/nodeK: pid, log, api.sock, lockstep.toml, r0.img.

mod files;
mod processes;

use crate::cli::DemoArgs;
use crate::client::{Client, ClientError};
use crate::commands::Outcome;
use crate::config::NodeFile;
use crate::membership::join_cluster;
use crate::operation::{MetadataSpec, Operation, ReplicaSpec};
use crate::view::ClusterView;
use anyhow::{Context, bail};
use controller::core::{Access, Policy};
use files::Layout;
use processes::Processes;
use std::future::pending;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

/// The demo's one resource.
const RESOURCE: &str = "r0";
/// Daemons answer and replicas are up to date by then, or the demo gives up.
const START_LIMIT: Duration = Duration::from_secs(120);
/// What is waited for is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A primary gets this long to demote when the demo stops.
const DEMOTE_LIMIT: Duration = Duration::from_secs(5);

/// Runs the demo to its end.
pub(crate) fn run(args: &DemoArgs) -> Outcome {
    let temporary = match &args.dir {
        Some(_) => None,
        None => Some(
            tempfile::Builder::new()
                .prefix("lockstep-demo-")
                .tempdir()
                .context("can't make a temporary directory")?,
        ),
    };
    let directory = match (&args.dir, &temporary) {
        (Some(dir), _) => dir.as_path(),
        (None, Some(dir)) => dir.path(),
        (None, None) => Path::new("."),
    };
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(whole_life(args, directory));
    if let Some(directory) = temporary {
        let path = directory.path().to_owned();
        directory
            .close()
            .with_context(|| format!("can't remove {}", path.display()))?;
    }
    result
}

async fn whole_life(args: &DemoArgs, directory: &Path) -> Outcome {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let layout = Layout::prepare(args, directory)?;
    let mut processes = Processes::start(&layout)?;
    let work = async {
        join_all(&layout, &mut processes).await?;
        bring_up(&layout, &mut processes).await?;
        let primary = primary_of(&layout).await?;
        match &args.exec {
            Some(command) => execute(&layout, command, primary).await,
            None => {
                announce(&layout, args.dir.is_some(), primary);
                pending().await
            }
        }
    };
    let result = tokio::select! {
        result = work => result,
        _ = interrupted.recv() => Ok(None),
        _ = terminated.recv() => Ok(None),
    };
    if result.is_err() {
        processes.show_logs();
    }
    // Ends in order: while all replicas are there the primary demotes, so nothing is to resync.
    stop(&layout, &mut processes).await;
    Ok(match result? {
        None => ExitCode::SUCCESS,
        Some(status) => exit_code(status),
    })
}

/// Has the nodes join that are not in the cluster yet, each with a token of its own, and starts them.
async fn join_all(layout: &Layout, processes: &mut Processes) -> anyhow::Result<()> {
    let missing: Vec<u8> = (1..=layout.all())
        .filter(|&number| !layout.has_joined(number))
        .collect();
    let deadline = Instant::now() + START_LIMIT;
    let client = layout.client(1);
    for &number in &missing {
        until(
            processes,
            &client,
            deadline,
            "the first daemon to start",
            |view| view.notes.is_empty(),
        )
        .await?;
        let done = client
            .operate(&Operation::Token {
                valid_s: START_LIMIT.as_secs(),
            })
            .await?;
        let file = NodeFile::load(&layout.config(number))?;
        join_cluster(&file, &done.message.parse()?).await?;
    }
    for number in missing {
        processes.start_one(layout, number)?;
    }
    Ok(())
}

/// Waits for the daemons, makes or finds the resource, and waits until all of it is up to date.
async fn bring_up(layout: &Layout, processes: &mut Processes) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    let client = layout.client(1);
    let view = until(
        processes,
        &client,
        deadline,
        "all daemons to start",
        |view| view.notes.is_empty() && view.nodes.iter().all(|node| node.online),
    )
    .await?;
    if !view.resources.iter().any(|r| r.name == RESOURCE) {
        client.operate(&create(layout)).await?;
    }
    until(
        processes,
        &client,
        deadline,
        "the replicas to be attached",
        |view| {
            let mut replicas = view
                .resources
                .iter()
                .flat_map(|r| &r.volumes)
                .flat_map(|v| &v.replicas);
            replicas.all(|replica| {
                !matches!(
                    replica.disk_state.as_str(),
                    "Unknown" | "Diskless" | "Attaching"
                )
            })
        },
    )
    .await?;
    promote(layout, &client).await?;
    until(
        processes,
        &client,
        deadline,
        "r0 to be UpToDate everywhere",
        |view| {
            let mut replicas = view
                .resources
                .iter()
                .flat_map(|r| &r.volumes)
                .flat_map(|v| &v.replicas);
            replicas.clone().any(|replica| replica.role == "Primary")
                && replicas.all(|replica| replica.disk_state == "UpToDate")
        },
    )
    .await?;
    Ok(())
}

fn create(layout: &Layout) -> Operation {
    let replicas = (1..=layout.nodes).map(|number| ReplicaSpec {
        node: Layout::name(number),
        paths: Vec::new(),
        metadata: MetadataSpec::Default,
    });
    Operation::CreateResource {
        name: RESOURCE.to_owned(),
        sizes: vec![layout.size_bytes],
        replicas: replicas.collect(),
        min_redundancy: 1,
        policy: Policy {
            access: Access::Follow,
            ..Policy::default()
        },
    }
}

/// Promotes the first node that has the latest data.
async fn promote(layout: &Layout, client: &Client) -> anyhow::Result<()> {
    let view = client.status().await?;
    let in_sync = view
        .resources
        .iter()
        .find(|resource| resource.name == RESOURCE)
        .map(|resource| resource.in_sync.clone())
        .unwrap_or_default();
    let mut last = None;
    for node in in_sync {
        let operation = Operation::Promote {
            resource: RESOURCE.to_owned(),
            node: Some(node),
            accept_data_loss: false,
            confirm_dead: None,
        };
        match client.operate(&operation).await {
            Ok(_) => return Ok(()),
            Err(ClientError::Refused(failure)) => last = Some(failure),
            Err(error) => return Err(error.into()),
        }
    }
    match last {
        Some(failure) => Err(failure.into()),
        None => bail!(
            "no replica of {RESOURCE} in {} has its data",
            layout.directory.display()
        ),
    }
}

async fn until(
    processes: &mut Processes,
    client: &Client,
    deadline: Instant,
    what: &str,
    good: impl Fn(&ClusterView) -> bool,
) -> anyhow::Result<ClusterView> {
    loop {
        let problem = match client.status().await {
            Ok(view) if good(&view) => return Ok(view),
            Ok(view) => crate::status::text(&view),
            Err(error) => error.to_string(),
        };
        processes.check()?;
        if Instant::now() > deadline {
            bail!(
                "waited {} s for {what}, in vain\n{problem}",
                START_LIMIT.as_secs()
            );
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The number of the primary's node.
async fn primary_of(layout: &Layout) -> anyhow::Result<u8> {
    let view = layout.client(1).status().await?;
    let primary = view
        .resources
        .iter()
        .find_map(|resource| resource.primary.clone());
    (1..=layout.nodes)
        .find(|&number| primary.as_deref() == Some(&Layout::name(number)))
        .context("r0 has lost its primary")
}

fn announce(layout: &Layout, kept: bool, primary: u8) {
    println!("r0 is up to date on {} nodes.", layout.nodes);
    for number in 1..=layout.nodes {
        println!(
            "  {}  {}{}",
            Layout::name(number),
            layout.uri(number),
            if number == primary { "  (primary)" } else { "" }
        );
    }
    println!(
        "Look at it: lockstep --socket {} status",
        layout.socket(1).display()
    );
    println!(
        "Everything is in {}{}. Ctrl-C stops it.",
        layout.directory.display(),
        if kept {
            ""
        } else {
            ", which is removed at the end"
        }
    );
}

async fn execute(
    layout: &Layout,
    command: &str,
    primary: u8,
) -> anyhow::Result<Option<ExitStatus>> {
    let mut shell = tokio::process::Command::new("sh");
    shell
        .arg("-c")
        .arg(command)
        .env("NBD_URI", layout.uri(primary))
        .env("LOCKSTEP_DIR", &layout.directory)
        .env("LOCKSTEP_SOCKET", layout.socket(1));
    for number in 1..=layout.nodes {
        shell.env(format!("NBD_URI_{number}"), layout.uri(number));
    }
    shell.kill_on_drop(true);
    let status = shell.status().await.context("can't run sh")?;
    Ok(Some(status))
}

async fn stop(layout: &Layout, processes: &mut Processes) {
    let demote = Operation::Demote {
        resource: RESOURCE.to_owned(),
        node: None,
    };
    let client = layout.client(1);
    match tokio::time::timeout(DEMOTE_LIMIT, client.operate(&demote)).await {
        Ok(Ok(_)) => {}
        // The demo stops in any case; the next start recovers.
        Ok(Err(error)) => tracing::debug!(%error, "not demoted"),
        Err(_) => tracing::debug!("not demoted in time"),
    }
    processes.stop(layout).await;
}

/// As a shell would say it: 128 and the signal's number for a command that a signal ended.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}
