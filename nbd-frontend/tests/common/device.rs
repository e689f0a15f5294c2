//! A device in memory, shared by all of its connections. It completes what is submitted in reverse
//! order, which no client may mind.

use std::sync::{Arc, Mutex};

use nbd_frontend::{BlockDevice, Command, Completion, ExportInfo, NbdError, Outcome, Request, Tag};

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
            (Command::Flush | Command::Cache, _) => {}
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
