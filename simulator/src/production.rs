//! The production core behind the simulator's seam: nothing but translation.

use crate::disk::MetaArea;
use crate::engine::{Attached, Core, Expected, Factory, IdentityLost, MetaWrites, NewReplica};
use crate::node::Volume;
use crate::payload::Stamps;
use replicator::core::api::{Action, Event, Settings};
use replicator::core::status::{Standing, Status};
use replicator::core::{Resource, attach};
use replicator::store::dump::ReadAt;
use replicator::store::{
    Block, Layout, LogCapacity, METADATA_BLOCK_BYTES, MetaCopy, Placement, Superblock,
};
use std::fmt::Write as _;
use std::hash::Hasher;
use std::io;
use vocabulary::{
    ByteRange, Epoch, Generation, HistoryId, Member, NodeId, NodeSet, Time, VolumeId,
};

/// Makes production cores.
#[derive(Debug)]
pub struct Production;

/// The lease of a core that is run without beacons.
pub const NO_LEASES_MS: u64 = u64::MAX;

/// Peer slots of a simulated replica; external metadata has them all.
const SLOTS: u8 = 31;

impl ReadAt for MetaArea {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.read(offset, buffer) {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(5))
        }
    }
}

impl Factory for Production {
    fn create(&self, new: &NewReplica) -> MetaWrites {
        let mut writes = Vec::new();
        let Some(log_capacity) = LogCapacity::new(u32::from(new.al_extents)) else {
            return writes;
        };
        for (number, data_bytes) in (0u16..).zip(&new.sizes) {
            let volume = VolumeId(number);
            let created = attach::create(&attach::NewVolume {
                cluster: new.cluster,
                resource: new.resource,
                volume,
                node: new.node,
                disk: new.disk,
                data_bytes: *data_bytes,
                placement: Placement::External,
                slots: SLOTS,
                log_capacity,
                boot_id: new.boot,
                created_empty: new.pristine,
            });
            for (offset, bytes) in created.unwrap_or_default() {
                writes.push((volume, offset, bytes));
            }
        }
        writes
    }

    fn attach(
        &self,
        volumes: &[&Volume],
        expected: &Expected,
        now: Time,
    ) -> Result<Box<dyn Attached>, IdentityLost> {
        let sources: Vec<attach::Source<'_>> = volumes
            .iter()
            .map(|volume| attach::Source {
                metadata: &volume.meta,
                placement: Placement::External,
                store_bytes: volume.data.size_bytes(),
            })
            .collect();
        let who = attach::Expected {
            cluster: expected.cluster,
            former: &[],
            resource: expected.resource,
            node: expected.node,
            boot_id: expected.boot,
        };
        match attach::attach(&who, &sources, now) {
            Ok(attached) => Ok(Box::new(Replica {
                attached,
                settings: expected.settings,
            })),
            Err(e) => Err(IdentityLost(e.to_string())),
        }
    }

    fn promised(&self, volume: &Volume) -> Vec<Epoch> {
        let layout = Layout::external();
        [MetaCopy::A, MetaCopy::B]
            .into_iter()
            .filter_map(|copy| {
                let mut block = vec![0; METADATA_BLOCK_BYTES];
                if !volume.meta.read(layout.superblock_offset(copy), &mut block) {
                    return None;
                }
                let block: Block = block.try_into().ok()?;
                Superblock::decode(&block, copy).ok().map(|s| s.epoch)
            })
            .collect()
    }
}

#[derive(Clone, Debug)]
struct Replica {
    attached: attach::Attached,
    settings: Settings,
}

impl Attached for Replica {
    fn writes(&self) -> MetaWrites {
        let mut all = Vec::new();
        for (number, writes) in (0u16..).zip(&self.attached.writes) {
            for (offset, bytes) in writes {
                all.push((VolumeId(number), *offset, bytes.clone()));
            }
        }
        all
    }

    fn member(&self) -> Member {
        let identity = self.attached.identity;
        Member {
            node: identity.node,
            disk: identity.disk,
            incarnation: identity.incarnation,
        }
    }

    fn fork(&self) -> Box<dyn Attached> {
        Box::new(self.clone())
    }

    fn start(self: Box<Self>, now: Time) -> Box<dyn Core> {
        let Self { attached, settings } = *self;
        let core = Resource::new(attached.identity, settings, attached.volumes, now);
        let standing = core.standing();
        let alone = settings.lease_ms == NO_LEASES_MS;
        Box::new(Driven {
            core,
            standing,
            alone,
        })
    }
}

/// The core: of a whole node, or by itself without beacons.
#[derive(Clone, Debug)]
struct Driven {
    core: Resource<Stamps>,
    standing: Standing,
    alone: bool,
}

impl Driven {
    /// By itself, every lease is granted for ever, and a promoted node serves at once.
    fn grant_all(&mut self, now: Time, out: &mut Vec<Action<Stamps>>) {
        while self.alone && self.standing != self.core.standing() {
            self.standing = self.core.standing();
            let Some(epoch) = self.standing.primary else {
                break;
            };
            let replicas = self.core.record().map_or(NodeSet::EMPTY, |r| r.replicas);
            for node in replicas.iter() {
                let granted = Event::Granted {
                    node,
                    epoch,
                    sent: now,
                };
                self.core.handle(now, granted, out);
            }
            self.core.handle(now, Event::Serve { epoch }, out);
        }
        self.core.end_turn(now, out);
    }
}

impl Core for Driven {
    fn handle(&mut self, now: Time, event: Event<Stamps>, out: &mut Vec<Action<Stamps>>) {
        self.core.handle(now, event, out);
        self.grant_all(now, out);
    }

    fn handle_timeout(&mut self, now: Time, out: &mut Vec<Action<Stamps>>) {
        self.core.handle_timeout(now, out);
        self.grant_all(now, out);
    }

    fn poll_timeout(&self) -> Option<Time> {
        self.core.poll_timeout()
    }

    fn status(&self, now: Time) -> Status {
        self.core.status(now)
    }

    fn standing(&self) -> Standing {
        self.core.standing()
    }

    fn answers_until(&self) -> Time {
        self.core.answers_until()
    }

    fn known(&self) -> Option<(Epoch, HistoryId)> {
        let record = self.core.record()?;
        Some((record.epoch, record.history))
    }

    fn generation(&self) -> Generation {
        self.core.frame_context().1
    }

    fn may_differ(&self, node: NodeId, volume: VolumeId) -> Vec<ByteRange> {
        self.core.may_differ(node, volume)
    }

    fn fork(&self) -> Box<dyn Core> {
        Box::new(self.clone())
    }

    fn fingerprint(&self, hasher: &mut dyn Hasher) {
        struct Into<'a>(&'a mut dyn Hasher);
        impl std::fmt::Write for Into<'_> {
            fn write_str(&mut self, s: &str) -> std::fmt::Result {
                self.0.write(s.as_bytes());
                Ok(())
            }
        }
        // Writing into a hasher never fails.
        let _ = write!(Into(hasher), "{self:?}");
    }
}
