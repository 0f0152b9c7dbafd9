//! How much a request, an answer and a device may hold.

/// How much is read and kept. What is longer is refused, and nothing of it is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Lines of one request or answer, the first and the empty one included.
    pub lines_max: usize,
    /// Bytes of one line without its end. A key's line has 78, the longest that the tools send.
    pub line_bytes_max: usize,
    /// Peers of one request, of one answer, and of a device.
    pub peers_max: usize,
    /// Allowed IPs of a device, over all of its peers.
    pub allowed_ips_max: usize,
}

impl Default for Limits {
    /// As many peers as wireguard-go takes, with four allowed IPs each.
    fn default() -> Self {
        Self {
            lines_max: 1 << 20,
            line_bytes_max: 256,
            peers_max: 1 << 16,
            allowed_ips_max: 1 << 18,
        }
    }
}
