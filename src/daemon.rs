//! `lockstep daemon`: one node, from its lock to its orderly end. Three threads: the controller's,
//! the data plane's, and this one with the API.

use crate::api;
use crate::cli::DaemonArgs;
use crate::commands::Outcome;
use crate::config::{Config, NodeFile};
use crate::engine::{PlaneEngine, Tell};
use crate::events::Events;
use crate::lock::DirectoryLock;
use crate::membership;
use crate::nbd::tls::CurrentTls;
use crate::node::Node;
use crate::resources::Resources;
use crate::service_manager;
use crate::successor;
use anyhow::Context;
use controller::core::consensus::{self, VoterId};
use controller::core::{Document, failover};
use controller::pki::Issuer;
use controller::runtime::{self, Controller, Engine};
use controller::store::{Promise, PromiseStore};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// A primary whose disk leaves a request unanswered for so long stops its beacons, and another node takes
/// over. Longer than a flush takes on a busy disk that is well.
const DISK_LIMIT_MS: u64 = 5_000;
/// The same for a data plane that has not turned for so long. A turn takes microseconds.
const TURN_LIMIT_MS: u64 = 500;

/// Runs the node until SIGTERM or SIGINT.
pub(crate) fn run(args: &DaemonArgs) -> Outcome {
    let directory = NodeFile::load(&args.config)?.data_directory;
    let _lock = DirectoryLock::take(&directory)?;
    successor::finish(&directory)?;
    let config = Config::load(&args.config)?;
    log_to_stderr();
    raise_descriptor_limit();
    if args.exit_with_parent {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)
            .context("can't ask for the parent's end")?;
    }
    tokio::runtime::Builder::new_current_thread()
        .thread_name("api")
        .enable_all()
        .build()?
        .block_on(serve(Arc::new(config)))
}

async fn serve(config: Arc<Config>) -> Outcome {
    let name = config.file.name.clone();
    let mut ends = [
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    ];
    let reloads = signal(SignalKind::hangup())?;
    let listener = api::listen(&config.file.api_socket)?;
    let events = Arc::new(Events::new(name.to_string()));
    let tell = Tell::default();
    let crate::data::Started {
        thread: data_plane,
        plane,
        nbd_tls,
        reports,
        report,
    } = crate::data::start(&config, &tell)?;
    let engine = PlaneEngine::new(
        data_plane.handle(),
        tell.clone(),
        report,
        TURN_LIMIT_MS,
        DISK_LIMIT_MS,
    );
    let issuer = Issuer::load(&config.file.keys(), &config.identity)?.map(Arc::new);
    let (controller, forwarded) = start_controller(&config, issuer.clone(), Box::new(engine))?;
    let nodes = tokio::spawn(membership::keep_nodes(
        Arc::clone(&config),
        controller.handle(),
    ));
    let addresses = tokio::spawn(membership::announce(
        Arc::clone(&config),
        controller.handle(),
    ));
    tell.begin(controller.failover());
    let plane: Arc<dyn crate::plane::Plane> = plane;
    let resources = Arc::new(Resources::new(
        Arc::clone(&config),
        controller.handle(),
        controller.failover(),
        Arc::clone(&plane),
        Arc::clone(&events),
    ));
    let node = Arc::new(Node {
        config: Arc::clone(&config),
        issuer,
        store: controller.handle(),
        failover: controller.failover(),
        plane,
        resources: Arc::clone(&resources),
        events: Arc::clone(&events),
    });
    let (stop, mut stopped) = watch::channel(false);
    let follow = tokio::spawn(Arc::clone(&resources).run(reports));
    let answers = tokio::spawn(Arc::clone(&node).answer_forwarded(forwarded));
    let serving = tokio::spawn(api::serve(listener, node, async move {
        // An error: the daemon ends without having asked.
        let _ = stopped.wait_for(|stop| *stop).await;
    }));
    let reloading = tokio::spawn(reload(reloads, nbd_tls));
    events.push(None, "started", format!("{name} is up"));
    service_manager::ready();
    first(&mut ends).await;
    events.push(None, "stopping", format!("{name} stops"));
    // Replicas first: a primary demotes through the configuration store.
    resources.close().await;
    stop.send_replace(true);
    // Only the API's own end can be an error worth a word.
    if let Ok(Err(error)) = serving.await {
        tracing::warn!(%error, "the API ended with an error");
    }
    for task in [follow, answers, nodes, addresses, reloading] {
        task.abort();
    }
    drop(data_plane);
    drop(controller);
    // The socket of a daemon that is not there would only puzzle.
    let _ = std::fs::remove_file(&config.file.api_socket);
    Ok(ExitCode::SUCCESS)
}

async fn first(signals: &mut [Signal; 2]) {
    let [terminate, interrupt] = signals;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Reads the certificates for NBD anew at each SIGHUP; connections that are there keep theirs.
async fn reload(mut signals: Signal, nbd_tls: Option<CurrentTls>) {
    while signals.recv().await.is_some() {
        let Some(tls) = nbd_tls.clone() else {
            tracing::info!("SIGHUP: without [nbd_tls] there is nothing to read anew");
            continue;
        };
        // The files may lie on a slow disk.
        match tokio::task::spawn_blocking(move || tls.reload()).await {
            Ok(Ok(())) => tracing::info!("the certificates of [nbd_tls] are read anew"),
            Ok(Err(error)) => tracing::error!(
                %error,
                "the certificates of [nbd_tls] can't be used; those that were read before stay in use"
            ),
            // The daemon ends.
            Err(_) => return,
        }
    }
}

fn start_controller(
    config: &Config,
    issuer: Option<Arc<Issuer>>,
    engine: Box<dyn Engine>,
) -> anyhow::Result<(Controller, tokio::sync::mpsc::Receiver<runtime::Forwarded>)> {
    let path = config.file.promise_path();
    let voter = if path.exists() {
        PromiseStore::open(&path, config.cluster)?
    } else {
        // A new voter under a new identity: it votes once the others have taken it in.
        let promise = Promise::new(VoterId(rand::random()), Document::new(config.cluster));
        (PromiseStore::create(&path, &promise)?, promise)
    };
    let reach = config.file.reach.iter();
    let reach = reach.filter(|(_, reach)| !reach.control.is_empty());
    Ok(Controller::start(runtime::Config {
        identity: config.identity.clone(),
        issuer,
        name: config.file.name.clone(),
        listen: config.file.control.listen.clone(),
        nodes: config.known_nodes.clone(),
        reach: reach
            .map(|(name, reach)| (name.clone(), reach.control.clone()))
            .collect(),
        voter: Some(voter),
        consensus: consensus::Settings::default(),
        failover: failover::Settings::default(),
        engine,
        run: rand::random(),
    })?)
}

fn log_to_stderr() {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_from_env("LOCKSTEP_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // A second subscriber can only be there in tests.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}

/// Connections and stores need descriptors; the usual soft limit of 1024 is for programs that use
/// `select`.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "can't raise the limit of open files");
    }
}
