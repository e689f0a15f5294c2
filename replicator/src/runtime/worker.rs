//! Bulk work beside the data plane, on a thread of its own so that digests never delay a client:
//! chunks that resync and verify read and digest (on tokio-uring, many at a time), and growing a
//! store. Results go to whoever started the worker; nothing here waits for the data plane.

use super::disk::{Disk, Engine, disk_error};
use super::pool::{Pool, PoolBuf, PoolMut};
use super::ring::sys;
use crate::core::api::{BlockHash, DiskError};
use crate::store::Layout;
use nix::errno::Errno;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_uring::buf::BoundedBuf;
use vocabulary::{BLOCK_BYTES, ByteRange};

/// Seed of the digest: digests of this purpose are equal to no other use of the function.
const DIGEST_SEED: u64 = u64::from_le_bytes(*b"lockstep");

/// What to do.
#[derive(Debug)]
pub enum Work {
    /// Read a chunk and digest its blocks.
    Hash {
        /// The store.
        disk: Arc<Disk>,
        /// The chunk; the core bounds how many are under way.
        range: ByteRange,
    },
    /// Make room for a larger volume (see [`Disk::grow`]).
    Grow {
        /// The store.
        disk: Arc<Disk>,
        /// The volume's new size in bytes.
        volume_bytes: u64,
        /// Bytes that a side file for the metadata of that volume has.
        meta_bytes: u64,
        /// Where the metadata are.
        layout: Layout,
    },
    /// Copy internal metadata to the store's new end (see [`Disk::move_metadata`]).
    MoveMetadata {
        /// The store.
        disk: Arc<Disk>,
        /// Where they are.
        from: Layout,
        /// The size in bytes that the volume shall have.
        size_bytes: u64,
    },
}

/// How work ended.
#[derive(Debug)]
pub enum WorkDone {
    /// One digest a block and the bytes.
    Hash(Result<(Vec<BlockHash>, PoolBuf), DiskError>),
    /// The store has grown.
    Grow(Result<(), DiskError>),
    /// The metadata were copied to the end of a device of this many bytes.
    MetadataMoved(Result<u64, DiskError>),
}

/// A worker thread. Dropping it lets reads under way end and waits for them; a store that is growing
/// goes on by itself.
#[derive(Debug)]
pub struct Worker<K> {
    queue: Option<UnboundedSender<(K, Work)>>,
    thread: Option<JoinHandle<()>>,
}

impl<K: Send + Copy + 'static> Worker<K> {
    /// Starts the thread. `deliver` gets each result, in any order, possibly from other threads.
    ///
    /// # Errors
    /// Where there can't be another thread.
    pub fn start(
        pool: Pool,
        deliver: impl Fn(K, WorkDone) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let (sender, receiver) = unbounded_channel();
        let thread = std::thread::Builder::new().name("lockstep-work".to_owned()).spawn(move || {
            match tokio_uring::Runtime::new(&tokio_uring::builder()) {
                Ok(runtime) => runtime.block_on(run(receiver, pool, Arc::new(deliver))),
                Err(error) => {
                    tracing::info!(%error, "no io_uring for background work: plain reads instead");
                    run_blocking(receiver, &pool, &Arc::new(deliver));
                }
            }
        })?;
        Ok(Self {
            queue: Some(sender),
            thread: Some(thread),
        })
    }

    /// Hands in work; `key` comes back with its result. Work handed in after the thread died (which
    /// only a defect can do) is lost, and logged.
    pub fn push(&self, key: K, work: Work) {
        if self
            .queue
            .as_ref()
            .is_none_or(|queue| queue.send((key, work)).is_err())
        {
            tracing::error!("the background worker is gone");
        }
    }
}

impl<K> Drop for Worker<K> {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the background worker panicked");
        }
    }
}

async fn run<K: Send + Copy + 'static, F: Fn(K, WorkDone) + Send + Sync + 'static>(
    mut queue: UnboundedReceiver<(K, Work)>,
    pool: Pool,
    deliver: Arc<F>,
) {
    let mut tasks = Vec::new();
    while let Some((key, work)) = queue.recv().await {
        let (disk, range) = match work {
            Work::Hash { disk, range } if disk.engine() == Engine::Uring => (disk, range),
            other => {
                do_blocking(key, other, &pool, &deliver);
                continue;
            }
        };
        let file = match file_of(&disk) {
            Ok(file) => file,
            Err(error) => {
                deliver(key, WorkDone::Hash(Err(error)));
                continue;
            }
        };
        let (pool, deliver) = (pool.clone(), deliver.clone());
        tasks.retain(|task: &tokio::task::JoinHandle<()>| !task.is_finished());
        tasks.push(tokio_uring::spawn(async move {
            let result = read_uring(&file, &disk, &pool, range).await;
            // Before the answer: whoever gets it may be about to open the store anew.
            if let Err(error) = file.close().await {
                tracing::warn!(%error, "closing a store's descriptor");
            }
            drop(disk);
            deliver(
                key,
                WorkDone::Hash(result.map(|bytes| (digests(bytes.bytes()), bytes))),
            );
        }));
    }
    for task in tasks {
        let _ = task.await;
    }
}

fn run_blocking<K: Send + 'static, F: Fn(K, WorkDone) + Send + Sync + 'static>(
    mut queue: UnboundedReceiver<(K, Work)>,
    pool: &Pool,
    deliver: &Arc<F>,
) {
    while let Some((key, work)) = queue.blocking_recv() {
        do_blocking(key, work, pool, deliver);
    }
}

fn do_blocking<K: Send + 'static, F: Fn(K, WorkDone) + Send + Sync + 'static>(
    key: K,
    work: Work,
    pool: &Pool,
    deliver: &Arc<F>,
) {
    match work {
        Work::Hash { disk, range } => {
            let result = read_blocking(&disk, pool, range);
            drop(disk);
            deliver(
                key,
                WorkDone::Hash(result.map(|bytes| (digests(bytes.bytes()), bytes))),
            );
        }
        // Zeroing a device may take minutes; resync goes on beside it.
        Work::Grow {
            disk,
            volume_bytes,
            meta_bytes,
            layout,
        } => {
            let deliver = deliver.clone();
            std::thread::spawn(move || {
                let result = disk.grow(volume_bytes, meta_bytes, &layout);
                drop(disk);
                deliver(key, WorkDone::Grow(result));
            });
        }
        Work::MoveMetadata {
            disk,
            from,
            size_bytes,
        } => {
            let deliver = deliver.clone();
            std::thread::spawn(move || {
                let result = disk.move_metadata(&from, size_bytes);
                drop(disk);
                deliver(key, WorkDone::MetadataMoved(result));
            });
        }
    }
}

/// A descriptor of the very same open description, so the store's lock covers what is under way here.
fn file_of(disk: &Disk) -> Result<tokio_uring::fs::File, DiskError> {
    let descriptor = disk
        .data_fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| DiskError::Io(error.raw_os_error().unwrap_or(Errno::EIO as i32)))?;
    Ok(tokio_uring::fs::File::from_std(File::from(descriptor)))
}

/// The chunk widened to what the store can read, and where the chunk is in it.
fn widened(disk: &Disk, range: ByteRange) -> Result<(ByteRange, usize, usize), DiskError> {
    if range.is_empty() || range.end() > disk.volume_bytes() {
        return Err(disk_error(Errno::EINVAL));
    }
    let wide = range.outward(disk.align());
    let skip = usize::try_from(range.offset - wide.offset);
    let len = usize::try_from(range.len);
    match (skip, len) {
        (Ok(skip), Ok(len)) => Ok((wide, skip, len)),
        _ => Err(disk_error(Errno::EINVAL)),
    }
}

fn buffer_of(pool: &Pool, wide: ByteRange) -> Result<(PoolMut, usize), DiskError> {
    let len = usize::try_from(wide.len).map_err(|_| disk_error(Errno::EINVAL))?;
    pool.get(len)
        .map(|buffer| (buffer, len))
        .ok_or(disk_error(Errno::EINVAL))
}

async fn read_uring(
    file: &tokio_uring::fs::File,
    disk: &Disk,
    pool: &Pool,
    range: ByteRange,
) -> Result<PoolBuf, DiskError> {
    let (wide, skip, len) = widened(disk, range)?;
    let (mut buffer, wide_len) = buffer_of(pool, wide)?;
    let mut got = 0;
    while got < skip + len {
        let at = wide.offset + u64::try_from(got).unwrap_or(u64::MAX);
        let (result, part) = file.read_at(buffer.slice(got..wide_len), at).await;
        buffer = part.into_inner();
        match result {
            Ok(0) => return Err(disk_error(Errno::EIO)),
            Ok(count) => got += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(disk_error(
                    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
                ));
            }
        }
    }
    Ok(buffer.freeze(skip, len))
}

fn read_blocking(disk: &Disk, pool: &Pool, range: ByteRange) -> Result<PoolBuf, DiskError> {
    let (wide, skip, len) = widened(disk, range)?;
    let (mut buffer, wide_len) = buffer_of(pool, wide)?;
    let mut got = 0;
    while got < skip + len {
        let at = wide.offset + u64::try_from(got).unwrap_or(u64::MAX);
        match sys::read_at(
            disk.data_fd().as_fd(),
            at,
            &mut buffer.space()[got..wide_len],
            0,
        ) {
            Ok(0) => return Err(disk_error(Errno::EIO)),
            Ok(count) => got += count,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(disk_error(errno)),
        }
    }
    Ok(buffer.freeze(skip, len))
}

/// One digest for each 4 KiB block: XXH3 of 128 bits, [`BlockHash::ZERO`] for blocks of zeroes and for
/// no others. A short last block is digested as it is.
#[must_use]
pub fn digests(bytes: &[u8]) -> Vec<BlockHash> {
    let block_bytes = usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX);
    bytes.chunks(block_bytes).map(digest).collect()
}

fn digest(block: &[u8]) -> BlockHash {
    if is_zero(block) {
        return BlockHash::ZERO;
    }
    let digest = xxhash_rust::xxh3::xxh3_128_with_seed(block, DIGEST_SEED);
    // 0 is taken: in the one case of 2^128 the digest is 1.
    BlockHash(digest.max(1))
}

fn is_zero(block: &[u8]) -> bool {
    let (words, rest) = block.as_chunks::<64>();
    words.iter().all(|word| *word == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests;
