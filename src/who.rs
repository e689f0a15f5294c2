//! Who gives commands: the user at the other end of the API's socket.

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use nix::unistd::{Uid, User};
use std::fmt;
use tokio::net::UnixListener;

/// The other end of a connection; `None`: the kernel does not tell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    uid: Option<u32>,
    pid: Option<i32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let credentials = stream.io().peer_cred().ok();
        Self {
            uid: credentials.map(|credentials| credentials.uid()),
            pid: credentials.and_then(|credentials| credentials.pid()),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(uid) = self.uid else {
            return f.write_str("somebody");
        };
        match User::from_uid(Uid::from_raw(uid)) {
            Ok(Some(user)) => f.write_str(&user.name)?,
            _ => write!(f, "user {uid}")?,
        }
        match self.pid {
            Some(pid) => write!(f, " (process {pid})"),
            None => Ok(()),
        }
    }
}
