//! System calls for which `nix` has no safe form.

use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

/// Reads at a position.
///
/// # Errors
/// What preadv2(2) reports.
pub(crate) fn read_at(
    fd: BorrowedFd<'_>,
    offset: u64,
    into: &mut [u8],
    flags: libc::c_int,
) -> nix::Result<usize> {
    let piece = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EINVAL)?;
    // SAFETY: one piece, exclusively borrowed for the duration of the call.
    let result = unsafe { libc::preadv2(fd.as_raw_fd(), &raw const piece, 1, offset, flags) };
    usize::try_from(result).map_err(|_| Errno::last())
}

/// Writes at a position.
///
/// # Errors
/// What pwritev2(2) reports.
pub(crate) fn write_at(
    fd: BorrowedFd<'_>,
    offset: u64,
    from: &[u8],
    flags: libc::c_int,
) -> nix::Result<usize> {
    let piece = libc::iovec {
        iov_base: from.as_ptr().cast_mut().cast(),
        iov_len: from.len(),
    };
    let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EINVAL)?;
    // SAFETY: one piece, borrowed for the duration of the call; the kernel only reads it.
    let result = unsafe { libc::pwritev2(fd.as_raw_fd(), &raw const piece, 1, offset, flags) };
    usize::try_from(result).map_err(|_| Errno::last())
}

/// Bytes that a socket has received and nobody has read.
///
/// # Errors
/// What ioctl_fionread reports.
pub(crate) fn unread_bytes(fd: BorrowedFd<'_>) -> nix::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, which `bytes` is.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// A descriptor of one's own for what a descriptor of the process's parent refers to. Neither is passed
/// on to other programs.
///
/// # Errors
/// What fcntl(2) reports: `EBADF` where there is none.
pub(crate) fn take_inherited(fd: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: both only look the number up in the table of descriptors.
    let own = unsafe {
        Errno::result(libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC))?;
        Errno::result(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0))?
    };
    // SAFETY: it was made right above, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(own) })
}
