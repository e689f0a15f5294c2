//! Beacons as datagrams. All numbers little-endian.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | magic `LSBE` |
//! | 4 | 2 | version, 1 |
//! | 6 | 1 | sender |
//! | 7 | 1 | receiver |
//! | 8 | 16 | cluster id |
//! | 24 | 4 | crc32c of bytes 0 to 23 and the message |
//! | 28 | … | the message, postcard |

use crate::core::failover::Message;
use vocabulary::{ClusterId, NodeId};

/// Largest datagram: what UDP carries over IPv4.
pub(super) const MAX_DATAGRAM_BYTES: usize = 65_507;
const HEADER_BYTES: usize = 28;
const MAGIC: [u8; 4] = *b"LSBE";
const VERSION: u16 = 1;

pub(super) fn encode(cluster: ClusterId, from: NodeId, to: NodeId, message: &Message) -> Vec<u8> {
    // Plain data in memory: this encoder fails only on lengths that it can't know.
    let body = postcard::to_stdvec(message).unwrap_or_default();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[from.get(), to.get()]);
    bytes.extend_from_slice(&cluster.0.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), &body);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// The message and its sender, if it is one for this node of this cluster.
pub(super) fn decode(cluster: ClusterId, me: NodeId, bytes: &[u8]) -> Option<(NodeId, Message)> {
    let (header, body) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    let mut expected = [0; HEADER_BYTES - 4];
    expected[..4].copy_from_slice(&MAGIC);
    expected[4..6].copy_from_slice(&VERSION.to_le_bytes());
    expected[6..8].copy_from_slice(&[header[6], me.get()]);
    expected[8..24].copy_from_slice(&cluster.0.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&expected), body);
    if header[..24] != expected || header[24..] != crc.to_le_bytes() {
        return None;
    }
    let from = NodeId::new(header[6]).filter(|&from| from != me)?;
    Some((from, postcard::from_bytes(body).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vocabulary::{Epoch, ResourceId, Time};

    const CLUSTER: ClusterId = ClusterId(7);

    fn node(id: u8) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn beacon() -> Message {
        Message::Beacon {
            run: 9,
            sent: Time(1_000),
            leases: vec![(ResourceId(3), Epoch(4))],
            faulty: vec![ResourceId(5)],
        }
    }

    #[test]
    fn the_bytes_of_a_beacon_stay_as_they_are() {
        let bytes = encode(CLUSTER, node(0), node(1), &beacon());
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "4c5342450100000107000000000000000000000000000000282767240009e8070103040105"
        );
        assert_eq!(decode(CLUSTER, node(1), &bytes), Some((node(0), beacon())));
    }

    #[test]
    fn what_is_for_somebody_else_is_ignored() {
        let bytes = encode(CLUSTER, node(0), node(1), &beacon());
        assert_eq!(decode(ClusterId(8), node(1), &bytes), None);
        assert_eq!(decode(CLUSTER, node(2), &bytes), None);
        let own = encode(CLUSTER, node(1), node(1), &beacon());
        assert_eq!(decode(CLUSTER, node(1), &own), None);
    }

    proptest! {
        #[test]
        fn no_bytes_are_taken_for_another_message(
            garbage in proptest::collection::vec(any::<u8>(), 0..80),
            at in 0_usize..37,
            bit in 0_u8..8,
        ) {
            prop_assert_eq!(decode(CLUSTER, node(1), &garbage), None);
            let mut bytes = encode(CLUSTER, node(0), node(1), &beacon());
            let at = at.min(bytes.len() - 1);
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(decode(CLUSTER, node(1), &bytes), None);
        }
    }
}
