//! Writers whose every block tells which write it came from, so that a lost, torn or misplaced write
//! shows. Each writer owns its blocks: for each it knows what was sent and what was acknowledged.

use super::nbd::Client;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

const BLOCK_BYTES: u32 = 4096;

/// The contents of a block: (block number, sequence number) over and over.
fn stamp(block: u64, sequence: u64) -> Vec<u8> {
    let unit: Vec<u8> = [block.to_be_bytes(), sequence.to_be_bytes()].concat();
    unit.repeat(BLOCK_BYTES as usize / unit.len())
}

/// The sequence number that a block's contents carry, 0 when it was never written.
fn sequence_of(block: u64, data: &[u8]) -> Result<u64, String> {
    if data.iter().all(|&byte| byte == 0) {
        return Ok(0);
    }
    let sequence = u64::from_be_bytes(data[8..16].try_into().expect("eight bytes"));
    if data == stamp(block, sequence) {
        Ok(sequence)
    } else {
        Err(format!(
            "block {block} is torn or of another block: {:02x?}...",
            &data[..32]
        ))
    }
}

/// What one writer knows of its blocks.
#[derive(Debug)]
pub(crate) struct History {
    first_block: u64,
    sent: Vec<u64>,
    acknowledged: Vec<u64>,
    /// Why it ended, when not because it was told to.
    pub(crate) error: Option<io::Error>,
}

impl History {
    /// How many writes were acknowledged.
    pub(crate) fn acknowledged_writes(&self) -> u64 {
        self.acknowledged.iter().sum()
    }

    /// Every block must hold its last acknowledged write or one that was sent after it.
    pub(crate) fn check(&self, client: &mut Client) -> Result<(), String> {
        let known = self.sent.iter().zip(&self.acknowledged);
        for (block, (&sent, &acknowledged)) in (self.first_block..).zip(known) {
            let data = client
                .read(block * u64::from(BLOCK_BYTES), BLOCK_BYTES)
                .map_err(|error| format!("read of block {block}: {error}"))?;
            let found = sequence_of(block, &data)?;
            if found < acknowledged {
                return Err(format!(
                    "block {block}: write {acknowledged} was acknowledged, write {found} is there"
                ));
            }
            if found > sent {
                return Err(format!(
                    "block {block}: write {found} is there, none after {sent} was sent"
                ));
            }
        }
        Ok(())
    }
}

/// Several writers, each with a connection and blocks of its own.
#[derive(Debug)]
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    threads: Vec<JoinHandle<History>>,
}

impl Writers {
    /// Starts `count` writers on an export, each on `blocks_each` blocks.
    pub(crate) fn start(port: u16, export: &str, count: u64, blocks_each: u64) -> Self {
        let open = || Client::connect(port, export).expect("the export can be opened");
        Self::start_on(open, 0, count, blocks_each)
    }

    /// The same on connections that are opened so, from this block on.
    pub(crate) fn start_on(
        open: impl Fn() -> Client,
        first_block: u64,
        count: u64,
        blocks_each: u64,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let threads = (0..count)
            .map(|writer| {
                let client = open();
                let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
                std::thread::spawn(move || {
                    write(
                        client,
                        first_block + writer * blocks_each,
                        blocks_each,
                        &stop,
                        &acknowledged,
                    )
                })
            })
            .collect();
        Self {
            stop,
            acknowledged,
            threads,
        }
    }

    /// Writes that were acknowledged so far, of all writers.
    pub(crate) fn acknowledged_writes(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many more writes are acknowledged: then others are on their way, too.
    pub(crate) fn get_on(&self, more: u64) {
        let goal = self.acknowledged_writes() + more;
        super::wait_for("the writers to get on", super::SOON, || {
            let now = self.acknowledged_writes();
            if now >= goal {
                Ok(())
            } else {
                Err(format!("{now} of {goal} writes"))
            }
        });
    }

    /// Ends the writers, unless errors have ended them, and tells what they know.
    pub(crate) fn finish(self) -> Vec<History> {
        self.stop.store(true, Ordering::Relaxed);
        let join = |thread: JoinHandle<History>| thread.join().expect("a writer does not panic");
        self.threads.into_iter().map(join).collect()
    }
}

fn write(
    mut client: Client,
    first_block: u64,
    blocks: u64,
    stop: &AtomicBool,
    acknowledged: &AtomicU64,
) -> History {
    let len = usize::try_from(blocks).expect("a small number");
    let mut history = History {
        first_block,
        sent: vec![0; len],
        acknowledged: vec![0; len],
        error: None,
    };
    // The stride is prime, so that every block has its turn, in a scattered order.
    for index in (0_usize..).step_by(7919).map(|step| step % len) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let block = first_block + u64::try_from(index).expect("a small number");
        let sequence = history.sent[index] + 1;
        history.sent[index] = sequence;
        if let Err(error) = client.write(block * u64::from(BLOCK_BYTES), &stamp(block, sequence)) {
            history.error = Some(error);
            break;
        }
        history.acknowledged[index] = sequence;
        acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    history
}
