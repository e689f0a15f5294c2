//! What a node's keys are good for in the hands of a test: connections that look like a node's.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The keys of a node.
pub(crate) struct Credentials {
    /// The cluster's id.
    pub(crate) cluster: u128,
    dir: PathBuf,
    config: Arc<ClientConfig>,
}

/// A secure connection.
pub(crate) type Secure = StreamOwned<ClientConnection, TcpStream>;

impl Credentials {
    /// Those in the directory of a node.
    pub(crate) fn of(node: &Path) -> Self {
        Self::with(node, node)
    }

    /// These keys in the hands of somebody who trusts the cluster of the others.
    pub(crate) fn posing_as(&self, other: &Self) -> Self {
        Self {
            cluster: other.cluster,
            ..Self::with(&self.dir, &other.dir)
        }
    }

    fn with(node: &Path, trusted: &Path) -> Self {
        let file = |name: &str| node.join("tls").join(name);
        let certificate = |path| CertificateDer::from_pem_file(path).expect("a certificate");
        let own = certificate(file("node.crt"));
        let mut roots = RootCertStore::empty();
        let authority = certificate(trusted.join("tls/ca.crt"));
        roots.add(authority).expect("an authority");
        let key = PrivateKeyDer::from_pem_file(file("node.key")).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![own.clone()], key)
            .expect("key and certificate fit");
        Self {
            cluster: cluster_of(&own),
            dir: node.to_owned(),
            config: Arc::new(config),
        }
    }

    /// A connection to a node, counted from 1, that looks like one of the node with these keys.
    pub(crate) fn connect(&self, address: &str, k: usize) -> std::io::Result<Secure> {
        let name = format!("node-{}.{:032x}.lockstep", k - 1, self.cluster);
        let name = ServerName::try_from(name).expect("a name");
        let stream = TcpStream::connect(address)?;
        let connection = ClientConnection::new(Arc::clone(&self.config), name);
        let mut stream = StreamOwned::new(connection.expect("a client"), stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(stream)
    }
}

/// The cluster in a certificate's name `node-N.CLUSTER.lockstep`.
fn cluster_of(certificate: &CertificateDer<'_>) -> u128 {
    let suffix = b".lockstep";
    let end = certificate
        .windows(suffix.len())
        .position(|part| part == suffix)
        .expect("a node's name");
    let digits = String::from_utf8_lossy(&certificate[end - 32..end]);
    u128::from_str_radix(&digits, 16).expect("hexadecimal digits")
}
