//! Commands that ask a daemon to do something, and those that wait until it is done.

use super::Outcome;
use crate::cli::CreateArgs;
use crate::client::Client;
use crate::operation::{MetadataSpec, Operation, ReplicaSpec};
use crate::size::show_size;
use crate::view::ResourceView;
use anyhow::Context;
use controller::core::Policy;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

/// Progress is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Work that has neither begun nor ended after this many looks is over: it was short.
const LOOKS_TO_BEGIN: u32 = 4;

/// What to wait for.
#[derive(Debug)]
pub(super) enum Wait {
    /// The verify under way ends.
    Verify,
    /// This replica (`None`: every replica) is up to date.
    UpToDate(Option<String>),
}

/// `NODE` or `NODE:PATH,…`.
pub(super) fn replica(word: &str, metadata: MetadataSpec) -> ReplicaSpec {
    let (node, paths) = word.split_once(':').unwrap_or((word, ""));
    let paths = paths.split(',').filter(|path| !path.is_empty());
    ReplicaSpec {
        node: node.to_owned(),
        paths: paths.map(str::to_owned).collect(),
        metadata,
    }
}

pub(super) fn create(args: CreateArgs) -> Operation {
    let replicas = args.replica.iter();
    let replicas = replicas.map(|word| replica(word, args.metadata));
    Operation::CreateResource {
        name: args.name,
        sizes: args.size,
        replicas: replicas.collect(),
        min_redundancy: args.min_redundancy,
        policy: Policy {
            access: args.access.into(),
            on_no_quorum: args.on_no_quorum.into(),
            preferred: None,
        },
    }
}

pub(super) fn resize(volume: &str, size_bytes: u64) -> anyhow::Result<Operation> {
    let (resource, volume) = match volume.split_once('/') {
        None => (volume, 0),
        Some((resource, number)) => {
            let number = number.parse().with_context(|| {
                format!(
                    "\"{number}\" is not a volume's number: RESOURCE or RESOURCE/NUMBER is wanted"
                )
            })?;
            (resource, number)
        }
    };
    Ok(Operation::Resize {
        resource: resource.to_owned(),
        volume,
        size_bytes,
    })
}

pub(super) async fn run(client: &Client, operation: Operation, json: bool) -> Outcome {
    let done = client.operate(&operation).await?;
    if json {
        println!("{}", serde_json::to_string(&done)?);
    } else {
        println!("{}", done.message);
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn run_and_wait(
    client: &Client,
    operation: Operation,
    resource: &str,
    wait: Option<Wait>,
    json: bool,
) -> Outcome {
    let code = run(client, operation, json).await?;
    if let Some(wait) = wait {
        let show = !json && std::io::stderr().is_terminal();
        let mut looks = 0;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            looks += 1;
            let view = client.status().await?;
            let view = view
                .resources
                .iter()
                .find(|view| view.name == resource)
                .with_context(|| format!("{resource} was deleted meanwhile"))?;
            let progress = progress(view, &wait);
            if show {
                let text = progress.as_deref().unwrap_or("done");
                eprint!("\r\x1b[K{text}");
                std::io::stderr().flush()?;
            }
            let begins = matches!(wait, Wait::Verify) && looks < LOOKS_TO_BEGIN;
            if progress.is_none() && !begins {
                break;
            }
        }
        if show {
            eprintln!();
        }
    }
    Ok(code)
}

/// What is left to do; `None`: nothing.
fn progress(view: &ResourceView, wait: &Wait) -> Option<String> {
    match wait {
        Wait::Verify => view.verify.map(|verify| {
            format!(
                "verify: {:.1} %, {} left, {} differ",
                verify.progress.percent(),
                show_size(verify.progress.left_bytes),
                show_size(verify.differing_bytes)
            )
        }),
        Wait::UpToDate(node) => {
            let wanted = |name: &str| node.as_deref().is_none_or(|node| node == name);
            let replicas = view.volumes.iter().flat_map(|volume| &volume.replicas);
            let late: Vec<_> = replicas
                .filter(|replica| wanted(&replica.node) && replica.disk_state != "UpToDate")
                .collect();
            let first = late.first()?;
            Some(match &first.resync {
                Some(resync) => format!(
                    "{}: {:.1} %, {} left",
                    first.node,
                    resync.percent,
                    show_size(resync.bytes_left)
                ),
                None => format!("{}: {}", first.node, first.disk_state),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::{AccessMode, NoQuorum};

    #[test]
    fn replicas_are_nodes_with_paths() {
        let operation = create(CreateArgs {
            name: "r0".to_owned(),
            size: vec![4096, 8192],
            replica: vec!["n1:/dev/sdb,/dev/sdc".to_owned(), "n2".to_owned()],
            metadata: MetadataSpec::Internal,
            min_redundancy: 1,
            access: AccessMode::Follow,
            on_no_quorum: NoQuorum::Suspend,
        });
        let Operation::CreateResource { replicas, .. } = operation else {
            panic!("{operation:?}");
        };
        assert_eq!(replicas[0].node, "n1");
        assert_eq!(replicas[0].paths, ["/dev/sdb", "/dev/sdc"]);
        assert_eq!(
            (replicas[1].node.as_str(), replicas[1].paths.len()),
            ("n2", 0)
        );
    }

    #[test]
    fn a_volume_is_a_resource_and_a_number() {
        for (word, name, number) in [("r0", "r0", 0), ("r0/3", "r0", 3)] {
            let Ok(Operation::Resize {
                resource, volume, ..
            }) = resize(word, 1)
            else {
                panic!("{word}");
            };
            assert_eq!((resource.as_str(), volume), (name, number));
        }
        assert!(resize("r0/x", 1).is_err());
    }
}
