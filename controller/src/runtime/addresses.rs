//! Where the other nodes' controllers are: as the document says, and before one is known as the
//! configuration said.

use super::voter::Known;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use vocabulary::NodeId;

#[derive(Clone, Debug)]
pub(super) struct Addresses {
    configured: Arc<BTreeMap<NodeId, Vec<String>>>,
    known: Known,
}

impl Addresses {
    pub(super) fn new(configured: BTreeMap<NodeId, Vec<String>>, known: Known) -> Self {
        Self {
            configured: Arc::new(configured),
            known,
        }
    }

    /// Nodes with an address.
    pub(super) fn nodes(&self) -> BTreeSet<NodeId> {
        match &*self.known.documents.borrow() {
            Some(document) => document.nodes.iter().map(|node| node.id).collect(),
            None => self.configured.keys().copied().collect(),
        }
    }

    /// A node's addresses, `HOST:PORT`.
    pub(super) fn of(&self, node: NodeId) -> Vec<String> {
        let known = self.known.documents.borrow();
        let found = known.as_ref().and_then(|document| document.node(node));
        match found {
            Some(node) => vec![node.control.clone()],
            None => self.configured.get(&node).cloned().unwrap_or_default(),
        }
    }

    /// Waits until the document is another one.
    pub(super) async fn changed(&self) {
        let mut documents = self.known.documents.subscribe();
        // An error: the controller stops.
        let _ = documents.changed().await;
    }
}
