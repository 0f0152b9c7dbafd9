//! Memory that two processes see: a mapping of a file descriptor as words.
//!
//! An island of `unsafe`. Everything above it sees `&[AtomicU64]`: any bit pattern is a
//! valid word and every access is atomic, so whatever the other process writes can make a
//! number wrong, never memory unsafe.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::AtomicU64,
};

use rustix::{
    fs::{
        FileType, MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate,
        memfd_create,
    },
    mm::{MapFlags, ProtFlags, mmap, munmap},
};

/// What a mapping may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Look only; the kernel enforces it.
    Read,
    /// Look and change.
    ReadWrite,
}

/// Memory that could not be shared.
#[derive(Debug, thiserror::Error)]
pub enum SharedMemoryError {
    /// The kernel refused.
    #[error("cannot {what} shared memory of {bytes} bytes: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Of which length.
        bytes: usize,
        /// Why not.
        source: io::Error,
    },
    /// The owner could still shrink the memory under its readers.
    #[error("the shared memory is not sealed against shrinking; its owner is not topnet")]
    NotSealed,
    /// Shorter than its header says.
    #[error("the shared memory has {actual} bytes and should have {expected}")]
    Short {
        /// As the header says.
        expected: usize,
        /// As it is.
        actual: u64,
    },
}

fn system(what: &'static str, bytes: usize) -> impl Fn(rustix::io::Errno) -> SharedMemoryError {
    move |errno| SharedMemoryError::System {
        what,
        bytes,
        source: errno.into(),
    }
}

/// Makes anonymous memory of a fixed size, sealed against shrinking and growing.
pub fn memfd(name: &str, bytes: usize) -> Result<OwnedFd, SharedMemoryError> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(system("make", bytes))?;
    ftruncate(&fd, bytes as u64).map_err(system("size", bytes))?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(system("seal", bytes))?;
    Ok(fd)
}

/// Refuses a table's memory that could shrink under a mapping, or that is too short for it. A BPF
/// map needs no such check: its size is fixed, and mapping more than it has fails. Of a file the
/// kernel maps any length, and whoever looks beyond its end is killed.
#[cfg_attr(loom, allow(dead_code, reason = "nobody hands memory over there"))]
pub(crate) fn check_table(fd: BorrowedFd<'_>, bytes: usize) -> Result<(), SharedMemoryError> {
    let mode = fstat(fd).map_err(system("look at", bytes))?.st_mode;
    if FileType::from_raw_mode(mode) == FileType::RegularFile {
        check_memfd(fd, bytes)
    } else {
        Ok(())
    }
}

/// Refuses a memfd that could shrink under a mapping, or that is too short for it.
pub(crate) fn check_memfd(fd: BorrowedFd<'_>, bytes: usize) -> Result<(), SharedMemoryError> {
    let seals = fcntl_get_seals(fd).map_err(|_| SharedMemoryError::NotSealed)?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(SharedMemoryError::NotSealed);
    }
    let actual = fstat(fd).map_err(system("look at", bytes))?.st_size.max(0) as u64;
    if actual < bytes as u64 {
        return Err(SharedMemoryError::Short {
            expected: bytes,
            actual,
        });
    }
    Ok(())
}

/// A shared mapping, undone on drop.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping is memory that belongs to no thread, and all access to it goes through
// `&[AtomicU64]`.
unsafe impl Send for Mapping {}
// SAFETY: as above; atomics may be shared.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` (a multiple of 8, not 0) of `fd`.
    pub fn new(fd: impl AsFd, bytes: usize, access: Access) -> Result<Self, SharedMemoryError> {
        let words = bytes / size_of::<AtomicU64>();
        if words == 0 || !bytes.is_multiple_of(size_of::<AtomicU64>()) {
            return Err(system("map", bytes)(rustix::io::Errno::INVAL));
        }
        let protection = match access {
            Access::Read => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: the kernel chooses an address that nothing else uses, and the file behind the
        // mapping cannot shrink: memfds are sealed and checked, BPF maps have a fixed size.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                MapFlags::SHARED,
                fd,
                0,
            )
        };
        let start = start.map_err(system("map", bytes))?;
        let start = NonNull::new(start.cast::<AtomicU64>())
            .ok_or_else(|| system("map", bytes)(rustix::io::Errno::NOMEM))?;
        Ok(Self { start, words })
    }

    /// The mapped words. Writing to a mapping made for [`Access::Read`] faults; only the typed
    /// views of this crate write, and they ask for the access that they need.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: `start` is page-aligned and begins `words` words that stay mapped as long as
        // `self`; every bit pattern is a valid `AtomicU64`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let bytes = self.words * size_of::<AtomicU64>();
        // SAFETY: exactly what `new` mapped; no slice of it outlives `self`. A failure leaves the
        // memory mapped, which is harmless.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), bytes) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn two_mappings_see_one_memory() {
        let fd = memfd("topnet-test", 4096).unwrap();
        check_memfd(fd.as_fd(), 4096).unwrap();
        let writer = Mapping::new(&fd, 4096, Access::ReadWrite).unwrap();
        let reader = Mapping::new(&fd, 4096, Access::Read).unwrap();
        writer.words()[511].store(7, Ordering::Relaxed);
        assert_eq!(reader.words()[511].load(Ordering::Relaxed), 7);
    }

    #[test]
    fn memory_that_could_shrink_or_is_short_is_refused() {
        let short = memfd("topnet-test", 4096).unwrap();
        let error = check_memfd(short.as_fd(), 4104).unwrap_err();
        assert!(matches!(
            error,
            SharedMemoryError::Short {
                expected: 4104,
                actual: 4096
            }
        ));
        let loose = memfd_create("topnet-test", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&loose, 4096).unwrap();
        let error = check_memfd(loose.as_fd(), 4096).unwrap_err();
        assert!(matches!(error, SharedMemoryError::NotSealed));
        assert!(ftruncate(&short, 0).is_err());
    }
}
