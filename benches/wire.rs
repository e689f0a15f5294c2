//! What the peer protocol costs per message, without any I/O: header, body and checksums.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use replicator::core::api::Payload;
use replicator::core::message::{ClientMark, Message, Seq, SessionId, WriteKind};
use replicator::wire::{Decoded, Decoder, FrameContext, PayloadBytes, PayloadCrc, encode};
use std::hint::black_box;
use std::sync::Arc;
use vocabulary::{
    ClusterId, DiskId, Epoch, Generation, HistoryId, Incarnation, Member, NodeId, NodeSet, Record,
    ResourceId, VolumeId,
};

/// A shared buffer, as a pool's would be.
#[derive(Clone, Debug)]
struct Buffer(Arc<[u8]>);

impl Payload for Buffer {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn slice(&self, start: usize, len: usize) -> Self {
        Self(self.0[start..start + len].into())
    }
}

impl PayloadBytes for Buffer {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

const CONTEXT: FrameContext = FrameContext {
    cluster: ClusterId(1),
    resource: ResourceId(2),
    epoch: Epoch(3),
    generation: Generation(4),
};

fn write(data: &Buffer) -> Message<Buffer> {
    Message::Write {
        seq: Seq(77),
        volume: VolumeId(0),
        offset: 1 << 20,
        data: data.clone(),
        fua: false,
        kind: WriteKind::Client,
        mark: ClientMark::default(),
    }
}

fn hello() -> Message<Buffer> {
    let node = NodeId::new(0).expect("below the limit");
    Message::Hello {
        node,
        to: NodeId::new(1).expect("below the limit"),
        session: SessionId(1),
        record: Record {
            resource: CONTEXT.resource,
            generation: CONTEXT.generation,
            epoch: CONTEXT.epoch,
            history: HistoryId(5),
            sizes: vec![1 << 30],
            primary: Some(node),
            in_sync: vec![Member {
                node,
                disk: DiskId(6),
                incarnation: Incarnation(1),
            }],
            replicas: NodeSet(0b11),
            min_redundancy: 1,
        },
    }
}

fn head(message: &Message<Buffer>) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&CONTEXT, message, None, &mut out).expect("a valid message");
    out
}

/// A decoder whose session was opened.
fn replica() -> Decoder {
    let mut decoder = Decoder::accepting(CONTEXT.cluster);
    decoder
        .decode::<Buffer>(&head(&hello()))
        .expect("a valid hello");
    decoder
}

fn wire(c: &mut Criterion) {
    let mut out = Vec::with_capacity(64 << 10);
    for (name, len) in [("4KiB", 4096), ("64KiB", 64 << 10)] {
        let data = Buffer(vec![0x5a; len].into());
        let crc = PayloadCrc::of(data.bytes());
        let message = write(&data);
        let mut group = c.benchmark_group("wire");
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("encode_write_{name}"), |b| {
            b.iter(|| {
                out.clear();
                encode(&CONTEXT, black_box(&message), None, &mut out)
            });
        });
        group.bench_function(format!("encode_write_{name}_cached_crc"), |b| {
            b.iter(|| {
                out.clear();
                encode(&CONTEXT, black_box(&message), Some(crc), &mut out)
            });
        });
        let bytes = head(&message);
        let mut decoder = replica();
        group.bench_function(format!("decode_write_{name}"), |b| {
            b.iter(|| {
                let announced = decoder.decode::<Buffer>(black_box(&bytes));
                assert!(matches!(announced, Ok(Decoded::Payload { .. })));
                decoder.finish(data.clone()).expect("its payload")
            });
        });
        group.finish();
    }

    let mut group = c.benchmark_group("wire");
    let acks: Message<Buffer> = Message::Acks {
        seqs: (0..32).map(Seq).collect(),
    };
    group.bench_function("encode_acks_32", |b| {
        b.iter(|| {
            out.clear();
            encode(&CONTEXT, black_box(&acks), None, &mut out)
        });
    });
    let flush: Message<Buffer> = Message::Flush { seq: Seq(9) };
    let bytes = head(&flush);
    let mut decoder = replica();
    group.bench_function("decode_flush", |b| {
        b.iter(|| decoder.decode::<Buffer>(black_box(&bytes)));
    });
    let bytes = head(&hello());
    group.bench_function("decode_hello", |b| {
        b.iter(|| Decoder::accepting(CONTEXT.cluster).decode::<Buffer>(black_box(&bytes)));
    });
    group.finish();
}

criterion_group!(benches, wire);
criterion_main!(benches);
