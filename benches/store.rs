//! What the stores cost on the path of a write: looking an extent up in the activity log, marking
//! blocks, and making the blocks that go to disk.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use replicator::store::{ActivityLog, Bitmap, Blank, Block, DiskTag, LogCapacity, PeerSlot};
use vocabulary::{ByteRange, DiskId, EXTENT_BYTES, NodeId, Time};

const DISK: DiskTag = DiskTag(1);
const TIB: u64 = 1 << 40;

/// A full log: extents 0 to 65533, all idle.
fn full_log() -> ActivityLog {
    let (mut log, _) = ActivityLog::create(DISK, 1, LogCapacity::MAX);
    let extents: Vec<u32> = (0..LogCapacity::MAX.get()).collect();
    for (at, some) in (0..).zip(extents.chunks(4096)) {
        let transaction = log.begin(some).expect("room").expect("cold extents");
        log.commit(transaction, Time(at));
    }
    log
}

fn activity_log(c: &mut Criterion) {
    let mut log = full_log();
    let mut extent = 0;
    c.bench_function("activity log: pin and unpin a hot extent", |b| {
        b.iter(|| {
            extent = (extent + 7919) % 65534;
            black_box(log.pin(extent));
            log.unpin(extent, Time(100));
        });
    });
    c.bench_function("activity log: miss", |b| {
        b.iter(|| {
            extent = (extent + 7919) % 65534;
            black_box(log.pin(extent + 100_000))
        });
    });
    let mut next = 1_000_000;
    c.bench_function(
        "activity log: activate an extent in place of another",
        |b| {
            b.iter(|| {
                next += 1;
                let transaction = log.begin(&[next]).expect("room").expect("a cold extent");
                black_box(&transaction.blocks);
                log.commit(transaction, Time(200));
            });
        },
    );
    c.bench_function(
        "activity log: activate 64 extents in place of others",
        |b| {
            b.iter(|| {
                let cold: [u32; 64] = std::array::from_fn(|_| {
                    next += 1;
                    next
                });
                let transaction = log.begin(&cold).expect("room").expect("cold extents");
                black_box(&transaction.blocks);
                log.commit(transaction, Time(300));
            });
        },
    );
    let blocks = ActivityLog::create(DISK, 1, LogCapacity::MAX).1;
    let ring: Vec<Block> = blocks.into_iter().map(|(_, block)| block).collect();
    c.bench_function("activity log: recover the largest", |b| {
        b.iter(|| {
            let copies = [ring.as_slice(), ring.as_slice()];
            replicator::store::recover(copies, DISK, 1, LogCapacity::MAX, Time(0)).expect("good")
        });
    });
}

fn bitmap(c: &mut Criterion) {
    let empty = || {
        let mut bitmap = Bitmap::new(DISK, TIB);
        let node = NodeId::new(1).expect("a node");
        let peer = PeerSlot {
            node,
            disk: DiskId(1),
            blank: Blank::Clear,
            binding: 1,
        };
        bitmap.open_slot(0, &peer);
        bitmap
    };
    let mut marked = empty();
    let mut at = 0;
    c.bench_function("bitmap: mark 4 KiB", |b| {
        b.iter(|| {
            at = (at + 0x1234_5000) % TIB;
            marked.set(0, ByteRange::between(at, at + 4096))
        });
    });
    c.bench_function("bitmap: mark and clear 4 KiB", |b| {
        b.iter(|| {
            at = (at + 0x1234_5000) % TIB;
            marked.set(0, ByteRange::between(at, at + 4096));
            marked.clear(0, ByteRange::between(at, at + 4096))
        });
    });
    c.bench_function("bitmap: mark and clear an extent", |b| {
        b.iter(|| {
            at = (at + EXTENT_BYTES * 77) % TIB;
            marked.set(0, ByteRange::between(at, at + EXTENT_BYTES));
            marked.clear(0, ByteRange::between(at, at + EXTENT_BYTES))
        });
    });
    c.bench_function("bitmap: mark all of 1 TiB", |b| {
        b.iter_batched_ref(empty, |bitmap| bitmap.set_all(0), BatchSize::LargeInput);
    });
    let mut last = empty();
    last.set(0, ByteRange::between(TIB - 1, TIB));
    c.bench_function("bitmap: find the last block of an empty 1 TiB", |b| {
        b.iter(|| last.next_dirty(0, black_box(0), 1 << 20));
    });
    let mut scattered = empty();
    for block in 0..8192 {
        scattered.set(0, ByteRange::between(block << 17, (block << 17) + 1));
    }
    c.bench_function("bitmap: all runs of 8192 scattered blocks", |b| {
        b.iter(|| scattered.runs(0, u64::MAX).map(|run| run.len).sum::<u64>());
    });
    c.bench_function("bitmap: encode a page", |b| {
        b.iter(|| {
            let block = scattered.encode_page(0, 0);
            scattered.saved(0, 0);
            block
        });
    });
    let block = scattered.encode_page(0, 0).expect("no save is under way");
    c.bench_function("bitmap: load a page", |b| {
        b.iter(|| scattered.load_page(0, 0, black_box(&block)));
    });
}

criterion_group!(benches, activity_log, bitmap);
criterion_main!(benches);
