//! A node's own certificate and key, and what follows for TLS with the others: only TLS 1.3, only
//! certificates of the cluster's own authority, on both sides.

use super::authority::{Authority, NodeKey, certificate_pem, load_certificate};
use super::beacon::{BeaconKey, KEY_BYTES, key_from};
use super::files::{self, Access};
use super::{PkiError, TlsError, member_name, member_of};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring as provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use vocabulary::{ClusterId, NodeId};

/// Who this node is, and how it proves that. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    cluster: ClusterId,
    node: NodeId,
    authority: CertificateDer<'static>,
    client: Arc<ClientConfig>,
    /// Lets clients without a certificate in: they may ask to join, nothing else.
    open: Arc<ServerConfig>,
    closed: Arc<ServerConfig>,
    beacons: BeaconKey,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity(node {} of {})", self.node, self.cluster)
    }
}

/// What an identity is made of.
#[derive(Debug)]
pub struct Parts {
    /// The authority's certificate.
    pub authority: CertificateDer<'static>,
    /// The node's certificate.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: NodeKey,
    /// The key of the seals on beacons.
    pub beacons: [u8; KEY_BYTES],
}

/// For the replication connections: the two sides of TLS between nodes.
#[derive(Clone)]
pub struct PeerTls {
    /// For the side that connects.
    pub client: Arc<ClientConfig>,
    /// For the side that accepts.
    pub server: Arc<ServerConfig>,
    identity: Identity,
}

impl fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.identity, f)
    }
}

impl PeerTls {
    /// The name that a node must prove.
    ///
    /// # Errors
    /// Never: every node has a name that TLS takes.
    pub fn name(&self, node: NodeId) -> Result<ServerName<'static>, TlsError> {
        self.identity.name(node)
    }

    /// Whose certificates these are; they were verified by the handshake.
    ///
    /// # Errors
    /// Not those of a node of this cluster.
    pub fn node(&self, certificates: Option<&[CertificateDer<'_>]>) -> Result<NodeId, TlsError> {
        self.identity.node_of(certificates)
    }
}

/// What TLS is made of here: one key exchange, and AES first, which processors do by themselves.
pub(crate) fn crypto() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
            provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![provider::kx_group::X25519],
        ..provider::default_provider()
    })
}

/// The one that trusts this authority alone.
pub(crate) fn roots(authority: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, PkiError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone())?;
    Ok(Arc::new(roots))
}

pub(crate) fn server_verifier(
    authority: &CertificateDer<'static>,
) -> Result<Arc<WebPkiServerVerifier>, PkiError> {
    let builder = WebPkiServerVerifier::builder_with_provider(roots(authority)?, crypto());
    builder.build().map_err(verifier_error)
}

fn client_verifier(
    authority: &CertificateDer<'static>,
    open: bool,
) -> Result<Arc<dyn ClientCertVerifier>, PkiError> {
    let builder = WebPkiClientVerifier::builder_with_provider(roots(authority)?, crypto());
    let builder = if open {
        builder.allow_unauthenticated()
    } else {
        builder
    };
    builder.build().map_err(verifier_error)
}

fn verifier_error(error: impl fmt::Display) -> PkiError {
    rustls::Error::General(error.to_string()).into()
}

impl Identity {
    /// From its parts.
    ///
    /// # Errors
    /// They do not belong together, or the certificate is out of date.
    pub fn new(parts: Parts) -> Result<Self, PkiError> {
        let (cluster, node) = member_of(&parts.certificate)?;
        let name =
            ServerName::try_from(member_name(cluster, node)).map_err(|_| PkiError::NotANode)?;
        let verifier = server_verifier(&parts.authority)?;
        // Said here rather than by every peer.
        verifier
            .verify_server_cert(&parts.certificate, &[], &name, &[], UnixTime::now())
            .map_err(|error| PkiError::Own(error.into()))?;
        // The authority's certificate goes along: a machine that joins knows only its fingerprint.
        let chain = vec![parts.certificate.clone(), parts.authority.clone()];
        let server = |open| -> Result<Arc<ServerConfig>, PkiError> {
            let mut config = ServerConfig::builder_with_provider(crypto())
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_client_cert_verifier(client_verifier(&parts.authority, open)?)
                .with_single_cert(chain.clone(), parts.key.der())?;
            // Connections stand long; each proves anew who is there.
            config.send_tls13_tickets = 0;
            Ok(Arc::new(config))
        };
        let mut client = ClientConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(vec![parts.certificate.clone()], parts.key.der())?;
        client.resumption = Resumption::disabled();
        Ok(Self {
            cluster,
            node,
            client: Arc::new(client),
            open: server(true)?,
            closed: server(false)?,
            authority: parts.authority,
            beacons: BeaconKey::new(cluster, node, &parts.beacons),
        })
    }

    /// The first node of a new cluster.
    ///
    /// # Errors
    /// Keys and certificates can't be made.
    pub fn first(authority: &Authority, node: NodeId) -> Result<Parts, PkiError> {
        let key = NodeKey::generate()?;
        Ok(Parts {
            authority: authority.certificate().clone(),
            certificate: authority.issue(node, key.public())?,
            key,
            beacons: rand::random(),
        })
    }

    /// The one in this directory (see [`files`]).
    ///
    /// # Errors
    /// [`PkiError::NoIdentity`] where there is none.
    pub fn load(directory: &Path) -> Result<Self, PkiError> {
        Self::new(Parts::load(directory)?)
    }

    /// This node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// Its cluster.
    #[must_use]
    pub const fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The certificate of the cluster's authority.
    #[must_use]
    pub const fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    /// The key of the seals on beacons.
    #[must_use]
    pub const fn beacons(&self) -> &BeaconKey {
        &self.beacons
    }

    /// TLS for the replication connections.
    #[must_use]
    pub fn peer_tls(&self) -> PeerTls {
        PeerTls {
            client: Arc::clone(&self.client),
            server: Arc::clone(&self.closed),
            identity: self.clone(),
        }
    }

    pub(crate) const fn client_config(&self) -> &Arc<ClientConfig> {
        &self.client
    }

    pub(crate) const fn open_config(&self) -> &Arc<ServerConfig> {
        &self.open
    }

    pub(crate) fn name(&self, node: NodeId) -> Result<ServerName<'static>, TlsError> {
        ServerName::try_from(member_name(self.cluster, node))
            .map_err(|_| TlsError::BadCertificate(Box::new(PkiError::NotANode)))
    }

    /// Whose certificates these are, which the handshake has verified.
    pub(crate) fn node_of(
        &self,
        certificates: Option<&[CertificateDer<'_>]>,
    ) -> Result<NodeId, TlsError> {
        let first = certificates.and_then(<[_]>::first);
        let certificate = first.ok_or(TlsError::NoCertificate)?;
        let (cluster, node) =
            member_of(certificate).map_err(|error| TlsError::BadCertificate(Box::new(error)))?;
        if cluster == self.cluster {
            Ok(node)
        } else {
            Err(TlsError::OtherCluster(cluster))
        }
    }
}

impl Parts {
    /// The key as the library takes it, for tests of what others refuse.
    #[cfg(test)]
    pub(crate) fn key_der(&self) -> rustls::pki_types::PrivateKeyDer<'static> {
        self.key.der()
    }

    /// What is in this directory.
    ///
    /// # Errors
    /// [`PkiError::NoIdentity`] where there is none.
    pub fn load(directory: &Path) -> Result<Self, PkiError> {
        let certificate = load_certificate(&directory.join(files::NODE_CERTIFICATE))?;
        let path = directory.join(files::NODE_KEY);
        let key = files::read(&path)?.ok_or_else(|| PkiError::NoIdentity { path: path.clone() })?;
        let key = NodeKey::from_pem(&key).map_err(files::damaged(&path))?;
        let path = directory.join(files::BEACONS_KEY);
        let beacons =
            files::read(&path)?.ok_or_else(|| PkiError::NoIdentity { path: path.clone() })?;
        Ok(Self {
            authority: load_certificate(&directory.join(files::CA_CERTIFICATE))?,
            certificate,
            key,
            beacons: key_from(&beacons).map_err(files::damaged(&path))?,
        })
    }

    /// Writes them; the certificate last, so that where it is all is.
    ///
    /// # Errors
    /// [`PkiError::Io`].
    pub fn save(&self, directory: &Path) -> Result<(), PkiError> {
        let write = |file, bytes: &[u8], access| files::write(&directory.join(file), bytes, access);
        let authority = certificate_pem(&self.authority);
        write(files::CA_CERTIFICATE, authority.as_bytes(), Access::Public)?;
        write(
            files::NODE_KEY,
            self.key.to_pem().as_bytes(),
            Access::Private,
        )?;
        write(files::BEACONS_KEY, &self.beacons, Access::Private)?;
        let certificate = certificate_pem(&self.certificate);
        write(
            files::NODE_CERTIFICATE,
            certificate.as_bytes(),
            Access::Public,
        )
    }
}

/// Refuses where a node has an identity already: nothing is overwritten.
///
/// # Errors
/// [`PkiError::Exists`].
pub fn refuse_existing(directory: &Path) -> Result<(), PkiError> {
    let path = directory.join(files::NODE_CERTIFICATE);
    if files::read(&path)?.is_some() {
        return Err(PkiError::Exists { path });
    }
    Ok(())
}
