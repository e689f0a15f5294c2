//! What a failed handshake means, in words for an operator: the other side is of another cluster, is
//! another node, is no node at all, or one of the two clocks or certificates is wrong.

use super::{PkiError, parse_member_name};
use rustls::{AlertDescription, CertificateError, Error};
use std::io;
use std::time::Duration;
use vocabulary::{ClusterId, NodeId};

/// Why there is no secure connection.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The socket failed or closed.
    #[error("{0}")]
    Io(io::Error),
    /// No answer.
    #[error("no answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// The peer's certificate was signed by somebody else.
    #[error(
        "the other side's certificate is not of this cluster's authority: it belongs to another cluster"
    )]
    OtherAuthority,
    /// The certificate names another cluster.
    #[error("the other side belongs to cluster {0}")]
    OtherCluster(ClusterId),
    /// Another node of the cluster.
    #[error("node {found} answers where node {expected} should; correct the nodes' addresses")]
    WrongNode {
        /// Who was meant.
        expected: NodeId,
        /// Who it is.
        found: NodeId,
    },
    /// The peer's certificate is out of date.
    #[error("the other side's certificate has expired (or this node's clock is wrong)")]
    Expired,
    /// The peer's certificate is not valid yet.
    #[error("the other side's certificate is not valid yet (or this node's clock is wrong)")]
    NotYetValid,
    /// The peer has none.
    #[error("the other side has shown no certificate: it is not a node of this cluster")]
    NoCertificate,
    /// The peer's certificate is good for nothing here.
    #[error("the other side's certificate is not one of a node: {0}")]
    BadCertificate(Box<PkiError>),
    /// The peer is not a TLS peer.
    #[error("the other side does not speak TLS 1.3: it is not a lockstep node of this version")]
    NotTls,
    /// The peer takes this node for one of another cluster.
    #[error("the other side refuses this node: it belongs to another cluster")]
    RefusedAsOther,
    /// The peer finds this node's certificate out of date.
    #[error("the other side refuses this node's certificate as expired (or its clock is wrong)")]
    RefusedAsExpired,
    /// The peer wants a certificate.
    #[error("the other side wants a certificate of its cluster")]
    RefusedWithout,
    /// Anything else.
    #[error("{0}")]
    Protocol(Error),
}

impl From<Error> for TlsError {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidCertificate(problem) => certificate(problem),
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidMessage(_)
            | Error::InappropriateMessage { .. }
            | Error::PeerIncompatible(_)
            | Error::AlertReceived(AlertDescription::ProtocolVersion) => Self::NotTls,
            Error::AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError) => {
                Self::RefusedAsOther
            }
            Error::AlertReceived(AlertDescription::CertificateExpired) => Self::RefusedAsExpired,
            Error::AlertReceived(AlertDescription::CertificateRequired) => Self::RefusedWithout,
            other => Self::Protocol(other),
        }
    }
}

impl From<io::Error> for TlsError {
    fn from(error: io::Error) -> Self {
        match inner(&error) {
            Some(problem) => problem.clone().into(),
            None => Self::Io(error),
        }
    }
}

/// The handshake's own error in one of a socket.
#[must_use]
pub fn inner(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

fn certificate(problem: CertificateError) -> TlsError {
    match problem {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            TlsError::OtherAuthority
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsError::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            TlsError::NotYetValid
        }
        CertificateError::NotValidForNameContext {
            ref expected,
            ref presented,
        } => {
            let found = presented.iter().find_map(|name| named(name));
            match (parse_member_name(&expected.to_str()), found) {
                (Some((ours, expected)), Some((theirs, found))) if ours == theirs => {
                    TlsError::WrongNode { expected, found }
                }
                (Some(_), Some((theirs, _))) => TlsError::OtherCluster(theirs),
                _ => TlsError::Protocol(Error::InvalidCertificate(problem)),
            }
        }
        other => TlsError::Protocol(Error::InvalidCertificate(other)),
    }
}

/// A name as the library shows it, `DnsName("…")`.
fn named(shown: &str) -> Option<(ClusterId, NodeId)> {
    let plain = shown
        .strip_prefix("DnsName(\"")
        .and_then(|rest| rest.strip_suffix("\")"));
    parse_member_name(plain.unwrap_or(shown))
}
