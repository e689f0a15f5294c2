//! `lockstep status --json`, as far as tests look at it.

use serde::Deserialize;

/// The whole answer.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Status {
    /// Every node.
    pub(crate) nodes: Vec<Node>,
    /// Every resource.
    pub(crate) resources: Vec<Resource>,
}

/// A node.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Node {
    /// It votes on the configuration.
    pub(crate) voter: bool,
}

/// A resource.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Resource {
    /// Its name.
    pub(crate) name: String,
    /// Counts every change of its record.
    pub(crate) generation: u64,
    /// Generation of the last promotion.
    pub(crate) epoch: u64,
    /// The node that serves it.
    pub(crate) primary: Option<String>,
    /// Nodes that have every acknowledged write.
    pub(crate) in_sync: Vec<String>,
    /// Its volumes.
    pub(crate) volumes: Vec<Volume>,
}

/// A volume.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Volume {
    /// Its size.
    pub(crate) size_bytes: u64,
    /// Its replicas.
    pub(crate) replicas: Vec<Replica>,
}

/// A node's copy of a volume.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Replica {
    /// The node.
    pub(crate) node: String,
    /// `Primary`, `Secondary`, or on the way from one to the other.
    pub(crate) role: String,
    /// `UpToDate` and so on.
    pub(crate) disk_state: String,
    /// Bytes in which it may differ.
    pub(crate) out_of_sync_bytes: u64,
    /// Connections of clients on the node.
    pub(crate) clients: Vec<String>,
}

impl Status {
    /// A resource.
    pub(crate) fn resource(&self, name: &str) -> Option<&Resource> {
        self.resources.iter().find(|each| each.name == name)
    }

    /// The demo's resource.
    pub(crate) fn r0(&self) -> &Resource {
        self.resource("r0").expect("a demo cluster has r0")
    }
}

impl Resource {
    /// The replica of volume 0 on a node.
    pub(crate) fn replica(&self, node: &str) -> &Replica {
        let mut replicas = self.volumes[0].replicas.iter();
        let found = replicas.find(|each| each.node == node);
        found.unwrap_or_else(|| panic!("{node} has no replica: {self:?}"))
    }

    /// Are these nodes in the in-sync set, with nothing left to copy in any volume?
    pub(crate) fn all_in_sync(&self, mut nodes: impl Iterator<Item = String>) -> bool {
        nodes.all(|node| {
            let replicas = self.volumes.iter().flat_map(|volume| &volume.replicas);
            let mut own = replicas.filter(|replica| replica.node == node);
            self.is_in_sync(&node)
                && own.all(|replica| {
                    replica.disk_state == "UpToDate" && replica.out_of_sync_bytes == 0
                })
        })
    }

    /// Is the node in the in-sync set?
    pub(crate) fn is_in_sync(&self, node: &str) -> bool {
        self.in_sync.iter().any(|each| each == node)
    }
}
