//! Where this node exports a volume, for commands that make a local disk of it.

use super::Node;
use crate::operation::{Done, ExportPlace, Failure};
use std::path::{Path, PathBuf};

impl Node {
    pub(super) fn find_export(&self, resource: &str, volume: u16) -> Result<Done, Failure> {
        let what = format!("can't attach {resource}/{volume}");
        let subject = self.subject(&what, resource)?;
        let record = subject.record(&what)?;
        let file = &self.config.file;
        if usize::from(volume) >= record.sizes.len() {
            return Err(Failure::new(
                what,
                format!(
                    "{resource} has {} volumes, counted from 0",
                    record.sizes.len()
                ),
                "see `lockstep status`",
            ));
        }
        if subject.resource.replica(self.config.node).is_none() {
            return Err(Failure::new(
                what,
                format!("{} holds no replica of it", self.my_name()),
                format!(
                    "attach it on one of the nodes that do (`lockstep resource list`), or name one's NBD address with --server, if {resource} has follow access"
                ),
            ));
        }
        let place = ExportPlace {
            node: self.my_name().to_owned(),
            id: subject.resource.id.to_string(),
            access: subject.resource.policy.access,
            epoch: record.epoch.0,
            history: format!("{:x}", record.history.0),
            primary: record.primary.map(|node| subject.document.node_name(node)),
            nbd_socket: file.nbd_socket.as_deref().map(absolute),
            nbd_listen: file.nbd_listen.clone(),
            data_directory: absolute(&file.data_directory),
        };
        Ok(Done {
            message: String::new(),
            data: serde_json::to_value(place).ok(),
        })
    }
}

/// As other processes may use it.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
