//! A cluster's time-outs, nodes and resources as a text that people keep under version control: what
//! `lockstep export` prints and `lockstep apply` makes true. [`plan`] finds what has to be done; pure.

use crate::operation::{
    AccessMode, Failure, FencingSpec, MetadataSpec, NoQuorum, NodeWord, Operation, Preference,
    ReplicaSpec, TimingsSpec,
};
use crate::size::{exact_size, parse_size, show_size};
use controller::core::{Document, MetadataKind, Node, Policy, Replica, Resource};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeMap;

/// The whole text. What is absent is left as it is, except within a resource, where an absent key means
/// its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) timings: Option<TimingsSpec>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) nodes: BTreeMap<String, NodeSpec>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) resources: BTreeMap<String, ResourceSpec>,
}

/// What operators say of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<NodeWord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fencing: Option<FenceText>,
}

/// A fence agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FenceText {
    pub(crate) agent: String,
    #[serde(default = "sixty")]
    pub(crate) timeout_s: u32,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) parameters: BTreeMap<String, String>,
}

const fn sixty() -> u32 {
    60
}

/// A resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResourceSpec {
    /// Of each volume.
    pub(crate) sizes: Vec<Size>,
    #[serde(default = "one")]
    pub(crate) min_redundancy: u8,
    #[serde(default)]
    pub(crate) access: AccessMode,
    #[serde(default)]
    pub(crate) on_no_quorum: NoQuorum,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) preferred: Option<String>,
    /// It is to have a primary, or none; absent: as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) up: Option<bool>,
    /// By node; absent: on every node when it is created, afterwards as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replicas: Option<BTreeMap<String, ReplicaText>>,
}

const fn one() -> u8 {
    1
}

/// Where a replica lies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReplicaText {
    /// One a volume; none: files named after the resource in the node's data directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) paths: Vec<String>,
    #[serde(default)]
    pub(crate) metadata: MetadataSpec,
}

/// Bytes, written as `100GiB` or as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&exact_size(self.0))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Bytes(u64),
            Word(String),
        }
        match Written::deserialize(deserializer) {
            Ok(Written::Bytes(bytes)) => Ok(Self(bytes)),
            Ok(Written::Word(word)) => parse_size(&word).map(Self).map_err(de::Error::custom),
            Err(_) => Err(de::Error::custom("a size is wanted, such as \"100GiB\"")),
        }
    }
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    /// For people.
    pub(crate) text: String,
    pub(crate) operation: Operation,
}

/// What makes a text true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    /// What is not in the text and stays.
    pub(crate) left: Vec<String>,
}

/// The cluster as a text.
pub(crate) fn export(document: &Document) -> Spec {
    Spec {
        timings: Some(TimingsSpec::from(document.timings)),
        nodes: document
            .nodes
            .iter()
            .map(|node| {
                let fencing = node.fencing.as_ref().map(|fencing| FenceText {
                    agent: fencing.agent.clone(),
                    timeout_s: fencing.timeout_s,
                    parameters: fencing.parameters.iter().cloned().collect(),
                });
                let spec = NodeSpec {
                    state: Some(node.state.into()),
                    fencing,
                };
                (node.name.to_string(), spec)
            })
            .collect(),
        resources: document
            .resources
            .iter()
            .map(|resource| {
                (
                    resource.name.to_string(),
                    export_resource(document, resource),
                )
            })
            .collect(),
    }
}

fn export_resource(document: &Document, resource: &Resource) -> ResourceSpec {
    let policy = &resource.policy;
    ResourceSpec {
        sizes: resource.sizes().iter().map(|&bytes| Size(bytes)).collect(),
        min_redundancy: resource.min_redundancy,
        access: policy.access.into(),
        on_no_quorum: policy.on_no_quorum.into(),
        preferred: policy.preferred.map(|node| document.node_name(node)),
        up: Some(resource.up),
        replicas: Some(
            resource
                .replicas
                .iter()
                .map(|replica| (document.node_name(replica.node), replica_text(replica)))
                .collect(),
        ),
    }
}

fn replica_text(replica: &Replica) -> ReplicaText {
    let metadata = replica.backing.first().map(|backing| &backing.metadata);
    ReplicaText {
        paths: replica.backing.iter().map(|b| b.path.clone()).collect(),
        metadata: match metadata {
            None | Some(MetadataKind::Default) => MetadataSpec::Default,
            Some(MetadataKind::Internal) => MetadataSpec::Internal,
            Some(MetadataKind::External { .. }) => MetadataSpec::External,
        },
    }
}

/// What has to be done, in order, to make the text true of the document. With `prune` what the text does
/// not name goes.
///
/// # Errors
/// The first thing in the text that can't be made true.
pub(crate) fn plan(document: &Document, spec: &Spec, prune: bool) -> Result<Plan, Failure> {
    let mut plan = Plan::default();
    if let Some(wanted) = spec.timings {
        let timings = wanted.over(document.timings);
        timings
            .check()
            .map_err(|error| Failure::new("can't apply [timings]", error, ""))?;
        if timings != document.timings {
            plan.step(
                "change the cluster's time-outs".to_owned(),
                Operation::SetTimings { timings: wanted },
            );
        }
    }
    for (name, wanted) in &spec.nodes {
        let what = format!("can't apply [nodes.{name}]");
        let node = known_node(&what, document, name)?;
        plan.node(node, wanted);
    }
    for (name, wanted) in &spec.resources {
        let what = format!("can't apply [resources.{name}]");
        let holders = wanted.replicas.iter().flat_map(BTreeMap::keys);
        for node in holders.chain(&wanted.preferred) {
            known_node(&what, document, node)?;
        }
        match document.resource_named(name) {
            None => plan.create(name, wanted),
            Some(resource) => plan.change(&what, document, resource, wanted, prune)?,
        }
    }
    for resource in &document.resources {
        let name = resource.name.to_string();
        if spec.resources.contains_key(&name) {
            continue;
        }
        if !prune {
            plan.left.push(format!("resource {name}"));
            continue;
        }
        if resource.up {
            plan.demote(&name);
        }
        plan.step(
            format!("delete {name}; its data stay where they are"),
            Operation::DeleteResource { name },
        );
    }
    Ok(plan)
}

fn known_node<'a>(what: &str, document: &'a Document, name: &str) -> Result<&'a Node, Failure> {
    document.node_named(name).ok_or_else(|| {
        Failure::new(
            what,
            format!("there is no node {name}"),
            "correct the name; a new machine joins with `lockstep join` first",
        )
    })
}

impl Plan {
    fn step(&mut self, text: String, operation: Operation) {
        self.steps.push(Step { text, operation });
    }

    fn node(&mut self, node: &Node, wanted: &NodeSpec) {
        let name = node.name.to_string();
        if let Some(state) = wanted.state
            && NodeWord::from(node.state) != state
        {
            self.step(
                format!("put {name} on {state}"),
                Operation::SetNode {
                    node: name.clone(),
                    state,
                },
            );
        }
        let Some(fencing) = &wanted.fencing else {
            return;
        };
        let parameters: Vec<(String, String)> = fencing.parameters.clone().into_iter().collect();
        let same = node.fencing.as_ref().is_some_and(|known| {
            let mut known_parameters = known.parameters.clone();
            known_parameters.sort_unstable();
            (&known.agent, known.timeout_s, &known_parameters)
                == (&fencing.agent, fencing.timeout_s, &parameters)
        });
        if !same {
            self.step(
                format!("have {name} switched off by {}", fencing.agent),
                Operation::SetFencing {
                    node: name,
                    fencing: Some(FencingSpec {
                        agent: fencing.agent.clone(),
                        parameters,
                        timeout_s: fencing.timeout_s,
                    }),
                },
            );
        }
    }

    fn create(&mut self, name: &str, wanted: &ResourceSpec) {
        let sizes: Vec<u64> = wanted.sizes.iter().map(|size| size.0).collect();
        let shown: Vec<String> = sizes.iter().map(|&size| show_size(size)).collect();
        let replicas = wanted.replicas.iter().flatten();
        let replicas: Vec<ReplicaSpec> = replicas
            .map(|(node, replica)| ReplicaSpec {
                node: node.clone(),
                paths: replica.paths.clone(),
                metadata: replica.metadata,
            })
            .collect();
        let nodes: Vec<&str> = replicas.iter().map(|r| r.node.as_str()).collect();
        let place = if nodes.is_empty() {
            "every node".to_owned()
        } else {
            nodes.join(", ")
        };
        let first = nodes.first().map(|&node| node.to_owned());
        self.step(
            format!("create {name} ({}) on {place}", shown.join(" + ")),
            Operation::CreateResource {
                name: name.to_owned(),
                sizes,
                replicas,
                min_redundancy: wanted.min_redundancy,
                policy: Policy {
                    access: wanted.access.into(),
                    on_no_quorum: wanted.on_no_quorum.into(),
                    preferred: None,
                },
            },
        );
        if let Some(node) = &wanted.preferred {
            self.step(
                format!("prefer {node} as primary of {name}"),
                Operation::SetResource {
                    resource: name.to_owned(),
                    min_redundancy: None,
                    access: None,
                    on_no_quorum: None,
                    preferred: Some(Preference::Node(node.clone())),
                },
            );
        }
        if wanted.up == Some(true) {
            self.promote(name, wanted.preferred.clone().or(first));
        }
    }

    fn change(
        &mut self,
        what: &str,
        document: &Document,
        resource: &Resource,
        wanted: &ResourceSpec,
        prune: bool,
    ) -> Result<(), Failure> {
        let name = resource.name.to_string();
        self.grow(what, &name, resource.sizes(), &wanted.sizes)?;
        let present: BTreeMap<String, ReplicaText> = resource
            .replicas
            .iter()
            .map(|replica| (document.node_name(replica.node), replica_text(replica)))
            .collect();
        let replicas = wanted.replicas.as_ref().unwrap_or(&present);
        for (node, replica) in replicas {
            match present.get(node) {
                None => self.step(
                    format!("add a replica of {name} on {node}"),
                    Operation::AddReplica {
                        resource: name.clone(),
                        replica: ReplicaSpec {
                            node: node.clone(),
                            paths: replica.paths.clone(),
                            metadata: replica.metadata,
                        },
                    },
                ),
                Some(known) if replica.paths.is_empty() || replica.paths == known.paths => {}
                Some(known) => {
                    return Err(Failure::new(
                        what,
                        format!(
                            "its replica on {node} lies at {}, not at {}",
                            known.paths.join(", "),
                            replica.paths.join(", ")
                        ),
                        format!("`lockstep resource replace-disk {name} {node} PATH` moves it"),
                    ));
                }
            }
        }
        if let Some(node) = wanted
            .preferred
            .as_ref()
            .filter(|n| !replicas.contains_key(*n))
        {
            return Err(Failure::new(
                what,
                format!("{node} is preferred and holds no replica"),
                "name a node with a replica",
            ));
        }
        self.set(document, resource, wanted);
        for node in present.keys().filter(|node| !replicas.contains_key(*node)) {
            if prune {
                self.step(
                    format!("remove the replica of {name} on {node}; its data stay there"),
                    Operation::RemoveReplica {
                        resource: name.clone(),
                        node: node.clone(),
                    },
                );
            } else {
                self.left.push(format!("the replica of {name} on {node}"));
            }
        }
        match (wanted.up, resource.up) {
            (Some(true), false) => {
                let record = resource.record.as_ref();
                let first = record.and_then(|record| record.members().iter().next());
                let first = first.map(|node| document.node_name(node));
                self.promote(&name, wanted.preferred.clone().or(first));
            }
            (Some(false), true) => self.demote(&name),
            _ => {}
        }
        Ok(())
    }

    fn grow(
        &mut self,
        what: &str,
        name: &str,
        present: &[u64],
        wanted: &[Size],
    ) -> Result<(), Failure> {
        if present.len() != wanted.len() {
            return Err(Failure::new(
                what,
                format!(
                    "it has {} volumes, not {}, and their number is for ever",
                    present.len(),
                    wanted.len()
                ),
                "create another resource",
            ));
        }
        for ((volume, &now), size) in (0u16..).zip(present).zip(wanted) {
            if size.0 < now {
                return Err(Failure::new(
                    what,
                    format!(
                        "volume {volume} has {} and can't shrink to {}",
                        show_size(now),
                        show_size(size.0)
                    ),
                    "name the present size or a greater one",
                ));
            }
            if size.0 > now {
                self.step(
                    format!("grow volume {volume} of {name} to {}", show_size(size.0)),
                    Operation::Resize {
                        resource: name.to_owned(),
                        volume,
                        size_bytes: size.0,
                    },
                );
            }
        }
        Ok(())
    }

    fn set(&mut self, document: &Document, resource: &Resource, wanted: &ResourceSpec) {
        let present = export_resource(document, resource);
        let access = (present.access != wanted.access).then_some(wanted.access);
        let no_quorum = present.on_no_quorum != wanted.on_no_quorum;
        let on_no_quorum = no_quorum.then_some(wanted.on_no_quorum);
        let redundancy = present.min_redundancy != wanted.min_redundancy;
        let min_redundancy = redundancy.then_some(wanted.min_redundancy);
        let prefers = present.preferred != wanted.preferred;
        let preferred = prefers.then(|| match &wanted.preferred {
            Some(node) => Preference::Node(node.clone()),
            None => Preference::Nobody,
        });
        let mut words = Vec::new();
        words.extend(access.map(|access| format!("access = {access}")));
        words.extend(on_no_quorum.map(|policy| format!("on_no_quorum = {policy}")));
        words.extend(min_redundancy.map(|min| format!("min_redundancy = {min}")));
        words.extend(preferred.as_ref().map(|node| format!("preferred = {node}")));
        if !words.is_empty() {
            self.step(
                format!("set {} of {}", words.join(", "), resource.name),
                Operation::SetResource {
                    resource: resource.name.to_string(),
                    min_redundancy,
                    access,
                    on_no_quorum,
                    preferred,
                },
            );
        }
    }

    fn promote(&mut self, name: &str, node: Option<String>) {
        let place = node.as_deref().unwrap_or("the node asked");
        self.step(
            format!("promote {name} on {place}"),
            Operation::Promote {
                resource: name.to_owned(),
                node,
                accept_data_loss: false,
                confirm_dead: None,
            },
        );
    }

    fn demote(&mut self, name: &str) {
        self.step(
            format!("demote {name}"),
            Operation::Demote {
                resource: name.to_owned(),
                node: None,
            },
        );
    }
}

#[cfg(test)]
mod tests;
