use super::io::{DiskIo, JobId, Outcome, Request};
use super::*;
use crate::core::api::{FastZeroes, Payload};
use crate::runtime::ring::{Ring, Wait};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vocabulary::Time;

/// A store in a directory, a ring, and a model of what the volume should hold.
struct Bench {
    ring: Ring<JobId>,
    io: DiskIo<u64>,
    pool: Pool,
    disk: Arc<Disk>,
    model: Vec<u8>,
    now: Time,
    _dir: TempDir,
}

fn config(dir: &TempDir, engine: Option<Engine>) -> DiskConfig {
    let path = dir.path().join("r0.img");
    DiskConfig {
        meta: MetaPlace::beside(&path),
        path,
        engine,
    }
}

impl Bench {
    fn new(parent: &str, engine: Engine, volume_bytes: u64) -> Self {
        let dir = tempfile::tempdir_in(parent).unwrap();
        let config = config(&dir, Some(engine));
        Disk::create_files(&config, volume_bytes, 1 << 20).unwrap();
        let disk = Disk::open(&config).unwrap();
        disk.set_volume_bytes(volume_bytes).unwrap();
        let pool = Pool::new(usize::MAX, 16 << 20);
        Self {
            ring: Ring::new().unwrap(),
            io: DiskIo::new(pool.clone()),
            pool,
            disk: Arc::new(disk),
            model: vec![0; usize::try_from(volume_bytes).unwrap()],
            now: Time(0),
            _dir: dir,
        }
    }

    /// Every place and engine that this machine has: a disk's file system and a memory one.
    fn everywhere(volume_bytes: u64) -> Vec<Self> {
        let mut all = Vec::new();
        for parent in ["/var/tmp", "/dev/shm"] {
            for engine in [Engine::Uring, Engine::Sync] {
                all.push(Self::new(parent, engine, volume_bytes));
            }
        }
        all
    }

    fn start(&mut self, key: u64, request: Request) {
        let disk = self.disk.clone();
        self.io.start(&mut self.ring, self.now, &disk, key, request);
    }

    fn wait(&mut self, mut count: usize) -> BTreeMap<u64, Outcome> {
        let mut done = BTreeMap::new();
        let end = Instant::now() + Duration::from_secs(20);
        while count > 0 {
            while let Some((key, outcome)) = self.io.take() {
                assert!(done.insert(key, outcome).is_none(), "an answer came twice");
                count -= 1;
            }
            while let Some(completion) = self.ring.take() {
                let (job, op) = (completion.token, completion.op);
                self.io
                    .completed(&mut self.ring, self.now, job, op, completion.result);
            }
            assert!(Instant::now() < end, "no answer within 20 s");
            self.ring
                .submit(Wait::For(Duration::from_millis(10)))
                .unwrap();
        }
        done
    }

    fn one(&mut self, request: Request) -> Outcome {
        self.start(0, request);
        self.wait(1).remove(&0).unwrap()
    }

    fn done(&mut self, request: Request) -> Result<(), DiskError> {
        match self.one(request) {
            Outcome::Done(result) => result,
            other @ Outcome::Read(_) => panic!("{other:?}"),
        }
    }

    fn read(&mut self, range: ByteRange) -> Result<Vec<u8>, DiskError> {
        match self.one(Request::Read(range)) {
            Outcome::Read(result) => result.map(|payload| payload.bytes().to_vec()),
            other @ Outcome::Done(_) => panic!("{other:?}"),
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8], durable: bool) {
        // A payload in the middle of a buffer, as it comes from a socket.
        let mut padded = vec![0xee; 3];
        padded.extend_from_slice(bytes);
        let data = self.pool.copy_of(&padded).unwrap().slice(3, bytes.len());
        self.done(Request::Write {
            offset,
            data,
            durable,
        })
        .unwrap();
        let at = usize::try_from(offset).unwrap();
        self.model[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn zero(&mut self, range: ByteRange, hole: bool, durable: bool) {
        self.done(Request::Zero {
            range,
            hole,
            durable,
        })
        .unwrap();
        let at = usize::try_from(range.offset).unwrap();
        let len = usize::try_from(range.len).unwrap();
        self.model[at..at + len].fill(0);
    }

    fn check(&mut self) {
        let len = u64::try_from(self.model.len()).unwrap();
        let got = self.read(ByteRange::between(0, len)).unwrap();
        assert!(got == self.model, "{:?}: contents differ", self.disk);
    }
}

#[test]
fn writes_and_reads_of_any_alignment_touch_exactly_their_bytes() {
    for mut bench in Bench::everywhere(1 << 20) {
        bench.write(0, &vec![1; 1 << 20], false);
        for (i, (offset, len)) in [
            (0, 4096),
            (8192, 12288),
            (100, 1),
            (4095, 2),
            (511, 513),
            (512, 512),
            (20_000, 9000),
            (40_960, 5000),
            (50_000, 3248),
            ((1 << 20) - 1, 1),
            ((1 << 20) - 5000, 5000),
            (300_000, 400_001),
        ]
        .into_iter()
        .enumerate()
        {
            let byte = u8::try_from(i + 2).unwrap();
            bench.write(offset, &vec![byte; len], i % 2 == 0);
            let range = ByteRange::new(offset, u64::try_from(len).unwrap()).unwrap();
            assert_eq!(bench.read(range).unwrap(), vec![byte; len]);
        }
        bench.check();
        bench.done(Request::Flush).unwrap();
        assert_eq!(bench.io.in_flight(), 0);
        assert_eq!(bench.ring.in_flight(), 0);
    }
}

#[test]
fn a_volume_that_is_not_whole_blocks_is_usable_to_its_last_byte() {
    for mut bench in Bench::everywhere(10_001) {
        bench.write(0, &[3; 10_001], false);
        bench.write(10_000, &[4], true);
        bench.check();
        let beyond = bench.pool.copy_of(&[1; 2]).unwrap();
        let request = Request::Write {
            offset: 10_000,
            data: beyond,
            durable: false,
        };
        assert_eq!(bench.done(request), Err(DiskError::Io(libc::EINVAL)));
        assert!(bench.read(ByteRange::between(10_001, 10_002)).is_err());
    }
}

#[test]
fn zeroing_touches_exactly_its_bytes_with_and_without_holes() {
    for mut bench in Bench::everywhere(8 << 20) {
        bench.write(0, &vec![9; 8 << 20], false);
        for (hole, base) in [(true, 0), (false, 4 << 20)] {
            for (start, end) in [
                (0, 4096),
                (5000, 5001),
                (8191, 20_000),
                (100_000, 3_000_000),
            ] {
                bench.zero(
                    ByteRange::between(base + start, base + end),
                    hole,
                    start % 2 == 0,
                );
            }
        }
        bench.check();
    }
}

#[test]
fn what_a_store_zeroes_without_writing_is_found_out_and_corrected_when_it_refuses() {
    for mut bench in Bench::everywhere(1 << 20) {
        let found = bench.disk.fast_zeroes();
        // Looking changes nothing, and the second look is like the first.
        let file = std::fs::metadata(bench.disk.path()).unwrap();
        assert_eq!((file.len(), file.st_blocks()), (1 << 20, 0));
        assert!(found.holes, "{}", bench.disk.path().display());
        bench.disk.assume(FastZeroes::ALL);
        for hole in [true, false] {
            let (range, durable) = (ByteRange::between(100, 100_000), false);
            let request = Request::Zero {
                range,
                hole,
                durable,
            };
            assert!(matches!(bench.one(request), Outcome::Done(Ok(()))));
        }
        let shown = bench.disk.fast_zeroes();
        assert_eq!(shown.and(found), found, "what was found is so");
        assert_eq!(bench.io.take_slowed(), shown != FastZeroes::ALL);
        assert!(!bench.io.take_slowed(), "told once");
        // A memory file system can't zero what stays allocated.
        assert!(!(bench.disk.in_memory && (found.allocated || shown.allocated)));
    }
}

#[test]
fn a_hole_gives_its_space_back() {
    for mut bench in Bench::everywhere(4 << 20) {
        bench.write(0, &vec![9; 4 << 20], true);
        let blocks = |bench: &Bench| std::fs::metadata(bench.disk.path()).unwrap().st_blocks();
        let before = blocks(&bench);
        bench.zero(ByteRange::between(0, 3 << 20), true, true);
        assert!(blocks(&bench) <= before / 2, "{:?}", bench.disk);
        bench.zero(ByteRange::between(0, 3 << 20), false, true);
        bench.check();
    }
}

#[test]
fn many_requests_in_flight_each_get_their_own_answer() {
    for mut bench in Bench::everywhere(1 << 20) {
        for i in 0..200_u64 {
            let byte = u8::try_from(i).unwrap();
            let data = bench.pool.copy_of(&[byte; 4096]).unwrap();
            bench.start(
                i,
                Request::Write {
                    offset: i * 4096,
                    data,
                    durable: false,
                },
            );
        }
        assert!(
            bench
                .wait(200)
                .values()
                .all(|o| matches!(o, Outcome::Done(Ok(()))))
        );
        for i in 0..200_u64 {
            bench.start(i, Request::Read(ByteRange::new(i * 4096 + 7, 11).unwrap()));
        }
        for (i, outcome) in bench.wait(200) {
            let Outcome::Read(Ok(payload)) = outcome else {
                panic!("{outcome:?}")
            };
            assert_eq!(payload.bytes(), [u8::try_from(i).unwrap(); 11]);
        }
    }
}

#[test]
fn a_truncated_file_answers_eio_for_ever_instead_of_zeroes() {
    for mut bench in Bench::everywhere(1 << 20) {
        bench.write(0, &vec![7; 1 << 20], false);
        let file = OpenOptions::new()
            .write(true)
            .open(bench.disk.path())
            .unwrap();
        file.set_len(8192).unwrap();
        let gone = ByteRange::between(8192, 12288);
        assert_eq!(bench.read(gone), Err(DiskError::Io(libc::EIO)));
        let data = bench.pool.copy_of(&[1; 4096]).unwrap();
        let request = Request::Write {
            offset: 16_384,
            data,
            durable: false,
        };
        assert_eq!(bench.done(request), Err(DiskError::Io(libc::EIO)));
        file.set_len(1 << 20).unwrap();
        assert_eq!(
            bench.read(gone),
            Err(DiskError::Io(libc::EIO)),
            "its bytes are lost"
        );
    }
}

#[test]
fn a_truncated_file_is_noticed_by_writes_alone() {
    for mut bench in Bench::everywhere(1 << 20) {
        let file = OpenOptions::new()
            .write(true)
            .open(bench.disk.path())
            .unwrap();
        file.set_len(0).unwrap();
        bench.now = bench.now.plus_ms(1000);
        let data = bench.pool.copy_of(&[1; 4096]).unwrap();
        let request = Request::Write {
            offset: 0,
            data,
            durable: false,
        };
        assert_eq!(bench.done(request), Err(DiskError::Io(libc::EIO)));
    }
}

/// A tmpfs of 1 MiB, unmounted when dropped.
struct SmallTmpfs(TempDir);

impl SmallTmpfs {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(dir.path());
        assert!(
            mount.status().unwrap().success(),
            "this test mounts a tmpfs: it needs root"
        );
        Self(dir)
    }
}

impl Drop for SmallTmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status();
    }
}

#[test]
fn a_full_file_system_is_told_from_a_broken_disk() {
    let mount = SmallTmpfs::new();
    for engine in [Engine::Uring, Engine::Sync] {
        let mut bench = Bench::new(mount.0.path().to_str().unwrap(), engine, 4 << 20);
        let data = bench.pool.copy_of(&vec![1; 3 << 20]).unwrap();
        let request = Request::Write {
            offset: 0,
            data,
            durable: true,
        };
        assert_eq!(bench.done(request), Err(DiskError::NoSpace));
    }
}

#[test]
fn a_store_is_used_by_one_process_at_a_time_and_by_its_successor() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir, None);
    Disk::create_files(&config, 8192, 8192).unwrap();
    let first = Disk::open(&config).unwrap();
    assert!(matches!(Disk::open(&config), Err(OpenError::Locked { .. })));
    // As long as anything still holds the descriptor, the lock is held.
    let in_flight = first.data_fd().clone();
    drop(first);
    assert!(matches!(Disk::open(&config), Err(OpenError::Locked { .. })));
    drop(in_flight);
    assert!(Disk::open(&config).is_ok());
}

#[test]
fn a_missing_short_or_wrong_store_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir, None);
    let error = Disk::open(&config).unwrap_err();
    assert!(error.to_string().contains("r0.img"), "{error}");
    Disk::create_files(&config, 8192, 8192).unwrap();
    assert!(
        Disk::create_files(&config, 8192, 8192).is_err(),
        "an existing store is not made anew"
    );
    let disk = Disk::open(&config).unwrap();
    let error = disk.set_volume_bytes(8193).unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::TooShort {
                found_bytes: 8192,
                needed_bytes: 8193,
                ..
            }
        ),
        "{error}"
    );
    let directory = DiskConfig {
        path: dir.path().into(),
        ..config
    };
    assert!(matches!(
        Disk::open(&directory),
        Err(OpenError::WrongKind { .. })
    ));
}

#[test]
fn metadata_is_written_durably_in_order_and_read_at_any_alignment() {
    for mut bench in Bench::everywhere(8192) {
        let mut first = vec![0; 8192];
        first[4000..4100].fill(5);
        bench.start(
            1,
            Request::MetaWrite {
                offset: 4096,
                data: first,
            },
        );
        // Overlaps the first: whatever the device does, the later one stays.
        bench.start(
            2,
            Request::MetaWrite {
                offset: 8192,
                data: vec![6; 4096],
            },
        );
        bench.start(
            3,
            Request::MetaWrite {
                offset: 8192,
                data: vec![7; 4096],
            },
        );
        assert!(
            bench
                .wait(3)
                .values()
                .all(|o| matches!(o, Outcome::Done(Ok(()))))
        );
        let mut got = [0; 200];
        bench.disk.read_meta(4096 + 3950, &mut got).unwrap();
        assert_eq!(got[..50], [0; 50]);
        assert_eq!(got[50..146], [5; 96]);
        assert_eq!(got[146..], [7; 54]);
        bench.disk.write_meta(0, &[8; 4096]).unwrap();
        bench.disk.read_meta(4090, &mut got[..6]).unwrap();
        assert_eq!(got[..6], [8; 6]);
        assert!(bench.disk.write_meta(1, &[8; 4096]).is_err());
        let end = bench
            .disk
            .read_meta((1 << 20) - 2, &mut got[..4])
            .unwrap_err();
        assert_eq!(end.kind(), std::io::ErrorKind::UnexpectedEof);
    }
}

#[test]
fn a_grown_volume_reads_zeroes_beyond_its_old_size() {
    for mut bench in Bench::everywhere(1 << 20) {
        bench.write(0, &vec![7; 1 << 20], false);
        // Someone has made the file longer and left bytes there.
        let file = OpenOptions::new()
            .write(true)
            .open(bench.disk.path())
            .unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 10_000], 1 << 20).unwrap();
        bench
            .disk
            .grow(3 << 20, 2 << 20, &Layout::external())
            .unwrap();
        assert_eq!(bench.disk.volume_bytes(), 3 << 20);
        bench.model.resize(3 << 20, 0);
        bench.check();
        bench.write((3 << 20) - 10, &[2; 10], false);
        bench.check();
        bench
            .disk
            .read_meta((2 << 20) - 4096, &mut [1; 4096])
            .unwrap();
    }
}

#[test]
fn the_engine_follows_what_the_file_can_do() {
    let open = |parent: &str| {
        let dir = tempfile::tempdir_in(parent).unwrap();
        let config = config(&dir, None);
        Disk::create_files(&config, 8192, 8192).unwrap();
        Disk::open(&config).unwrap().engine()
    };
    assert_eq!(open("/dev/shm"), Engine::Sync);
}

#[test]
fn internal_metadata_move_to_the_end_of_a_longer_file_and_only_then_is_their_place_data() {
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let places = Places::in_file(dir.path().join("places/r0-0"));
    let config = DiskConfig {
        path: dir.path().join("r0.img"),
        meta: MetaPlace::Internal(places.clone()),
        engine: None,
    };
    let device_bytes = Layout::device_bytes_for(4 * MIB, 2).unwrap();
    Disk::create_files(&config, 4 * MIB, device_bytes - 4 * MIB).unwrap();
    let disk = Disk::open(&config).unwrap();
    disk.set_volume_bytes(4 * MIB).unwrap();
    disk.metadata_are_at(device_bytes).unwrap();
    let old = Layout::internal(device_bytes, 2).unwrap();
    let page = old.page_offset(1, 0).unwrap();
    let [ring, _] = old.ring_offsets(3);
    disk.write_meta(page, &[1; 4096]).unwrap();
    disk.write_meta(ring, &[2; 4096]).unwrap();

    // More than what is there: it has to move first.
    assert_eq!(disk.grow(9 * MIB, 0, &old), Err(DiskError::NoSpace));
    let moved_to = disk.move_metadata(&old, 9 * MIB).unwrap();
    assert_eq!(
        disk.possible_places().unwrap(),
        vec![moved_to, device_bytes]
    );
    let new = old.grown(moved_to).unwrap();
    assert!(new.usable_data_bytes() >= 9 * MIB && moved_to == disk.store_bytes().unwrap());
    let mut block = [0; 4096];
    disk.read_meta(new.page_offset(1, 0).unwrap(), &mut block)
        .unwrap();
    assert_eq!(block, [1; 4096]);
    disk.read_meta(new.ring_offsets(3)[0], &mut block).unwrap();
    assert_eq!(block, [2; 4096]);
    disk.read_meta(page, &mut block).unwrap();
    assert_eq!(block, [1; 4096], "the old place holds until the switch");

    disk.grow(9 * MIB, 0, &new).unwrap();
    assert_eq!(places.read().unwrap(), vec![moved_to]);
    for offset in (4 * MIB..9 * MIB).step_by(4096) {
        disk.read_meta(offset, &mut block).unwrap();
        assert_eq!(block, [0; 4096], "at {offset}");
    }
}
