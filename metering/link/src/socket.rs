//! The UDP socket under all links of an endpoint.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
};

use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};

/// What may wait in the kernel: a few kilobytes of each of a thousand payers that all pay at the
/// same moment. What does not fit is lost, and every link that loses something waits.
const BUFFER_BYTES: usize = 4 << 20;

/// A socket at `address`.
pub(crate) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    // The kernel gives no more than net.core.rmem_max and wmem_max, and says nothing.
    set_socket_recv_buffer_size(&socket, BUFFER_BYTES)?;
    set_socket_send_buffer_size(&socket, BUFFER_BYTES)?;
    Ok(socket)
}
