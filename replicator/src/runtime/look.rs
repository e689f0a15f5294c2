//! Looks for the holes of backing stores on a thread of its own: a file system may have to read its
//! maps for that, and no client's request waits for it.

use super::disk::Disk;
use crate::core::Regions;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use vocabulary::ByteRange;

struct Job<K> {
    key: K,
    disk: Arc<Disk>,
    range: ByteRange,
}

/// The thread. Dropping it lets what was asked end and waits for that.
#[derive(Debug)]
pub(super) struct Looker<K> {
    queue: Option<Sender<Job<K>>>,
    thread: Option<JoinHandle<()>>,
}

impl<K: Send + 'static> Looker<K> {
    /// Starts the thread. `deliver` gets each answer (see [`Disk::holes`]), in their order.
    pub(super) fn start(deliver: impl Fn(K, Regions) + Send + 'static) -> io::Result<Self> {
        let (queue, jobs) = channel::<Job<K>>();
        let thread = std::thread::Builder::new()
            .name("lockstep-look".to_owned())
            .spawn(move || {
                for Job { key, disk, range } in jobs {
                    let holes = disk.holes(range);
                    // Before the answer: whoever gets it may be about to open the store anew.
                    drop(disk);
                    deliver(key, holes);
                }
            })?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
        })
    }

    /// Hands in a question; how many are under way, whoever asks bounds.
    pub(super) fn push(&self, key: K, disk: Arc<Disk>, range: ByteRange) {
        let job = Job { key, disk, range };
        if self
            .queue
            .as_ref()
            .is_none_or(|queue| queue.send(job).is_err())
        {
            tracing::error!("the thread that looks for holes is gone");
        }
    }
}

impl<K> Drop for Looker<K> {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that looks for holes panicked");
        }
    }
}
