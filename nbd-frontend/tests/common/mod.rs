//! What the tests share: a client's messages, exports for the handshake, a device in memory, and a
//! blocking driver that serves a connection over any stream.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part"
)]

pub mod device;
pub mod driver;
pub mod message;
pub mod session;

use nbd_frontend::{ExportError, ExportInfo, ExportListing, Exports};

/// Size of `r0`.
pub const R0_BYTES: u64 = 1 << 20;

/// Metadata contexts of `r0`.
pub const CONTEXTS: [&str; 2] = ["base:allocation", "x-test:odd"];

/// Four exports, one for each way in which opening can go.
#[derive(Debug, Default)]
pub struct Catalog;

impl Exports for Catalog {
    fn list(&self) -> Vec<ExportListing> {
        ["r0", "r0/1", "backup"]
            .map(|name| ExportListing {
                name: name.to_owned(),
                description: describe(name),
            })
            .to_vec()
    }

    fn find(&self, name: &str) -> Result<ExportInfo, ExportError> {
        let mut export = match name {
            "" | "r0" => ExportInfo {
                can_multi_conn: true,
                can_fast_zero: true,
                meta_contexts: &CONTEXTS,
                ..ExportInfo::new("r0", R0_BYTES)
            },
            "r0/1" => ExportInfo {
                min_block_bytes: 512,
                rotational: true,
                ..ExportInfo::new("r0/1", R0_BYTES)
            },
            "backup" => ExportInfo {
                read_only: true,
                ..ExportInfo::new("backup", R0_BYTES)
            },
            "elsewhere" => {
                return Err(ExportError::Refused {
                    export: name.to_owned(),
                    reason: "its primary is node2; connect there".to_owned(),
                });
            }
            "leaving" => return Err(ExportError::ShuttingDown),
            _ => {
                return Err(ExportError::Unknown {
                    asked: name.to_owned(),
                    valid: self
                        .list()
                        .into_iter()
                        .map(|listing| listing.name)
                        .collect(),
                });
            }
        };
        export.description = describe(&export.name);
        Ok(export)
    }
}

fn describe(name: &str) -> String {
    if name == "r0" {
        "a mirrored disk".to_owned()
    } else {
        String::new()
    }
}
