//! Where a backing store has holes. Blocks; never on the data plane's thread.

use super::Disk;
use crate::core::Regions;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::os::fd::AsFd as _;
use vocabulary::ByteRange;

/// Most holes in one answer.
const MAX_HOLES: usize = 4096;

impl Disk {
    /// The holes of a file in a range of the volume, which read as zeroes, as far as was looked. What can't
    /// be found out (and all of a block device) counts as data.
    #[must_use]
    pub fn holes(&self, range: ByteRange) -> Regions {
        let end = range.end().min(self.volume_bytes());
        let all = Regions {
            ranges: Vec::new(),
            end: range.end(),
        };
        if self.is_device {
            return all;
        }
        let mut ranges = Vec::new();
        let mut at = range.offset;
        while at < end {
            if ranges.len() == MAX_HOLES {
                return Regions { ranges, end: at };
            }
            let Ok(hole) = self.seek(at, Whence::SeekHole) else {
                break;
            };
            // Beyond the last data there is nothing but the hole.
            let data = match self.seek(hole, Whence::SeekData) {
                Err(Errno::ENXIO) => Ok(end),
                other => other,
            };
            let (Ok(data), true) = (data, hole < end) else {
                break;
            };
            let data = data.min(end);
            if data > hole {
                ranges.push(ByteRange::between(hole, data));
            }
            // A file that changes meanwhile may stand still for once.
            at = data.max(at + 1);
        }
        Regions { ranges, ..all }
    }

    /// The position is the open description's, and nobody else goes by it: all I/O names its place.
    fn seek(&self, at: u64, whence: Whence) -> nix::Result<u64> {
        let at = i64::try_from(at).map_err(|_| Errno::EINVAL)?;
        let found = lseek(self.data.as_fd(), at, whence)?;
        u64::try_from(found).map_err(|_| Errno::EINVAL)
    }
}
