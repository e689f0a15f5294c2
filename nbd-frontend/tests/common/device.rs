//! A device in memory, shared by all of its connections. It completes what is submitted in reverse
//! order, which no client may mind.

use std::sync::{Arc, Mutex};

use nbd_frontend::{
    BlockDevice, Command, Completion, ExportInfo, Extent, HOLE, NbdError, Outcome, Request, Tag,
    ZERO,
};

/// Unit of the statuses.
const BLOCK: u64 = 64 << 10;

/// What the connections of one device share.
#[derive(Debug)]
pub struct Disk {
    pub bytes: Mutex<Vec<u8>>,
    /// Commands that arrived, with their flags, for tests that ask whether one did.
    pub seen: Mutex<Vec<Request>>,
}

impl Disk {
    pub fn new(size_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(vec![0; usize::try_from(size_bytes).unwrap()]),
            seen: Mutex::new(Vec::new()),
        })
    }
}

/// One connection's view of a disk.
#[derive(Debug)]
pub struct MemoryDevice {
    info: ExportInfo,
    disk: Arc<Disk>,
    /// Every READ and WRITE fails.
    broken: bool,
    done: Vec<Completion<Vec<u8>>>,
}

impl MemoryDevice {
    pub fn new(info: ExportInfo, disk: Arc<Disk>) -> Self {
        Self {
            broken: info.name == "broken",
            info,
            disk,
            done: Vec::new(),
        }
    }

    /// Where the disk is zero, in blocks; and which of these blocks are odd ones.
    pub fn extents(&self, request: &Request) -> Vec<(usize, Vec<Extent>)> {
        let bytes = self.disk.bytes.lock().unwrap();
        let mut answers: Vec<_> = request
            .contexts
            .places()
            .map(|place| (place, Vec::new()))
            .collect();
        let (mut at, end) = (request.offset, request.offset + request.length);
        while at < end {
            let to = ((at / BLOCK + 1) * BLOCK).min(end);
            let block = &bytes[usize::try_from(at).unwrap()..usize::try_from(to).unwrap()];
            for (place, extents) in &mut answers {
                let is_zero = block.iter().all(|byte| *byte == 0);
                let flags = match place {
                    0 if is_zero => HOLE | ZERO,
                    0 => 0,
                    _ => u32::from(!(at / BLOCK).is_multiple_of(2)),
                };
                extents.push(Extent {
                    length: to - at,
                    flags,
                });
            }
            at = to;
        }
        answers
    }

    fn apply(&self, request: &Request, buffer: Option<&mut Vec<u8>>) -> Outcome {
        self.disk.seen.lock().unwrap().push(*request);
        if self.broken && request.payload_bytes() > 0 {
            return Outcome::Failed(NbdError::Io);
        }
        let mut bytes = self.disk.bytes.lock().unwrap();
        let start = usize::try_from(request.offset).unwrap();
        let range = &mut bytes[start..][..usize::try_from(request.length).unwrap()];
        match (request.command, buffer) {
            (Command::Read, Some(buffer)) => {
                if range.iter().all(|byte| *byte == 0) {
                    return Outcome::Zeroes;
                }
                buffer[..range.len()].copy_from_slice(range);
            }
            (Command::Write, Some(buffer)) => range.copy_from_slice(&buffer[..range.len()]),
            (Command::Read | Command::Write, None) => panic!("a payload without buffer"),
            (Command::Trim | Command::WriteZeroes, _) => range.fill(0),
            (Command::Flush | Command::Cache | Command::BlockStatus, _) => {}
        }
        Outcome::Done
    }
}

impl BlockDevice for MemoryDevice {
    type Buffer = Vec<u8>;

    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    fn submit(&mut self, tag: Tag, request: Request, mut buffer: Option<Vec<u8>>) {
        let outcome = self.apply(&request, buffer.as_mut());
        self.done.push(Completion {
            tag,
            request,
            outcome,
            buffer,
        });
    }

    fn next_completion(&mut self) -> Option<Completion<Vec<u8>>> {
        self.done.pop()
    }
}
