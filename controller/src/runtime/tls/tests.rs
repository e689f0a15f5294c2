//! Promises of secure connections, with both sides in one task.

use super::*;
use crate::pki::authority::{Authority, NodeKey, Validity};
use crate::pki::identity::Parts;
use crate::pki::token::{Secret, fingerprint};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use vocabulary::ClusterId;

const CLUSTER: ClusterId = ClusterId(0xabc);

fn node(id: u8) -> NodeId {
    NodeId::new(id).unwrap()
}

/// Nodes of one cluster.
struct Cluster(Authority, [u8; 32]);

impl Cluster {
    fn new(id: ClusterId) -> Self {
        Self(Authority::create(id).unwrap(), [7; 32])
    }

    fn parts(&self, cluster: ClusterId, id: u8, validity: Validity) -> Parts {
        let key = NodeKey::generate().unwrap();
        Parts {
            authority: self.0.certificate().clone(),
            certificate: self
                .0
                .issue_for(cluster, node(id), key.public(), validity)
                .unwrap(),
            key,
            beacons: self.1,
        }
    }

    fn node(&self, id: u8) -> Identity {
        Identity::new(self.parts(CLUSTER, id, Validity::NODE)).unwrap()
    }
}

type Ends = (Result<Stream, TlsError>, Result<(Stream, Caller), TlsError>);

/// Both ends of an attempt to connect to `expected`.
async fn meet(from: &Identity, to: &Identity, expected: u8) -> Ends {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let accept = async {
        let (stream, _) = listener.accept().await.unwrap();
        to.accept(stream).await
    };
    tokio::join!(from.connect(&address, node(expected)), accept)
}

/// What the connecting side hears when it is refused after its own part of the handshake.
async fn refusal(stream: &mut Stream) -> TlsError {
    stream.read_u8().await.unwrap_err().into()
}

#[tokio::test]
async fn two_nodes_of_a_cluster_talk_and_know_each_other() {
    let cluster = Cluster::new(CLUSTER);
    let (near, far) = meet(&cluster.node(1), &cluster.node(2), 2).await;
    let (mut near, (mut far, caller)) = (near.unwrap(), far.unwrap());
    assert_eq!(caller, Caller::Node(node(1)));
    near.write_all(b"hello").await.unwrap();
    near.flush().await.unwrap();
    let mut heard = [0; 5];
    far.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
}

#[tokio::test]
async fn another_node_at_the_address_is_named() {
    let cluster = Cluster::new(CLUSTER);
    let (near, far) = meet(&cluster.node(1), &cluster.node(2), 3).await;
    let error = near.unwrap_err();
    assert!(
        matches!(error, TlsError::WrongNode { expected, found } if expected == node(3) && found == node(2)),
        "{error}"
    );
    assert!(far.is_err());
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused_on_both_sides() {
    let (ours, theirs) = (Cluster::new(CLUSTER), Cluster::new(CLUSTER));
    // Even under the same names: the key counts.
    let (near, far) = meet(&ours.node(1), &theirs.node(2), 2).await;
    assert!(matches!(near.unwrap_err(), TlsError::OtherAuthority));
    let error = far.unwrap_err();
    assert!(matches!(error, TlsError::RefusedAsOther), "{error}");
    // One that does not look at the other side's certificate is looked at itself.
    let mut blind = theirs.parts(CLUSTER, 1, Validity::NODE);
    blind.authority = ours.0.certificate().clone();
    let error = Identity::new(blind).unwrap_err().to_string();
    assert!(error.contains("another cluster"), "{error}");
}

#[tokio::test]
async fn certificates_out_of_date_are_refused_with_the_reason() {
    let cluster = Cluster::new(CLUSTER);
    for (validity, words) in [
        (Validity::years(1970, 1990), "has expired"),
        (Validity::years(2150, 2200), "not valid yet"),
    ] {
        // The node itself says so first.
        let parts = cluster.parts(CLUSTER, 1, validity);
        let error = Identity::new(parts).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        // One that goes on all the same is refused.
        let parts = cluster.parts(CLUSTER, 1, validity);
        let mut config = (**cluster.node(1).client_config()).clone();
        let key = rustls::crypto::ring::sign::any_supported_type(&parts.key_der()).unwrap();
        let chain = vec![parts.certificate.clone()];
        let certified = Arc::new(rustls::sign::CertifiedKey::new(chain, key));
        config.client_auth_cert_resolver =
            Arc::new(rustls::sign::SingleCertAndKey::from(certified));
        let to = cluster.node(2);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (config, name) = (Arc::new(config), to.name(node(2)).unwrap());
        let accept = async { to.accept(listener.accept().await.unwrap().0).await };
        let (near, far) = tokio::join!(connect(&config, &address, &name), accept);
        let error = far.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        let heard = refusal(&mut near.unwrap()).await;
        assert!(matches!(heard, TlsError::RefusedAsExpired), "{heard}");
    }
}

#[tokio::test]
async fn a_certificate_that_names_another_cluster_is_refused() {
    let cluster = Cluster::new(CLUSTER);
    let stray = Identity::new(cluster.parts(ClusterId(5), 1, Validity::NODE)).unwrap();
    let (near, _) = meet(&cluster.node(2), &stray, 1).await;
    let error = near.unwrap_err();
    assert!(
        matches!(error, TlsError::OtherCluster(ClusterId(5))),
        "{error}"
    );
}

#[tokio::test]
async fn plain_clients_and_plain_servers_are_told_apart_from_nodes() {
    let cluster = Cluster::new(CLUSTER);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let shout = async {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        stream
    };
    let (_stream, accepted) = tokio::join!(shout, async {
        cluster
            .node(1)
            .accept(listener.accept().await.unwrap().0)
            .await
    });
    assert!(matches!(accepted.unwrap_err(), TlsError::NotTls));
    let answer = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"220 ready\r\n").await.unwrap();
        stream
    };
    let from = cluster.node(1);
    let (connected, _stream) = tokio::join!(from.connect(&address, node(2)), answer);
    assert!(matches!(connected.unwrap_err(), TlsError::NotTls));
}

fn token(authority: &CertificateDer<'_>, address: String, issuer: u8) -> Token {
    Token {
        cluster: CLUSTER,
        issuer: node(issuer),
        authority: fingerprint(authority),
        secret: Secret([1; 16]),
        expires: 0,
        addresses: vec![address],
    }
}

#[tokio::test]
async fn a_stranger_finds_the_cluster_by_its_fingerprint_and_nobody_else() {
    let (ours, theirs) = (Cluster::new(CLUSTER), Cluster::new(CLUSTER));
    let issuer = ours.node(0);
    for (authority, id, good) in [
        (&ours.0, 0, true),
        (&theirs.0, 0, false),
        // The token names another node of the cluster.
        (&ours.0, 1, false),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let token = token(authority.certificate(), address, id);
        let accept = async { issuer.accept(listener.accept().await.unwrap().0).await };
        let (near, far) = tokio::join!(connect_by_token(&token, &token.addresses[0]), accept);
        if good {
            assert_eq!(&near.unwrap().1, ours.0.certificate());
            assert_eq!(far.unwrap().1, Caller::Stranger);
        } else {
            let error = near.unwrap_err();
            assert!(matches!(
                error,
                TlsError::OtherAuthority | TlsError::WrongNode { .. }
            ));
        }
    }
}
