//! Where NBD clients connect: addresses, a unix socket, and what systemd hands over.

use super::tls::CurrentTls;
use super::{ExportTable, NbdProtocol};
use crate::config::NodeFile;
use crate::data::bind;
use anyhow::{Context, bail};
use nbd_frontend::TlsMode;
use replicator::runtime::inherited::{Inherited, inherited};
use replicator::runtime::plane::PlaneHandle;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

/// Names of inherited sockets that are for NBD: our own, and what systemd gives those that were given
/// none (the name of the socket unit; "unknown" where there is none).
fn is_for_nbd(name: &str) -> bool {
    matches!(name, "nbd" | "unknown" | "connection" | "") || name.ends_with(".socket")
}

/// Serves NBD wherever the file and the process's environment say; gives what it is encrypted with.
pub(crate) fn start(
    file: &NodeFile,
    handle: &PlaneHandle,
    exports: &ExportTable,
) -> anyhow::Result<Option<CurrentTls>> {
    let tls = file.nbd_tls.as_ref().map(CurrentTls::load).transpose();
    let tls = tls.context("NBD can't be encrypted ([nbd_tls])")?;
    let is_required = file.nbd_tls.as_ref().is_some_and(|files| files.required);
    let protocol = |required: bool| {
        Box::new(NbdProtocol {
            exports: exports.clone(),
            tls_mode: match &tls {
                None => TlsMode::Off,
                Some(_) if required => TlsMode::Require,
                Some(_) => TlsMode::On,
            },
            tls: tls.clone(),
        })
    };
    let mut addresses = file.nbd_listen.clone();
    for Inherited {
        name,
        socket,
        address,
    } in inherited(|name| std::env::var(name).ok(), std::process::id())?
    {
        if !is_for_nbd(&name) {
            bail!(
                "a socket named {name:?} was handed over (LISTEN_FDNAMES) and none of that name is known; \
                 sockets for NBD are named nbd (FileDescriptorName=nbd)"
            );
        }
        if let Some(address) = address
            && !address.ip().is_loopback()
            && !is_required
            && !file.nbd_insecure
        {
            bail!(
                "the socket {name:?} that was handed over listens on {address}, which can be reached from \
                 other machines, and NBD is not encrypted: set [nbd_tls] mode = \"require\", or say \
                 nbd_insecure = true if the network is trusted"
            );
        }
        addresses.extend(address);
        tracing::info!(%name, ?address, "NBD is served on a socket that was handed over");
        handle.listen_clients(socket, protocol(is_required && address.is_some()), true);
    }
    warn_of_strangers(file, &addresses);
    for address in &file.nbd_listen {
        let listener = bind(address).with_context(|| {
            format!("can't listen on {address} for NBD clients; free the port or change nbd_listen")
        })?;
        handle.listen_clients(OwnedFd::from(listener), protocol(is_required), false);
    }
    if let Some(path) = &file.nbd_socket {
        // The data directory's lock is held: a socket that is there is a dead daemon's.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("can't use {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(path)
            .with_context(|| format!("can't listen on {} for NBD clients", path.display()))?;
        // It is guarded by the permissions of its directory.
        handle.listen_clients(OwnedFd::from(listener), protocol(false), false);
    }
    Ok(tls)
}

fn warn_of_strangers(file: &NodeFile, addresses: &[SocketAddr]) {
    let proves = |files: &crate::config::NbdTls| files.required && files.client_ca.is_some();
    let outside = addresses.iter().find(|address| !address.ip().is_loopback());
    if let Some(address) = outside
        && !file.nbd_tls.as_ref().is_some_and(proves)
    {
        tracing::warn!(
            %address,
            "NBD clients need to prove nothing here: whoever reaches this address can read and write every disk ([nbd_tls] client_ca)"
        );
    }
}
