//! Page-aligned buffers that a payload lives in from the socket to the disk and to every peer: filled
//! once as a [`PoolMut`], then shared read-only as [`PoolBuf`]s. Buffers are kept and used again, so
//! that a request costs no allocation; what is in use is counted, so that whoever fills buffers from
//! a network can stop at the limit. A buffer may be filled in one thread and dropped in another.
//!
//! This file (with `ring`) holds the runtime's unsafe code. It knows nothing of I/O.

use crate::core::api::Payload;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

/// Alignment of every buffer and unit of its size: the largest logical block that devices have, so
/// that any buffer will do for `O_DIRECT`.
pub const ALIGN: usize = 4096;

/// Sizes of buffers in bytes. The last holds the largest NBD payload (64 MiB) widened to whole blocks
/// at both ends.
pub const CLASSES: [usize; 9] = [
    4 << 10,
    16 << 10,
    64 << 10,
    256 << 10,
    1 << 20,
    4 << 20,
    16 << 20,
    64 << 20,
    (64 << 20) + 2 * ALIGN,
];

/// The largest buffer there is.
pub const MAX_BUFFER_BYTES: usize = CLASSES[CLASSES.len() - 1];

/// Free bytes that are kept for use again unless told otherwise; beyond that buffers go back to the
/// allocator. Enough for the queue depths of some clients, little beside what may be in use.
pub const DEFAULT_KEEP_BYTES: usize = 64 << 20;

/// A buffer of the pool and how many share it.
struct Chunk {
    refs: AtomicUsize,
    data: NonNull<u8>,
    class: usize,
    pool: Arc<Shared>,
}

struct Shared {
    free: [Mutex<Vec<NonNull<Chunk>>>; CLASSES.len()],
    limit_bytes: usize,
    keep_bytes: usize,
    used_bytes: AtomicUsize,
    kept_bytes: AtomicUsize,
    allocations: AtomicU64,
}

// SAFETY: `Shared` holds `Chunk` pointers only in its free lists, where each chunk is owned by the
// list alone (its reference count is zero) and is reached under the list's mutex.
unsafe impl Send for Shared {}
// SAFETY: as above: every access to a chunk on a free list is under the list's mutex.
unsafe impl Sync for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        for list in &mut self.free {
            let list = list.get_mut().unwrap_or_else(PoisonError::into_inner);
            for chunk in list.drain(..) {
                // SAFETY: the chunk is on the free list, so nobody else has it.
                unsafe { free_memory(chunk) };
            }
        }
    }
}

/// Gives a chunk's memory back. A kept chunk's `pool` is what keeps `Shared` alive, so lists hold
/// chunks whose `pool` was taken out before (see [`release`]).
///
/// # Safety
/// Nobody else may have the chunk, and its `pool` field must already be dropped.
unsafe fn free_memory(chunk: NonNull<Chunk>) {
    // SAFETY: the caller owns the chunk; both allocations were made in `Pool::make` with these
    // layouts. `pool` was dropped, `refs` and the others need no drop.
    unsafe {
        let class = (*chunk.as_ptr()).class;
        let data = (*chunk.as_ptr()).data;
        dealloc(data.as_ptr(), data_layout(class));
        dealloc(chunk.as_ptr().cast(), Layout::new::<Chunk>());
    }
}

const fn data_layout(class: usize) -> Layout {
    match Layout::from_size_align(CLASSES[class], ALIGN) {
        Ok(layout) => layout,
        Err(_) => panic!("class sizes are multiples of the alignment"),
    }
}

/// Drops one reference; the last one puts the chunk on its free list or gives it back.
///
/// # Safety
/// The caller gives up one counted reference to the chunk.
unsafe fn release(chunk: NonNull<Chunk>) {
    // SAFETY: the caller's reference keeps the chunk alive up to here.
    let shared = unsafe {
        if (*chunk.as_ptr()).refs.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        fence(Ordering::Acquire);
        // It was the last reference: the chunk is ours. Its handle on the pool is taken out, because
        // chunks on a free list must not keep the pool alive.
        std::ptr::read(&raw const (*chunk.as_ptr()).pool)
    };
    // SAFETY: the chunk is ours.
    let class = unsafe { (*chunk.as_ptr()).class };
    let bytes = CLASSES[class];
    shared.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
    let kept = shared.kept_bytes.fetch_add(bytes, Ordering::Relaxed);
    if kept + bytes <= shared.keep_bytes {
        shared.list(class).push(chunk);
    } else {
        shared.kept_bytes.fetch_sub(bytes, Ordering::Relaxed);
        // SAFETY: the chunk is ours and its `pool` was moved out above.
        unsafe { free_memory(chunk) };
    }
}

impl Shared {
    fn list(&self, class: usize) -> std::sync::MutexGuard<'_, Vec<NonNull<Chunk>>> {
        // A list is a plain vector: a panic elsewhere can't have left it half changed.
        self.free[class]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a pool holds at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolStats {
    /// Bytes of buffers in use.
    pub used_bytes: usize,
    /// Bytes of free buffers kept for use again.
    pub kept_bytes: usize,
    /// Buffers that were made since the start: does not grow while the load is steady.
    pub allocations: u64,
}

/// A pool of aligned buffers; cloning gives another handle on the same pool.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.stats()).finish()
    }
}

impl Pool {
    /// A pool in which [`try_get`](Self::try_get) refuses once `limit_bytes` are in use, and which
    /// keeps up to `keep_bytes` of free buffers.
    #[must_use]
    pub fn new(limit_bytes: usize, keep_bytes: usize) -> Self {
        Self(Arc::new(Shared {
            free: std::array::from_fn(|_| Mutex::new(Vec::new())),
            limit_bytes,
            keep_bytes,
            used_bytes: AtomicUsize::new(0),
            kept_bytes: AtomicUsize::new(0),
            allocations: AtomicU64::new(0),
        }))
    }

    /// A buffer of at least `len` bytes, or `None` while the limit is reached or when `len` is more
    /// than [`MAX_BUFFER_BYTES`]. Its bytes are whatever they were.
    ///
    /// For bytes that come from a network: on `None` stop reading until something was freed.
    #[must_use]
    pub fn try_get(&self, len: usize) -> Option<PoolMut> {
        let class = class_of(len)?;
        let used = self.0.used_bytes.load(Ordering::Relaxed);
        if used > 0 && used + CLASSES[class] > self.0.limit_bytes {
            return None;
        }
        Some(self.take(class))
    }

    /// A buffer of at least `len` bytes whatever the limit says: for work that is bounded elsewhere
    /// (the core bounds its reads, the worker its jobs). `None` only where `len` is more than
    /// [`MAX_BUFFER_BYTES`].
    #[must_use]
    pub fn get(&self, len: usize) -> Option<PoolMut> {
        class_of(len).map(|class| self.take(class))
    }

    /// A shared buffer with these bytes; `None` where there are more than [`MAX_BUFFER_BYTES`].
    #[must_use]
    pub fn copy_of(&self, bytes: &[u8]) -> Option<PoolBuf> {
        let mut buffer = self.get(bytes.len())?;
        buffer.space()[..bytes.len()].copy_from_slice(bytes);
        Some(buffer.freeze(0, bytes.len()))
    }

    /// A shared buffer of zeroes; `None` where `len` is more than [`MAX_BUFFER_BYTES`].
    #[must_use]
    pub fn zeroes(&self, len: usize) -> Option<PoolBuf> {
        let mut buffer = self.get(len)?;
        buffer.space()[..len].fill(0);
        Some(buffer.freeze(0, len))
    }

    /// Bytes of buffers in use.
    #[must_use]
    pub fn used_bytes(&self) -> usize {
        self.0.used_bytes.load(Ordering::Relaxed)
    }

    /// Bytes in use at which [`try_get`](Self::try_get) refuses.
    #[must_use]
    pub fn limit_bytes(&self) -> usize {
        self.0.limit_bytes
    }

    /// What the pool holds now.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        PoolStats {
            used_bytes: self.0.used_bytes.load(Ordering::Relaxed),
            kept_bytes: self.0.kept_bytes.load(Ordering::Relaxed),
            allocations: self.0.allocations.load(Ordering::Relaxed),
        }
    }

    fn take(&self, class: usize) -> PoolMut {
        self.0
            .used_bytes
            .fetch_add(CLASSES[class], Ordering::Relaxed);
        let kept = self.0.list(class).pop();
        let chunk = if let Some(chunk) = kept {
            self.0
                .kept_bytes
                .fetch_sub(CLASSES[class], Ordering::Relaxed);
            // SAFETY: the chunk came off the free list, so it is ours; its `pool` was moved out when
            // it went there and is written anew without dropping the old value.
            unsafe {
                (*chunk.as_ptr()).refs.store(1, Ordering::Relaxed);
                std::ptr::write(&raw mut (*chunk.as_ptr()).pool, Arc::clone(&self.0));
            }
            chunk
        } else {
            self.make(class)
        };
        PoolMut { chunk }
    }

    fn make(&self, class: usize) -> NonNull<Chunk> {
        self.0.allocations.fetch_add(1, Ordering::Relaxed);
        let layout = data_layout(class);
        // SAFETY: no class is empty. The bytes are initialised right below, page by page touched
        // once: a buffer is made rarely and used often.
        let data = unsafe { alloc(layout) };
        let Some(data) = NonNull::new(data) else {
            handle_alloc_error(layout)
        };
        // SAFETY: `data` is fresh and `layout.size()` bytes long.
        unsafe { data.as_ptr().write_bytes(0, layout.size()) };
        let chunk = Box::new(Chunk {
            refs: AtomicUsize::new(1),
            data,
            class,
            pool: Arc::clone(&self.0),
        });
        NonNull::from(Box::leak(chunk))
    }
}

/// The smallest class that holds `len` bytes.
fn class_of(len: usize) -> Option<usize> {
    CLASSES.iter().position(|size| *size >= len)
}

/// A buffer that one owner fills. [`freeze`](Self::freeze) makes it a shared payload.
pub struct PoolMut {
    chunk: NonNull<Chunk>,
}

// SAFETY: a `PoolMut` is the only handle on its chunk; the chunk's fields are atomics, plain numbers
// and an `Arc` of a `Sync` type.
unsafe impl Send for PoolMut {}
// SAFETY: `&PoolMut` gives `&[u8]` at most.
unsafe impl Sync for PoolMut {}

impl PoolMut {
    /// Bytes that the buffer holds: all of its class, a multiple of [`ALIGN`].
    #[must_use]
    pub fn capacity(&self) -> usize {
        CLASSES[self.chunk().class]
    }

    /// The buffer's bytes, to fill.
    #[must_use]
    pub fn space(&mut self) -> &mut [u8] {
        // SAFETY: this is the only handle on the chunk, whose data is that long and initialised.
        unsafe { std::slice::from_raw_parts_mut(self.chunk().data.as_ptr(), self.capacity()) }
    }

    /// The buffer's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: nobody writes while `self` is borrowed; the data is that long and initialised.
        unsafe { std::slice::from_raw_parts(self.chunk().data.as_ptr(), self.capacity()) }
    }

    /// Where byte `at` lies, for the kernel to fill from there.
    ///
    /// # Panics
    /// Where `at` is beyond the buffer.
    #[must_use]
    pub fn pointer_at(&mut self, at: usize) -> *mut u8 {
        self.space()[at..].as_mut_ptr()
    }

    /// Makes `len` bytes from `start` on a payload that can be shared and no longer changed.
    ///
    /// # Panics
    /// Where they are not within the buffer.
    #[must_use]
    pub fn freeze(self, start: usize, len: usize) -> PoolBuf {
        assert!(start <= self.capacity() && len <= self.capacity() - start);
        let chunk = self.chunk;
        // The reference moves into the `PoolBuf`.
        std::mem::forget(self);
        PoolBuf { chunk, start, len }
    }

    const fn chunk(&self) -> &Chunk {
        // SAFETY: this handle's reference keeps the chunk alive.
        unsafe { self.chunk.as_ref() }
    }
}

impl Drop for PoolMut {
    fn drop(&mut self) {
        // SAFETY: the handle's own reference, given up once.
        unsafe { release(self.chunk) };
    }
}

impl fmt::Debug for PoolMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoolMut({} bytes)", self.capacity())
    }
}

// SAFETY: the pointer is to the chunk, which does not move with the handle, and all bytes of a chunk
// are initialised.
unsafe impl tokio_uring::buf::IoBuf for PoolMut {
    fn stable_ptr(&self) -> *const u8 {
        self.chunk().data.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.capacity()
    }

    fn bytes_total(&self) -> usize {
        self.capacity()
    }
}

// SAFETY: as above; this is the only handle on the chunk.
unsafe impl tokio_uring::buf::IoBufMut for PoolMut {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.chunk().data.as_ptr()
    }

    unsafe fn set_init(&mut self, _bytes: usize) {
        // All bytes always are.
    }
}

/// A shared, unchangeable part of a buffer. Cloning and slicing share it.
pub struct PoolBuf {
    chunk: NonNull<Chunk>,
    start: usize,
    len: usize,
}

// SAFETY: the bytes are never changed while any `PoolBuf` exists, and the count is atomic.
unsafe impl Send for PoolBuf {}
// SAFETY: as for `Send`.
unsafe impl Sync for PoolBuf {}

impl PoolBuf {
    /// The bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8] {
        // SAFETY: this handle's reference keeps the chunk alive; `start + len` was checked against
        // its size when the handle was made; nobody writes while it exists.
        unsafe {
            let data = self.chunk.as_ref().data.as_ptr();
            std::slice::from_raw_parts(data.add(self.start), self.len)
        }
    }

    /// Does the payload start on a multiple of `align` in memory and have a length that is one?
    #[must_use]
    pub const fn is_aligned(&self, align: usize) -> bool {
        // Chunks start on ALIGN, of which every `align` here is a divisor.
        self.start.is_multiple_of(align) && self.len.is_multiple_of(align)
    }
}

impl Clone for PoolBuf {
    fn clone(&self) -> Self {
        // SAFETY: this handle's reference keeps the chunk alive. Counts can't overflow: each takes
        // memory for its handle.
        unsafe { self.chunk.as_ref() }
            .refs
            .fetch_add(1, Ordering::Relaxed);
        Self { ..*self }
    }
}

impl Drop for PoolBuf {
    fn drop(&mut self) {
        // SAFETY: the handle's own reference, given up once.
        unsafe { release(self.chunk) };
    }
}

impl Payload for PoolBuf {
    fn len(&self) -> usize {
        self.len
    }

    fn slice(&self, start: usize, len: usize) -> Self {
        assert!(
            start <= self.len && len <= self.len - start,
            "slice within the payload"
        );
        let mut part = self.clone();
        part.start += start;
        part.len = len;
        part
    }
}

impl fmt::Debug for PoolBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoolBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests;
