//! Listening sockets that whoever started the process hands over, as systemd does (sd_listen_fds(3)):
//! descriptors from 3 on, told of in `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES`.

use super::ring::sys;
use nix::sys::socket::{SockType, getsockopt, sockopt};
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};

/// The first descriptor that is handed over (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// Most descriptors that are taken.
const MAX_SOCKETS: RawFd = 64;

/// A socket that listens.
#[derive(Debug)]
pub struct Inherited {
    /// Its name (systemd's `FileDescriptorName=`); systemd's own default is the socket unit's.
    pub name: String,
    /// The socket. Others hold it too: it must not be shut down, only closed.
    pub socket: OwnedFd,
    /// Where it listens; `None`: not on the Internet protocol.
    pub address: Option<SocketAddr>,
}

/// What is wrong with what was handed over.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// The variable is not understood.
    #[error("{name}={value:?} is not understood; see sd_listen_fds(3)")]
    Variable {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// The descriptor is no listening stream socket.
    #[error(
        "descriptor {fd} (\"{name}\"), handed over by LISTEN_FDS, is no listening stream socket"
    )]
    Kind {
        /// The descriptor.
        fd: RawFd,
        /// The name that it was given.
        name: String,
    },
}

/// The sockets that were handed over to the process `pid`; none where the variables are for another.
///
/// # Errors
/// [`InheritError`].
pub fn inherited(
    variable: impl Fn(&'static str) -> Option<String>,
    pid: u32,
) -> Result<Vec<Inherited>, InheritError> {
    let bad = |name, value: &str| InheritError::Variable {
        name,
        value: value.to_owned(),
    };
    let (Some(meant), Some(count)) = (variable("LISTEN_PID"), variable("LISTEN_FDS")) else {
        return Ok(Vec::new());
    };
    if meant
        .parse::<u32>()
        .map_err(|_| bad("LISTEN_PID", &meant))?
        != pid
    {
        return Ok(Vec::new());
    }
    let sockets: RawFd = count
        .parse()
        .ok()
        .filter(|count| (0..=MAX_SOCKETS).contains(count))
        .ok_or_else(|| bad("LISTEN_FDS", &count))?;
    let names = variable("LISTEN_FDNAMES");
    let names: Vec<String> = match &names {
        Some(names) => {
            let each: Vec<String> = names.split(':').map(str::to_owned).collect();
            if RawFd::try_from(each.len()) != Ok(sockets) {
                return Err(bad("LISTEN_FDNAMES", names));
            }
            each
        }
        None => (0..sockets).map(|_| "unknown".to_owned()).collect(),
    };
    let sockets = (FIRST..).zip(names).map(|(fd, name)| take(fd, name));
    sockets.collect()
}

fn take(fd: RawFd, name: String) -> Result<Inherited, InheritError> {
    let listens = |socket: &OwnedFd| {
        getsockopt(socket, sockopt::AcceptConn).unwrap_or(false)
            && getsockopt(socket, sockopt::SockType) == Ok(SockType::Stream)
    };
    match sys::take_inherited(fd) {
        Ok(socket) if listens(&socket) => {
            let address = socket2::SockRef::from(&socket).local_addr();
            Ok(Inherited {
                name,
                address: address.ok().and_then(|address| address.as_socket()),
                socket,
            })
        }
        _ => Err(InheritError::Kind { fd, name }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&'static str, &str)]) -> Result<usize, String> {
        let find = |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        inherited(find, 42)
            .map(|sockets| sockets.len())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_meant_for_nobody_or_for_another_process_is_left_alone() {
        assert_eq!(with(&[]), Ok(0));
        assert_eq!(with(&[("LISTEN_FDS", "1")]), Ok(0));
        assert_eq!(with(&[("LISTEN_PID", "41"), ("LISTEN_FDS", "1")]), Ok(0));
        assert_eq!(with(&[("LISTEN_PID", "42"), ("LISTEN_FDS", "0")]), Ok(0));
    }

    #[test]
    fn variables_that_make_no_sense_are_named() {
        for (variables, named) in [
            (
                &[("LISTEN_PID", "x"), ("LISTEN_FDS", "1")][..],
                "LISTEN_PID=\"x\"",
            ),
            (
                &[("LISTEN_PID", "42"), ("LISTEN_FDS", "-1")],
                "LISTEN_FDS=\"-1\"",
            ),
            (
                &[("LISTEN_PID", "42"), ("LISTEN_FDS", "1000000")],
                "LISTEN_FDS=\"1000000\"",
            ),
            (
                &[
                    ("LISTEN_PID", "42"),
                    ("LISTEN_FDS", "1"),
                    ("LISTEN_FDNAMES", "a:b"),
                ],
                "LISTEN_FDNAMES=\"a:b\"",
            ),
        ] {
            let error = with(variables).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
