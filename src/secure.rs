//! The node's identity as the data plane uses it for replication.

use controller::pki::{PeerTls, TlsError};
use replicator::runtime::tls::PeerCredentials;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ServerConfig};
use std::sync::Arc;
use vocabulary::NodeId;

/// [`PeerTls`] behind [`PeerCredentials`].
#[derive(Debug)]
pub(crate) struct Credentials(pub(crate) PeerTls);

impl PeerCredentials for Credentials {
    fn client(&self) -> &Arc<ClientConfig> {
        &self.0.client
    }

    fn server(&self) -> &Arc<ServerConfig> {
        &self.0.server
    }

    fn name(&self, node: NodeId) -> Option<ServerName<'static>> {
        self.0.name(node).ok()
    }

    fn node(&self, certificates: Option<&[CertificateDer<'_>]>) -> Option<NodeId> {
        self.0.node(certificates).ok()
    }

    fn explain(&self, error: &rustls::Error) -> String {
        TlsError::from(error.clone()).to_string()
    }
}
