use super::*;
use crate::core::consensus::VoterId;
use crate::core::{
    Backing, Command, Fencing, MetadataKind, Name, NodeState, Policy, Refused, Replica, Report,
};
use vocabulary::{Change, DiskId, HistoryId, Incarnation, Member, NodeSet, Refusal, ResourceId};

const OLD: ClusterId = ClusterId(9);
const NEW: ClusterId = ClusterId(10);
const R0: ResourceId = ResourceId(77);

fn node(id: u8) -> NodeId {
    NodeId::new(id).unwrap()
}

fn voter(id: u8) -> Voter {
    Voter {
        node: node(id),
        id: VoterId(u64::from(id) + 50),
    }
}

fn entry(id: u8) -> Node {
    Node {
        id: node(id),
        name: Name::new(&format!("node{id}")).unwrap(),
        control: vec![format!("h{id}:1")],
        replication: vec![format!("h{id}:2")],
        state: NodeState::Online,
        fencing: None,
    }
}

fn member(id: u8) -> Member {
    Member {
        node: node(id),
        disk: DiskId(100 + u128::from(id)),
        incarnation: Incarnation(1),
    }
}

fn apply(document: &Document, commands: &[Command]) -> Document {
    commands.iter().fold(document.clone(), |document, command| {
        document.apply(command).unwrap()
    })
}

fn declare(id: u8) -> Command {
    Command::Declare {
        resource: R0,
        report: Report {
            member: member(id),
            empty: true,
        },
    }
}

fn propose(document: &Document, change: Change) -> Result<Document, Refused> {
    let record = document.resource(R0).unwrap().record.as_ref().unwrap();
    document.apply(&Command::Propose {
        resource: R0,
        based_on: record.generation,
        change,
    })
}

fn promote(id: u8) -> Change {
    Change::Promote {
        candidate: member(id),
        drop: NodeSet::EMPTY,
        history: HistoryId(6),
    }
}

/// Three voters, each with a replica of r0, whose primary is node 0.
fn cluster() -> Document {
    let mut commands: Vec<Command> = (0..3)
        .map(|id| Command::AddNode { node: entry(id) })
        .collect();
    commands.extend((0..3).map(|id| Command::AddVoter { voter: voter(id) }));
    let replicas = (0..3).map(|id| Replica {
        node: node(id),
        backing: vec![Backing {
            path: "r0.img".to_owned(),
            metadata: MetadataKind::Default,
        }],
        report: None,
        replaced: None,
    });
    commands.push(Command::CreateResource {
        name: Name::new("r0").unwrap(),
        id: R0,
        history: HistoryId(5),
        sizes: vec![1 << 20],
        replicas: replicas.collect(),
        min_redundancy: 1,
        policy: Policy::default(),
    });
    commands.extend((0..3).map(declare));
    let created = apply(&Document::new(OLD), &commands);
    propose(&created, promote(0)).unwrap()
}

fn recovered() -> Document {
    let survivor = Voter {
        node: node(2),
        id: VoterId(1),
    };
    cluster().recovered(NEW, survivor).unwrap()
}

#[test]
fn the_survivor_decides_alone_and_every_other_node_is_lost() {
    let (old, new) = (cluster(), recovered());
    assert_eq!(new.cluster, NEW);
    assert_eq!(new.former, [OLD]);
    assert_eq!(new.version.0, old.version.0 + 1);
    assert_eq!(new.voters.len(), 1);
    assert_eq!(new.voters[0].node, node(2));
    assert_eq!(new.lost, [node(0), node(1)].into_iter().collect());
    assert_eq!(new.nodes, old.nodes);
    let resource = new.resource(R0).unwrap();
    assert_eq!(
        resource.replicas,
        old.resource(R0).unwrap().replicas,
        "where the replicas lie is known still"
    );
    assert!(!resource.up);
    assert_eq!(resource.next, None);
}

#[test]
fn generation_and_epoch_are_above_all_that_anybody_can_have_stored() {
    // The survivor missed changes: the others have gone through many epochs since.
    let mut others = cluster();
    for round in 0..100u8 {
        others = propose(&others, promote(round % 3)).unwrap();
    }
    let stored = others.resource(R0).unwrap().record.clone().unwrap();
    let record = recovered().resource(R0).unwrap().record.clone().unwrap();
    assert!(record.generation > stored.generation);
    assert!(record.epoch > stored.epoch);
    assert_eq!(record.primary, None);
    assert_eq!(record.replicas, stored.replicas);
    assert_eq!(record.sizes, stored.sizes);
}

#[test]
fn nobody_is_promoted_after_a_recovery_but_by_force() {
    let mut document = recovered();
    for id in 0..3 {
        document = apply(&document, &[declare(id)]);
        assert_eq!(
            propose(&document, promote(id)),
            Err(Refused::Record(Refusal::NotEligible { node: node(id) }))
        );
    }
    // Nor where all have been restarted, which makes any member eligible elsewhere (RULES 3).
    let restarted = Member {
        incarnation: Incarnation(2),
        ..member(2)
    };
    let change = Change::Promote {
        candidate: restarted,
        drop: NodeSet::EMPTY,
        history: HistoryId(6),
    };
    assert!(propose(&document, change).is_err());
    let before = document.resource(R0).unwrap().record.clone().unwrap();
    let force = Change::Force {
        candidate: member(2),
        history: HistoryId(8),
    };
    let forced = propose(&document, force).unwrap();
    let resource = forced.resource(R0).unwrap();
    let record = resource.record.as_ref().unwrap();
    assert_eq!(record.in_sync, [member(2)]);
    assert_eq!(record.primary, Some(node(2)));
    assert_eq!(record.history, HistoryId(8));
    assert!(record.epoch > before.epoch);
    assert!(resource.up);
}

#[test]
fn a_resource_that_the_survivor_has_seen_only_half_created_is_fenced_as_well() {
    let mut old = cluster();
    old.resources[0].record = None;
    old.resources[0].replicas[0].report = None;
    let new = old.recovered(NEW, voter(2)).unwrap();
    let record = new.resource(R0).unwrap().record.clone().unwrap();
    assert!(record.generation.0 >= GENERATIONS);
    assert!(record.in_sync.is_empty());
    assert_eq!(record.history, HistoryId(5));
    // The last report would have made the first record of a new resource.
    let declared = apply(&new, &[declare(0)]);
    assert_eq!(declared.resource(R0).unwrap().record, Some(record));
}

#[test]
fn a_lost_node_comes_back_under_its_id_once_and_others_do_not() {
    let mut document = recovered();
    let fencing = Fencing {
        agent: "/agent".to_owned(),
        parameters: Vec::new(),
        timeout_s: 60,
    };
    document.nodes[1].fencing = Some(fencing.clone());
    assert_eq!(document.lost_node("node1"), Some(node(1)));
    assert_eq!(document.lost_node("node2"), None);
    assert_eq!(document.lost_node("other"), None);
    let add = |node: Node| Command::AddNode { node };
    // Another machine under the id, or the id of another one.
    for (id, name) in [(1, "other"), (1, "node0"), (2, "node1")] {
        let mut wrong = entry(id);
        wrong.name = Name::new(name).unwrap();
        let refused = document.apply(&add(wrong));
        assert_eq!(refused, Err(Refused::NodeIdTaken { id: node(id) }));
    }
    let same = apply(&document, &[add(entry(0))]);
    assert_eq!(same.lost, NodeSet::only(node(1)));
    let mut moved = entry(1);
    moved.control = vec!["h9:1".to_owned()];
    let back = apply(&document, &[add(moved.clone())]);
    assert_eq!(back.lost, NodeSet::only(node(0)));
    let known = back.node(node(1)).unwrap();
    assert_eq!(known.control, moved.control);
    assert_eq!(known.fencing, Some(fencing));
    // Once more, as it stands there: its answer was lost.
    assert_eq!(back.apply(&add(known.clone())).unwrap(), back);
    moved.control = vec!["h8:1".to_owned()];
    assert_eq!(
        back.apply(&add(moved)),
        Err(Refused::NodeIdTaken { id: node(1) })
    );
}

#[test]
fn no_replica_is_given_up_before_an_operator_has_chosen_one() {
    let document = recovered();
    let give_up = [
        Command::RemoveReplica {
            resource: R0,
            node: node(1),
        },
        Command::ReplaceDisk {
            resource: R0,
            node: node(1),
            disk: member(1).disk,
            backing: document.resources[0].replicas[1].backing.clone(),
        },
    ];
    let force = Change::Force {
        candidate: member(2),
        history: HistoryId(8),
    };
    let chosen = propose(&document, force).unwrap();
    for command in give_up {
        assert!(matches!(
            document.apply(&command),
            Err(Refused::LastGoodCopy { .. })
        ));
        assert!(chosen.apply(&command).is_ok());
    }
}

#[test]
fn an_address_of_another_node_is_not_taken_over_by_one_that_comes_back() {
    let mut wrong = entry(1);
    wrong.control = vec!["h2:1".to_owned()];
    let document = recovered();
    assert!(matches!(
        document.apply(&Command::AddNode { node: wrong }),
        Err(Refused::AddressTaken { .. })
    ));
    assert_eq!(document.lost_node("node1"), Some(node(1)));
}

#[test]
fn what_is_not_a_survivor_of_a_lost_majority_is_refused() {
    let document = cluster();
    assert_eq!(
        document.recovered(NEW, voter(7)),
        Err(RecoveryError::NoNode { node: node(7) })
    );
    assert_eq!(
        recovered().recovered(ClusterId(11), voter(2)),
        Err(RecoveryError::OnlyVoter)
    );
    // A node without a vote may be the last one that is left of a cluster with one voter.
    assert!(recovered().recovered(ClusterId(11), voter(1)).is_ok());
    let mut worn = document;
    let record = worn.resources[0].record.as_mut().unwrap();
    record.generation = Generation(u64::MAX - GENERATIONS);
    assert_eq!(worn.recovered(NEW, voter(2)), Err(RecoveryError::Exhausted));
}

#[test]
fn former_clusters_are_bounded_and_the_newest_are_kept() {
    let mut document = cluster();
    for round in 0..u8::MAX {
        let survivor = voter(round % 3);
        document.voters.clear();
        document = document
            .recovered(ClusterId(u128::from(round) + 1000), survivor)
            .unwrap();
    }
    assert_eq!(document.former.len(), MAX_FORMER);
    let last = u128::from(u8::MAX) + 1000 - 2;
    assert_eq!(document.former.last(), Some(&ClusterId(last)));
}
