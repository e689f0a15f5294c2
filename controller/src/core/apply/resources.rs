//! Resources: where they lie, how they are used, and their records.

use super::count;
use crate::core::command::{MAX_VOLUME_BYTES, Refused};
use crate::core::document::{
    Backing, Document, MAX_REPLICAS, MAX_RESOURCES, MAX_VOLUMES, Policy, Replica, Report, Resource,
};
use crate::core::mutation::{Mutation, mutated};
use vocabulary::{
    BLOCK_BYTES, Change, DiskId, Epoch, Generation, Member, NodeId, NodeSet, Record, Refusal,
    ResourceId,
};

impl Document {
    pub(super) fn up(&mut self, id: ResourceId, next: Option<NodeId>) -> Result<(), Refused> {
        let resource = self.find_mut(id)?;
        if let Some(node) = next
            && resource.replica(node).is_none()
        {
            return Err(Refused::NoReplica { node });
        }
        let primary = resource.record.as_ref().and_then(|record| record.primary);
        resource.up = true;
        resource.next = next.filter(|_| primary != next);
        Ok(())
    }

    pub(super) fn create(&mut self, mut resource: Resource) -> Result<(), Refused> {
        if let Some(present) = self.resource_named(resource.name.as_str()) {
            // The same command once more (its answer was lost) is not an error.
            if present.id == resource.id {
                return Ok(());
            }
            return Err(Refused::ResourceExists {
                name: resource.name,
            });
        }
        if self.resources.len() >= MAX_RESOURCES {
            return Err(Refused::TooManyResources);
        }
        self.check_shape(&resource)?;
        for replica in &mut resource.replicas {
            replica.report = None;
        }
        resource
            .replicas
            .sort_unstable_by_key(|replica| replica.node);
        self.resources.push(resource);
        self.resources.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(())
    }

    fn check_shape(&self, resource: &Resource) -> Result<(), Refused> {
        let volumes = resource.initial_sizes.len();
        if volumes == 0 || volumes > MAX_VOLUMES {
            return Err(Refused::VolumeCount {
                count: count(volumes),
            });
        }
        if let Some(&size_bytes) = resource.initial_sizes.iter().find(|&&size| !is_size(size)) {
            return Err(Refused::BadSize { size_bytes });
        }
        let replicas = count(resource.replicas.len());
        if resource.replicas.is_empty() || resource.replicas.len() > MAX_REPLICAS {
            return Err(Refused::ReplicaCount { count: replicas });
        }
        check_redundancy(resource.min_redundancy, resource.replicas.len())?;
        for (place, replica) in resource.replicas.iter().enumerate() {
            let node = replica.node;
            if self.node(node).is_none() {
                return Err(Refused::NoNode { node });
            }
            if resource.replicas[..place].iter().any(|r| r.node == node) {
                return Err(Refused::NodeTwice { node });
            }
            if replica.backing.len() != volumes {
                return Err(Refused::BackingCount {
                    node,
                    given: count(replica.backing.len()),
                    wanted: count(volumes),
                });
            }
        }
        Ok(())
    }

    pub(super) fn set_resource(
        &mut self,
        id: ResourceId,
        min_redundancy: u8,
        policy: Policy,
    ) -> Result<(), Refused> {
        let resource = self.find_mut(id)?;
        if let Some(node) = policy.preferred
            && resource.replica(node).is_none()
        {
            return Err(Refused::NoReplica { node });
        }
        check_redundancy(min_redundancy, resource.replicas.len())?;
        resource.min_redundancy = min_redundancy;
        resource.policy = policy;
        resource.configure();
        Ok(())
    }

    /// A replica that nobody knows lacks everything, whatever its store holds.
    pub(super) fn add_replica(&mut self, id: ResourceId, replica: &Replica) -> Result<(), Refused> {
        let node = replica.node;
        let mut resource = self.find(id)?.clone();
        let replica = Replica {
            report: None,
            ..replica.clone()
        };
        if let Some(present) = resource.replica(node) {
            // The same command once more (its answer was lost) is not an error.
            if present.backing == replica.backing {
                return Ok(());
            }
            return Err(Refused::ReplicaExists {
                node,
                resource: resource.name,
            });
        }
        resource.replicas.push(replica);
        resource.replicas.sort_unstable_by_key(|r| r.node);
        self.check_shape(&resource)?;
        resource.configure();
        *self.find_mut(id)? = resource;
        Ok(())
    }

    /// Anybody but the primary may go while the primary serves: it has every acknowledged write, and so
    /// has everybody else in the in-sync set. Without a primary only a replica outside that set.
    pub(super) fn remove_replica(&mut self, id: ResourceId, node: NodeId) -> Result<(), Refused> {
        let resource = self.find_mut(id)?;
        if resource.replica(node).is_none() {
            return Ok(());
        }
        let name = resource.name.clone();
        if let Some(record) = &resource.record {
            if record.primary == Some(node) {
                return Err(Refused::RemovesPrimary {
                    node,
                    resource: name,
                });
            }
            let member = record.member(node).is_some();
            // After a recovery any of them may be.
            if (member || record.in_sync.is_empty()) && record.primary.is_none() {
                return Err(Refused::LastGoodCopy {
                    node,
                    resource: name,
                });
            }
            let left = record.in_sync.len() - usize::from(member);
            if member && left < usize::from(record.min_redundancy) {
                return Err(Refused::Record(Refusal::Redundancy {
                    left: u8::try_from(left).unwrap_or(u8::MAX),
                    min_redundancy: record.min_redundancy,
                }));
            }
        }
        check_redundancy(resource.min_redundancy, resource.replicas.len() - 1)?;
        resource.replicas.retain(|replica| replica.node != node);
        if resource.policy.preferred == Some(node) {
            resource.policy.preferred = None;
        }
        if resource.next == Some(node) {
            resource.next = None;
        }
        resource.configure();
        Ok(())
    }

    pub(super) fn delete(&mut self, id: ResourceId) -> Result<(), Refused> {
        let resource = self.find(id)?;
        if let Some(primary) = resource.record.as_ref().and_then(|record| record.primary) {
            return Err(Refused::InUse {
                name: resource.name.clone(),
                primary,
            });
        }
        self.resources.retain(|resource| resource.id != id);
        Ok(())
    }

    pub(super) fn declare(&mut self, id: ResourceId, report: Report) -> Result<(), Refused> {
        let resource = self.find_mut(id)?;
        let node = report.member.node;
        let replica = resource
            .replicas
            .iter_mut()
            .find(|replica| replica.node == node)
            .ok_or(Refused::NoReplica { node })?;
        let disk = report.member.disk;
        if replica.replaced == Some(disk) {
            return Err(Refused::NotItsDisk { node, disk });
        }
        replica.report = Some(report);
        let all = resource.replicas.iter().all(|r| r.report.is_some());
        if resource.record.is_none() && all {
            resource.record = first_record(resource);
        }
        Ok(())
    }

    /// A disk that is not in the in-sync set holds nothing that another does not: it may go. The node
    /// then makes another one, which is brought up to date like any replica that nobody knows.
    pub(super) fn replace_disk(
        &mut self,
        id: ResourceId,
        node: NodeId,
        disk: DiskId,
        backing: &[Backing],
    ) -> Result<(), Refused> {
        let resource = self.find_mut(id)?;
        let volumes = resource.initial_sizes.len();
        let name = resource.name.clone();
        let record = resource.record.as_ref();
        let record = record.ok_or_else(|| Refused::NotBegun {
            resource: name.clone(),
        })?;
        let member = record.member(node).copied();
        let unknown = record.in_sync.is_empty();
        let replica = resource
            .replicas
            .iter_mut()
            .find(|replica| replica.node == node)
            .ok_or(Refused::NoReplica { node })?;
        // The same command once more (its answer was lost) is not an error.
        if replica.replaced == Some(disk) && replica.backing == backing {
            return Ok(());
        }
        if member.is_some_and(|member| member.disk == disk) {
            return Err(Refused::DiskInSync { node });
        }
        // After a recovery any of them may be.
        if unknown {
            return Err(Refused::LastGoodCopy {
                node,
                resource: name,
            });
        }
        if replica.report.map(|report| report.member.disk) != Some(disk) {
            return Err(Refused::NotItsDisk { node, disk });
        }
        if backing.len() != volumes {
            return Err(Refused::BackingCount {
                node,
                given: count(backing.len()),
                wanted: count(volumes),
            });
        }
        replica.backing = backing.to_vec();
        replica.report = None;
        replica.replaced = Some(disk);
        Ok(())
    }

    pub(super) fn begin(&mut self, id: ResourceId) -> Result<(), Refused> {
        let resource = self.find_mut(id)?;
        if resource.record.is_none() {
            resource.record = first_record(resource);
            if resource.record.is_none() {
                return Err(Refused::NothingReported {
                    name: resource.name.clone(),
                });
            }
        }
        Ok(())
    }

    pub(super) fn propose(
        &mut self,
        id: ResourceId,
        based_on: Generation,
        change: &Change,
    ) -> Result<(), Refused> {
        let resource = self.find_mut(id)?;
        let Some(record) = &resource.record else {
            return Err(Refused::NotBegun {
                resource: resource.name.clone(),
            });
        };
        if let Change::Resize { size_bytes, .. } = change
            && !is_size(*size_bytes)
        {
            return Err(Refused::BadSize {
                size_bytes: *size_bytes,
            });
        }
        let next = record.apply(based_on, change, &resource.declared())?;
        match change {
            Change::Promote { .. } | Change::Force { .. } => {
                resource.up = true;
                // What an operator wanted has come true, or can't.
                resource.next = None;
            }
            Change::Demote { to: Some(node), .. } if resource.replica(*node).is_some() => {
                resource.next = Some(*node);
            }
            _ => {}
        }
        resource.record = Some(next);
        Ok(())
    }

    pub(super) fn find(&self, id: ResourceId) -> Result<&Resource, Refused> {
        self.resource(id)
            .ok_or(Refused::NoResource { resource: id })
    }

    pub(super) fn find_mut(&mut self, id: ResourceId) -> Result<&mut Resource, Refused> {
        self.resources
            .iter_mut()
            .find(|resource| resource.id == id)
            .ok_or(Refused::NoResource { resource: id })
    }
}

impl Resource {
    /// Its record says where its replicas lie and how many must be in sync, in a new generation.
    fn configure(&mut self) {
        let replicas: NodeSet = self.replicas.iter().map(|replica| replica.node).collect();
        if let Some(record) = &self.record {
            let mut next = record.configured(replicas, self.min_redundancy);
            if mutated(Mutation::RemovedStaysInSync) {
                next.in_sync.clone_from(&record.in_sync);
            }
            self.record = Some(next);
        }
    }
}

fn check_redundancy(asked: u8, replicas: usize) -> Result<(), Refused> {
    let replicas = count(replicas);
    if asked == 0 || u32::from(asked) > replicas {
        return Err(Refused::BadRedundancy { asked, replicas });
    }
    Ok(())
}

/// The record that a resource begins with: no primary, epoch 0. Stores that are known to read as
/// zeroes are equal and all in sync; where one is not, the contents of the first of them count and
/// the others are copied from it.
fn first_record(resource: &Resource) -> Option<Record> {
    let reports: Vec<Report> = resource.replicas.iter().filter_map(|r| r.report).collect();
    let in_sync: Vec<Member> = match reports.iter().find(|report| !report.empty) {
        None => reports.iter().map(|report| report.member).collect(),
        Some(first) => vec![first.member],
    };
    if in_sync.is_empty() {
        return None;
    }
    Some(Record {
        resource: resource.id,
        generation: Generation(1),
        epoch: Epoch(0),
        history: resource.history,
        sizes: resource.initial_sizes.clone(),
        primary: None,
        in_sync,
        replicas: resource.replicas.iter().map(|r| r.node).collect(),
        min_redundancy: resource.min_redundancy,
    })
}

const fn is_size(size_bytes: u64) -> bool {
    size_bytes >= BLOCK_BYTES
        && size_bytes <= MAX_VOLUME_BYTES
        && size_bytes.is_multiple_of(BLOCK_BYTES)
}
