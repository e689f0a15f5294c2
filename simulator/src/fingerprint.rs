//! Digests of a cluster's state, so that two ways to the same state are one. The clock's readings
//! do not belong to a state: what differs only by times counts as the same.

use crate::net::End;
use crate::world::{Occurrence, World};
use std::collections::hash_map::DefaultHasher;
use std::fmt::{self, Write};
use std::hash::{Hash, Hasher};

/// Hashes text without the times in it.
struct Timeless<'a> {
    hasher: &'a mut DefaultHasher,
    within_time: bool,
}

impl Hasher for Timeless<'_> {
    fn finish(&self) -> u64 {
        self.hasher.finish()
    }

    fn write(&mut self, bytes: &[u8]) {
        // The Debug form writes `Time`, `(`, the digits, `)` as pieces of their own.
        if bytes == b"Time" {
            self.within_time = true;
        } else if bytes == b")" {
            self.within_time = false;
        }
        let digits = bytes.iter().all(u8::is_ascii_digit);
        if !(self.within_time && digits) {
            self.hasher.write(bytes);
        }
    }
}

impl Write for Timeless<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        Hasher::write(self, text.as_bytes());
        Ok(())
    }
}

/// Hashes the Debug form of a value, without times.
pub(crate) fn hash_text(hasher: &mut DefaultHasher, value: &dyn fmt::Debug) {
    let mut timeless = Timeless {
        hasher,
        within_time: false,
    };
    // Writing into a hasher never fails.
    let _ = write!(timeless, "{value:?};");
}

/// Hashes the machines, what travels between them, and the record: all but what is going to happen.
pub(crate) fn hash_cluster(hasher: &mut DefaultHasher, world: &World) {
    for node in &world.nodes {
        if let Some(core) = &node.core {
            core.fingerprint(&mut Timeless {
                hasher,
                within_time: false,
            });
        }
        (node.is_running(), node.is_on(), node.incarnation, node.disk).hash(hasher);
        (node.serving, node.demoting, node.promised, node.lost).hash(hasher);
        for volume in &node.volumes {
            volume.data.fingerprint(hasher);
            volume.meta.fingerprint(hasher);
        }
    }
    for (id, conn) in world.net.conns() {
        id.hash(hasher);
        for end in [End::Dialer, End::Acceptor] {
            for item in conn.incoming(end) {
                hash_text(hasher, item);
            }
            conn.ended(end).hash(hasher);
        }
    }
    for a in &world.nodes {
        for b in &world.nodes {
            world.net.is_cut(a.id, b.id).hash(hasher);
        }
    }
    hash_text(hasher, world.record());
}

/// What a run with deviations is at: its events come in the order of their times.
#[must_use]
pub fn of_course(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    hash_cluster(&mut hasher, world);
    for node in &world.nodes {
        for op in node.ops.values() {
            hash_text(&mut hasher, op);
        }
    }
    let clients = &world.clients;
    (clients.served, clients.refused, clients.pending.len()).hash(&mut hasher);
    for (_, _, what) in world.pending() {
        match what {
            Occurrence::Timer(_) | Occurrence::Operator | Occurrence::StoreTick => {}
            what => hash_text(&mut hasher, what),
        }
    }
    hasher.finish()
}

/// What an exploration is at: events are in no order, but those of a disk in theirs.
#[must_use]
pub fn of_orders(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    hash_cluster(&mut hasher, world);
    hash_text(&mut hasher, &world.store);
    hash_text(&mut hasher, &world.clients.pending);
    hash_text(&mut hasher, &world.checker);
    let mut pending = world.pending();
    pending.sort_unstable_by_key(|(_, seq, _)| *seq);
    for node in &world.nodes {
        for (_, _, what) in &pending {
            if let Occurrence::Disk(process, op) = what
                && *process == node.process()
            {
                op.hash(&mut hasher);
                hash_text(&mut hasher, &node.ops.get(op));
            }
        }
    }
    let mut others: Vec<u64> = pending
        .iter()
        .filter(|(_, _, what)| {
            !matches!(
                what,
                Occurrence::Timer(_)
                    | Occurrence::StoreTick
                    | Occurrence::Disk(..)
                    | Occurrence::Deliver(..)
            )
        })
        .map(|(_, _, what)| {
            let mut one = DefaultHasher::new();
            hash_text(&mut one, what);
            one.finish()
        })
        .collect();
    others.sort_unstable();
    others.hash(&mut hasher);
    hasher.finish()
}
