//! The API: HTTP and JSON on a unix socket that only the daemon's user can open.
//!
//! - `GET /v1/status`: the cluster ([`crate::view::ClusterView`]).
//! - `GET /v1/events[?after=N][&follow=true]`: one JSON object a line ([`crate::events::EventRecord`]).
//! - `POST /v1/operations`: an [`Operation`]; the answer is an [`Answer`].

use crate::events::Events;
use crate::node::Node;
use crate::operation::{Answer, Failure, Operation};
use crate::who::Caller;
use axum::body::Body;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use http_body_util::channel::Channel;
use serde::Deserialize;
use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::UnixListener;

/// Chunks of an event stream that wait for a slow reader; then it waits for them.
const STREAM_AHEAD: usize = 16;

/// Why the API can't be offered.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on the API socket {}: {source}", path.display())]
pub(crate) struct ListenError {
    path: PathBuf,
    source: std::io::Error,
}

/// Opens the socket. The data directory's lock is held: a socket that is there is a dead daemon's.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    let error = |source| ListenError {
        path: path.to_owned(),
        source,
    };
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => return Err(error(source)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(error)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(error)?;
    Ok(listener)
}

/// Serves until the future ends.
pub(crate) async fn serve(
    listener: UnixListener,
    node: Arc<Node>,
    until: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/events", get(events))
        .route("/v1/operations", post(operations))
        .fallback(async || unknown())
        .with_state(node)
        .into_make_service_with_connect_info::<Caller>();
    tokio::select! {
        result = axum::serve(listener, router) => result,
        () = until => Ok(()),
    }
}

async fn status(State(node): State<Arc<Node>>) -> Response {
    Json(node.status().await).into_response()
}

async fn operations(
    State(node): State<Arc<Node>>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    body: Bytes,
) -> Response {
    let operation: Operation = match serde_json::from_slice(&body) {
        Ok(operation) => operation,
        Err(error) => {
            let failure = Failure::new(
                "can't understand the request",
                error,
                "use a command line and a daemon of the same version",
            );
            return (StatusCode::BAD_REQUEST, Json(Answer::Failed(failure))).into_response();
        }
    };
    match node.operate_for(caller, operation).await {
        Ok(done) => Json(Answer::Done(done)).into_response(),
        Err(failure) => (StatusCode::CONFLICT, Json(Answer::Failed(failure))).into_response(),
    }
}

fn unknown() -> Response {
    let failure = Failure::new(
        "can't understand the request",
        "there is nothing at this path",
        "the API has /v1/status, /v1/events and /v1/operations",
    );
    (StatusCode::NOT_FOUND, Json(Answer::Failed(failure))).into_response()
}

#[derive(Deserialize)]
struct EventsQuery {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    follow: bool,
}

async fn events(State(node): State<Arc<Node>>, Query(query): Query<EventsQuery>) -> Response {
    let (sender, body) = Channel::<Bytes, Infallible>::new(STREAM_AHEAD);
    tokio::spawn(stream(Arc::clone(&node.events), query, sender));
    ([("content-type", "application/json")], Body::new(body)).into_response()
}

async fn stream(
    events: Arc<Events>,
    query: EventsQuery,
    mut sender: http_body_util::channel::Sender<Bytes, Infallible>,
) {
    let mut newest = events.newest();
    let mut after = query.after;
    loop {
        for event in events.after(after) {
            after = event.sequence;
            let Ok(mut line) = serde_json::to_vec(&event) else {
                continue;
            };
            line.push(b'\n');
            if sender.send_data(line.into()).await.is_err() {
                return;
            }
        }
        let more = newest.wait_for(|&newest| newest > after);
        if !query.follow || more.await.is_err() {
            return;
        }
    }
}
