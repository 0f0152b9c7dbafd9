//! Bytes that nobody honest sends: nothing panics, nothing refused is changed, and what passes is
//! changed only where translation changes it.
#![allow(clippy::unwrap_used)]

mod support;

use proptest::prelude::*;
use support::{World, inner, remote};
use topnet_nat::Protocol::{Tcp, Udp};
use topnet_nat::{Filtering, Subscriber, Whose};

/// Bytes that pass the first looks often enough to reach the last ones.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let any_bytes = prop::collection::vec(any::<u8>(), 0..120);
    let plausible = (
        any_bytes.clone(),
        0..6_u8,
        prop_oneof![Just(1_u8), Just(6), Just(17), any::<u8>()],
        prop_oneof![Just([0_u8, 0]), Just([0x20, 0]), any::<[u8; 2]>()],
        prop_oneof![Just(3_u8), Just(0), Just(8), any::<u8>()],
    );
    let shaped = plausible.prop_map(|(mut bytes, options, protocol, fragment, first)| {
        bytes.resize(bytes.len().max(28), 0);
        let total = bytes.len() as u16;
        bytes[0] = 0x45 + options.saturating_sub(3);
        bytes[2..4].copy_from_slice(&total.to_be_bytes());
        bytes[6..8].copy_from_slice(&fragment);
        bytes[9] = protocol;
        bytes[12..16].copy_from_slice(&inner(1, 0).ip().octets());
        bytes[16..20].copy_from_slice(&remote(1, 0).ip().octets());
        bytes[20] = first;
        bytes
    });
    let damaged = (
        0..6_usize,
        prop::collection::vec((any::<usize>(), any::<u8>()), 0..4),
        any::<usize>(),
        any::<bool>(),
    );
    let honest = damaged.prop_map(|(kind, damages, length, cut)| {
        let (from, to) = (inner(1, 5000), remote(1, 80));
        let embedded = support::udp(to, from, b"payload");
        let mut bytes = match kind {
            0 => support::udp(from, to, b"payload"),
            1 => support::tcp(from, to, support::SYN, b"payload"),
            2 => support::request(from, *to.ip(), b"payload"),
            3 => support::icmp(*from.ip(), *to.ip(), 3, &embedded),
            4 => support::fragments(&support::udp(from, to, &[1; 64]), 7, 16)[0].clone(),
            _ => support::fragments(&support::udp(from, to, &[1; 64]), 7, 16)[1].clone(),
        };
        for (at, value) in damages {
            let at = at % bytes.len();
            bytes[at] ^= value;
        }
        if cut {
            bytes.truncate(length % bytes.len());
        }
        bytes
    });
    prop_oneof![1 => any_bytes, 2 => shaped, 3 => honest]
}

/// What translation may change at all: the header's checksum and addresses, and in the
/// transport header and an embedded packet whatever lies in their first bytes.
fn check_untouched(before: &[u8], after: &[u8]) {
    assert_eq!(before.len(), after.len());
    assert_eq!(before[..10], after[..10]);
    let header_bytes = usize::from(before[0] & 0xf) * 4;
    assert_eq!(before[20..header_bytes], after[20..header_bytes]);
    let reach = (header_bytes + 8 + 60 + 20).min(before.len());
    assert_eq!(before[reach..], after[reach..]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_translated_or_refused_unchanged(
        packets in prop::collection::vec((bytes(), any::<bool>()), 1..30),
        open in any::<bool>(),
    ) {
        let mut world = World::new(|config| {
            config.hairpinning = open;
            if open {
                config.filtering = Filtering::EndpointIndependent;
            }
        });
        let external = world.call(Udp, 1, inner(1, 5000), remote(1, 80)).unwrap();
        world.call(Tcp, 1, inner(1, 5000), remote(1, 80)).unwrap();
        for (bytes, is_out) in packets {
            let mut before = bytes;
            // From outside, what is for the external end.
            if !is_out && before.len() >= 24 {
                before[12..16].copy_from_slice(&remote(1, 0).ip().octets());
                before[16..20].copy_from_slice(&external.ip().octets());
            }
            let mut after = before.clone();
            let state = world.nat.snapshot();
            world.nat.look_ahead_out([(Subscriber(1), &before[..])]);
            world.nat.look_ahead_in([&before[..]]);
            assert_eq!(world.nat.snapshot(), state, "looking changes nothing");
            let result = if is_out {
                let subscriber = Subscriber(1);
                world.nat.translate_out(world.now_ms, subscriber, &mut after).map(|_| ())
            } else {
                world.nat.translate_in(world.now_ms, &mut after).map(|_| ())
            };
            // What one of several NATs takes has a part that it is passed to.
            let has_part = Whose::of(&before).is_ok();
            match result {
                Ok(()) => {
                    prop_assert!(is_out || has_part);
                    check_untouched(&before, &after);
                }
                Err(_) => prop_assert_eq!(before, after),
            }
        }
        world.remove(1);
        let counters = world.nat.counters();
        prop_assert_eq!((counters.flows, counters.mappings, counters.blocks_lent), (0, 0, 0));
    }
}
