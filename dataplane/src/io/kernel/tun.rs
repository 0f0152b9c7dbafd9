//! A TUN device whose packets carry a virtio-net header: the kernel hands over, and takes, whole
//! trains of segments. The island of `unsafe` is its two requests to the driver.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::KernelError;

/// The driver.
const DRIVER: &str = "/dev/net/tun";
/// Linux's `IFNAMSIZ`.
const NAME_BYTES: usize = 16;
/// Bytes of a `struct ifreq`.
const REQUEST_BYTES: usize = 40;

// From <linux/if_tun.h>.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
/// The device has several queues. A flow's packets come to the queue into which what went the other
/// way was written.
const IFF_MULTI_QUEUE: u16 = 0x0100;
/// Refuse a device that is there already.
const IFF_TUN_EXCL: u16 = 0x8000;
const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;
const TUN_F_TSO_ECN: libc::c_ulong = 0x08;
const TUN_F_USO4: libc::c_ulong = 0x20;
const TUN_F_USO6: libc::c_ulong = 0x40;

/// An open device. Closing it removes it from the system, with its addresses and routes.
pub(super) struct Tun {
    file: File,
    /// True if the kernel takes and gives trains of datagrams too (Linux 6.2).
    pub(super) joins_udp: bool,
}

#[repr(C, align(8))]
struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    flags: u16,
    rest: [u8; REQUEST_BYTES - NAME_BYTES - 2],
}

impl Tun {
    /// Makes the device `name`, and opens so many queues of it.
    pub(super) fn open(name: &str, queues: usize) -> Result<Vec<Self>, KernelError> {
        let several = if queues > 1 { IFF_MULTI_QUEUE } else { 0 };
        let flags = |queue| if queue == 0 { IFF_TUN_EXCL } else { 0 };
        (0..queues)
            .map(|queue| Self::open_queue(name, flags(queue) | several))
            .collect()
    }

    fn open_queue(name: &str, flags: u16) -> Result<Self, KernelError> {
        let failed = |source: io::Error| KernelError::Tunnel {
            name: name.to_owned(),
            mend: mend(&source),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DRIVER)
            .map_err(failed)?;
        let mut request = InterfaceRequest {
            name: [0; NAME_BYTES],
            flags: IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | flags,
            rest: [0; REQUEST_BYTES - NAME_BYTES - 2],
        };
        // The last byte stays the name's end.
        let fits = request.name[..NAME_BYTES - 1].get_mut(..name.len());
        fits.ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?
            .copy_from_slice(name.as_bytes());
        // SAFETY: the request takes a `struct ifreq`, of which `request` has the layout and the
        // size; it is written to, if at all, within the call.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
        if made != 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        let segments = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
        let joins_udp = offload(&file, segments | TUN_F_USO4 | TUN_F_USO6).is_ok();
        if !joins_udp {
            offload(&file, segments).map_err(failed)?;
        }
        Ok(Self { file, joins_udp })
    }

    /// Reads one packet with its header; `None` if there is none now.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.file).read(buffer) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes one packet with its header, in parts.
    pub(super) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.file).write_vectored(parts)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn offload(file: &File, features: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the request takes its argument by value.
    match unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, features) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// True for what a device says that is removed.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV))
}

/// True for what a device says that is down.
pub(super) fn is_down(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}

fn mend(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => {
            "there is a device of that name; choose another name (for a gateway: \
             dataplane.tunnel_interface) or stop who has it"
        }
        Some(libc::EPERM | libc::EACCES) => "allow the process CAP_NET_ADMIN",
        Some(libc::ENOENT | libc::ENODEV) => "load the driver: `modprobe tun`",
        _ => "look at the kernel's log with `dmesg`",
    }
}
