//! Whose stores a recovered cluster takes for its own.

use super::*;
use std::cell::RefCell;
use std::io;

const OLD: ClusterId = ClusterId(1);
const NEW: ClusterId = ClusterId(2);
const RESOURCE: ResourceId = ResourceId(7);
const DATA_BYTES: u64 = 8 << 20;

/// A metadata file.
#[derive(Clone, Default)]
struct Metadata(RefCell<Vec<u8>>);

impl Metadata {
    fn write(&self, (offset, bytes): &MetaWrite) {
        let start = usize::try_from(*offset).unwrap();
        let mut all = self.0.borrow_mut();
        let end = start + bytes.len();
        if all.len() < end {
            all.resize(end, 0);
        }
        all[start..end].copy_from_slice(bytes);
    }
}

impl ReadAt for Metadata {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        let all = self.0.borrow();
        for (place, byte) in (start..).zip(buffer.iter_mut()) {
            *byte = all.get(place).copied().unwrap_or(0);
        }
        Ok(())
    }
}

fn node(id: u8) -> NodeId {
    NodeId::new(id).unwrap()
}

/// The two volumes of a replica that was made in the old cluster.
fn replica() -> Vec<Metadata> {
    let volume = |index| {
        let new = NewVolume {
            cluster: OLD,
            resource: RESOURCE,
            volume: VolumeId(index),
            node: node(3),
            disk: DiskId(9),
            data_bytes: DATA_BYTES,
            placement: Placement::External,
            slots: 31,
            log_capacity: LogCapacity::new(16).unwrap(),
            boot_id: 1,
            created_empty: true,
        };
        let metadata = Metadata::default();
        for write in create(&new).unwrap() {
            metadata.write(&write);
        }
        metadata
    };
    vec![volume(0), volume(1)]
}

const fn expected(cluster: ClusterId, former: &[ClusterId], node: NodeId) -> Expected<'_> {
    Expected {
        cluster,
        former,
        resource: RESOURCE,
        node,
        boot_id: 1,
    }
}

fn try_attach(expected: &Expected<'_>, volumes: &[Metadata]) -> Result<Attached, AttachError> {
    let sources: Vec<Source<'_>> = volumes
        .iter()
        .map(|metadata| Source {
            metadata,
            placement: Placement::External,
            store_bytes: DATA_BYTES,
        })
        .collect();
    attach(expected, &sources, Time(1))
}

fn is_of(error: &AttachError, cluster: ClusterId) -> bool {
    matches!(error, AttachError::Wrong { source: WrongStore::Cluster { found, .. }, .. } if *found == cluster)
}

#[test]
fn a_store_of_a_former_cluster_becomes_one_of_the_new_cluster_for_good() {
    let volumes = replica();
    let former = [ClusterId(5), OLD];
    let recovered = expected(NEW, &former, node(3));
    let attached = try_attach(&recovered, &volumes).unwrap();
    assert_eq!(attached.identity.cluster, NEW);
    assert_eq!(attached.identity.disk, DiskId(9));
    for (metadata, writes) in volumes.iter().zip(&attached.writes) {
        for write in writes {
            metadata.write(write);
        }
    }
    // Both copies say so: the old cluster's daemon finds no store of its own.
    for metadata in &volumes {
        for copy in MetaCopy::BOTH {
            let mut block = [0; METADATA_BLOCK_BYTES];
            let offset = Layout::external().superblock_offset(copy);
            metadata.read_at(offset, &mut block).unwrap();
            assert_eq!(Superblock::decode(&block, copy).unwrap().cluster, NEW);
        }
    }
    let error = try_attach(&expected(OLD, &[], node(3)), &volumes).unwrap_err();
    assert!(is_of(&error, NEW), "{error}");
    assert!(try_attach(&expected(NEW, &[], node(3)), &volumes).is_ok());
}

#[test]
fn a_crash_between_any_two_writes_leaves_a_store_that_is_taken_again() {
    let former = [OLD];
    let recovered = expected(NEW, &former, node(3));
    let writes = try_attach(&recovered, &replica()).unwrap().writes;
    let all: Vec<(usize, MetaWrite)> = (0..)
        .zip(writes)
        .flat_map(|(volume, writes)| writes.into_iter().map(move |write| (volume, write)))
        .collect();
    for done in 0..=all.len() {
        let volumes = replica();
        for (volume, write) in &all[..done] {
            volumes[*volume].write(write);
        }
        let attached = try_attach(&recovered, &volumes).unwrap();
        assert_eq!(attached.identity.cluster, NEW, "after {done} writes");
    }
}

#[test]
fn stores_of_other_clusters_resources_and_nodes_stay_refused_in_a_recovered_cluster() {
    let volumes = replica();
    let error = try_attach(&expected(NEW, &[ClusterId(5)], node(3)), &volumes).unwrap_err();
    assert!(is_of(&error, OLD), "{error}");
    let former = [OLD];
    let error = try_attach(&expected(NEW, &former, node(4)), &volumes).unwrap_err();
    assert!(error.to_string().contains("belongs to node 3"), "{error}");
    let other = Expected {
        resource: ResourceId(8),
        ..expected(NEW, &former, node(3))
    };
    let error = try_attach(&other, &volumes).unwrap_err();
    assert!(error.to_string().contains("belongs to resource"), "{error}");
}
