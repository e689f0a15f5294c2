//! What the file says of NBD: where clients connect, and whether the connection is encrypted.

use super::{Checker, ConfigError, Problem};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// TLS for NBD clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NbdTls {
    /// Clients must use it, not only may.
    pub(crate) required: bool,
    /// The server's certificate and those that lead to its authority, PEM.
    pub(crate) certificate: PathBuf,
    /// Its key, PEM.
    pub(crate) key: PathBuf,
    /// Authorities of which clients must show a certificate, PEM.
    pub(crate) client_ca: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawNbdTls {
    mode: Spanned<String>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
}

impl RawNbdTls {
    /// `None`: no TLS. Relative paths are taken from the directory.
    pub(super) fn check(
        self,
        check: &Checker<'_>,
        directory: &Path,
    ) -> Result<Option<NbdTls>, ConfigError> {
        let mode = self.mode;
        let required = match mode.get_ref().as_str() {
            "off" => return Ok(None),
            "on" => false,
            "require" => true,
            _ => return Err(check.error("nbd_tls.mode", &mode, mode.get_ref(), Problem::TlsMode)),
        };
        let (Some(certificate), Some(key)) = (self.certificate, self.key) else {
            return Err(check.error("nbd_tls.mode", &mode, mode.get_ref(), Problem::TlsFiles));
        };
        Ok(Some(NbdTls {
            required,
            certificate: directory.join(certificate),
            key: directory.join(key),
            client_ca: self.client_ca.map(|path| directory.join(path)),
        }))
    }
}

/// Addresses beyond loopback are for encrypted connections, or for those who say that they need none.
pub(super) fn listen(
    check: &Checker<'_>,
    raw: &[Spanned<String>],
    anywhere: bool,
) -> Result<Vec<SocketAddr>, ConfigError> {
    raw.iter()
        .map(|value| {
            let text = value.get_ref();
            let address: SocketAddr = text
                .parse()
                .map_err(|_| check.error("nbd_listen", value, text, Problem::IpPort))?;
            if !address.ip().is_loopback() && !anywhere {
                return Err(check.error("nbd_listen", value, text, Problem::Insecure));
            }
            Ok(address)
        })
        .collect()
}
