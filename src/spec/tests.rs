use super::*;
use controller::core::{Backing, Command, Fencing, Name, NodeState, Report, Timings};
use vocabulary::{
    Change, ClusterId, DiskId, HistoryId, Incarnation, Member, NodeId, NodeSet, ResourceId,
};

const R0: ResourceId = ResourceId(77);

fn node(id: u8) -> NodeId {
    NodeId::new(id).unwrap()
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

/// Three nodes; r0 on the first two, served by the first.
fn document() -> Document {
    let mut commands: Vec<Command> = (0..3u16)
        .map(|id| Command::SetNode {
            node: Node {
                id: node(u8::try_from(id).unwrap()),
                name: Name::new(&format!("node{}", id + 1)).unwrap(),
                control: vec![format!("127.0.0.1:{}", 7000 + id)],
                replication: vec![format!("127.0.0.1:{}", 7100 + id)],
                state: NodeState::Online,
                fencing: None,
            },
        })
        .collect();
    commands.push(Command::CreateResource {
        name: Name::new("r0").unwrap(),
        id: R0,
        history: HistoryId(5),
        sizes: vec![1 << 30],
        replicas: vec![replica(0), replica(1)],
        min_redundancy: 1,
        policy: Policy::default(),
    });
    let member = |id: u8| Member {
        node: node(id),
        disk: DiskId(u128::from(id) + 100),
        incarnation: Incarnation(1),
    };
    commands.extend([0, 1].map(|id| Command::Declare {
        resource: R0,
        report: Report {
            member: member(id),
            empty: true,
        },
    }));
    commands.push(Command::SetFencing {
        node: node(1),
        fencing: Some(Fencing {
            agent: "/usr/sbin/fence_x".to_owned(),
            parameters: vec![
                ("port".to_owned(), "1".to_owned()),
                ("ip".to_owned(), "a".to_owned()),
            ],
            timeout_s: 30,
        }),
    });
    let document = commands
        .iter()
        .fold(Document::new(ClusterId(1)), |document, command| {
            document.apply(command).unwrap()
        });
    let promote = Command::Propose {
        resource: R0,
        based_on: document
            .resource(R0)
            .unwrap()
            .record
            .as_ref()
            .unwrap()
            .generation,
        change: Change::Promote {
            candidate: member(0),
            drop: NodeSet::EMPTY,
            history: HistoryId(9),
        },
    };
    document.apply(&promote).unwrap()
}

fn steps(text: &str, prune: bool) -> Vec<String> {
    let plan = plan(&document(), &toml::from_str(text).unwrap(), prune).unwrap();
    plan.steps.into_iter().map(|step| step.text).collect()
}

fn refused(text: &str) -> String {
    plan(&document(), &toml::from_str(text).unwrap(), true)
        .unwrap_err()
        .to_string()
}

const EXPORTED: &str = r#"[timings]
lease_ms = 500
drift_percent = 1
election_ms = 200
fence_delay_ms = 5000

[nodes.node1]
state = "online"

[nodes.node2]
state = "online"

[nodes.node2.fencing]
agent = "/usr/sbin/fence_x"
timeout_s = 30

[nodes.node2.fencing.parameters]
ip = "a"
port = "1"

[nodes.node3]
state = "online"

[resources.r0]
sizes = ["1GiB"]
min_redundancy = 1
access = "exclusive"
on_no_quorum = "suspend"
up = true

[resources.r0.replicas.node1]
paths = ["r0.img"]
metadata = "default"

[resources.r0.replicas.node2]
paths = ["r0.img"]
metadata = "default"
"#;

#[test]
fn what_was_exported_reads_like_this_and_needs_nothing_done() {
    let spec = export(&document());
    assert_eq!(toml::to_string_pretty(&spec).unwrap(), EXPORTED);
    let again: Spec = toml::from_str(EXPORTED).unwrap();
    assert_eq!(again, spec);
    for prune in [false, true] {
        assert_eq!(plan(&document(), &again, prune).unwrap(), Plan::default());
    }
}

#[test]
fn each_difference_becomes_a_step() {
    let text = r#"
[timings]
election_ms = 150
[nodes.node3]
state = "standby"
fencing = { agent = "/bin/off", parameters = { ip = "b" } }
[resources.db]
sizes = ["4GiB", 4096]
replicas = { node3 = {}, node1 = { paths = ["/dev/a", "/dev/b"], metadata = "internal" } }
preferred = "node3"
up = true
[resources.r0]
sizes = ["2GiB"]
min_redundancy = 2
access = "follow"
preferred = "node3"
up = false
replicas = { node1 = {}, node3 = {} }
"#;
    let without_prune = [
        "change the cluster's time-outs",
        "put node3 on standby",
        "have node3 switched off by /bin/off",
        "create db (4 GiB + 4 KiB) on node1, node3",
        "prefer node3 as primary of db",
        "promote db on node3",
        "grow volume 0 of r0 to 2 GiB",
        "add a replica of r0 on node3",
        "set access = follow, min_redundancy = 2, preferred = node3 of r0",
        "demote r0",
    ];
    assert_eq!(steps(text, false), without_prune);
    let mut pruned: Vec<&str> = without_prune.to_vec();
    pruned.insert(9, "remove the replica of r0 on node2; its data stay there");
    assert_eq!(steps(text, true), pruned);
    let spec = toml::from_str(text).unwrap();
    let left = plan(&document(), &spec, false).unwrap().left;
    assert_eq!(left, ["the replica of r0 on node2"]);
}

#[test]
fn what_the_text_does_not_name_goes_only_by_prune() {
    assert_eq!(steps("", false), [""; 0]);
    assert_eq!(
        steps("", true),
        ["demote r0", "delete r0; its data stay where they are"]
    );
}

#[test]
fn what_cannot_be_made_true_is_refused_by_name() {
    for (text, words) in [
        ("[timings]\nlease_ms = 90", "lease_ms is 90"),
        ("[timings]\nlease_ms = 300", "election_ms is 200"),
        (
            "[nodes.nodeX]\nstate = \"online\"",
            "[nodes.nodeX]: there is no node nodeX",
        ),
        (
            "[resources.r0]\nsizes = [\"1MiB\"]",
            "can't shrink to 1 MiB",
        ),
        (
            "[resources.r0]\nsizes = [\"1GiB\", \"1GiB\"]",
            "1 volumes, not 2",
        ),
        (
            "[resources.r0]\nsizes = [\"1GiB\"]\nreplicas = { nodeX = {} }",
            "there is no node nodeX",
        ),
        (
            "[resources.r0]\nsizes = [\"1GiB\"]\nreplicas = { node1 = { paths = [\"/x\"] } }",
            "lies at r0.img, not at /x",
        ),
        (
            "[resources.r0]\nsizes = [\"1GiB\"]\npreferred = \"node3\"",
            "node3 is preferred and holds no replica",
        ),
    ] {
        let error = refused(text);
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn time_outs_that_are_not_named_stay() {
    let wanted = TimingsSpec {
        drift_percent: Some(3),
        ..TimingsSpec::default()
    };
    let timings = wanted.over(Timings::DEFAULT);
    assert_eq!((timings.drift_percent, timings.lease_ms), (3, 500));
}
