use proptest::prelude::*;

use super::*;
use crate::store::block::{damaged, with_version};

fn node(id: u8) -> NodeId {
    NodeId::new(id).unwrap()
}

pub(crate) fn sample() -> Superblock {
    let mut peers = [None; SLOTS];
    peers[0] = Some(PeerSlot {
        node: node(1),
        disk: DiskId(0xd1),
        blank: Blank::Clear,
        binding: 0x31,
    });
    peers[30] = Some(PeerSlot {
        node: node(31),
        disk: DiskId(0xd2),
        blank: Blank::Set,
        binding: 0x32,
    });
    Superblock {
        cluster: ClusterId(0x1111_2222_3333_4444_5555_6666_7777_8888),
        resource: ResourceId(0xa0a1_a2a3_a4a5_a6a7_a8a9_aaab_acad_aeaf),
        volume: VolumeId(0x0102),
        node: node(7),
        disk: DiskId(0xd0d1_d2d3_d4d5_d6d7_d8d9_dadb_dcdd_dedf),
        incarnation: Incarnation(0x21),
        epoch: Epoch(0x22),
        history: HistoryId(0xb0),
        boot_id: 0xc0,
        open: true,
        created_empty: false,
        never_written: true,
        whole_window: false,
        failed: false,
        data_bytes: 0x4000_0000,
        placement: Placement::External,
        slots: MAX_PEER_SLOTS,
        log_capacity: LogCapacity::MAX,
        ring_generation: 0x23,
        bindings: 0x33,
        peers,
        version_count: 0x24,
    }
}

fn decoded(superblock: &Superblock, copy: MetaCopy) -> Result<Superblock, BlockError> {
    Superblock::decode(&superblock.encode(copy), copy)
}

fn seal(block: &mut Block) {
    block::seal(block);
}

#[test]
fn golden_bytes() {
    let block = sample().encode(MetaCopy::B);
    let hex = |range: std::ops::Range<usize>| -> String {
        block[range]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    };
    assert_eq!(&block[..8], b"LKSTEPSB");
    assert_eq!(
        hex(8..32),
        "9aa99d1b0100000098362f5a7b42f8180100000000000000"
    );
    assert_eq!(
        hex(32..64),
        "88887777666655554444333322221111afaeadacabaaa9a8a7a6a5a4a3a2a1a0"
    );
    assert_eq!(hex(64..80), "dfdedddcdbdad9d8d7d6d5d4d3d2d1d0");
    assert_eq!(
        hex(80..112),
        format!("c0{}b0{}", "00".repeat(15), "00".repeat(15))
    );
    assert_eq!(
        hex(112..136),
        "210000000000000022000000000000000000004000000000"
    );
    assert_eq!(
        hex(136..160),
        "000000000000000024000000000000002300000000000000"
    );
    assert_eq!(
        hex(160..192),
        format!(
            "feff000002010701050000001f0000003300000000000000{}",
            "00".repeat(8)
        )
    );
    assert_eq!(
        hex(192..224),
        format!(
            "d1{}0101{}31{}",
            "00".repeat(15),
            "00".repeat(6),
            "00".repeat(7)
        )
    );
    assert_eq!(
        hex(1152..1184),
        format!(
            "d2{}1f02{}32{}",
            "00".repeat(15),
            "00".repeat(6),
            "00".repeat(7)
        )
    );
    assert!(
        block[224..1152]
            .iter()
            .chain(&block[1184..])
            .all(|byte| *byte == 0)
    );
}

#[test]
fn what_was_encoded_is_decoded() {
    let mut superblock = sample();
    for copy in MetaCopy::BOTH {
        assert_eq!(decoded(&superblock, copy), Ok(superblock.clone()));
    }
    superblock.placement = Placement::Internal {
        device_bytes: 2 << 30,
    };
    superblock.slots = 7;
    superblock.peers[30] = None;
    (superblock.open, superblock.created_empty) = (false, true);
    (superblock.never_written, superblock.whole_window) = (false, true);
    assert_eq!(decoded(&superblock, MetaCopy::A), Ok(superblock));
}

#[test]
fn damage_anywhere_is_noticed() {
    let mut old = sample();
    old.version_count -= 1;
    old.history = HistoryId(0xb1);
    old.peers[30] = None;
    let new = sample().encode(MetaCopy::A);
    for before in [old.encode(MetaCopy::A), [0; 4096], [0xff; 4096]] {
        for block in damaged(&before, &new) {
            assert!(Superblock::decode(&block, MetaCopy::A).is_err());
        }
    }
}

#[test]
fn what_is_no_superblock_of_this_place_is_named() {
    let block = sample().encode(MetaCopy::A);
    let decode = |block: &Block| Superblock::decode(block, MetaCopy::A).unwrap_err();
    assert_eq!(decode(&[0; 4096]), BlockError::Empty);
    assert_eq!(
        decode(&[b'x'; 4096]),
        BlockError::Foreign { magic: [b'x'; 8] }
    );
    assert_eq!(
        decode(&with_version(block, 2)),
        BlockError::NewerVersion { found: 2, known: 1 }
    );
    assert_eq!(
        decode(&with_version(block, 0)),
        BlockError::Malformed { field: "version" }
    );
    assert_eq!(
        decode(&sample().encode(MetaCopy::B)),
        BlockError::Misplaced {
            found: 1,
            expected: 0
        }
    );
    let mut other = block;
    other[16] ^= 1;
    seal(&mut other);
    assert!(matches!(decode(&other), BlockError::OtherDisk { .. }));
}

#[test]
fn impossible_values_are_refused_by_name() {
    let cases: [(usize, u8, &str); 9] = [
        (135, 0x7f, "data bytes"),
        (160, 0xff, "log capacity"),
        (166, 32, "node"),
        (167, 3, "placement"),
        (167, 2, "device bytes"),
        (168, 32, "flags"),
        (172, 7, "slots"),
        (183, 0x40, "bindings"),
        (192 + 17, 3, "peers.state"),
    ];
    for (at, value, field) in cases {
        let mut block = sample().encode(MetaCopy::A);
        block[at] = value;
        seal(&mut block);
        assert_eq!(
            Superblock::decode(&block, MetaCopy::A),
            Err(BlockError::Malformed { field }),
            "{at}"
        );
    }
}

#[test]
fn the_newer_of_two_good_copies_holds_and_the_other_is_rewritten() {
    let (old, mut new) = (sample(), sample());
    new.version_count += 1;
    new.epoch = new.epoch.next();
    let chosen = |superblock: &Superblock, rewrite| {
        Ok(Chosen {
            superblock: superblock.clone(),
            rewrite,
        })
    };
    assert_eq!(
        choose(Ok(new.clone()), Ok(old.clone())),
        chosen(&new, Some(MetaCopy::B))
    );
    assert_eq!(
        choose(Ok(old.clone()), Ok(new.clone())),
        chosen(&new, Some(MetaCopy::A))
    );
    assert_eq!(choose(Ok(new.clone()), Ok(new.clone())), chosen(&new, None));
    let bad = BlockError::BadChecksum {
        stored: 1,
        computed: 2,
    };
    assert_eq!(
        choose(Err(bad), Ok(old.clone())),
        chosen(&old, Some(MetaCopy::A))
    );
    assert_eq!(
        choose(Ok(old.clone()), Err(BlockError::Empty)),
        chosen(&old, Some(MetaCopy::B))
    );
}

#[test]
fn two_bad_copies_mean_that_the_identity_is_lost() {
    let (a, b) = (
        BlockError::Empty,
        BlockError::Foreign {
            magic: *b"\xebXFSB\0\0\0",
        },
    );
    let lost = choose(Err(a), Err(b)).unwrap_err();
    assert_eq!(lost, IdentityLost::BothBad { a, b });
    assert!(lost.to_string().contains("only zeroes") && lost.to_string().contains("foreign"));
}

#[test]
fn a_copy_of_a_newer_version_refuses_the_disk_even_if_the_other_is_good() {
    let newer = BlockError::NewerVersion { found: 2, known: 1 };
    let refused = Err(IdentityLost::NewerVersion { found: 2, known: 1 });
    assert_eq!(choose(Ok(sample()), Err(newer)), refused);
    assert_eq!(choose(Err(newer), Ok(sample())), refused);
    assert_eq!(choose(Err(BlockError::Empty), Err(newer)), refused);
}

#[test]
fn copies_that_contradict_each_other_are_never_guessed_between() {
    let (a, mut b) = (sample(), sample());
    b.epoch = b.epoch.next();
    assert!(matches!(
        choose(Ok(a.clone()), Ok(b)),
        Err(IdentityLost::Contradiction { .. })
    ));
    let mut b = sample();
    b.disk = DiskId(1);
    b.version_count += 1;
    assert!(matches!(
        choose(Ok(a), Ok(b)),
        Err(IdentityLost::Contradiction { .. })
    ));
}

/// RULES 11: a promise is answered when both copies have it. Wherever the two writes are cut off, and
/// whichever single copy is lost afterwards, an answered promise is still there.
#[test]
fn a_promise_in_both_copies_survives_any_torn_write_and_the_loss_of_either_copy() {
    let old = sample();
    let mut new = sample();
    new.version_count += 1;
    new.epoch = new.epoch.next();
    let [old_a, old_b] = MetaCopy::BOTH.map(|copy| old.encode(copy));
    let [new_a, new_b] = MetaCopy::BOTH.map(|copy| new.encode(copy));
    let epoch = |a: &Block, b: &Block| {
        let (a, b) = (
            Superblock::decode(a, MetaCopy::A),
            Superblock::decode(b, MetaCopy::B),
        );
        choose(a, b).map(|chosen| chosen.superblock.epoch)
    };
    for torn in damaged(&old_a, &new_a).iter().take(100) {
        assert_eq!(epoch(torn, &old_b), Ok(old.epoch));
    }
    for torn in damaged(&old_b, &new_b).iter().take(100) {
        assert_eq!(epoch(&new_a, torn), Ok(new.epoch));
    }
    assert_eq!(epoch(&[0; 4096], &new_b), Ok(new.epoch));
    assert_eq!(epoch(&new_a, &[0; 4096]), Ok(new.epoch));
}

#[test]
fn a_store_of_someone_else_is_refused_by_name() {
    let it = sample();
    assert_eq!(
        it.check_owner(it.cluster, it.resource, it.volume, it.node),
        Ok(())
    );
    let cluster = it.check_owner(ClusterId(1), it.resource, it.volume, it.node);
    assert!(matches!(cluster, Err(WrongStore::Cluster { .. })));
    let resource = it.check_owner(it.cluster, ResourceId(1), it.volume, it.node);
    assert!(matches!(resource, Err(WrongStore::Resource { .. })));
    let volume = it.check_owner(it.cluster, it.resource, VolumeId(9), it.node);
    assert!(matches!(volume, Err(WrongStore::Volume { .. })));
    let other = it.check_owner(it.cluster, it.resource, it.volume, node(0));
    assert!(matches!(other, Err(WrongStore::Node { .. })));
    assert!(matches!(
        it.check_disk(DiskId(3)),
        Err(WrongStore::Disk { .. })
    ));
    let mut internal = sample();
    internal.placement = Placement::Internal { device_bytes: 5 };
    assert!(matches!(
        internal.check_device(6),
        Err(WrongStore::DeviceSize { .. })
    ));
}

#[test]
fn slots_are_found_by_disk_and_given_out_once() {
    let it = sample();
    assert_eq!(it.slot_of(DiskId(0xd2)), Some(30));
    assert_eq!(it.slot_of(DiskId(0xd3)), None);
    assert_eq!(it.free_slot(), Some(1));
}

#[test]
fn no_two_bindings_have_the_same_number_even_if_a_session_was_forgotten() {
    let mut disk = sample();
    let mut numbers = Vec::new();
    for _ in 0..3 {
        disk.begin_session();
        // What the session does after this never reaches the disk.
        let mut session = disk.clone();
        for _ in 0..3 {
            let peer = session.bind(4, node(1), DiskId(0xd1), Blank::Set);
            assert_eq!(session.peers[4], Some(peer));
            numbers.push(peer.binding);
        }
    }
    assert!(numbers.is_sorted_by(|a, b| a < b));
    assert!(numbers[0] > 0x33);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 4096)) {
        let mut block: Block = bytes.try_into().unwrap();
        let _ = Superblock::decode(&block, MetaCopy::A);
        let good = sample().encode(MetaCopy::A);
        block[..20].copy_from_slice(&good[..20]);
        let keep = usize::from(block[20]) * 4;
        block[12..24].copy_from_slice(&good[12..24]);
        block[24..32].fill(0);
        block[64..80].copy_from_slice(&good[64..80]);
        block[80..80 + keep].copy_from_slice(&good[80..80 + keep]);
        block::seal(&mut block);
        if let Ok(superblock) = Superblock::decode(&block, MetaCopy::A) {
            prop_assert!(superblock.layout().is_ok());
        }
    }
}
