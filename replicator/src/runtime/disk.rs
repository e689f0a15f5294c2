//! A volume's backing store: a (sparse) file or a block device, and where its metadata is kept. Opens
//! it so that nobody else can use it, finds out what it can do, and does the slow work of attaching
//! and growing with plain blocking calls. Requests of the running data plane are `disk::io`.

mod holes;
pub mod io;
pub mod places;
mod zeroing;

use self::places::Places;
use self::zeroing::Zeroing;
use super::pool::{ALIGN, Pool};
use super::ring::{Fd, sys};
use crate::core::api::DiskError;
use crate::store::relocation::copies;
use crate::store::{Layout, LayoutError, Placement};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::sys::statfs::{FsType, TMPFS_MAGIC, fstatfs};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::fs::MetadataExt as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use vocabulary::{BLOCK_BYTES, ByteRange};

/// Bytes of one step when zeroes are written by hand.
const ZERO_STEP_BYTES: usize = 1 << 20;

/// Bytes of one `fallocate`: long ones hold the inode's lock, and others wait for it.
const ALLOCATE_STEP_BYTES: u64 = 256 << 20;

/// `RAMFS_MAGIC` of linux/magic.h.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// Why a backing store can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The system refuses.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or device.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error(
        "{path} is in use by another process (it is locked); stop that process first",
        path = path.display()
    )]
    Locked {
        /// The file or device.
        path: PathBuf,
    },
    /// Neither a file nor a block device.
    #[error("{path} is neither a regular file nor a block device", path = path.display())]
    WrongKind {
        /// What it was.
        path: PathBuf,
    },
    /// It is shorter than the volume that it should hold.
    #[error(
        "{path} has {found_bytes} bytes, the volume needs {needed_bytes}: it was truncated or \
         is another file",
        path = path.display()
    )]
    TooShort {
        /// The file or device.
        path: PathBuf,
        /// Its size.
        found_bytes: u64,
        /// The volume's size.
        needed_bytes: u64,
    },
}

/// Where the metadata of a volume is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaPlace {
    /// In a file of its own.
    SideFile(PathBuf),
    /// In the backing store itself, behind the data.
    Internal(Places),
}

impl MetaPlace {
    /// The default for files: `<path>.meta`.
    #[must_use]
    pub fn beside(path: &Path) -> Self {
        let mut name = path.as_os_str().to_owned();
        name.push(".meta");
        Self::SideFile(name.into())
    }
}

/// How requests reach the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Through the ring, asynchronously.
    Uring,
    /// By plain system calls in the data plane's thread: for stores where io_uring would hand each
    /// request to a kernel thread (tmpfs, loop, zram), which takes several times as long.
    Sync,
}

/// What to open.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// The file or block device.
    pub path: PathBuf,
    /// Where its metadata is.
    pub meta: MetaPlace,
    /// `None`: found out by a probe.
    pub engine: Option<Engine>,
}

/// An open backing store. Its lock is held on the very open description that carries the I/O, so a
/// successor can't be overtaken by requests of its predecessor (RULES 5).
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    data: Fd,
    meta: Fd,
    /// Where internal metadata lie; `None` where they have a file.
    places: Option<Places>,
    is_device: bool,
    /// Memory file systems: no stable storage below, a flush is nothing.
    in_memory: bool,
    engine: Engine,
    zeroing: Zeroing,
    /// Unit of offsets, lengths and memory that `data` takes: 1 where it is buffered.
    align: u64,
    meta_align: u64,
    volume_bytes: AtomicU64,
    failed: AtomicBool,
    checked: AtomicU64,
}

/// What the kernel told about an opened file.
struct Opened {
    file: File,
    is_device: bool,
    in_memory: bool,
    align: u64,
}

impl Disk {
    /// Makes a new sparse file of `data_bytes` (rounded up to whole blocks) and, unless the metadata
    /// is internal, a metadata file of `meta_bytes`. Both must not exist.
    ///
    /// # Errors
    /// [`OpenError`]; a file that was made before the error is removed.
    pub fn create_files(
        config: &DiskConfig,
        data_bytes: u64,
        meta_bytes: u64,
    ) -> Result<(), OpenError> {
        let make = |path: &Path, bytes: u64| {
            let wrap = |source| OpenError::Io {
                path: path.to_owned(),
                source,
            };
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
                .map_err(wrap)?;
            let result = file
                .set_len(bytes)
                .and_then(|()| file.sync_all())
                .map_err(wrap);
            if result.is_err() {
                let _ = std::fs::remove_file(path);
            }
            result
        };
        let data_bytes = data_bytes.next_multiple_of(BLOCK_BYTES);
        match &config.meta {
            MetaPlace::Internal(_) => make(&config.path, data_bytes + meta_bytes)?,
            MetaPlace::SideFile(side) => {
                make(&config.path, data_bytes)?;
                if let Err(error) = make(side, meta_bytes) {
                    let _ = std::fs::remove_file(&config.path);
                    return Err(error);
                }
            }
        }
        // The names must last too, else a power loss leaves a replica without its file.
        for path in [Some(&config.path), config.side_file()]
            .into_iter()
            .flatten()
        {
            if let Some(parent) = path.parent() {
                let parent = if parent.as_os_str().is_empty() {
                    Path::new(".")
                } else {
                    parent
                };
                File::open(parent)
                    .and_then(|dir| dir.sync_all())
                    .map_err(|source| OpenError::Io {
                        path: parent.to_owned(),
                        source,
                    })?;
            }
        }
        Ok(())
    }

    /// Opens and locks a store that exists.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(config: &DiskConfig) -> Result<Self, OpenError> {
        let data = open_locked(&config.path)?;
        let wrap = |source| OpenError::Io {
            path: config.path.clone(),
            source,
        };
        let (meta, meta_align) = match config.side_file() {
            Some(side) => {
                let side = open_locked(side)?;
                (Some(side.file), side.align)
            }
            None => (None, data.align),
        };
        let engine = match config.engine {
            Some(engine) => engine,
            None => probe_engine(&data).map_err(wrap)?,
        };
        let zeroing = Zeroing::probe(&data, &config.path);
        let data_fd: Fd = Arc::new(data.file.into());
        let places = match &config.meta {
            MetaPlace::SideFile(_) => None,
            MetaPlace::Internal(places) => Some(places.clone()),
        };
        let meta = meta.map_or_else(|| Arc::clone(&data_fd), |file| Arc::new(file.into()));
        Ok(Self {
            path: config.path.clone(),
            data: data_fd,
            meta,
            places,
            is_device: data.is_device,
            in_memory: data.in_memory,
            engine,
            zeroing,
            align: data.align,
            meta_align,
            volume_bytes: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            checked: AtomicU64::new(0),
        })
    }

    /// Says how large the volume on this store is, once its metadata has been read. A file is filled
    /// up to whole blocks.
    ///
    /// # Errors
    /// [`OpenError::TooShort`] where the store can't hold it.
    pub fn set_volume_bytes(&self, bytes: u64) -> Result<(), OpenError> {
        let wrap = |source| OpenError::Io {
            path: self.path.clone(),
            source,
        };
        let found_bytes = self.store_bytes().map_err(wrap)?;
        if found_bytes < bytes {
            let path = self.path.clone();
            return Err(OpenError::TooShort {
                path,
                found_bytes,
                needed_bytes: bytes,
            });
        }
        let rounded = bytes.next_multiple_of(BLOCK_BYTES);
        if !self.is_device && found_bytes < rounded {
            set_len(self.data.as_fd(), rounded).map_err(|e| wrap(e.into()))?;
        }
        self.volume_bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// The volume's size, 0 before it is known.
    #[must_use]
    pub fn volume_bytes(&self) -> u64 {
        self.volume_bytes.load(Ordering::Relaxed)
    }

    /// Size of the whole store in bytes: of the file or device, internal metadata included.
    ///
    /// # Errors
    /// What the system reports.
    pub fn store_bytes(&self) -> std::io::Result<u64> {
        file_bytes(self.data.as_fd(), self.is_device)
    }

    /// Where the store is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How requests reach it.
    #[must_use]
    pub const fn engine(&self) -> Engine {
        self.engine
    }

    /// Unit that requests are widened to, in bytes; 1 where that is not needed.
    #[must_use]
    pub const fn align(&self) -> u64 {
        self.align
    }

    /// The descriptor of the data, on the locked open description.
    #[must_use]
    pub const fn data_fd(&self) -> &Fd {
        &self.data
    }

    /// Reads metadata at its offset in the metadata file, or in the store where it is internal.
    ///
    /// # Errors
    /// What the system reports; `UnexpectedEof` beyond the end.
    pub fn read_meta(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        let length = u64::try_from(into.len()).unwrap_or(u64::MAX);
        let Some(range) = ByteRange::new(offset, length) else {
            return Err(std::io::ErrorKind::InvalidInput.into());
        };
        let wide = range.outward(self.meta_align);
        let pool = Pool::new(usize::MAX, 0);
        let mut at = wide.offset;
        while at < wide.end() {
            let step = usize::try_from(wide.end() - at)
                .map_or(ZERO_STEP_BYTES, |n| n.min(ZERO_STEP_BYTES));
            let mut buffer = pool.get(step).ok_or(std::io::ErrorKind::OutOfMemory)?;
            read_exactly(self.meta.as_fd(), at, &mut buffer.space()[..step])?;
            let end = at + u64::try_from(step).unwrap_or(u64::MAX);
            if let Some(part) = range.intersection(ByteRange::between(at, end)) {
                let index = |position: u64| usize::try_from(position).unwrap_or(usize::MAX);
                let from = index(part.offset - at);
                let len = index(part.len);
                let to = index(part.offset - range.offset);
                into[to..to + len].copy_from_slice(&buffer.bytes()[from..from + len]);
            }
            at = end;
        }
        Ok(())
    }

    /// Writes metadata, whole blocks, and waits until it is on stable storage.
    ///
    /// # Errors
    /// What the system reports; `InvalidInput` for what is not whole blocks.
    pub fn write_meta(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        if !offset.is_multiple_of(BLOCK_BYTES) || !bytes.len().is_multiple_of(ALIGN) {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        let pool = Pool::new(usize::MAX, 0);
        let mut at = offset;
        for step in bytes.chunks(ZERO_STEP_BYTES) {
            let buffer = pool.copy_of(step).ok_or(std::io::ErrorKind::OutOfMemory)?;
            write_exactly(self.meta.as_fd(), at, buffer.bytes(), libc::RWF_DSYNC)?;
            at += u64::try_from(step.len()).unwrap_or(u64::MAX);
        }
        // RWF_DSYNC covers the file's length too; this is for stores that do not honour the flag.
        nix::unistd::fdatasync(self.meta.as_fd())?;
        Ok(())
    }

    /// Copies internal metadata, all but the superblock, to the end of a store that holds a volume of
    /// `data_bytes` before it, clear of where they are: a device has to have grown already, a file is
    /// made longer. The size that the store then has is where the superblock goes next. Durable.
    /// Blocks; runs on the worker.
    ///
    /// # Errors
    /// [`DiskError::NoSpace`] where a device is too small, or where metadata have a file of their own.
    pub fn move_metadata(&self, from: &Layout, data_bytes: u64) -> Result<u64, DiskError> {
        let io = |error: std::io::Error| disk_error(errno_of(&error));
        let Some(places) = &self.places else {
            return Err(DiskError::NoSpace);
        };
        let wanted = |device_bytes| match from.grown(device_bytes) {
            Ok(new) if new.usable_data_bytes() >= data_bytes => Ok(new),
            Ok(new) => Err(Layout::device_bytes_for(data_bytes, new.slots()).ok()),
            Err(LayoutError::Overlap { needed_bytes, .. }) => Err(Some(needed_bytes)),
            Err(_) => Err(None),
        };
        let mut device_bytes = self.store_bytes().map_err(io)?;
        let new = loop {
            match wanted(device_bytes) {
                Ok(new) => break new,
                // Each time longer than before.
                Err(Some(needed)) if !self.is_device && needed > device_bytes => {
                    set_len(self.data.as_fd(), needed).map_err(disk_error)?;
                    device_bytes = needed;
                }
                Err(needed) => {
                    tracing::warn!(
                        path = %self.path.display(), device_bytes, needed_bytes = needed,
                        "the device has no room for a volume of {data_bytes} bytes and metadata clear of the old ones"
                    );
                    return Err(DiskError::NoSpace);
                }
            }
        };
        places.add(device_bytes).map_err(io)?;
        self.zero_blocking(new.area()).map_err(disk_error)?;
        for copy in copies(from, &new) {
            self.copy_blocking(copy.from, copy.to).map_err(io)?;
        }
        nix::unistd::fsync(self.data.as_fd()).map_err(disk_error)?;
        Ok(device_bytes)
    }

    /// Copies within the store; both places are whole blocks.
    fn copy_blocking(&self, from: ByteRange, to: u64) -> std::io::Result<()> {
        let pool = Pool::new(usize::MAX, 0);
        let mut done = 0;
        while done < from.len {
            let step = usize::try_from(from.len - done)
                .map_or(ZERO_STEP_BYTES, |left| left.min(ZERO_STEP_BYTES));
            let mut buffer = pool.get(step).ok_or(std::io::ErrorKind::OutOfMemory)?;
            let space = &mut buffer.space()[..step];
            read_exactly(self.data.as_fd(), from.offset + done, space)?;
            // Bitmaps are mostly blank, and the new place reads as zeroes: it stays sparse.
            if space.iter().any(|byte| *byte != 0) {
                write_exactly(self.data.as_fd(), to + done, space, 0)?;
            }
            done += u64::try_from(step).unwrap_or(u64::MAX);
        }
        Ok(())
    }

    /// Internal metadata were found for, or now lie at the end of, a store of this size; no other
    /// place counts any more.
    ///
    /// # Errors
    /// What the system reports.
    pub fn metadata_are_at(&self, device_bytes: u64) -> std::io::Result<()> {
        match &self.places {
            Some(places) => places.only(device_bytes),
            None => Ok(()),
        }
    }

    /// The sizes at whose end internal metadata may lie, the most likely first.
    ///
    /// # Errors
    /// What the system reports; `InvalidData` where the list of places is damaged.
    pub fn possible_places(&self) -> std::io::Result<Vec<u64>> {
        let now = self.store_bytes()?;
        let mut sizes = match &self.places {
            Some(places) => places.read()?,
            None => Vec::new(),
        };
        sizes.retain(|size| *size <= now);
        sizes.reverse();
        if !sizes.contains(&now) {
            sizes.push(now);
        }
        Ok(sizes)
    }

    /// Makes room for a volume of `new_bytes`: what lies between the old size and the new one reads
    /// as zeroes afterwards, durably. A side file for metadata gets at least `meta_bytes`; internal
    /// ones are at `layout`, behind the new volume. Blocks; runs on the worker. The volume's size is
    /// the new one afterwards.
    ///
    /// # Errors
    /// [`DiskError::NoSpace`] where a device is too small.
    pub fn grow(&self, new_bytes: u64, meta_bytes: u64, layout: &Layout) -> Result<(), DiskError> {
        let old_bytes = self.volume_bytes();
        if new_bytes <= old_bytes {
            return Ok(());
        }
        if new_bytes > layout.usable_data_bytes() {
            return Err(DiskError::NoSpace);
        }
        let io = |error: std::io::Error| disk_error(errno_of(&error));
        if let Placement::Internal { device_bytes } = layout.placement() {
            // What is zeroed below may be the metadata's old place.
            self.metadata_are_at(device_bytes).map_err(io)?;
        }
        let store_bytes = self.store_bytes().map_err(io)?;
        let rounded = new_bytes.next_multiple_of(BLOCK_BYTES);
        if self.is_device {
            if store_bytes < new_bytes {
                return Err(DiskError::NoSpace);
            }
        } else if store_bytes < rounded {
            set_len(self.data.as_fd(), rounded).map_err(disk_error)?;
        }
        // What was there before may hold anything; what set_len added is zero already.
        let dirty = ByteRange::between(old_bytes, store_bytes.min(new_bytes));
        self.zero_blocking(dirty).map_err(disk_error)?;
        nix::unistd::fsync(self.data.as_fd()).map_err(disk_error)?;
        let short = file_bytes(self.meta.as_fd(), false).map_err(io)? < meta_bytes;
        if self.places.is_none() && short {
            set_len(self.meta.as_fd(), meta_bytes).map_err(disk_error)?;
            nix::unistd::fsync(self.meta.as_fd()).map_err(disk_error)?;
        }
        self.volume_bytes.store(new_bytes, Ordering::Relaxed);
        Ok(())
    }

    fn zero_blocking(&self, range: ByteRange) -> nix::Result<()> {
        let unit = if self.is_device {
            self.align.max(512)
        } else {
            1
        };
        let inner = range.inward(unit);
        if inner.is_empty() {
            return self.write_zeroes(range);
        }
        self.write_zeroes(ByteRange::between(range.offset, inner.offset))?;
        let mut at = inner.offset;
        while at < inner.end() {
            let len = ALLOCATE_STEP_BYTES.min(inner.end() - at);
            let step = ByteRange { offset: at, len };
            match punch(self.data.as_fd(), step) {
                Ok(()) => {}
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => self.write_zeroes(step)?,
                Err(error) => return Err(error),
            }
            at += len;
        }
        self.write_zeroes(ByteRange::between(inner.end(), range.end()))
    }

    /// Writes zeroes by hand, reading what shares a unit with them.
    fn write_zeroes(&self, range: ByteRange) -> nix::Result<()> {
        let pool = Pool::new(usize::MAX, 0);
        let mut at = range.offset;
        while at < range.end() {
            let wide = ByteRange {
                offset: at,
                len: range.end() - at,
            }
            .outward(self.align);
            let wide_len = usize::try_from(wide.len)
                .unwrap_or(usize::MAX)
                .min(ZERO_STEP_BYTES);
            let mut buffer = pool.get(wide_len).ok_or(Errno::ENOMEM)?;
            let space = &mut buffer.space()[..wide_len];
            let end = wide.offset + u64::try_from(wide_len).unwrap_or(u64::MAX);
            let part = ByteRange::between(at, end.min(range.end()));
            if part.len < u64::try_from(wide_len).unwrap_or(u64::MAX) {
                read_exactly(self.data.as_fd(), wide.offset, space).map_err(|e| errno_of(&e))?;
            }
            let from = usize::try_from(part.offset - wide.offset).unwrap_or(0);
            let len = usize::try_from(part.len).unwrap_or(0);
            space[from..from + len].fill(0);
            write_exactly(self.data.as_fd(), wide.offset, space, 0).map_err(|e| errno_of(&e))?;
            at = part.end();
        }
        Ok(())
    }

    /// Has the store shrunk below its volume? Checked now and then: a write to a truncated file would
    /// make it long again, and what was cut off would read as zeroes instead of failing.
    fn check_length(&self) -> Result<(), DiskError> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(DiskError::Io(libc::EIO));
        }
        if !self.is_device
            && self
                .store_bytes()
                .is_ok_and(|bytes| bytes < self.volume_bytes())
        {
            tracing::error!(path = %self.path.display(), "the backing file was truncated");
            self.failed.store(true, Ordering::Relaxed);
            return Err(DiskError::Io(libc::EIO));
        }
        Ok(())
    }
}

impl DiskConfig {
    fn side_file(&self) -> Option<&PathBuf> {
        match &self.meta {
            MetaPlace::SideFile(path) => Some(path),
            MetaPlace::Internal(_) => None,
        }
    }
}

/// The error as the core knows it.
pub(crate) const fn disk_error(errno: Errno) -> DiskError {
    match errno {
        Errno::ENOSPC | Errno::EDQUOT => DiskError::NoSpace,
        other => DiskError::Io(other as i32),
    }
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn open_locked(path: &Path) -> Result<Opened, OpenError> {
    let wrap = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    let kind = std::fs::metadata(path).map_err(wrap)?.file_type();
    let is_device = kind.is_block_device();
    if !is_device && !kind.is_file() {
        return Err(OpenError::WrongKind {
            path: path.to_owned(),
        });
    }
    // O_EXCL on a block device: refused while it is mounted or part of something.
    let exclusive = if is_device { libc::O_EXCL } else { 0 };
    let open = |flags| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)
    };
    let mut direct = true;
    let file = match open(exclusive | libc::O_DIRECT) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            direct = false;
            open(exclusive)
        }
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            return Err(OpenError::Locked {
                path: path.to_owned(),
            });
        }
        other => other,
    }
    .map_err(wrap)?;
    lock(&file, path)?;
    let magic = fstatfs(&file)
        .map_err(|e| wrap(e.into()))?
        .filesystem_type();
    let in_memory = !is_device && (magic == TMPFS_MAGIC || magic == RAMFS_MAGIC);
    // Memory file systems take O_DIRECT and copy all the same: no need to widen anything.
    let align = if direct && !in_memory {
        direct_align(&file, is_device)
    } else {
        1
    };
    Ok(Opened {
        file,
        is_device,
        in_memory,
        align,
    })
}

/// Locks the open description until its last descriptor is closed. (`nix::fcntl::Flock` would unlock
/// when its owner is dropped, while operations in flight still hold the descriptor.)
fn lock(file: &File, path: &Path) -> Result<(), OpenError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::Locked {
            path: path.to_owned(),
        }),
        Err(std::fs::TryLockError::Error(source)) => Err(OpenError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

/// The unit of direct I/O: the device's logical block, or for a file what a read of 512 bytes shows.
fn direct_align(file: &File, is_device: bool) -> u64 {
    const SECTOR: usize = 512;
    if is_device {
        let block = sysfs_queue(file, "logical_block_size").and_then(|text| text.parse().ok());
        return block
            .filter(|size: &u64| size.is_power_of_two())
            .unwrap_or(BLOCK_BYTES);
    }
    let pool = Pool::new(usize::MAX, 0);
    let Some(mut buffer) = pool.get(2 * SECTOR) else {
        return BLOCK_BYTES;
    };
    match sys::read_at(
        file.as_fd(),
        512,
        &mut buffer.space()[SECTOR..2 * SECTOR],
        0,
    ) {
        Ok(SECTOR) => 512,
        _ => BLOCK_BYTES,
    }
}

/// An attribute of the block queue below a device, or below the disk of a partition.
fn sysfs_queue(device: &File, attribute: &str) -> Option<String> {
    let dir = sysfs_dir(device)?;
    [dir.join("queue"), dir.join("../queue")]
        .iter()
        .find_map(|queue| std::fs::read_to_string(queue.join(attribute)).ok())
        .map(|text| text.trim().to_owned())
}

fn sysfs_dir(device: &File) -> Option<PathBuf> {
    let number = device.metadata().ok()?.st_rdev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()
}

/// Would io_uring hand every request for this file to a kernel thread? It does where the file does
/// not take NOWAIT requests; loop and zram take them and then wait all the same.
fn probe_engine(opened: &Opened) -> std::io::Result<Engine> {
    if opened.is_device {
        let name = sysfs_dir(&opened.file).and_then(|dir| {
            dir.file_name()
                .map(|name| name.to_string_lossy().into_owned())
        });
        if name.is_some_and(|n| {
            ["loop", "zram", "ram"]
                .iter()
                .any(|kind| n.starts_with(kind))
        }) {
            return Ok(Engine::Sync);
        }
    }
    let pool = Pool::new(usize::MAX, 0);
    let mut buffer = pool.get(ALIGN).ok_or(std::io::ErrorKind::OutOfMemory)?;
    let space = &mut buffer.space()[..ALIGN];
    match sys::read_at(opened.file.as_fd(), 0, space, libc::RWF_NOWAIT) {
        Err(Errno::EOPNOTSUPP) => Ok(Engine::Sync),
        Ok(_) | Err(Errno::EAGAIN) => Ok(Engine::Uring),
        Err(error) => Err(error.into()),
    }
}

fn file_bytes(fd: BorrowedFd<'_>, is_device: bool) -> std::io::Result<u64> {
    if is_device {
        // A block device's stat has no size; its end has. Positions are not used elsewhere.
        let mut file = File::from(fd.try_clone_to_owned()?);
        return file.seek(SeekFrom::End(0));
    }
    let stat = nix::sys::stat::fstat(fd)?;
    u64::try_from(stat.st_size).map_err(|_| std::io::ErrorKind::InvalidData.into())
}

fn set_len(fd: BorrowedFd<'_>, bytes: u64) -> nix::Result<()> {
    let bytes = i64::try_from(bytes).map_err(|_| Errno::EFBIG)?;
    nix::unistd::ftruncate(fd, bytes)
}

/// Frees a range so that it reads as zeroes. On block devices the kernel does this only where the
/// device promises zeroes (BLKDISCARD would not care).
fn punch(fd: BorrowedFd<'_>, range: ByteRange) -> nix::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let offset = i64::try_from(range.offset).map_err(|_| Errno::EFBIG)?;
    let len = i64::try_from(range.len).map_err(|_| Errno::EFBIG)?;
    fallocate(fd, flags, offset, len)
}

fn read_exactly(fd: BorrowedFd<'_>, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
    let mut done = 0;
    while done < into.len() {
        let at = offset + u64::try_from(done).unwrap_or(u64::MAX);
        match sys::read_at(fd, at, &mut into[done..], 0) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn write_exactly(
    fd: BorrowedFd<'_>,
    offset: u64,
    bytes: &[u8],
    flags: libc::c_int,
) -> std::io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + u64::try_from(done).unwrap_or(u64::MAX);
        match sys::write_at(fd, at, &bytes[done..], flags) {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
