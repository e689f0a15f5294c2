//! Seals on datagrams between nodes: HMAC-SHA-256 under a key that every node of the cluster has,
//! so that nobody else can grant or renew a lease. A sealed datagram can be read by anybody and sent
//! again by anybody: what is in it must be such that an old one does no harm (a beacon names the
//! moment at which it was sent, by the sender's own clock).
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | format, 1 |
//! | 1 | 1 | sending node |
//! | 2 | 1 | receiving node |
//! | 3 | … | body |
//! | end - 16 | 16 | the first half of the HMAC of the cluster id (16 bytes, little-endian) and all before |

use super::PkiError;
use ring::hmac;
use std::fmt;
use vocabulary::{ClusterId, NodeId};

/// Bytes that a seal adds to a body.
pub const SEAL_BYTES: usize = HEADER_BYTES + TAG_BYTES;
/// Bytes of the key.
pub const KEY_BYTES: usize = 32;
const HEADER_BYTES: usize = 3;
const TAG_BYTES: usize = 16;
const FORMAT: u8 = 1;

/// The cluster's key for seals, as one node uses it.
#[derive(Clone)]
pub struct BeaconKey {
    cluster: ClusterId,
    node: NodeId,
    key: hmac::Key,
}

impl fmt::Debug for BeaconKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BeaconKey({})", self.node)
    }
}

impl BeaconKey {
    /// The key for a node.
    #[must_use]
    pub fn new(cluster: ClusterId, node: NodeId, key: &[u8; KEY_BYTES]) -> Self {
        Self {
            cluster,
            node,
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
        }
    }

    /// A datagram with this body for another node.
    #[must_use]
    pub fn seal(&self, to: NodeId, body: &[u8]) -> Vec<u8> {
        let mut datagram = Vec::with_capacity(body.len() + SEAL_BYTES);
        datagram.extend_from_slice(&[FORMAT, self.node.get(), to.get()]);
        datagram.extend_from_slice(body);
        let tag = self.tag(&datagram);
        datagram.extend_from_slice(&tag.as_ref()[..TAG_BYTES]);
        datagram
    }

    /// Who sent a datagram to this node, and its body; `None`: nobody of this cluster, or not to
    /// this node.
    #[must_use]
    pub fn open<'a>(&self, datagram: &'a [u8]) -> Option<(NodeId, &'a [u8])> {
        let (signed, tag) = datagram.split_at_checked(datagram.len().checked_sub(TAG_BYTES)?)?;
        let (&[format, from, to], body) = signed.split_first_chunk::<HEADER_BYTES>()?;
        if format != FORMAT || to != self.node.get() {
            return None;
        }
        let whole = self.tag(signed);
        // In constant time: how much of it fits must not show.
        let fits = whole.as_ref()[..TAG_BYTES]
            .iter()
            .zip(tag)
            .fold(0, |differ, (a, b)| differ | (a ^ b))
            == 0;
        if !fits {
            return None;
        }
        Some((NodeId::new(from)?, body))
    }

    fn tag(&self, signed: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&self.cluster.0.to_le_bytes());
        context.update(signed);
        context.sign()
    }
}

/// The key in a file's bytes.
pub(super) fn key_from(bytes: &[u8]) -> Result<[u8; KEY_BYTES], PkiError> {
    bytes
        .try_into()
        .map_err(|_| PkiError::Length { wanted: KEY_BYTES })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(cluster: u128, node: u8, key: u8) -> BeaconKey {
        BeaconKey::new(
            ClusterId(cluster),
            NodeId::new(node).unwrap(),
            &[key; KEY_BYTES],
        )
    }

    #[test]
    fn only_a_node_of_the_cluster_seals_and_only_the_receiver_opens() {
        let (sender, receiver) = (key(1, 0, 9), key(1, 1, 9));
        let to = NodeId::new(1).unwrap();
        let sealed = sender.seal(to, b"beacon");
        assert_eq!(sealed.len(), 6 + SEAL_BYTES);
        let opened = receiver.open(&sealed).unwrap();
        assert_eq!(opened, (NodeId::new(0).unwrap(), &b"beacon"[..]));
        for other in [key(2, 1, 9), key(1, 2, 9), key(1, 1, 8)] {
            assert!(other.open(&sealed).is_none());
        }
    }

    #[test]
    fn the_bytes_of_a_seal_stay_as_they_are() {
        let sealed = key(1, 0, 9).seal(NodeId::new(1).unwrap(), b"b");
        let hex: String = sealed.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "0100016278025d4e9d4d7a6f3c2e9e1f5a58b3ed");
    }

    proptest! {
        #[test]
        fn a_changed_datagram_is_not_opened(
            body in proptest::collection::vec(any::<u8>(), 0..64),
            at in any::<prop::sample::Index>(),
            flip in 1..=255u8,
        ) {
            let mut sealed = key(1, 0, 9).seal(NodeId::new(1).unwrap(), &body);
            let at = at.index(sealed.len());
            sealed[at] ^= flip;
            prop_assert!(key(1, 1, 9).open(&sealed).is_none());
            sealed.truncate(at);
            prop_assert!(key(1, 1, 9).open(&sealed).is_none());
        }
    }
}
