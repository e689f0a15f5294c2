//! The bytes of every message, pinned. A change here is a change of the protocol: it needs a new
//! version, or peers of different builds no longer understand each other.

use super::samples::{self, all, write};
use super::{CONTEXT, Data, Stream, decoder_for, frame, head};
use crate::wire::encode::kind_of;
use crate::wire::{Kind, RejectReason, encode_reject};
use std::collections::BTreeSet;
use std::fmt::Write;

/// One line a message: name, `=`, all bytes of header and body in hexadecimal.
const GOLDEN: &str = include_str!("golden.txt");

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string");
        text
    })
}

fn golden_of(name: &str) -> Option<&'static str> {
    GOLDEN.lines().find_map(|line| {
        let (found, bytes) = line.split_once(" = ")?;
        (found == name).then_some(bytes)
    })
}

#[test]
fn every_message_has_its_golden_bytes() {
    let mut wrong = String::new();
    for (name, message) in all() {
        let bytes = hex(&head(&message));
        if golden_of(name) != Some(&bytes) {
            writeln!(wrong, "{name} = {bytes}").expect("writing to a string");
        }
    }
    assert!(wrong.is_empty(), "these differ from golden.txt:\n{wrong}");
    assert_eq!(
        GOLDEN.lines().count(),
        all().len(),
        "a line without message"
    );
}

#[test]
fn every_type_of_frame_has_a_sample() {
    let sampled: BTreeSet<Kind> = all().iter().map(|(_, message)| kind_of(message)).collect();
    let expected: BTreeSet<Kind> = Kind::ALL
        .iter()
        .copied()
        .filter(|kind| *kind != Kind::Reject)
        .collect();
    assert_eq!(sampled, expected);
}

#[test]
fn samples_come_back_as_they_were_sent() {
    for (name, message) in all() {
        let mut stream = Stream::new(decoder_for(kind_of(&message)));
        let got = stream.feed(&frame(&message)).expect(name);
        let [(header, back)] = &got[..] else {
            panic!("{name}: {} messages", got.len());
        };
        assert_eq!(header.context, CONTEXT, "{name}");
        assert_eq!(format!("{back:?}"), format!("{message:?}"));
        assert_eq!(frame(back), frame(&message), "{name}");
    }
}

/// The layout by hand, byte for byte, so that the golden file is not the only witness.
#[test]
fn a_write_is_laid_out_as_the_tables_say() {
    #[rustfmt::skip]
    let expected: Vec<u8> = [
        &b"LkS1"[..],                               // magic
        &[2, 0],                                    // version
        &[16, 0],                                   // kind: Write
        &[1, 0, 0, 0],                              // flags: payload
        &[40, 0, 0, 0],                             // body_len
        &[1, 0, 0, 0, 0, 0, 0, 0, 0xc1, 0xc1, 0xc1, 0xc1, 0xc1, 0xc1, 0xc1, 0xc1],
        &[2, 0, 0, 0, 0, 0, 0, 0, 0x7e, 0x7e, 0x7e, 0x7e, 0x7e, 0x7e, 0x7e, 0x7e],
        &[0x0e, 0, 0, 0, 0, 0, 0, 0],               // epoch
        &[0x34, 0x12, 0, 0, 0, 0, 0, 0],            // generation
        &[8, 0, 0, 0],                              // payload_len
    ].concat();
    #[rustfmt::skip]
    let body: Vec<u8> = [
        &[8, 7, 6, 5, 4, 3, 2, 1][..],              // seq
        &[0, 0x10, 0, 0, 0, 0, 0, 0],               // offset
        &[0x22, 0x11, 0, 0, 0, 0, 0, 0],            // session
        &[0x44, 0x33, 0, 0, 0, 0, 0, 0],            // number
        &[3, 0],                                    // volume
        &[2],                                       // kind: copy
        &[1],                                       // flags: FUA
        &[4, 0, 0, 0],                              // behind
    ].concat();
    let bytes = head(&write());
    assert_eq!(bytes[..68], expected);
    assert_eq!(bytes[68..72], crc32c::crc32c(&body).to_le_bytes());
    assert_eq!(bytes[72..76], crc32c::crc32c(b"payload!").to_le_bytes());
    assert_eq!(bytes[76..80], crc32c::crc32c(&bytes[..76]).to_le_bytes());
    assert_eq!(bytes[80..], body);
}

#[test]
fn a_rejection_is_laid_out_as_the_tables_say() {
    let mut bytes = Vec::new();
    encode_reject(RejectReason::Features, &mut bytes);
    let mut expected = vec![0; 32];
    expected[0] = 2; // min_version
    expected[2] = 2; // max_version
    expected[8] = 1; // features
    expected[16] = 1; // required
    expected[24] = 4; // reason
    assert_eq!(bytes[..8], *b"LkS1\x02\0\x04\0");
    assert_eq!(bytes[12..16], [32, 0, 0, 0]);
    assert_eq!(bytes[80..], expected);
}

#[test]
fn header_and_body_go_behind_what_is_already_there() {
    let mut out = b"before".to_vec();
    let ping = crate::core::message::Message::<Data>::Ping { token: 1 };
    crate::wire::encode(&CONTEXT, &ping, None, &mut out).expect("a valid message");
    assert_eq!(out[..6], *b"before");
    assert_eq!(out[6..], head(&ping));
}

#[test]
fn a_record_survives_in_every_detail() {
    let message = crate::core::message::Message::<Data>::Record {
        record: samples::record(),
    };
    let mut stream = Stream::new(decoder_for(Kind::Record));
    let got = stream.feed(&frame(&message)).expect("a valid frame");
    let record = match &got[..] {
        [(_, crate::core::message::Message::Record { record })] => record,
        other => panic!("{other:?}"),
    };
    assert_eq!(*record, samples::record());
}
