//! The output that people read and scripts depend on, word for word, from what nodes report to what
//! is printed.

use super::*;
use crate::view::{
    LocalClient, LocalPeer, LocalResource, LocalView, ProgressView, VerifyView, merge,
};
use controller::core::consensus::{Voter, VoterId};
use controller::core::{
    Backing, Command, Document, MetadataKind, Name, Node, NodeState, Policy, Replica, Report,
};
use std::collections::BTreeMap;
use vocabulary::{
    Change, ClusterId, DiskId, Generation, HistoryId, Incarnation, Member, NodeId, NodeSet,
    ResourceId,
};

fn node(id: u8) -> NodeId {
    NodeId::new(id).unwrap()
}

fn member(id: u8) -> Member {
    Member {
        node: node(id),
        disk: DiskId(1 + u128::from(id)),
        incarnation: Incarnation(1),
    }
}

fn apply(document: Document, commands: &[Command]) -> Document {
    commands.iter().fold(document, |document, command| {
        document.apply(command).unwrap()
    })
}

fn created() -> Document {
    let nodes: Vec<Command> = (0..3)
        .map(|id| Command::SetNode {
            node: Node {
                id: node(id),
                name: Name::new(&format!("node{}", id + 1)).unwrap(),
                control: vec![format!("h{id}:1")],
                replication: vec![format!("h{id}:2")],
                state: NodeState::Online,
                fencing: None,
            },
        })
        .collect();
    let replicas = (0..3).map(|id| Replica {
        node: node(id),
        backing: vec![Backing {
            path: "r0.img".to_owned(),
            metadata: MetadataKind::Default,
        }],
        report: None,
        replaced: None,
    });
    let create = Command::CreateResource {
        name: Name::new("r0").unwrap(),
        id: ResourceId(7),
        history: HistoryId(1),
        sizes: vec![1 << 30],
        replicas: replicas.collect(),
        min_redundancy: 1,
        policy: Policy::default(),
    };
    let vote = Command::AddVoter {
        voter: Voter {
            node: node(0),
            id: VoterId(1),
        },
    };
    apply(apply(Document::new(ClusterId(1)), &nodes), &[vote, create])
}

const fn declare(member: Member) -> Command {
    Command::Declare {
        resource: ResourceId(7),
        report: Report {
            member,
            empty: true,
        },
    }
}

fn promoted() -> Document {
    let propose = |based_on, change| Command::Propose {
        resource: ResourceId(7),
        based_on: Generation(based_on),
        change,
    };
    apply(
        created(),
        &[
            declare(member(0)),
            declare(member(1)),
            declare(member(2)),
            propose(
                1,
                Change::Promote {
                    candidate: member(0),
                    drop: NodeSet::EMPTY,
                    history: HistoryId(2),
                },
            ),
            propose(2, Change::Evict { node: node(2) }),
        ],
    )
}

fn replica(role: &str, disk_state: &str, replication_state: &str) -> LocalResource {
    LocalResource {
        role: role.to_owned(),
        disk_state: disk_state.to_owned(),
        replication_state: replication_state.to_owned(),
        problem: None,
        reason: None,
        waiting_for: Vec::new(),
        verify: None,
        primary: role == "Primary",
        peers: BTreeMap::new(),
        clients: Vec::new(),
    }
}

fn peer(disk_state: &str, replication_state: &str, lacks: u64) -> LocalPeer {
    LocalPeer {
        disk_state: disk_state.to_owned(),
        replication_state: replication_state.to_owned(),
        out_of_sync_bytes: vec![lacks],
        progress: vec![None],
    }
}

fn client(volume: u16, who: &str) -> LocalClient {
    LocalClient {
        volume,
        who: who.to_owned(),
    }
}

fn view(resource: LocalResource) -> LocalView {
    LocalView {
        resources: BTreeMap::from([("r0".to_owned(), resource)]),
    }
}

/// A primary, a member, and a third replica that is copied to.
fn resyncing() -> ClusterView {
    let mut primary = replica("Primary", "UpToDate", "SyncSource");
    let device = "/dev/nbd0 (process 12)";
    primary.clients = ["10.0.0.5:700", device, device]
        .map(|who| client(0, who))
        .to_vec();
    primary.clients.push(client(1, "of another volume"));
    primary.peers.insert(1, peer("UpToDate", "Established", 0));
    let mut target = peer("Inconsistent", "SyncTarget", 3 << 20);
    target.progress = vec![Some(ProgressView {
        total_bytes: 12 << 20,
        left_bytes: 3 << 20,
        seconds_left: Some(75),
    })];
    primary.peers.insert(2, target);
    let views = BTreeMap::from([
        (node(0), view(primary)),
        (
            node(1),
            view(replica("Secondary", "UpToDate", "Established")),
        ),
        (
            node(2),
            view(replica("Secondary", "Inconsistent", "SyncTarget")),
        ),
    ]);
    merge(&promoted(), Some(node(0)), &views)
}

#[test]
fn the_json_has_exactly_the_names_that_scripts_depend_on() {
    let expected = concat!(
        r#"{"nodes":[{"name":"node1","online":true,"voter":true,"leader":true},"#,
        r#"{"name":"node2","online":true,"voter":false,"leader":false},"#,
        r#"{"name":"node3","online":true,"voter":false,"leader":false}],"#,
        r#""resources":[{"name":"r0","generation":3,"epoch":2,"primary":"node1","#,
        r#""in_sync":["node1","node2"],"volumes":[{"volume":0,"size_bytes":1073741824,"replicas":["#,
        r#"{"node":"node1","role":"Primary","disk_state":"UpToDate","replication_state":"SyncSource","out_of_sync_bytes":0,"resync":null,"clients":["10.0.0.5:700","/dev/nbd0 (process 12)","/dev/nbd0 (process 12)"]},"#,
        r#"{"node":"node2","role":"Secondary","disk_state":"UpToDate","replication_state":"Established","out_of_sync_bytes":0,"resync":null,"clients":[]},"#,
        r#"{"node":"node3","role":"Secondary","disk_state":"Inconsistent","replication_state":"SyncTarget","out_of_sync_bytes":3145728,"#,
        r#""resync":{"percent":75.0,"bytes_left":3145728,"seconds_left":75},"clients":[]}]}]}]}"#,
    );
    assert_eq!(json(&resyncing()).unwrap(), expected);
}

#[test]
fn the_table_shows_a_resync_at_work() {
    let expected = "\
NODE   STATE   ROLE IN THE CONFIGURATION STORE
node1  online  voter, leader
node2  online  -
node3  online  -

r0: primary node1, in sync: node1, node2 (generation 3, epoch 2)
  volume 0: 1 GiB
    REPLICA  ROLE       DISK          REPLICATION  OUT OF SYNC  RESYNC                           CLIENTS
    node1    Primary    UpToDate      SyncSource   0 B          -                                3: /dev/nbd0 (process 12), 10.0.0.5:700
    node2    Secondary  UpToDate      Established  0 B          -                                -
    node3    Secondary  Inconsistent  SyncTarget   3 MiB        75.0 %, 3 MiB left (1 min 15 s)  -
";
    assert_eq!(text(&resyncing()), expected);
}

#[test]
fn a_node_that_does_not_answer_is_shown_as_others_see_it() {
    let mut primary = replica("Primary", "UpToDate", "Established");
    primary.waiting_for = vec![1];
    primary.verify = Some(VerifyView {
        progress: ProgressView {
            total_bytes: 1 << 30,
            left_bytes: 1 << 29,
            seconds_left: Some(7),
        },
        differing_bytes: 4096,
    });
    primary.peers.insert(1, peer("Unknown", "Connecting", 8192));
    primary.peers.insert(2, peer("Outdated", "Off", 4096));
    let views = BTreeMap::from([
        (node(0), view(primary)),
        (
            node(2),
            view(LocalResource::detached("r0.img is gone".to_owned())),
        ),
    ]);
    let expected = "\
NODE   STATE    ROLE IN THE CONFIGURATION STORE
node1  online   voter, leader
node2  offline  -
node3  online   -

r0: primary node1, in sync: node1, node2 (generation 3, epoch 2)
  volume 0: 1 GiB
    REPLICA  ROLE       DISK      REPLICATION  OUT OF SYNC  RESYNC  CLIENTS
    node1    Primary    UpToDate  Established  0 B          -       -
    node2    Unknown    Unknown   Connecting   8 KiB        -       -
    node3    Secondary  Diskless  Off          4 KiB        -       -
  verify: 50.0 % done, 512 MiB left (7 s), 4 KiB differ so far
  ! waits for node2: its return resumes the work by itself
  ! node3: r0.img is gone
";
    assert_eq!(text(&merge(&promoted(), Some(node(0)), &views)), expected);
}

#[test]
fn without_a_primary_the_greatest_claim_of_a_member_counts() {
    let mut members: Vec<LocalResource> = Vec::new();
    for lacks in [4096, 8192] {
        let mut member = replica("Secondary", "UpToDate", "Off");
        member.peers.insert(2, peer("Unknown", "Off", lacks));
        members.push(member);
    }
    let document = apply(
        promoted(),
        &[Command::Propose {
            resource: ResourceId(7),
            based_on: Generation(3),
            change: Change::Demote {
                node: node(0),
                to: None,
            },
        }],
    );
    let views = BTreeMap::from([
        (node(0), view(members.remove(0))),
        (node(1), view(members.remove(0))),
    ]);
    let merged = merge(&document, Some(node(0)), &views);
    assert_eq!(merged.resources[0].primary, None);
    assert_eq!(
        merged.resources[0].volumes[0].replicas[2].out_of_sync_bytes,
        8192
    );
}

#[test]
fn a_new_resource_names_the_nodes_whose_replica_is_missing() {
    let document = apply(created(), &[declare(member(0))]);
    let merged = merge(&document, Some(node(0)), &BTreeMap::new());
    assert_eq!(merged.resources[0].waiting_for, ["node2", "node3"]);
    assert!(text(&merged).contains("r0: primary none, in sync: none yet (generation 0, epoch 0)"));
}

#[test]
fn only_some_of_many_clients_are_named_in_the_table() {
    let many: Vec<String> = (1..=9).map(|n| format!("10.0.0.{n}:1")).collect();
    assert_eq!(clients(&many), "9: 10.0.0.1:1, 10.0.0.2:1, 10.0.0.3:1, …");
    assert_eq!(clients(&many[..1]), "1: 10.0.0.1:1");
}

#[test]
fn a_resource_that_is_not_there_is_noticed() {
    let mut view = resyncing();
    assert!(narrow(&mut view, None) && narrow(&mut view, Some("r0")));
    assert!(!narrow(&mut view, Some("r1")));
}
