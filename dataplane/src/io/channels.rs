//! How many receive queues an interface has in use: the driver is asked, as `ethtool -l` does. Sysfs
//! would tell it too, but shows the network namespace that it was mounted in, which need not be ours.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

/// Linux's `IFNAMSIZ`.
const NAME_BYTES: usize = 16;

// From <linux/sockios.h> and <linux/ethtool.h>.
const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    /// Of receiving, sending, other and combined ones.
    most: [u32; 4],
    receiving: u32,
    sending: u32,
    other: u32,
    combined: u32,
}

/// `struct ifreq`.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    channels: *mut Channels,
    rest: [u8; 16],
}

/// Receive queues that are in use. An error says that the driver does not tell.
pub(crate) fn receive_queues(name: &str) -> io::Result<u32> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut channels = Channels {
        command: ETHTOOL_GCHANNELS,
        ..Channels::default()
    };
    let mut request = InterfaceRequest {
        name: [0; NAME_BYTES],
        channels: &raw mut channels,
        rest: [0; 16],
    };
    // The last byte stays the name's end.
    let room = request.name[..NAME_BYTES - 1].get_mut(..name.len());
    room.ok_or(io::ErrorKind::InvalidInput)?
        .copy_from_slice(name.as_bytes());
    // SAFETY: the request is a `struct ifreq` of the kernel's layout and size, whose pointer is to a
    // `struct ethtool_channels`; both outlive the call, within which they are written to.
    let told = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    match told {
        0 => Ok(channels.receiving + channels.combined),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_channels_says_so() {
        assert!(receive_queues("lo").is_err());
        assert!(receive_queues("no-such-link").is_err());
        assert!(receive_queues("a-name-that-is-too-long").is_err());
    }
}
