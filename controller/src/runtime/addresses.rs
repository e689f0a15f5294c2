//! Where the other nodes' controllers are: as the document says, and before one is known as the last
//! one said; but for nodes that this one reaches in a way of its own.

use super::voter::Known;
use crate::core::{Name, Node};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use vocabulary::NodeId;

#[derive(Clone, Debug)]
pub(super) struct Addresses {
    before: Arc<Vec<Node>>,
    reach: Arc<BTreeMap<Name, Vec<String>>>,
    known: Known,
}

impl Addresses {
    pub(super) fn new(before: Vec<Node>, reach: BTreeMap<Name, Vec<String>>, known: Known) -> Self {
        Self {
            before: Arc::new(before),
            reach: Arc::new(reach),
            known,
        }
    }

    /// Nodes with an address.
    pub(super) fn nodes(&self) -> BTreeSet<NodeId> {
        match &*self.known.documents.borrow() {
            Some(document) => document.nodes.iter().map(|node| node.id).collect(),
            None => self.before.iter().map(|node| node.id).collect(),
        }
    }

    /// A node's addresses, `HOST:PORT`.
    pub(super) fn of(&self, node: NodeId) -> Vec<String> {
        let known = self.known.documents.borrow();
        let nodes = known
            .as_ref()
            .map_or(&*self.before, |document| &document.nodes);
        let Some(node) = nodes.iter().find(|other| other.id == node) else {
            return Vec::new();
        };
        self.reach.get(&node.name).unwrap_or(&node.control).clone()
    }

    /// Waits until the document is another one.
    pub(super) async fn changed(&self) {
        let mut documents = self.known.documents.subscribe();
        // An error: the controller stops.
        let _ = documents.changed().await;
    }
}
