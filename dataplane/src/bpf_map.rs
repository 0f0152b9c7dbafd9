//! The one system call about BPF maps that `aya` does not offer: a second descriptor that
//! cannot write. An island of `unsafe`.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

// From <linux/bpf.h>.
const BPF_MAP_GET_FD_BY_ID: libc::c_long = 14;
const BPF_F_RDONLY: u32 = 1 << 3;

#[repr(C)]
#[derive(Default)]
struct GetById {
    map_id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Opens the map with this id so that neither the call interface nor a mapping can change it.
/// The kernel asks for CAP_SYS_ADMIN.
pub fn open_read_only(map_id: u32) -> io::Result<OwnedFd> {
    let attributes = GetById {
        map_id,
        next_id: 0,
        open_flags: BPF_F_RDONLY,
    };
    // SAFETY: the command reads `size_of::<GetById>()` bytes of `union bpf_attr`, whose member
    // for it has exactly these three words, and writes nothing.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_GET_FD_BY_ID,
            &raw const attributes,
            size_of::<GetById>(),
        )
    };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
