//! Promises of the configuration store's state machine.

use super::consensus::{Voter, VoterId};
use super::*;
use proptest::prelude::*;
use vocabulary::{
    Change, ClusterId, DiskId, Epoch, Generation, HistoryId, Incarnation, Member, NodeId, NodeSet,
    Record, Refusal, ResourceId,
};

fn node(id: u8) -> NodeId {
    NodeId::new(id).unwrap()
}

fn name(word: &str) -> Name {
    Name::new(word).unwrap()
}

fn member(id: u8, disk: u128, incarnation: u64) -> Member {
    Member {
        node: node(id),
        disk: DiskId(disk),
        incarnation: Incarnation(incarnation),
    }
}

fn report(id: u8, empty: bool) -> Report {
    Report {
        member: member(id, 100 + u128::from(id), 1),
        empty,
    }
}

fn replica(id: u8) -> Replica {
    Replica {
        node: node(id),
        backing: vec![Backing {
            path: "r0.img".to_owned(),
            metadata: MetadataKind::Default,
        }],
        report: None,
        replaced: None,
    }
}

fn set_node(id: u8) -> Command {
    Command::SetNode {
        node: Node {
            id: node(id),
            name: name(&format!("node{}", id + 1)),
            control: vec![format!("127.0.0.1:{}", 7000 + u16::from(id))],
            replication: vec![format!("127.0.0.1:{}", 7100 + u16::from(id))],
            state: NodeState::Online,
            fencing: None,
        },
    }
}

const R0: ResourceId = ResourceId(77);

fn create(replicas: &[u8]) -> Command {
    Command::CreateResource {
        name: name("r0"),
        id: R0,
        history: HistoryId(5),
        sizes: vec![1 << 20],
        replicas: replicas.iter().map(|&id| replica(id)).collect(),
        min_redundancy: 1,
        policy: Policy::default(),
    }
}

const fn declare(report: Report) -> Command {
    Command::Declare {
        resource: R0,
        report,
    }
}

fn run(document: &Document, commands: &[Command]) -> Document {
    commands.iter().fold(document.clone(), |document, command| {
        document.apply(command).unwrap()
    })
}

fn record(document: &Document) -> &Record {
    document.resource(R0).unwrap().record.as_ref().unwrap()
}

fn cluster() -> Document {
    run(
        &Document::new(ClusterId(9)),
        &[set_node(0), set_node(1), set_node(2)],
    )
}

#[test]
fn the_record_begins_when_every_replica_has_reported_an_empty_store() {
    let document = run(&cluster(), &[create(&[0, 2]), declare(report(0, true))]);
    assert_eq!(document.resource(R0).unwrap().record, None);
    let document = run(&document, &[declare(report(2, true))]);
    let record = document.resource(R0).unwrap().record.clone().unwrap();
    assert_eq!(
        record.in_sync,
        vec![report(0, true).member, report(2, true).member]
    );
    assert_eq!(record.primary, None);
    assert_eq!((record.epoch, record.generation), (Epoch(0), Generation(1)));
    assert_eq!(record.history, HistoryId(5));
    assert_eq!(record.replicas, NodeSet::only(node(0)).with(node(2)));
}

#[test]
fn after_the_time_limit_it_begins_with_those_that_have_reported() {
    let begin = Command::BeginResource { resource: R0 };
    let document = run(&cluster(), &[create(&[0, 1, 2])]);
    assert_eq!(
        document.apply(&begin),
        Err(Refused::NothingReported { name: name("r0") })
    );
    let document = run(
        &document,
        &[declare(report(1, true)), declare(report(2, true)), begin],
    );
    let record = document.resource(R0).unwrap().record.clone().unwrap();
    assert_eq!(record.members(), NodeSet::only(node(1)).with(node(2)));
    assert_eq!(record.replicas.len(), 3);
}

#[test]
fn only_a_disk_that_is_not_in_sync_is_replaced_and_it_never_comes_back() {
    let replace = |id: u8, path: &str| Command::ReplaceDisk {
        resource: R0,
        node: node(id),
        disk: report(id, true).member.disk,
        backing: vec![Backing {
            path: path.to_owned(),
            metadata: MetadataKind::Default,
        }],
    };
    let document = run(
        &cluster(),
        &[
            create(&[0, 1]),
            declare(report(0, true)),
            Command::BeginResource { resource: R0 },
            declare(report(1, true)),
        ],
    );
    let disk = report(1, true).member.disk;
    assert_eq!(
        document.apply(&replace(0, "new.img")),
        Err(Refused::DiskInSync { node: node(0) })
    );
    let next = run(&document, &[replace(1, "new.img")]);
    let replica = next.resource(R0).unwrap().replica(node(1)).unwrap();
    assert_eq!((replica.report, replica.replaced), (None, Some(disk)));
    assert_eq!(replica.backing[0].path, "new.img");
    // Once more, as when the answer was lost.
    assert_eq!(run(&next, &[replace(1, "new.img")]), next);
    assert_eq!(
        next.apply(&declare(report(1, true))),
        Err(Refused::NotItsDisk {
            node: node(1),
            disk
        })
    );
}

#[test]
fn a_replica_that_reports_after_the_beginning_is_not_in_sync() {
    let document = run(
        &cluster(),
        &[
            create(&[0, 1]),
            declare(report(0, true)),
            Command::BeginResource { resource: R0 },
            declare(report(1, true)),
        ],
    );
    let resource = document.resource(R0).unwrap();
    assert_eq!(
        resource.record.as_ref().unwrap().members(),
        NodeSet::only(node(0))
    );
    assert_eq!(resource.declared().len(), 2);
}

#[test]
fn stores_that_are_not_known_to_be_empty_begin_with_one_of_them() {
    let document = run(
        &cluster(),
        &[
            create(&[0, 1, 2]),
            declare(report(0, true)),
            declare(report(1, false)),
            declare(report(2, false)),
        ],
    );
    let record = document.resource(R0).unwrap().record.clone().unwrap();
    assert_eq!(record.members(), NodeSet::only(node(1)));
}

#[test]
fn a_change_of_the_record_is_a_compare_and_set() {
    let document = run(
        &cluster(),
        &[
            create(&[0, 1]),
            declare(report(0, true)),
            declare(report(1, true)),
        ],
    );
    let promote = Command::Propose {
        resource: R0,
        based_on: Generation(1),
        change: Change::Promote {
            candidate: report(0, true).member,
            drop: NodeSet::EMPTY,
            history: HistoryId(6),
        },
    };
    let promoted = document.apply(&promote).unwrap();
    assert_eq!(promoted.version.0, document.version.0 + 1);
    let record = promoted.resource(R0).unwrap().record.clone().unwrap();
    assert_eq!(record.primary, Some(node(0)));
    assert_eq!(
        promoted.apply(&promote),
        Err(Refused::Record(Refusal::Stale {
            based_on: Generation(1),
            current: Generation(2)
        }))
    );
}

#[test]
fn eligibility_uses_what_the_replicas_declared() {
    let began = run(
        &cluster(),
        &[
            create(&[0, 1]),
            declare(report(0, true)),
            declare(report(1, true)),
        ],
    );
    let restarted = |id: u8| {
        declare(Report {
            member: member(id, 100 + u128::from(id), 2),
            empty: false,
        })
    };
    let promote = Command::Propose {
        resource: R0,
        based_on: Generation(1),
        change: Change::Promote {
            candidate: member(0, 100, 2),
            drop: NodeSet::EMPTY,
            history: HistoryId(6),
        },
    };
    let one = run(&began, &[restarted(0)]);
    assert!(matches!(
        one.apply(&promote),
        Err(Refused::Record(Refusal::NotEligible { .. }))
    ));
    let both = run(&one, &[restarted(1), promote]);
    assert_eq!(
        both.resource(R0).unwrap().record.as_ref().unwrap().history,
        HistoryId(6)
    );
}

#[test]
fn a_resource_with_a_primary_is_not_deleted() {
    let began = run(&cluster(), &[create(&[0]), declare(report(0, true))]);
    let promoted = run(
        &began,
        &[Command::Propose {
            resource: R0,
            based_on: Generation(1),
            change: Change::Promote {
                candidate: report(0, true).member,
                drop: NodeSet::EMPTY,
                history: HistoryId(6),
            },
        }],
    );
    let delete = Command::DeleteResource { resource: R0 };
    assert_eq!(
        promoted.apply(&delete),
        Err(Refused::InUse {
            name: name("r0"),
            primary: node(0)
        })
    );
    assert!(run(&began, &[delete]).resources.is_empty());
}

#[test]
fn the_same_creation_twice_is_one_and_another_of_that_name_is_refused() {
    let document = run(&cluster(), &[create(&[0])]);
    assert_eq!(document.apply(&create(&[0])).unwrap(), document);
    let mut other = create(&[1]);
    if let Command::CreateResource { id, .. } = &mut other {
        *id = ResourceId(78);
    }
    assert_eq!(
        document.apply(&other),
        Err(Refused::ResourceExists { name: name("r0") })
    );
}

#[test]
fn a_resource_of_impossible_shape_is_refused() {
    type Shape<'a> = &'a dyn Fn(&mut Vec<u64>, &mut Vec<Replica>, &mut u8);
    let shaped = |change: Shape<'_>| {
        let mut command = create(&[0, 1]);
        if let Command::CreateResource {
            sizes,
            replicas,
            min_redundancy,
            ..
        } = &mut command
        {
            change(sizes, replicas, min_redundancy);
        }
        cluster().apply(&command).unwrap_err()
    };
    assert_eq!(
        shaped(&|sizes, _, _| sizes.clear()),
        Refused::VolumeCount { count: 0 }
    );
    for bad in [0, 1000, u64::MAX - 4095] {
        assert_eq!(
            shaped(&|sizes, _, _| sizes[0] = bad),
            Refused::BadSize { size_bytes: bad }
        );
    }
    assert_eq!(
        shaped(&|_, replicas, _| replicas.clear()),
        Refused::ReplicaCount { count: 0 }
    );
    assert_eq!(
        shaped(&|_, replicas, _| replicas[1].node = node(0)),
        Refused::NodeTwice { node: node(0) }
    );
    assert_eq!(
        shaped(&|_, replicas, _| replicas[1].node = node(7)),
        Refused::NoNode { node: node(7) }
    );
    assert_eq!(
        shaped(&|_, replicas, _| replicas[1].backing.clear()),
        Refused::BackingCount {
            node: node(1),
            given: 0,
            wanted: 1
        }
    );
    for bad in [0, 3] {
        assert_eq!(
            shaped(&|_, _, min| *min = bad),
            Refused::BadRedundancy {
                asked: bad,
                replicas: 2
            }
        );
    }
}

#[test]
fn two_nodes_never_share_a_name() {
    let mut command = set_node(3);
    if let Command::SetNode { node } = &mut command {
        node.name = name("node1");
    }
    assert_eq!(
        cluster().apply(&command),
        Err(Refused::NodeNameTaken {
            name: name("node1"),
            id: node(0)
        })
    );
}

#[test]
fn nodes_join_under_ids_and_addresses_of_their_own_and_do_not_come_back() {
    let new = |id: u8, port: u16| Node {
        id: node(id),
        name: name(&format!("new{port}")),
        control: vec![format!("127.0.0.1:{port}")],
        replication: vec![format!("127.0.0.1:{}", port + 1)],
        state: NodeState::Online,
        fencing: None,
    };
    let add = |node: Node| Command::AddNode { node };
    let cluster = cluster();
    let free = cluster.free_node_id().unwrap();
    assert!(cluster.node(free).is_none());
    let joined = run(&cluster, &[add(new(free.get(), 8000))]);
    // Once more: its answer was lost.
    assert_eq!(joined.apply(&add(new(free.get(), 8000))).unwrap(), joined);
    assert_eq!(
        joined.apply(&add(new(free.get(), 9000))),
        Err(Refused::NodeIdTaken { id: free })
    );
    let next = joined.free_node_id().unwrap().get();
    for bad in [8000, 8001, 7999] {
        let refused = joined.apply(&add(Node {
            name: name("other"),
            ..new(next, bad)
        }));
        assert!(
            matches!(refused, Err(Refused::AddressTaken { .. })),
            "{bad}"
        );
    }
    let mut same = new(next, 9000);
    same.replication = same.control.clone();
    assert!(matches!(
        joined.apply(&add(same)),
        Err(Refused::AddressTaken { .. })
    ));
    for count in [0, 5] {
        let many = (0..count).map(|host| format!("10.0.0.{host}:1")).collect();
        let refused = joined.apply(&add(Node {
            control: many,
            ..new(next, 9000)
        }));
        assert_eq!(refused, Err(Refused::AddressCount { count }));
    }
    let left = run(&joined, &[Command::RemoveNode { node: free }]);
    assert!(left.node(free).is_none() && left.departed.contains(free));
    assert_ne!(left.free_node_id(), Some(free));
    assert_eq!(
        left.apply(&add(new(free.get(), 8000))),
        Err(Refused::NodeIdTaken { id: free })
    );
}

#[test]
fn a_node_with_a_replica_does_not_leave_and_its_vote_goes_with_it() {
    let voter = Voter {
        node: node(1),
        id: VoterId(5),
    };
    let document = run(&cluster(), &[create(&[0]), Command::AddVoter { voter }]);
    assert_eq!(
        document.apply(&Command::RemoveNode { node: node(0) }),
        Err(Refused::HoldsReplica {
            node: node(0),
            resource: name("r0")
        })
    );
    assert_eq!(
        document.apply(&Command::RemoveNode { node: node(1) }),
        Err(Refused::LastVoter)
    );
    let other = Voter {
        node: node(2),
        id: VoterId(6),
    };
    let add = Command::AddVoter { voter: other };
    let left = run(&document, &[add, Command::RemoveNode { node: node(1) }]);
    assert_eq!(left.voters, [other]);
    assert!(left.node(node(1)).is_none() && left.departed.contains(node(1)));
}

fn add_replica(id: u8) -> Command {
    Command::AddReplica {
        resource: R0,
        replica: replica(id),
    }
}

const fn remove_replica(node: NodeId) -> Command {
    Command::RemoveReplica { resource: R0, node }
}

/// r0 on nodes 0 and 1, both in sync.
fn begun() -> Document {
    run(
        &cluster(),
        &[
            create(&[0, 1]),
            declare(report(0, true)),
            declare(report(1, true)),
        ],
    )
}

fn promote(document: &Document, id: u8) -> Document {
    let command = Command::Propose {
        resource: R0,
        based_on: record(document).generation,
        change: Change::Promote {
            candidate: report(id, true).member,
            drop: NodeSet::EMPTY,
            history: HistoryId(9),
        },
    };
    run(document, &[command])
}

#[test]
fn a_primary_that_demotes_may_name_the_next_one() {
    let document = promote(&begun(), 0);
    let demote = |to: u8| Command::Propose {
        resource: R0,
        based_on: record(&document).generation,
        change: Change::Demote {
            node: node(0),
            to: Some(node(to)),
        },
    };
    for (to, next) in [(1, Some(node(1))), (9, None)] {
        let document = run(&document, &[demote(to)]);
        let resource = document.resource(R0).unwrap();
        assert_eq!((resource.up, resource.next), (true, next));
        assert_eq!(record(&document).primary, None);
        assert_eq!(promote(&document, 1).resource(R0).unwrap().next, None);
    }
}

#[test]
fn a_replica_that_is_added_lacks_everything_and_may_be_admitted() {
    let before = begun();
    let after = run(&before, &[add_replica(2)]);
    let (old, new) = (record(&before), record(&after));
    assert_eq!(new.generation, old.generation.next());
    assert_eq!(new.in_sync, old.in_sync);
    assert!(new.replicas.contains(node(2)));
    assert_eq!(run(&after, &[add_replica(2)]), after, "the same once more");
    let elsewhere = Command::AddReplica {
        resource: R0,
        replica: Replica {
            backing: vec![Backing {
                path: "/dev/sdz".to_owned(),
                metadata: MetadataKind::Default,
            }],
            ..replica(2)
        },
    };
    assert!(matches!(
        after.apply(&elsewhere),
        Err(Refused::ReplicaExists { .. })
    ));
}

#[test]
fn neither_the_primary_nor_what_may_be_the_last_good_copy_is_removed() {
    let document = begun();
    assert!(matches!(
        document.apply(&remove_replica(node(1))),
        Err(Refused::LastGoodCopy { .. })
    ));
    let served = promote(&document, 0);
    assert!(matches!(
        served.apply(&remove_replica(node(0))),
        Err(Refused::RemovesPrimary { .. })
    ));
    let left = run(&served, &[remove_replica(node(1))]);
    assert_eq!(record(&left).members(), NodeSet::only(node(0)));
    assert_eq!(record(&left).replicas, NodeSet::only(node(0)));
    assert_eq!(record(&left).epoch, record(&served).epoch);
    let two = Command::SetResource {
        resource: R0,
        min_redundancy: 2,
        policy: Policy::default(),
    };
    let guarded = run(&served, &[add_replica(2), two.clone()]);
    assert!(matches!(
        guarded.apply(&remove_replica(node(1))),
        Err(Refused::Record(Refusal::Redundancy { left: 1, .. }))
    ));
    assert!(matches!(
        left.apply(&two),
        Err(Refused::BadRedundancy { .. })
    ));
}

#[test]
fn a_removed_replica_is_not_preferred_any_more() {
    let prefer = Command::SetResource {
        resource: R0,
        min_redundancy: 1,
        policy: Policy {
            preferred: Some(node(1)),
            ..Policy::default()
        },
    };
    let served = run(&promote(&begun(), 0), std::slice::from_ref(&prefer));
    let left = run(&served, &[remove_replica(node(1))]);
    assert_eq!(left.resource(R0).unwrap().policy.preferred, None);
    assert!(matches!(
        left.apply(&prefer),
        Err(Refused::NoReplica { .. })
    ));
}

#[test]
fn time_outs_go_together_or_are_refused_and_the_lease_changes_only_while_none_is_held() {
    let with = |change: fn(&mut Timings)| {
        let mut timings = Timings::DEFAULT;
        change(&mut timings);
        Command::SetTimings { timings }
    };
    let document = begun();
    for bad in [
        with(|t| t.lease_ms = 99),
        with(|t| t.lease_ms = 60_001),
        with(|t| t.drift_percent = 0),
        with(|t| t.drift_percent = 21),
        with(|t| t.election_ms = 49),
        with(|t| t.election_ms = 251),
        with(|t| t.fence_delay_ms = 999),
        with(|t| t.fence_delay_ms = 600_001),
        with(|t| t.lease_ms = 300),
    ] {
        assert!(
            matches!(document.apply(&bad), Err(Refused::Timings(_))),
            "{bad:?}"
        );
    }
    let longer = with(|t| t.lease_ms = 1_000);
    assert_eq!(
        run(&document, std::slice::from_ref(&longer))
            .timings
            .lease_ms,
        1_000
    );
    let served = promote(&document, 0);
    assert_eq!(
        served.apply(&longer),
        Err(Refused::LeaseInUse {
            resource: name("r0")
        })
    );
    run(&served, &[with(|t| t.election_ms = 100)]);
}

#[test]
fn names_are_safe_in_file_names() {
    for good in ["r0", "a.b-c_d", "9"] {
        assert!(Name::new(good).is_ok());
    }
    let long = "x".repeat(65);
    for bad in ["", "../r0", "a/b", ".x", "-x", "a b", "é", long.as_str()] {
        assert!(Name::new(bad).is_err(), "{bad}");
    }
}

fn any_command() -> impl Strategy<Value = Command> {
    let member = (0..3u8, 100..104u128, 1..4u64).prop_map(|(n, d, i)| member(n, d, i));
    let change = prop_oneof![
        (member.clone(), 0..8u32).prop_map(|(candidate, drop)| Change::Promote {
            candidate,
            drop: NodeSet(drop),
            history: HistoryId(6)
        }),
        (0..3u8, 0..4u8).prop_map(|(n, to)| Change::Demote {
            node: node(n),
            to: (to < 3).then(|| node(to)),
        }),
        (0..3u8).prop_map(|n| Change::Evict { node: node(n) }),
        member.clone().prop_map(|member| Change::Admit { member }),
        (1..4u64).prop_map(|size| Change::Resize {
            volume: vocabulary::VolumeId(0),
            size_bytes: size << 20
        }),
    ];
    prop_oneof![
        (0..4u8).prop_map(set_node),
        proptest::sample::subsequence(vec![0u8, 1, 2], 1..=3).prop_map(|nodes| create(&nodes)),
        (member, any::<bool>()).prop_map(|(member, empty)| declare(Report { member, empty })),
        Just(Command::BeginResource { resource: R0 }),
        Just(Command::DeleteResource { resource: R0 }),
        (0..12u64, change).prop_map(|(based_on, change)| Command::Propose {
            resource: R0,
            based_on: Generation(based_on),
            change
        }),
    ]
}

proptest! {
    #[test]
    fn versions_and_generations_only_rise_and_a_refusal_changes_nothing(
        commands in proptest::collection::vec(any_command(), 1..80)
    ) {
        let mut document = cluster();
        for command in &commands {
            let Ok(next) = document.apply(command) else { continue };
            prop_assert_eq!(next.cluster, document.cluster);
            if next == document {
                continue;
            }
            prop_assert_eq!(next.version.0, document.version.0 + 1);
            let old = document.resource(R0).and_then(|r| r.record.as_ref());
            let new = next.resource(R0).and_then(|r| r.record.as_ref());
            if let (Some(old), Some(new)) = (old, new) {
                // One change at a time, and only a proposal changes a record.
                if old != new {
                    prop_assert_eq!(new.generation, old.generation.next());
                    let proposed = matches!(command, Command::Propose { .. });
                    prop_assert!(proposed);
                }
                // An epoch begins with a promotion and nothing else.
                prop_assert!(new.epoch >= old.epoch);
            }
            if let Some(new) = new {
                prop_assert!(!new.in_sync.is_empty());
                prop_assert!(new.members().is_subset_of(new.replicas));
            }
            document = next;
        }
    }
}
