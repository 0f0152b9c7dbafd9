//! The data plane's headers, against `etherparse`.

use etherparse::{Ipv4HeaderSlice, checksum::Sum16BitWords};
use topnet_dataplane::packet::{Ethernet, IPV4_BYTES, Ipv4, UDP_BYTES, Udp, decrement_ttl};

/// A frame from a client or from the uplink, and the same bytes as a packet out of a tunnel.
pub(crate) fn packet(frame: &[u8]) {
    if Ethernet::parse(frame).is_ok() {
        ip(&frame[14..]);
    }
    ip(frame);
}

fn ip(packet: &[u8]) {
    let ours = Ipv4::parse(packet);
    assert_eq!(ours.is_ok(), is_sound(packet), "{packet:02x?}");
    let Ok(ip) = ours else {
        return;
    };
    assert!((IPV4_BYTES..=ip.total_bytes).contains(&ip.header_bytes));
    assert!(ip.total_bytes <= packet.len(), "billed beyond what arrived");
    let theirs = Ipv4HeaderSlice::from_slice(packet).unwrap();
    assert_eq!(ip.source, theirs.source_addr());
    assert_eq!(ip.destination, theirs.destination_addr());
    assert_eq!(ip.ttl, theirs.ttl());
    assert_eq!(ip.fragment, theirs.is_fragmenting_payload());
    if let Ok(udp) = Udp::parse(packet, &ip) {
        assert!(udp.payload.start == ip.header_bytes + UDP_BYTES);
        assert!(udp.payload.end <= ip.total_bytes && udp.payload.start <= udp.payload.end);
    }
    if ip.ttl > 1 {
        let mut forwarded = packet.to_vec();
        decrement_ttl(&mut forwarded);
        let ttl = ip.ttl - 1;
        assert_eq!(Ipv4::parse(&forwarded), Ok(Ipv4 { ttl, ..ip }));
    }
}

/// What `etherparse` takes for an IPv4 header that is whole, with lengths that fit.
fn is_sound(packet: &[u8]) -> bool {
    let Ok(header) = Ipv4HeaderSlice::from_slice(packet) else {
        return false;
    };
    let total = usize::from(header.total_len());
    total >= header.slice().len()
        && total <= packet.len()
        // Not by way of its header's fields: they lack the reserved bit.
        && Sum16BitWords::new().add_slice(header.slice()).ones_complement() == 0
}
