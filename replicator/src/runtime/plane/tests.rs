//! The plane with real sockets and files, and with machines and a client protocol made for this.

mod fakes;
mod line;

use self::fakes::{
    CLUSTER, Cluster, Node, RESOURCE, Store, ask, command, credentials, machine_of, machine_on,
    node_id, wait_until,
};
use self::line::LineClient;
use super::*;
use crate::core::api::{CommandError, Notice};
use crate::runtime::client::ClientAddress;
use crate::runtime::tls::tests::Authority;
use std::io::{Read as _, Write as _};
use vocabulary::{Change, NodeSet};

#[test]
fn what_a_client_writes_it_reads_back_from_every_kind_of_store() {
    for store in Store::everywhere() {
        let node = Node::single(&store);
        let mut client = node.client();
        for (offset, len) in [(0, 4096), (5000, 1), (8191, 10_000), (1 << 20, 3 << 20)] {
            let bytes: Vec<u8> = (0..len).map(|i: usize| i.to_le_bytes()[0] ^ 0x5a).collect();
            assert_eq!(client.write(offset, &bytes), Ok(()));
            assert!(client.read(offset, len) == Ok(bytes));
        }
        assert_eq!(client.zero(8192, 4096), Ok(()));
        assert_eq!(client.read(8192, 4096), Ok(vec![0; 4096]));
        assert_eq!(client.flush(), Ok(()));
    }
}

#[test]
fn hundreds_of_requests_in_flight_are_each_answered_once() {
    for store in Store::everywhere() {
        let node = Node::single(&store);
        let mut client = node.client();
        for i in 0..500_u64 {
            client.send_write(i, i * 4096, &[i.to_le_bytes()[0]; 4096]);
        }
        let mut seen = vec![false; 500];
        for _ in 0..500 {
            let (cookie, result) = client.answer(0);
            assert_eq!(result, Ok(vec![]));
            assert!(!std::mem::replace(
                &mut seen[usize::try_from(cookie).unwrap()],
                true
            ));
        }
        for i in 0..500_u64 {
            client.send_read(i, i * 4096, 4096);
        }
        for _ in 0..500 {
            let (cookie, result) = client.answer(4096);
            assert_eq!(result, Ok(vec![cookie.to_le_bytes()[0]; 4096]));
        }
    }
}

#[test]
fn a_client_that_does_not_read_its_replies_holds_up_nobody_else_and_takes_bounded_memory() {
    let store = Store::in_memory();
    let node = Node::single(&store);
    let mut slow = node.client();
    // Served before the flood comes: a new connection would have to wait for it (RULES 12).
    let mut other = node.client();
    assert_eq!(other.write(0, &[1; 4096]), Ok(()));
    let mut greedy = slow.stream.try_clone().unwrap();
    // Reads of 1 GiB in total, and nobody takes the answers.
    let sender = std::thread::spawn(move || {
        for i in 0..1024_u64 {
            if greedy
                .write_all(&LineClient::request(b'r', i, 0, 1 << 20))
                .is_err()
            {
                return;
            }
        }
    });
    for i in 0..100 {
        assert_eq!(other.write(i * 4096, &[1; 4096]), Ok(()));
    }
    let used = ask(|reply| node.handle.stats(reply)).pool.used_bytes;
    assert!(used < 300 << 20, "{used} bytes of buffers are in use");
    for i in 0..1024 {
        let (cookie, result) = slow.answer(1 << 20);
        assert_eq!((cookie, result.map(|bytes| bytes.len())), (i, Ok(1 << 20)));
    }
    sender.join().unwrap();
}

#[test]
fn at_the_pools_limit_writes_wait_and_then_go_on() {
    let store = Store::in_memory();
    let node = Node::with(&store, |config| config.pool_bytes = 6 << 20);
    let mut clients: Vec<_> = (0..8).map(|_| node.client()).collect();
    let threads: Vec<_> = clients
        .drain(..)
        .zip(0_u8..)
        .map(|(mut client, byte)| {
            std::thread::spawn(move || {
                let at = u64::from(byte) << 20;
                for _ in 0..10 {
                    assert_eq!(client.write(at, &vec![byte; 1 << 20]), Ok(()));
                }
                assert!(client.read(at, 1 << 20) == Ok(vec![byte; 1 << 20]));
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_client_that_vanishes_in_mid_request_costs_only_its_connection() {
    let store = Store::in_memory();
    let node = Node::single(&store);
    let mut client = node.client();
    client
        .stream
        .write_all(&LineClient::request(b'w', 1, 0, 1 << 20))
        .unwrap();
    client.stream.write_all(&[1; 1000]).unwrap();
    drop(client);
    let mut garbage = node.client();
    garbage
        .stream
        .write_all(b"garbage that is no request of any kind")
        .unwrap();
    wait_until(|| ask(|reply| node.handle.stats(reply)).clients == 0);
    assert_eq!(node.client().write(0, &[1; 10]), Ok(()));
}

#[test]
fn a_new_connection_is_served_after_what_older_ones_had_pending() {
    let store = Store::in_memory();
    for _ in 0..20 {
        let node = Node::single(&store);
        let mut old = node.unix_client();
        assert_eq!(old.write(0, &[0; 4096]), Ok(()));
        // More than the plane takes at once, the last of them to the block that is looked at.
        for i in 0..60 {
            old.send_write(i, 1 << 20, &vec![1; 1 << 20]);
        }
        old.send_write(60, 0, &[2; 4096]);
        let mut new = node.unix_client();
        assert_eq!(new.write(0, &[3; 4096]), Ok(()));
        for _ in 0..61 {
            assert_eq!(old.answer(0).1, Ok(vec![]));
        }
        assert_eq!(
            new.read(0, 4096),
            Ok(vec![3; 4096]),
            "the old write came after the new one"
        );
    }
}

#[test]
fn a_connection_that_takes_no_replies_does_not_hold_up_new_ones_for_ever() {
    let store = Store::in_memory();
    let node = Node::single(&store);
    let mut mute = node.unix_client();
    // More answers than may wait for a client, so that the last requests are not read.
    for i in 0..200 {
        mute.send_read(i, 0, 1 << 20);
    }
    mute.send_write(200, 0, &[1; 4096]);
    let mut new = node.unix_client();
    assert_eq!(new.write(0, &[2; 4096]), Ok(()));
    mute.expect_end();
    assert!(new.read(0, 4096) == Ok(vec![2; 4096]));
}

#[test]
fn a_write_reaches_both_nodes_before_its_reply() {
    for (here, there) in Store::everywhere().into_iter().zip(Store::everywhere()) {
        let cluster = Cluster::pair(&here, &there);
        let mut client = cluster.primary.client();
        for i in 0..50_u64 {
            let len = usize::try_from(1 + i * 7919 % 300_000).unwrap();
            let bytes = vec![i.to_le_bytes()[0] | 1; len];
            assert_eq!(client.write(i * 1000, &bytes), Ok(()));
            let mut got = vec![0; len];
            there.read(i * 1000, &mut got);
            assert!(
                got == bytes,
                "write {i} of {len} bytes is not on the other node"
            );
        }
    }
}

#[test]
fn secured_nodes_mirror_writes_of_every_size_and_find_each_other_again() {
    for (here, there) in Store::everywhere().into_iter().zip(Store::everywhere()) {
        let cluster = Cluster::secured(&here, &there);
        let mut client = cluster.primary.client();
        for i in 0..50_u64 {
            let len = usize::try_from(1 + i * 7919 % 300_000).unwrap();
            let bytes = vec![i.to_le_bytes()[0] | 1; len];
            assert_eq!(client.write(i * 1000, &bytes), Ok(()));
            let mut got = vec![0; len];
            there.read(i * 1000, &mut got);
            assert!(got == bytes, "write {i} of {len} bytes");
        }
        // More than is sealed at a time, and more than the receive buffer holds.
        let large = vec![7; 8 << 20];
        assert_eq!(client.write(0, &large), Ok(()));
        let mut got = vec![0; 8 << 20];
        there.read(0, &mut got);
        assert!(got == large);
    }
}

#[test]
fn nodes_in_the_open_of_another_cluster_or_under_another_name_are_kept_out() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let good = |id| credentials(&ours, id);
    for pair in [
        // The primary, which dials, finds none, another cluster's, or another node's.
        [good(0), None],
        [good(0), credentials(&theirs, 1)],
        [good(0), good(2)],
        // The secondary is shown none, another cluster's, or not those of the node that is said.
        [None, good(1)],
        [credentials(&theirs, 0), good(1)],
        [good(3), good(1)],
    ] {
        let (here, there) = (Store::in_memory(), Store::in_memory());
        let cluster = Cluster::apart(&here, &there, pair);
        wait_until(|| cluster.failures() >= 5);
        assert!(cluster.primary.client().write(0, &[1; 4096]).is_err());
        let mut got = [0; 4096];
        there.read(0, &mut got);
        assert_eq!(got, [0; 4096]);
    }
}

#[test]
fn a_lost_peer_is_reported_once_and_dialled_anew() {
    let (here, there) = (Store::in_memory(), Store::in_memory());
    let mut cluster = Cluster::pair(&here, &there);
    let mut client = cluster.primary.client();
    assert_eq!(client.write(0, &[1; 4096]), Ok(()));
    cluster.stop_secondary();
    wait_until(|| {
        let reports = cluster.primary.reports();
        reports
            .iter()
            .any(|report| matches!(report, Report::Notice(Notice::PeerLost { .. })))
    });
    let lost = |report: &&Report| matches!(report, Report::Notice(Notice::PeerLost { .. }));
    assert_eq!(cluster.primary.reports().iter().filter(lost).count(), 1);
    cluster.start_secondary(&there);
    wait_until(|| client.write(4096, &[2; 4096]) == Ok(()));
    let mut got = [0; 4096];
    there.read(4096, &mut got);
    assert_eq!(got, [2; 4096]);
}

#[test]
fn strangers_on_the_peer_port_are_turned_away() {
    let store = Store::in_memory();
    let node = Node::single(&store);
    let connection = || std::net::TcpStream::connect(node.peer_address).unwrap();
    let mut garbage = connection();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let silent = connection();
    garbage
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let _ = std::io::Read::read_to_end(&mut garbage, &mut Vec::new());
    wait_until(|| ask(|reply| node.handle.stats(reply)).peers == 1);
    drop(silent);
    wait_until(|| ask(|reply| node.handle.stats(reply)).peers == 0);
}

#[test]
fn commands_proposals_and_status_go_their_way() {
    let store = Store::in_memory();
    let node = Node::single(&store);
    assert!(matches!(
        command(
            &node.handle,
            RESOURCE,
            Command::Promote {
                drop: NodeSet::EMPTY,
                over: Epoch(0)
            }
        ),
        Err(PlaneError::Command(CommandError::NoRecord))
    ));
    assert!(matches!(
        command(&node.handle, ResourceId(404), Command::Demote { to: None }),
        Err(PlaneError::Unknown(ResourceId(404)))
    ));
    assert!(command(&node.handle, RESOURCE, Command::Demote { to: None }).is_ok());
    wait_until(|| {
        node.reports()
            .iter()
            .any(|r| matches!(r, Report::Propose { .. }))
    });
    let status = ask(|reply| node.handle.status(reply));
    assert_eq!(status.len(), 1);
    assert_eq!(status[0].0, RESOURCE);
}

#[test]
fn a_resource_is_handed_over_once_no_client_has_it_open() {
    let store = Store::in_memory();
    let node = Node::single(&store);
    let proposed = || {
        let reports = node.reports();
        reports.iter().find_map(|report| match report {
            Report::Propose { change, .. } => Some(change.clone()),
            _ => None,
        })
    };
    let hand_over = || ask(|reply| node.handle.hand_over(RESOURCE, node_id(1), reply));
    let mut clients = [node.client(), node.unix_client()];
    for client in &mut clients {
        assert_eq!(client.read(0, 4096), Ok(vec![0; 4096]));
    }
    let open = ask(|reply| node.handle.clients(reply));
    assert!(open.iter().all(|client| client.target.resource == RESOURCE));
    let here = clients[0].stream.local_addr().unwrap().as_socket().unwrap();
    let addresses = open.iter().map(|client| client.address);
    let expected = [
        ClientAddress::Tcp(here),
        ClientAddress::Process(std::process::id()),
    ];
    assert_eq!(addresses.collect::<Vec<_>>(), expected);
    assert!(matches!(hand_over(), Err(PlaneError::InUse(users)) if users == open));
    assert_eq!(proposed(), None);
    drop(clients);
    wait_until(|| ask(|reply| node.handle.clients(reply)).is_empty());
    assert!(hand_over().is_ok());
    let (node, to) = (node_id(0), Some(node_id(1)));
    wait_until(|| proposed() == Some(Change::Demote { node, to }));
}

#[test]
fn hashes_come_back_through_the_worker() {
    let store = Store::in_memory();
    let node = Node::single(&store);
    assert_eq!(node.client().write(4096, &[1; 4096]), Ok(()));
    // The fake's verify digests the first two blocks and fails unless the first is zero.
    assert!(
        command(
            &node.handle,
            RESOURCE,
            Command::Verify {
                node: None,
                repair: false
            }
        )
        .is_ok()
    );
    assert_eq!(node.client().write(0, &[1; 4096]), Ok(()));
    assert!(
        command(
            &node.handle,
            RESOURCE,
            Command::Verify {
                node: None,
                repair: false
            }
        )
        .is_err()
    );
}

#[test]
fn a_removed_resource_lets_go_of_its_store_and_its_clients_and_can_come_back() {
    let store = Store::in_memory();
    let node = Node::single(&store);
    let mut client = node.client();
    assert_eq!(client.write(0, &[7; 4096]), Ok(()));
    assert!(ask(|reply| node.handle.remove_resource(RESOURCE, reply)).is_ok());
    client.expect_closed();
    let again = ask(|reply| node.handle.remove_resource(RESOURCE, reply));
    assert!(matches!(again, Err(PlaneError::Unknown(_))));
    // Opens the store anew, which needs its lock.
    node.add(machine_of(&store, false));
    assert_eq!(node.client().read(0, 4096), Ok(vec![7; 4096]));
    let twice = ask(|reply| {
        let new = NewResource {
            cluster: CLUSTER,
            resource: RESOURCE,
            disks: Vec::new(),
            machine: Box::new(|_| Box::new(fakes::Fake::default())),
            meta_bytes: |_| 0,
        };
        node.handle.add_resource(new, reply);
    });
    assert!(matches!(twice, Err(PlaneError::Known(_))));
}

#[test]
fn a_shutdown_answers_what_is_in_flight_and_then_everything_is_refused() {
    let store = Store::in_memory();
    let mut node = Node::single(&store);
    let mut client = node.client();
    for i in 0..100 {
        client.send_write(i, i * 4096, &[1; 4096]);
    }
    // All were taken before the shutdown comes.
    for _ in 0..100 {
        assert_eq!(client.answer(0).1, Ok(vec![]));
    }
    node.stop();
    client.expect_closed();
    assert!(matches!(
        command(&node.handle, RESOURCE, Command::Demote { to: None }),
        Err(PlaneError::Stopped)
    ));
    assert!(std::net::TcpStream::connect(node.client_address).is_err());
}

#[test]
fn a_steady_load_makes_no_new_buffers() {
    let store = Store::in_memory();
    let node = Node::single(&store);
    let mut client = node.client();
    let mut rounds = |count| {
        for i in 0..count {
            client.write(i % 64 * 4096, &[1; 4096]).unwrap();
            client.read(i % 64 * 4096, 4096).unwrap();
        }
    };
    rounds(100);
    let before = ask(|reply| node.handle.stats(reply)).pool.allocations;
    rounds(1000);
    assert_eq!(
        ask(|reply| node.handle.stats(reply)).pool.allocations,
        before
    );
}

/// Extents as a client of the test protocol is told them.
fn extents(client: &mut LineClient) -> Vec<(u32, bool)> {
    let mut count = [0];
    client.stream.read_exact(&mut count).unwrap();
    let mut extents = Vec::new();
    for _ in 0..count[0] {
        let mut extent = [0; 5];
        client.stream.read_exact(&mut extent).unwrap();
        let [a, b, c, d, is] = extent;
        extents.push((u32::from_le_bytes([a, b, c, d]), is == 1));
    }
    extents
}

#[test]
fn holes_of_the_store_are_told_as_far_as_they_are_whole() {
    for store in Store::everywhere() {
        let node = Node::single(&store);
        let mut client = node.client();
        assert_eq!(client.write(1 << 20, &[1; 65536]), Ok(()));
        assert_eq!(client.write(3 << 20, &[1; 4096]), Ok(()));
        assert_eq!(client.zero((1 << 20) + 16384, 16384), Ok(()));
        let ask = LineClient::request(b's', 9, 4096, 8 << 20);
        client.stream.write_all(&ask).unwrap();
        let mut cookie = [0; 8];
        client.stream.read_exact(&mut cookie).unwrap();
        let told = [
            ((1 << 20) - 4096, true),
            (16384, false),
            (16384, true),
            (32768, false),
            ((2 << 20) - 65536, true),
            (4096, false),
            ((5 << 20), true),
        ];
        assert_eq!(extents(&mut client), told);
        assert_eq!(
            extents(&mut client),
            [(8 << 20, true)],
            "nobody knows, so all may differ"
        );
    }
}

#[test]
fn machines_know_what_their_stores_zero_without_writing_and_when_that_changes() {
    let store = Store::in_memory();
    let disk = store.open();
    // A memory file system punches holes and can't zero what stays allocated.
    let can = FastZeroes {
        holes: true,
        allocated: false,
    };
    assert_eq!(disk.fast_zeroes(), can);
    disk.assume(FastZeroes::ALL);
    let node = Node::empty("127.0.0.1:0", |_| {});
    node.add(machine_on(disk, false));
    let mut client = node.client();
    assert_eq!(client.write(0, &[1; 16384]), Ok(()));
    assert_eq!(client.zero_by(b'h', 0, 4096), Ok(()));
    // Taken at its word once; then it is known better.
    assert_eq!(client.zero_by(b'a', 4096, 4096), Ok(()));
    assert_eq!(client.zero_by(b'a', 8192, 4096), Err(()));
    assert_eq!(client.read(8192, 4096), Ok(vec![1; 4096]));
    assert_eq!(client.zero_by(b'k', 8192, 4096), Ok(()));
    assert_eq!(client.zero_by(b'h', 12288, 100), Ok(()));
    let mut rest = vec![0; 12388];
    rest.extend([1; 3996]);
    assert_eq!(client.read(0, 16384), Ok(rest));
}

#[test]
fn clients_that_take_no_replies_can_not_keep_the_memory_from_others() {
    let store = Store::in_memory();
    let node = Node::with(&store, |config| config.pool_bytes = 48 << 20);
    let mut other = node.client();
    let mut hogs: Vec<_> = (0..6).map(|_| node.client()).collect();
    for hog in &mut hogs {
        // In all three times as much as there is, and nobody takes the answers.
        for cookie in 0..3 {
            hog.send_read(cookie, 0, 8 << 20);
        }
    }
    for n in 0..200 {
        let at = n * 8192 % (1 << 20);
        assert_eq!(other.write(at, &[7; 8192]), Ok(()));
        assert_eq!(other.read(at, 8192), Ok(vec![7; 8192]));
    }
    let used = ask(|reply| node.handle.stats(reply)).pool.used_bytes;
    assert!(used <= 64 << 20, "{used} bytes of buffers are in use");
    // A large request comes through too, once those who keep everybody waiting are gone.
    assert_eq!(other.write(0, &vec![9; 8 << 20]), Ok(()));
    drop(hogs);
    wait_until(|| ask(|reply| node.handle.stats(reply)).clients == 1);
}

#[test]
fn a_client_that_has_left_its_last_words_unread_gets_all_its_replies() {
    let store = Store::in_memory();
    for _ in 0..20 {
        let node = Node::single(&store);
        let mut client = node.client();
        for cookie in 0..50 {
            client.send_read(cookie, 0, 65536);
        }
        // An end in the protocol's words, and then more: closing the socket now would take the
        // replies with it.
        client
            .stream
            .write_all(&LineClient::request(b'x', 0, 0, 0))
            .unwrap();
        let _ = client.stream.write_all(&[0; 50_000]);
        for cookie in 0..50 {
            let (answered, result) = client.answer(65536);
            assert_eq!(
                (answered, result.map(|bytes| bytes.len())),
                (cookie, Ok(65536))
            );
        }
        client.expect_end();
    }
}
