//! The runtime of the data plane: one thread with one io_uring that owns client connections, peer
//! connections and disks of its resources and drives the core's state machines (DESIGN section 4),
//! and a background worker for bulk reads. Policy lives in the core: nothing here decides anything
//! about replication.

pub mod client;
pub mod disk;
pub mod inherited;
mod look;
pub mod mailbox;
pub mod peer;
pub mod plane;
pub mod pool;
pub mod ring;
pub mod socket;
pub mod tls;
pub mod worker;
