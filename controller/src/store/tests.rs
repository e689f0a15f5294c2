//! Promises of a voter's file.

use super::slot::{SLOT_BYTES, choose, decode, encode};
use super::*;
use crate::core::consensus::{Entry, Position, Term, VoterId};
use crate::core::{Command, Name, Node, NodeState};
use vocabulary::NodeId;

const CLUSTER: ClusterId = ClusterId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);

fn promise(name: &str) -> Promise {
    let content = Document::new(CLUSTER)
        .apply(&Command::SetNode {
            node: Node {
                id: NodeId::new(0).unwrap(),
                name: Name::new(name).unwrap(),
                control: vec!["h:1".to_owned()],
                replication: vec!["h:2".to_owned()],
                state: NodeState::Online,
                fencing: None,
            },
        })
        .unwrap();
    Promise {
        voter: VoterId(5),
        term: Term(4),
        vote: Some(VoterId(6)),
        entry: Entry {
            at: Position {
                term: Term(3),
                index: 2,
            },
            content,
        },
    }
}

#[test]
fn the_bytes_of_a_copy_stay_as_they_are() {
    let bytes = encode(3, &promise("n")).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        concat!(
            "4c53434f4e464947",                 // magic
            "02000000",                         // format
            "35000000",                         // length
            "0300000000000000",                 // sequence
            "100f0e0d0c0b0a090807060504030201", // cluster
            "ae306119",                         // checksum of the promise
            "12d6124c",                         // checksum of the header
            // voter, term, vote, position of the entry
            "05",
            "04",
            "0106",
            "0302",
            // cluster (a varint), version, no voters, one node: id, name, two lists of an address, state,
            // no fence agent; nobody departed, the lease, the drift, the election's time-out and the
            // fence delay, no resources, nobody lost, no former cluster
            "909eb8e8c0e1828589909cb0d080c1818202",
            "01",
            "00",
            "01",
            "00016e0103683a310103683a320000",
            "00",
            "f403",
            "01",
            "c801",
            "8827",
            "00",
            "00",
            "00",
        )
    );
    assert_eq!(decode(&bytes), Ok((3, promise("n"))));
}

#[test]
fn a_copy_torn_at_any_byte_leaves_the_other_one() {
    let old = encode(7, &promise("old")).unwrap();
    let new = encode(8, &promise("new")).unwrap();
    for cut in 0..=new.len() {
        let mut torn = old.clone();
        torn.resize(old.len().max(new.len()), 0);
        torn[..cut].copy_from_slice(&new[..cut]);
        // The first slot is being written, the second one still holds the old document.
        let chosen = choose(&torn, &old).map_err(|_| cut).unwrap();
        let expected = if torn[..new.len()] == new { 8 } else { 7 };
        assert_eq!(chosen.sequence, expected, "cut at {cut}");
        // The second slot is being written: the new document is in the first.
        let chosen = choose(&new, &torn).map_err(|_| cut).unwrap();
        assert_eq!((chosen.sequence, chosen.promise), (8, promise("new")));
    }
}

#[test]
fn any_single_damaged_byte_is_noticed() {
    let good = encode(7, &promise("n")).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        assert!(decode(&bad).is_err(), "byte {at}");
    }
}

#[test]
fn a_saved_document_is_found_again_and_a_damaged_copy_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("configuration");
    let mut store = PromiseStore::create(&path, &promise("a")).unwrap();
    store.save(&promise("b")).unwrap();
    drop(store);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0xff; 100], 10).unwrap();
    let (_, found) = PromiseStore::open(&path, CLUSTER).unwrap();
    assert_eq!(found, promise("b"));
    // The first copy is whole again: the second may be lost now.
    file.write_all_at(&[0xff; 100], SLOT_BYTES).unwrap();
    let (_, found) = PromiseStore::open(&path, CLUSTER).unwrap();
    assert_eq!(found, promise("b"));
}

#[test]
fn two_damaged_copies_are_an_error_and_not_a_guess() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("configuration");
    drop(PromiseStore::create(&path, &promise("a")).unwrap());
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0xff; 100], 10).unwrap();
    file.write_all_at(&[0xff; 100], SLOT_BYTES + 10).unwrap();
    let error = PromiseStore::open(&path, CLUSTER).unwrap_err();
    assert!(matches!(error, StoreError::Lost { .. }));
    assert!(error.to_string().contains("must not vote"));
}

#[test]
fn a_missing_a_foreign_and_a_second_one_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("configuration");
    assert!(matches!(
        PromiseStore::open(&path, CLUSTER),
        Err(StoreError::Missing { .. })
    ));
    drop(PromiseStore::create(&path, &promise("a")).unwrap());
    assert!(matches!(
        PromiseStore::create(&path, &promise("a")),
        Err(StoreError::Exists { .. })
    ));
    assert!(matches!(
        PromiseStore::open(&path, ClusterId(1)),
        Err(StoreError::OtherCluster { .. })
    ));
}

#[test]
fn a_copy_of_a_newer_version_is_not_overwritten() {
    let old = encode(7, &promise("n")).unwrap();
    let mut newer = old.clone();
    newer[8] = 3;
    let crc = crc32c::crc32c(&newer[..44]);
    newer[44..48].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(decode(&newer), Err(SlotError::Newer(3)));
    assert!(choose(&old, &newer).is_err());
    assert!(choose(&newer, &old).is_err());
}
