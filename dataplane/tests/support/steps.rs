//! What several tests do with a tunnel that is up, whatever carries its packets.

use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use topnet_netns::Namespace;
use topnet_unit::{Attachment, Slot};

use super::{Echo, Gateway, WireGuard, eventually, ip, tcp_to, transfer, unlimited, up_to};

/// Bytes of the headers of a datagram over IPv4.
pub const HEADERS4: u64 = 28;
/// The same over IPv6.
pub const HEADERS6: u64 = 48;

/// Installs the client's session and gives it credit without end.
pub fn admit_with_credit(gateway: &mut Gateway, client: &WireGuard) -> Slot {
    let slot = gateway.admit(client);
    gateway.attach().credit.grant(slot, unlimited());
    slot
}

/// A UDP socket in a namespace, which does not wait long.
pub fn bind(namespace: &Namespace, address: impl ToSocketAddrs + Send) -> UdpSocket {
    let socket = namespace.enter(|| UdpSocket::bind(address).unwrap());
    let socket = socket.unwrap();
    let patience = Some(Duration::from_millis(500));
    socket.set_read_timeout(patience).unwrap();
    socket
}

/// Datagrams of either version pass, and are billed with their inner packets' lengths.
pub fn counts_exactly(gateway: &Gateway, slot: Slot) {
    let metering = gateway.attach();
    // The last one is the largest that the tunnel has room for.
    let sizes = [0, 1, 15, 16, 17, 100, 1000, 1372];
    for (echo, headers) in [
        (Echo::new(&gateway.topology), HEADERS4),
        (Echo::new6(&gateway.topology), HEADERS6),
    ] {
        eventually("the tunnel is up", || echo.round_trip(1));
        echo.drain();
        let before = metering.usage.totals(slot.index);
        for payload_bytes in sizes {
            assert!(
                echo.round_trip(payload_bytes),
                "{payload_bytes} bytes: {:?}",
                gateway.status().drops
            );
        }
        let bytes: u64 = sizes
            .iter()
            .map(|bytes| 2 * (*bytes as u64 + headers))
            .sum();
        eventually("everything is counted", || {
            metering.usage.totals(slot.index).bytes == before.bytes + bytes
        });
        let packets = metering.usage.totals(slot.index).packets;
        assert_eq!(packets, before.packets + 2 * sizes.len() as u64);
    }
}

/// Without credit the handshake is made, and nothing else passes.
pub fn nothing_passes_without_credit(gateway: &Gateway, echo: &Echo) {
    eventually("the handshake is done", || {
        echo.round_trip(100);
        gateway.status().sessions[0].handshake_age_s.is_some()
    });
    eventually("packets are refused", || {
        echo.round_trip(100);
        gateway.drops("credit_closed") > 0
    });
}

/// Packets pass up to the limit, to the last one that fits, and again when it is raised. The limit
/// comes back that was reached.
pub fn limit_stops_exactly(metering: &Attachment, slot: Slot, echo: &Echo, headers: u64) -> u64 {
    let packet_bytes = 1000 + headers;
    let mut limit_bytes = 0;
    for packets in [7, 20] {
        // Room for an odd number of packets and a little that must stay unused.
        limit_bytes += packets * packet_bytes + 500;
        metering.credit.grant(slot, up_to(limit_bytes));
        echo.round_trips(1000);
        let usage = metering.usage.totals(slot.index).bytes;
        assert!(usage <= limit_bytes, "{usage} of {limit_bytes}");
        assert!(
            limit_bytes - usage < packet_bytes,
            "{usage} of {limit_bytes}"
        );
    }
    limit_bytes
}

/// TCP between ends that believe in more than the tunnel has room for: nobody but the gateway knows,
/// and no packet is lost to find out.
pub fn narrow_tunnel_fits_tcp(gateway: &Gateway, client: &WireGuard, origin: IpAddr) {
    let wide = format!("link set {} mtu 1500", client.interface);
    ip(&gateway.topology.client, &wide);
    let (mut near, mut far) = tcp_to(&gateway.topology, origin);
    let content = vec![7; 1 << 20];
    transfer(&mut far, &mut near, &content);
    transfer(&mut near, &mut far, &content);
    assert_eq!(gateway.drops("too_large"), 0);
}
