//! Beacons as datagrams: a message in postcard, sealed (see [`BeaconKey`]), over the sockets of this
//! node. The k-th address of a node is reached from the k-th of this one: that is the same network.

use crate::core::failover::Message;
use crate::pki::BeaconKey;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::Poll;
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use vocabulary::NodeId;

/// Largest datagram: what UDP carries over IPv4.
pub(super) const MAX_DATAGRAM_BYTES: usize = 65_507;

pub(super) fn encode(seals: &BeaconKey, to: NodeId, message: &Message) -> Vec<u8> {
    // Plain data in memory: this encoder fails only on lengths that it can't know.
    let body = postcard::to_stdvec(message).unwrap_or_default();
    seals.seal(to, &body)
}

/// The message and its sender, if it is one for this node of this cluster.
pub(super) fn decode(seals: &BeaconKey, bytes: &[u8]) -> Option<(NodeId, Message)> {
    let (from, body) = seals.open(bytes)?;
    Some((from, postcard::from_bytes(body).ok()?))
}

/// The sockets of a node, one for each address that it listens on.
pub(super) struct Sockets(Vec<(UdpSocket, SocketAddr)>);

impl Sockets {
    pub(super) fn new(sockets: Vec<std::net::UdpSocket>) -> io::Result<Self> {
        let sockets = sockets.into_iter().map(|socket| {
            let address = socket.local_addr()?;
            Ok((UdpSocket::from_std(socket)?, address))
        });
        Ok(Self(sockets.collect::<io::Result<_>>()?))
    }

    /// Waits for a datagram and gives its length.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        poll_fn(|context| {
            for (socket, _) in &self.0 {
                let mut space = ReadBuf::new(buffer);
                if let Poll::Ready(received) = socket.poll_recv_from(context, &mut space) {
                    return Poll::Ready(received.map(|_| space.filled().len()));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// One that is there already.
    pub(super) fn try_receive(&self, buffer: &mut [u8]) -> Option<usize> {
        let mut sockets = self.0.iter();
        sockets.find_map(|(socket, _)| Some(socket.try_recv_from(buffer).ok()?.0))
    }

    /// Sends to the address that stands at this place among its node's.
    pub(super) fn send(&self, bytes: &[u8], place: usize, to: SocketAddr) -> io::Result<()> {
        let fits = |(_, own): &&(UdpSocket, SocketAddr)| own.is_ipv4() == to.is_ipv4();
        let socket = self.0.get(place).filter(fits);
        let (socket, _) = socket
            .or_else(|| self.0.iter().find(fits))
            .ok_or(io::ErrorKind::AddrNotAvailable)?;
        socket.try_send_to(bytes, to).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vocabulary::{ClusterId, Epoch, ResourceId, Time};

    fn node(id: u8) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn seals(id: u8) -> BeaconKey {
        BeaconKey::new(ClusterId(7), node(id), &[1; 32])
    }

    fn beacon() -> Message {
        Message::Beacon {
            lease_ms: 500,
            run: 9,
            sent: Time(1_000),
            leases: vec![(ResourceId(3), Epoch(4))],
            faulty: vec![ResourceId(5)],
        }
    }

    #[test]
    fn the_bytes_of_a_beacon_stay_as_they_are() {
        let bytes = encode(&seals(0), node(1), &beacon());
        let hex: String = bytes[3..bytes.len() - 16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hex, "0009e807f4030103040105");
        assert_eq!(decode(&seals(1), &bytes), Some((node(0), beacon())));
    }

    #[test]
    fn what_is_for_somebody_else_is_ignored() {
        let bytes = encode(&seals(0), node(1), &beacon());
        assert_eq!(decode(&seals(2), &bytes), None);
    }

    #[tokio::test]
    async fn the_networks_of_two_nodes_are_paired_by_their_places() {
        let bind = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let sockets = || {
            let all = [(); 2].map(|()| bind());
            let addresses = [0, 1].map(|k: usize| all[k].local_addr().unwrap());
            for socket in &all {
                socket.set_nonblocking(true).unwrap();
            }
            (Sockets::new(all.into()).unwrap(), addresses)
        };
        let ((here, own), (there, far)) = (sockets(), sockets());
        for (socket, _) in &here.0 {
            socket.writable().await.unwrap();
        }
        let mut buffer = [0; 16];
        for place in [0, 1] {
            here.send(b"x", place, far[place]).unwrap();
            assert_eq!(there.receive(&mut buffer).await.unwrap(), 1);
            let plain = bind();
            here.send(b"xy", place, plain.local_addr().unwrap())
                .unwrap();
            assert_eq!(plain.recv_from(&mut buffer).unwrap(), (2, own[place]));
        }
        // A place that this node does not have: from the first address.
        here.send(b"xyz", 5, far[1]).unwrap();
        assert_eq!(there.receive(&mut buffer).await.unwrap(), 3);
        assert_eq!(there.try_receive(&mut buffer), None);
    }

    proptest! {
        #[test]
        fn no_bytes_are_taken_for_a_message(
            garbage in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            prop_assert_eq!(decode(&seals(1), &garbage), None);
            // Not even those of a node that is out of its mind.
            let _ = decode(&seals(1), &seals(0).seal(node(1), &garbage));
        }
    }
}
