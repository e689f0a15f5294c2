use super::*;
use crate::core::api::Payload;
use crate::runtime::disk::{DiskConfig, MetaPlace};
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use tempfile::TempDir;

struct Bench {
    disk: Arc<Disk>,
    worker: Worker<u64>,
    results: Receiver<(u64, WorkDone)>,
    dir: TempDir,
}

impl Bench {
    fn new(parent: &str, engine: Engine, volume_bytes: u64) -> Self {
        let dir = tempfile::tempdir_in(parent).unwrap();
        let path = dir.path().join("r0.img");
        let config = DiskConfig {
            meta: MetaPlace::beside(&path),
            path,
            engine: Some(engine),
        };
        Disk::create_files(&config, volume_bytes, 4096).unwrap();
        let disk = Disk::open(&config).unwrap();
        disk.set_volume_bytes(volume_bytes).unwrap();
        let (sender, results) = channel();
        let pool = Pool::new(usize::MAX, 1 << 20);
        let worker = Worker::start(pool, move |key, done| sender.send((key, done)).unwrap());
        Self {
            disk: Arc::new(disk),
            worker: worker.unwrap(),
            results,
            dir,
        }
    }

    fn everywhere(volume_bytes: u64) -> Vec<Self> {
        [
            ("/var/tmp", Engine::Uring),
            ("/var/tmp", Engine::Sync),
            ("/dev/shm", Engine::Sync),
        ]
        .map(|(parent, engine)| Self::new(parent, engine, volume_bytes))
        .into()
    }

    fn fill(&self, bytes: &[u8], offset: u64) {
        let file = File::options().write(true).open(self.disk.path()).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    fn hash(&self, key: u64, start: u64, end: u64) {
        let range = ByteRange::between(start, end);
        self.worker.push(
            key,
            Work::Hash {
                disk: self.disk.clone(),
                range,
            },
        );
    }

    fn result(&self) -> (u64, WorkDone) {
        self.results.recv_timeout(Duration::from_secs(20)).unwrap()
    }
}

#[test]
fn equal_blocks_have_equal_digests_and_only_zero_blocks_the_digest_zero() {
    for bench in Bench::everywhere(64 << 10) {
        bench.fill(&[1; 4096], 4096);
        bench.fill(&[1; 4096], 12288);
        bench.fill(&[1], 20_479);
        bench.hash(3, 0, 24 << 10);
        let (3, WorkDone::Hash(Ok((digests, bytes)))) = bench.result() else {
            panic!()
        };
        assert_eq!(bytes.len(), 24 << 10);
        assert_eq!(digests.len(), 6);
        let zero: Vec<_> = digests
            .iter()
            .map(|digest| *digest == BlockHash::ZERO)
            .collect();
        assert_eq!(zero, [true, false, true, false, false, true]);
        assert_eq!(digests[1], digests[3]);
        assert_ne!(digests[1], digests[4]);
    }
}

#[test]
fn digests_never_change_since_replicas_of_other_versions_compare_them() {
    assert_eq!(
        digests(&[1; 5000]),
        [
            BlockHash(105_542_431_413_908_996_416_717_380_075_619_765_646),
            BlockHash(227_666_901_741_631_183_879_064_794_609_560_290_681),
        ]
    );
    assert_eq!(digests(&[0; 4097]), [BlockHash::ZERO; 2]);
}

#[test]
fn the_last_chunk_of_a_volume_may_end_in_a_short_block() {
    for bench in Bench::everywhere(10_001) {
        bench.fill(&[7; 10_001], 0);
        bench.hash(0, 8192, 10_001);
        let (0, WorkDone::Hash(Ok((digests, bytes)))) = bench.result() else {
            panic!()
        };
        assert_eq!((digests.len(), bytes.bytes()), (1, [7; 1809].as_slice()));
        bench.hash(1, 8192, 10_002);
        assert!(matches!(bench.result(), (1, WorkDone::Hash(Err(_)))));
    }
}

#[test]
fn many_chunks_at_a_time_each_come_back_with_their_own_bytes() {
    for bench in Bench::everywhere(4 << 20) {
        for i in 0..64_u64 {
            bench.fill(&[u8::try_from(i + 1).unwrap(); 65_536], i * 65_536);
        }
        for i in 0..64 {
            bench.hash(i, i * 65_536, (i + 1) * 65_536);
        }
        let mut seen = [false; 64];
        for _ in 0..64 {
            let (i, WorkDone::Hash(Ok((digests, bytes)))) = bench.result() else {
                panic!()
            };
            assert_eq!(digests.len(), 16);
            assert!(bytes.bytes().iter().all(|byte| u64::from(*byte) == i + 1));
            assert!(!std::mem::replace(
                &mut seen[usize::try_from(i).unwrap()],
                true
            ));
        }
    }
}

#[test]
fn a_chunk_of_a_truncated_file_is_an_io_error() {
    for bench in Bench::everywhere(64 << 10) {
        File::options()
            .write(true)
            .open(bench.disk.path())
            .unwrap()
            .set_len(4096)
            .unwrap();
        bench.hash(0, 0, 64 << 10);
        let (0, WorkDone::Hash(Err(error))) = bench.result() else {
            panic!()
        };
        assert_eq!(error, DiskError::Io(Errno::EIO as i32));
    }
}

#[test]
fn growing_is_reported_and_the_store_is_free_once_its_owner_and_the_worker_are_gone() {
    for bench in Bench::everywhere(64 << 10) {
        bench.hash(0, 0, 4096);
        bench.result();
        let disk = bench.disk.clone();
        bench.worker.push(
            1,
            Work::Grow {
                disk,
                volume_bytes: 1 << 20,
                meta_bytes: 8192,
                layout: Layout::external(),
            },
        );
        assert!(matches!(bench.result(), (1, WorkDone::Grow(Ok(())))));
        assert_eq!(bench.disk.volume_bytes(), 1 << 20);
        let Bench {
            disk,
            worker,
            dir,
            results: _results,
        } = bench;
        let path = disk.path().to_owned();
        drop((disk, worker));
        let config = DiskConfig {
            meta: MetaPlace::beside(&path),
            path,
            engine: None,
        };
        assert!(Disk::open(&config).is_ok());
        drop(dir);
    }
}
