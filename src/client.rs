//! The command line's side of the API: HTTP over the daemon's unix socket, every call bounded.

use crate::events::EventRecord;
use crate::operation::{Answer, Done, Failure, Operation};
use crate::view::ClusterView;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// A daemon that does not begin to answer within this time is given up. Longer than any operation's
/// own limit, so that the daemon's reason is heard.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// The same for a status, which has no limit of its own to wait for.
const STATUS_LIMIT: Duration = Duration::from_secs(10);
/// Where a packaged daemon listens.
const DEFAULT_SOCKET: &str = "/run/lockstep/api.sock";

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error(
        "no daemon answers at {}: {source}\n  to do: start it (`lockstep daemon --config FILE`), or name its socket with --socket or LOCKSTEP_SOCKET",
        path.display()
    )]
    Connect {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "the daemon at {} has not answered within {} s\n  to do: see its log; what was asked for may still happen",
        path.display(),
        limit.as_secs()
    )]
    TimedOut { path: PathBuf, limit: Duration },
    #[error("the connection to the daemon broke: {0}")]
    Http(#[from] hyper::Error),
    #[error("what answers at the socket is not a lockstep daemon of this version: {0}")]
    Answer(#[from] serde_json::Error),
    #[error("what answers at the socket is not a lockstep daemon of this version: status {0}")]
    Status(hyper::StatusCode),
    #[error(transparent)]
    Refused(#[from] Failure),
}

/// A daemon's socket.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    path: PathBuf,
}

impl Client {
    pub(crate) fn new(path: Option<&Path>) -> Self {
        let path = path.unwrap_or(Path::new(DEFAULT_SOCKET));
        Self {
            // A command that stays changes its directory.
            path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
        }
    }

    /// Asks for something to be done.
    pub(crate) async fn operate(&self, operation: &Operation) -> Result<Done, ClientError> {
        let body = serde_json::to_vec(operation)?;
        let bytes = self
            .bounded(ANSWER_LIMIT, self.whole("POST", "/v1/operations", body))
            .await?;
        match serde_json::from_slice(&bytes)? {
            Answer::Done(done) => Ok(done),
            Answer::Failed(failure) => Err(failure.into()),
        }
    }

    /// The cluster as the daemon sees it.
    pub(crate) async fn status(&self) -> Result<ClusterView, ClientError> {
        let bytes = self
            .bounded(STATUS_LIMIT, self.whole("GET", "/v1/status", Vec::new()))
            .await?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Hands each event to `each`: those that are known, and unless `once` those that come.
    pub(crate) async fn events(
        &self,
        once: bool,
        mut each: impl FnMut(EventRecord) -> std::io::Result<()>,
    ) -> Result<(), ClientError> {
        let path = if once {
            "/v1/events"
        } else {
            "/v1/events?follow=true"
        };
        let response = self
            .bounded(STATUS_LIMIT, self.send("GET", path, Vec::new()))
            .await?;
        let mut body = response.into_body();
        let mut pending = Vec::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                pending.extend_from_slice(&data);
            }
            while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                if each(serde_json::from_slice(&line)?).is_err() {
                    // Nobody reads the output any more.
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn bounded<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        timeout(limit, work).await.unwrap_or_else(|_| {
            Err(ClientError::TimedOut {
                path: self.path.clone(),
                limit,
            })
        })
    }

    async fn whole(&self, method: &str, path: &str, body: Vec<u8>) -> Result<Bytes, ClientError> {
        let response = self.send(method, path, body).await?;
        Ok(response.into_body().collect().await?.to_bytes())
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream =
            UnixStream::connect(&self.path)
                .await
                .map_err(|source| ClientError::Connect {
                    path: self.path.clone(),
                    source,
                })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Drives the connection; its end is seen at the response.
        tokio::spawn(connection);
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = method.parse().unwrap_or_default();
        *request.uri_mut() = path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert("host", hyper::header::HeaderValue::from_static("lockstep"));
        headers.insert(
            "content-type",
            hyper::header::HeaderValue::from_static("application/json"),
        );
        let response = sender.send_request(request).await?;
        let answers = response.status().is_success()
            || response
                .headers()
                .get("content-type")
                .is_some_and(|t| t == "application/json");
        if answers {
            Ok(response)
        } else {
            Err(ClientError::Status(response.status()))
        }
    }
}
