//! What the commands of the command line do. Each ends with an exit code; errors go up to `main`,
//! which prints them.

mod apply;
mod node_files;
mod operate;
mod show;

use crate::cli::{Cli, ClusterCommand, Command, NodeCommand, ResourceCommand, VolumeCommand};
use crate::client::Client;
use crate::operation::{FencingSpec, NodeWord, Operation, Preference};
use std::process::ExitCode;

/// A command's end: what to exit with.
pub(crate) type Outcome = anyhow::Result<ExitCode>;

/// Runs the command.
pub(crate) fn run(cli: Cli) -> Outcome {
    let Cli {
        socket,
        json,
        command,
    } = cli;
    let client = Client::new(socket.as_deref());
    match command {
        Command::Demo(args) => crate::demo::run(&args),
        Command::Daemon(args) => crate::daemon::run(&args),
        Command::Init { config } => node_files::init(&config, json),
        Command::Join {
            config,
            token,
            rejoin,
        } => block_on(node_files::join(&config, &token, rejoin, json)),
        Command::Recover {
            config,
            accept_data_loss,
        } => node_files::recover(&config, accept_data_loss, json),
        Command::Token { valid } => block_on(operate::run(
            &client,
            Operation::Token { valid_s: valid },
            json,
        )),
        Command::Attach(args) => block_on(crate::attach::attach(&client, args, json)),
        Command::Detach { target } => crate::attach::detach(&target, json),
        Command::DumpMetadata { file, device_size } => {
            node_files::dump_metadata(&file, device_size)
        }
        Command::Status { resource, watch } => {
            block_on(show::status(&client, resource.as_deref(), json, watch))
        }
        Command::Events { once } => block_on(show::events(&client, once, json)),
        Command::Apply {
            file,
            prune,
            dry_run,
        } => block_on(apply::apply(&client, &file, prune, dry_run, json)),
        Command::Export => block_on(apply::export(&client, json)),
        Command::Cluster(ClusterCommand::Timings(timings)) => block_on(operate::run(
            &client,
            Operation::SetTimings { timings },
            json,
        )),
        Command::Resource(ResourceCommand::Set(args)) => {
            let preferred = match args.prefer {
                Some(node) => Some(Preference::Node(node)),
                None => args.prefer_nobody.then_some(Preference::Nobody),
            };
            let operation = Operation::SetResource {
                resource: args.resource,
                min_redundancy: args.min_redundancy,
                access: args.access,
                on_no_quorum: args.on_no_quorum,
                preferred,
            };
            block_on(operate::run(&client, operation, json))
        }
        Command::Resource(ResourceCommand::AddReplica {
            resource,
            replica,
            metadata,
        }) => {
            let replica = operate::replica(&replica, metadata);
            let operation = Operation::AddReplica { resource, replica };
            block_on(operate::run(&client, operation, json))
        }
        Command::Resource(ResourceCommand::RemoveReplica { resource, node }) => {
            let operation = Operation::RemoveReplica { resource, node };
            block_on(operate::run(&client, operation, json))
        }
        Command::Resource(ResourceCommand::List) => block_on(show::resources(&client, json)),
        Command::Resource(ResourceCommand::Create(args)) => {
            block_on(operate::run(&client, operate::create(args), json))
        }
        Command::Resource(ResourceCommand::Delete { name }) => block_on(operate::run(
            &client,
            Operation::DeleteResource { name },
            json,
        )),
        Command::Resource(ResourceCommand::ReplaceDisk(args)) => block_on(operate::run(
            &client,
            Operation::ReplaceDisk {
                resource: args.resource,
                node: args.node,
                paths: args.path,
                metadata: args.metadata,
            },
            json,
        )),
        Command::Volume(VolumeCommand::Resize { volume, size }) => {
            block_on(operate::run(&client, operate::resize(&volume, size)?, json))
        }
        Command::Promote(args) => block_on(operate::run(
            &client,
            Operation::Promote {
                resource: args.target.resource,
                node: args.target.node,
                accept_data_loss: args.accept_data_loss,
                confirm_dead: args.confirm_dead,
            },
            json,
        )),
        Command::Demote(target) => {
            let (resource, node) = (target.resource, target.node);
            block_on(operate::run(
                &client,
                Operation::Demote { resource, node },
                json,
            ))
        }
        Command::Move(target) => {
            let (resource, node) = (target.resource, target.node);
            block_on(operate::run(
                &client,
                Operation::Move { resource, node },
                json,
            ))
        }
        Command::Node(command) => {
            let state = |node, state| Operation::SetNode { node, state };
            let operation = match command {
                NodeCommand::Standby { node } => state(node, NodeWord::Standby),
                NodeCommand::Online { node } => state(node, NodeWord::Online),
                NodeCommand::Maintenance { node } => state(node, NodeWord::Maintenance),
                NodeCommand::Fence { node } => Operation::Fence {
                    node,
                    confirmed: false,
                },
                NodeCommand::ConfirmDead { node } => Operation::Fence {
                    node,
                    confirmed: true,
                },
                NodeCommand::Remove { node, replicas } => Operation::RemoveNode { node, replicas },
                NodeCommand::Fencing(args) => Operation::SetFencing {
                    node: args.node,
                    fencing: args.agent.map(|agent| FencingSpec {
                        agent,
                        parameters: args.set,
                        timeout_s: args.timeout,
                    }),
                },
            };
            block_on(operate::run(&client, operation, json))
        }
        Command::Connect(target) => {
            let (resource, node) = (target.resource, target.node);
            block_on(operate::run(
                &client,
                Operation::Connect { resource, node },
                json,
            ))
        }
        Command::Disconnect(target) => {
            let (resource, node) = (target.resource, target.node);
            block_on(operate::run(
                &client,
                Operation::Disconnect { resource, node },
                json,
            ))
        }
        Command::Verify(args) => {
            let (resource, node) = (args.awaited.target.resource, args.awaited.target.node);
            let operation = Operation::Verify {
                resource: resource.clone(),
                node,
                repair: args.repair,
                stop: args.stop,
            };
            let wait = args.awaited.wait.then_some(operate::Wait::Verify);
            block_on(operate::run_and_wait(
                &client, operation, &resource, wait, json,
            ))
        }
        Command::Resync(args) => {
            let (resource, node) = (args.target.resource, args.target.node);
            let wait = args.wait.then(|| operate::Wait::UpToDate(node.clone()));
            let operation = Operation::Resync {
                resource: resource.clone(),
                node,
            };
            block_on(operate::run_and_wait(
                &client, operation, &resource, wait, json,
            ))
        }
        Command::Invalidate(args) => {
            let (resource, node) = (args.resource, args.node);
            let wait = args
                .wait
                .then(|| operate::Wait::UpToDate(Some(node.clone())));
            let operation = Operation::Invalidate {
                resource: resource.clone(),
                node,
            };
            block_on(operate::run_and_wait(
                &client, operation, &resource, wait, json,
            ))
        }
    }
}

fn block_on(work: impl Future<Output = Outcome>) -> Outcome {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}
