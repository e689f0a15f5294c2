//! Promises of secured connections, with both sides in one thread and no socket, and the credentials
//! that the data plane's tests use too.

use super::*;
use crate::runtime::pool::Pool;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::WebPkiClientVerifier;

/// An authority and what it says of nodes.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// A node's credentials, with a name for each of its peers.
#[derive(Debug)]
pub(crate) struct TestCredentials {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

fn name_of(node: NodeId) -> String {
    format!("node-{node}.test")
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    pub(crate) fn credentials(&self, node: NodeId) -> Arc<TestCredentials> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name_of(node)]).unwrap();
        let own = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = || PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let provider = Arc::new(default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let roots = Arc::new(roots);
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(vec![own.clone()], key())
            .unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.unwrap())
            .with_single_cert(vec![own], key())
            .unwrap();
        Arc::new(TestCredentials {
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }
}

impl PeerCredentials for TestCredentials {
    fn client(&self) -> &Arc<ClientConfig> {
        &self.client
    }

    fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    fn name(&self, node: NodeId) -> Option<ServerName<'static>> {
        ServerName::try_from(name_of(node)).ok()
    }

    fn node(&self, certificates: Option<&[CertificateDer<'_>]>) -> Option<NodeId> {
        let certificate = certificates?.first()?;
        let named = |node: &NodeId| {
            let name = name_of(*node);
            certificate
                .windows(name.len())
                .any(|part| part == name.as_bytes())
        };
        (0..NodeId::LIMIT).filter_map(NodeId::new).find(named)
    }

    fn explain(&self, error: &rustls::Error) -> String {
        error.to_string()
    }
}

fn node(id: u8) -> NodeId {
    NodeId::new(id).unwrap()
}

/// Two ends and the bytes on their way.
struct Pair {
    ends: [Tls; 2],
    /// To each end.
    wires: [Vec<u8>; 2],
    /// What each end has read.
    heard: [Vec<u8>; 2],
}

impl Pair {
    fn new(from: &TestCredentials, to: &TestCredentials, wanted: u8) -> Self {
        let name = from.name(node(wanted)).unwrap();
        Self {
            ends: [
                Tls::connecting(&from.client, name).unwrap(),
                Tls::accepting(&to.server).unwrap(),
            ],
            wires: Default::default(),
            heard: Default::default(),
        }
    }

    fn say(&mut self, end: usize, batch: &mut SendBatch, limit: usize) {
        let wire = &mut self.wires[1 - end];
        self.ends[end].seal(batch, limit, wire).unwrap();
    }

    /// Lets bytes through in pieces of this size until nothing moves any more.
    fn settle(&mut self, piece: usize) -> Result<(), rustls::Error> {
        let mut there: [Vec<u8>; 2] = Default::default();
        loop {
            let mut moved = false;
            for end in [0, 1] {
                let mut nothing = SendBatch::default();
                let wire = &mut self.wires[1 - end];
                self.ends[end].seal(&mut nothing, 1, wire)?;
            }
            for end in [0, 1] {
                let count = piece.min(self.wires[end].len());
                there[end].extend(self.wires[end].drain(..count));
                moved |= count > 0;
                loop {
                    let heard = &mut self.heard[end];
                    let plaintext = |bytes: &[u8]| heard.extend_from_slice(bytes);
                    let (used, opened) = self.ends[end].open(&there[end], plaintext)?;
                    there[end].drain(..used);
                    if opened != Opened::Plaintext {
                        break;
                    }
                }
            }
            if !moved {
                return Ok(());
            }
        }
    }
}

fn batch(pool: &Pool, header: &[u8], payload: &[u8]) -> SendBatch {
    let mut batch = SendBatch::default();
    batch.headers().extend_from_slice(header);
    batch.payload(pool.copy_of(payload).unwrap());
    batch.headers().extend_from_slice(b"end");
    batch
}

#[test]
fn what_one_end_seals_the_other_opens_whatever_the_pieces_it_comes_in() {
    let authority = Authority::new("ours");
    let (from, to) = (
        authority.credentials(node(0)),
        authority.credentials(node(1)),
    );
    let pool = Pool::new(usize::MAX, 0);
    let payload: Vec<u8> = (0..100_000_u32).map(|i| i.to_le_bytes()[1]).collect();
    for piece in [1 << 20, 1000, 7] {
        let mut pair = Pair::new(&from, &to, 1);
        assert!(pair.ends.iter().all(Tls::is_handshaking));
        pair.settle(piece).unwrap();
        assert!(!pair.ends.iter().any(Tls::is_handshaking));
        assert_eq!(from.node(pair.ends[0].certificates()), Some(node(1)));
        assert_eq!(to.node(pair.ends[1].certificates()), Some(node(0)));
        for end in [0, 1] {
            let mut out = batch(&pool, b"header", &payload);
            // A part at a time, as a backlog goes out.
            while out.left() > 0 {
                let before = out.left();
                pair.say(end, &mut out, 32 << 10);
                assert!(before - out.left() <= 32 << 10);
            }
            pair.settle(piece).unwrap();
            let heard = &pair.heard[1 - end];
            assert!(heard.starts_with(b"header") && heard.ends_with(b"end"));
            assert!(heard[6..heard.len() - 3] == payload);
        }
    }
}

#[test]
fn what_is_gathered_before_the_handshake_is_over_leaves_after_it() {
    let authority = Authority::new("ours");
    let (from, to) = (
        authority.credentials(node(0)),
        authority.credentials(node(1)),
    );
    let mut pair = Pair::new(&from, &to, 1);
    let mut early = SendBatch::default();
    early.headers().extend_from_slice(b"early");
    pair.say(0, &mut early, 1000);
    assert_eq!(early.left(), 5);
    pair.settle(1000).unwrap();
    pair.say(0, &mut early, 1000);
    pair.settle(1000).unwrap();
    assert_eq!(pair.heard[1], b"early");
}

#[test]
fn nodes_of_another_authority_and_other_nodes_are_refused_and_told_so() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let us = ours.credentials(node(0));
    for (to, wanted) in [(&theirs, 1), (&ours, 2)] {
        let mut pair = Pair::new(&us, &to.credentials(node(1)), wanted);
        assert!(pair.settle(1000).is_err());
        // What tells the other end so is there to be sent.
        let mut alert = Vec::new();
        let _ = pair.ends[0].seal(&mut SendBatch::default(), 1, &mut alert);
        assert!(!alert.is_empty());
    }
    // One that trusts everybody is looked at itself.
    let mut pair = Pair::new(&us, &ours.credentials(node(1)), 1);
    let stranger = Authority::new("strange");
    let mut client = (*stranger.credentials(node(0)).client).clone();
    client.client_auth_cert_resolver = Arc::clone(
        &stranger
            .credentials(node(0))
            .client
            .client_auth_cert_resolver,
    );
    let mut trusting = (*us.client).clone();
    trusting.client_auth_cert_resolver = client.client_auth_cert_resolver;
    let name = us.name(node(1)).unwrap();
    pair.ends[0] = Tls::connecting(&Arc::new(trusting), name).unwrap();
    assert!(pair.settle(1000).is_err());
}

#[test]
fn changed_and_alien_bytes_are_errors() {
    let authority = Authority::new("ours");
    let (from, to) = (
        authority.credentials(node(0)),
        authority.credentials(node(1)),
    );
    let mut pair = Pair::new(&from, &to, 1);
    pair.settle(1000).unwrap();
    let mut out = SendBatch::default();
    out.headers().extend_from_slice(b"hello");
    pair.say(0, &mut out, 1000);
    let last = pair.wires[1].len() - 1;
    pair.wires[1][last] ^= 1;
    assert!(pair.settle(1000).is_err());
    assert!(pair.heard[1].is_empty());
    let mut server = Tls::accepting(&to.server).unwrap();
    let alien = b"GET / HTTP/1.1\r\n\r\n".to_vec();
    assert!(server.open(&alien, |_| {}).is_err());
}
