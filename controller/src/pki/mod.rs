//! Who belongs to the cluster, proved by certificates of the cluster's own authority. `init` makes
//! the authority; `join` gives a machine its certificate in exchange for a token. What a node is
//! called by the others stands in its certificate: `node-3.CLUSTERID.lockstep`.
//!
//! - [`files`]: what lies in the data directory's `tls`, and how it is written.
//! - [`authority`]: the key that signs.
//! - [`identity`]: a node's own certificate and key, and what follows for TLS.
//! - [`refusal`]: what a failed handshake means.
//! - [`token`]: the line of text that lets a machine in.
//! - [`issuer`]: hands tokens out and takes each of them once.
//! - [`beacon`]: seals on datagrams between nodes.
//!
//! Certificates don't expire with time that passes unnoticed: they are valid as long as the
//! authority, and from before any clock's beginning. A node is shut out by its removal from the
//! cluster, not by a date.

pub mod authority;
pub mod beacon;
pub mod files;
pub mod identity;
pub mod issuer;
pub mod refusal;
pub mod token;

use rustls::pki_types::CertificateDer;
use std::io;
use std::path::PathBuf;
use vocabulary::{ClusterId, NodeId};

pub use authority::Authority;
pub use beacon::{BeaconKey, SEAL_BYTES};
pub use identity::{Identity, PeerTls};
pub use issuer::{Issuer, TokenRefused};
pub use refusal::TlsError;
pub use token::{Token, TokenError};

/// The name under which a node is known in its certificate.
#[must_use]
pub fn member_name(cluster: ClusterId, node: NodeId) -> String {
    format!("node-{node}.{cluster}.lockstep")
}

/// What a name in a certificate says.
#[must_use]
pub fn parse_member_name(name: &str) -> Option<(ClusterId, NodeId)> {
    let (node, cluster) = name
        .strip_prefix("node-")?
        .strip_suffix(".lockstep")?
        .split_once('.')?;
    let id = ClusterId(u128::from_str_radix(cluster, 16).ok()?);
    let node = NodeId::new(node.parse().ok()?)?;
    // Only the one spelling.
    (member_name(id, node) == name).then_some((id, node))
}

/// Whose certificate it is. Nothing is verified here.
///
/// # Errors
/// It is not a node's certificate.
pub fn member_of(certificate: &CertificateDer<'_>) -> Result<(ClusterId, NodeId), PkiError> {
    let parsed =
        webpki::EndEntityCert::try_from(certificate).map_err(|_| PkiError::NotACertificate)?;
    let mut names = parsed.valid_dns_names();
    match (names.next().and_then(parse_member_name), names.next()) {
        (Some(member), None) => Ok(member),
        _ => Err(PkiError::NotANode),
    }
}

/// What can be wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file can't be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is none.
    #[error(
        "{} does not exist: this node belongs to no cluster yet\n  to do: `lockstep init --config FILE` on a new cluster's first node, `lockstep join --config FILE TOKEN` on every other one",
        path.display()
    )]
    NoIdentity {
        /// The file.
        path: PathBuf,
    },
    /// There is one already.
    #[error(
        "{} exists already: this node belongs to a cluster; nothing was changed\n  to do: start its daemon; to give the machine to another cluster, choose an empty data_directory",
        path.display()
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file does not hold what it should.
    #[error("{} is damaged: {problem}\n  to do: put it back from a backup, or remove the node from the cluster and let it join again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How.
        problem: Box<Self>,
    },
    /// No key, or not one of ours.
    #[error("it does not hold a key of this program's making")]
    NotAKey,
    /// No certificate.
    #[error("it does not hold a certificate")]
    NotACertificate,
    /// A certificate of somebody else.
    #[error("the certificate is not one of a lockstep node")]
    NotANode,
    /// No JSON of ours.
    #[error("{0}")]
    NotALedger(serde_json::Error),
    /// The wrong size.
    #[error("it does not hold a key of {wanted} bytes")]
    Length {
        /// Bytes.
        wanted: usize,
    },
    /// The node's own certificate is not good.
    #[error("this node's certificate is refused: {0}")]
    Own(TlsError),
    /// The library could not make a key or a certificate.
    #[error("can't make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The library does not take a key or a certificate.
    #[error("can't use the certificate: {0}")]
    Use(#[from] rustls::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_members_name_says_cluster_and_node_and_has_one_spelling() {
        let (cluster, node) = (ClusterId(0xab), NodeId::new(3).unwrap());
        let name = member_name(cluster, node);
        assert_eq!(name, "node-3.000000000000000000000000000000ab.lockstep");
        assert_eq!(parse_member_name(&name), Some((cluster, node)));
        for bad in [
            "node-03.000000000000000000000000000000ab.lockstep",
            "node-3.000000000000000000000000000000AB.lockstep",
            "node-3.ab.lockstep",
            "node-32.000000000000000000000000000000ab.lockstep",
            "node-3.000000000000000000000000000000ab.lockstep.org",
            "*.000000000000000000000000000000ab.lockstep",
            "",
        ] {
            assert_eq!(parse_member_name(bad), None, "{bad}");
        }
    }
}
