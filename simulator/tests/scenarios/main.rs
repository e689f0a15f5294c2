//! Scripted cases. Those of resync, metadata and I/O are DRBD's, under the names of its tests (cases
//! only; nothing else is taken), the last group are the executions of RULES section 5. Each asserts
//! direction and amount: who was copied to, how many bytes were compared and sent.

use replicator::core::api::{Command, CommandError, Event, Notice};
use replicator::core::status::DiskState;
use simulator::client::Ask;
use simulator::disk::Loss;
use simulator::stage::{Stage, block, node};
use vocabulary::{BLOCK_BYTES, ByteRange, EXTENT_BYTES, NodeSet, Refusal, VolumeId};

mod executions;
mod resync;
mod roles;
mod verify_io;

const BLOCK: u64 = BLOCK_BYTES;
