//! Secure connections between controllers: who is at the other end is known before the first byte
//! of a message. A machine that wants to join has no certificate yet; it is let in as far as asking
//! for that, and it knows the cluster by the fingerprint in its token.

use crate::pki::identity::{crypto, server_verifier};
use crate::pki::{Identity, TlsError, Token};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use vocabulary::NodeId;

/// A connection that is not made, or not secured, by then is given up.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// The same on the accepting side, for the handshake.
const ACCEPT_LIMIT: Duration = Duration::from_secs(5);

/// A secure connection.
pub type Stream = tokio_rustls::TlsStream<TcpStream>;

/// Who is at the other end of an accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A node of this cluster.
    Node(NodeId),
    /// Somebody without a certificate, who may ask to join.
    Stranger,
}

impl Identity {
    /// Connects to a node.
    ///
    /// # Errors
    /// Nobody is there, or somebody else, or not in time.
    pub async fn connect(&self, address: &str, node: NodeId) -> Result<Stream, TlsError> {
        let name = self.name(node)?;
        connect(self.client_config(), address, &name).await
    }

    /// Secures an accepted connection.
    ///
    /// # Errors
    /// It is not a node of this cluster, or not in time.
    pub async fn accept(&self, stream: TcpStream) -> Result<(Stream, Caller), TlsError> {
        stream.set_nodelay(true)?;
        let acceptor = TlsAcceptor::from(Arc::clone(self.open_config()));
        let stream = timeout(ACCEPT_LIMIT, acceptor.accept(stream))
            .await
            .map_err(|_| TlsError::TimedOut(ACCEPT_LIMIT))??;
        let caller = match stream.get_ref().1.peer_certificates() {
            None => Caller::Stranger,
            some => Caller::Node(self.node_of(some)?),
        };
        Ok((stream.into(), caller))
    }
}

/// Connects to the issuer of a token at one of its addresses, and gives the certificate of the
/// authority that the token names.
pub(super) async fn connect_by_token(
    token: &Token,
    address: &str,
) -> Result<(Stream, CertificateDer<'static>), TlsError> {
    let config = ClientConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ByFingerprint(token.clone())));
    let mut config = config.with_no_client_auth();
    config.resumption = Resumption::disabled();
    let name = crate::pki::member_name(token.cluster, token.issuer);
    let name = ServerName::try_from(name).map_err(|_| TlsError::NoCertificate)?;
    let stream = connect(&Arc::new(config), address, &name).await?;
    let chain = stream.get_ref().1.peer_certificates();
    let authority = chain.and_then(<[_]>::last).ok_or(TlsError::NoCertificate)?;
    let authority = authority.clone().into_owned();
    Ok((stream, authority))
}

async fn connect(
    config: &Arc<ClientConfig>,
    address: &str,
    name: &ServerName<'static>,
) -> Result<Stream, TlsError> {
    let attempt = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::clone(config));
        Ok(connector.connect(name.clone(), stream).await?.into())
    };
    timeout(CONNECT_LIMIT, attempt)
        .await
        .unwrap_or(Err(TlsError::TimedOut(CONNECT_LIMIT)))
}

/// Trusts the authority whose fingerprint is in a token, and what it signed.
#[derive(Debug)]
struct ByFingerprint(Token);

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| self.0.names(certificate))
            .ok_or(CertificateError::UnknownIssuer)?;
        let verifier = server_verifier(&authority.clone().into_owned())
            .map_err(|_| CertificateError::BadEncoding)?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = crypto().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests;
