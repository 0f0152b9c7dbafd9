//! UDP as RFC 4787 asks for it, with what RFC 7857 changed. Named by requirement.
#![allow(clippy::unwrap_used)]

mod support;

use support::{
    POOL, World, ends, fragments, inner, internet_checksum, mend_header, reassembled, remote, tcp,
    udp,
};
use topnet_nat::Protocol::{Icmp, Tcp, Udp};
use topnet_nat::{Filtering, Refusal};

/// The same inner end has the same external end, whoever is called.
#[test]
fn req_1_mapping_is_endpoint_independent() {
    for protocol in [Udp, Tcp, Icmp] {
        let mut world = World::new(|_| ());
        let from = inner(1, 5000);
        let external = world.call(protocol, 1, from, remote(1, 80)).unwrap();
        for to in [remote(1, 81), remote(2, 80), remote(3, 53)] {
            let again = world.call(protocol, 1, from, to).unwrap();
            assert_eq!(again, external, "{protocol:?} {to}");
        }
        let other = world
            .call(protocol, 1, inner(1, 5001), remote(1, 80))
            .unwrap();
        assert_ne!(other, external);
    }
}

/// Paired address pooling.
#[test]
fn req_2_a_subscriber_keeps_one_address() {
    let mut world = World::new(|_| ());
    for subscriber in 0..20 {
        let addresses: std::collections::HashSet<_> = (0..50)
            .map(|port| inner(subscriber, 2000 + port))
            .map(|from| {
                *world
                    .call(Udp, subscriber, from, remote(1, 9))
                    .unwrap()
                    .ip()
            })
            .collect();
        assert_eq!(addresses.len(), 1, "{subscriber}");
    }
    let used: std::collections::HashSet<_> = world.nat.subscribers().map(|s| s.external).collect();
    assert_eq!(used.len(), POOL.len(), "subscribers are spread");
}

/// No port is lent twice in one protocol, and none below 1024; protocols do not share.
#[test]
fn req_3_no_port_is_overloaded() {
    let mut world = World::new(|config| config.block_ports = 64);
    for protocol in [Udp, Tcp, Icmp] {
        let mut seen = std::collections::HashSet::new();
        for port in 1..=512 {
            let external = world
                .call(protocol, 1, inner(1, port), remote(1, 9))
                .unwrap();
            assert!(external.port() >= 1024);
            assert!(seen.insert(external), "{protocol:?} {external}");
        }
        let more = world.call(protocol, 1, inner(1, 513), remote(1, 9));
        assert_eq!(more, Err(Refusal::SubscriberPorts));
    }
}

#[test]
fn req_4_parity_is_kept_while_there_are_such_ports() {
    let mut world = World::new(|config| {
        config.block_ports = 64;
        config.limits.blocks_per_subscriber_max = 1;
    });
    for nth in 0..32 {
        let external = world
            .call(Udp, 1, inner(1, 2000 + 2 * nth), remote(1, 9))
            .unwrap();
        assert_eq!(external.port() % 2, 0);
    }
    let external = world.call(Udp, 1, inner(1, 3000), remote(1, 9)).unwrap();
    assert_eq!(external.port() % 2, 1, "rather odd than refused");
}

#[test]
fn req_5_a_mapping_outlives_its_timeout_by_no_packet() {
    // Port of the remote, and seconds.
    for (port, timeout_s) in [(9, 300), (53, 30), (443, 300)] {
        let mut world = World::new(|_| ());
        let external = world.call(Udp, 1, inner(1, 5000), remote(1, port)).unwrap();
        world.wait_unswept(timeout_s * 1000 - 1);
        world.nat.sweep(world.now_ms, usize::MAX);
        assert!(
            world.answer(Udp, remote(1, port), external).is_ok(),
            "{port}"
        );
        world.wait_unswept(timeout_s * 1000);
        let late = world.answer(Udp, remote(1, port), external);
        assert_eq!(late, Err(Refusal::NoMapping), "{port}, and nobody swept");
    }
}

/// A flow that is by address alone lives as long as its longest need.
#[test]
fn req_5_a_question_to_port_53_shortens_nothing() {
    let mut world = World::new(|_| ());
    let external = world.call(Udp, 1, inner(1, 5000), remote(1, 443)).unwrap();
    world.call(Udp, 1, inner(1, 5000), remote(1, 53)).unwrap();
    world.wait(299);
    assert!(world.answer(Udp, remote(1, 443), external).is_ok());
}

#[test]
fn req_6_outbound_packets_refresh_and_inbound_ones_if_set() {
    for (inbound_refresh, lives) in [(true, true), (false, false)] {
        let mut world = World::new(|config| config.inbound_refresh = inbound_refresh);
        let external = world.call(Udp, 1, inner(1, 5000), remote(1, 9)).unwrap();
        world.wait(200);
        world.call(Udp, 1, inner(1, 5000), remote(1, 9)).unwrap();
        world.wait(200);
        world.answer(Udp, remote(1, 9), external).unwrap();
        world.wait(200);
        let answer = world.answer(Udp, remote(1, 9), external);
        assert_eq!(answer.is_ok(), lives, "{inbound_refresh}");
    }
}

/// With the most open filter strangers get in, but keep nothing alive.
#[test]
fn req_6_a_stranger_refreshes_nothing() {
    let mut world = World::new(|config| config.filtering = Filtering::EndpointIndependent);
    let external = world.call(Udp, 1, inner(1, 5000), remote(1, 9)).unwrap();
    for _ in 0..2 {
        world.wait(149);
        world.answer(Udp, remote(7, 7), external).unwrap();
    }
    world.wait(2);
    assert_eq!(
        world.answer(Udp, remote(7, 7), external),
        Err(Refusal::NoMapping)
    );
}

#[test]
fn req_8_filtering_is_as_set() {
    // Filter; whether the same address's other port gets in; whether another address does.
    let cases = [
        (Filtering::EndpointIndependent, true, true),
        (Filtering::AddressDependent, true, false),
        (Filtering::AddressAndPortDependent, false, false),
    ];
    for (filtering, other_port, other_address) in cases {
        for protocol in [Udp, Tcp] {
            let mut world = World::new(|config| config.filtering = filtering);
            let external = world
                .call(protocol, 1, inner(1, 5000), remote(1, 80))
                .unwrap();
            let tries = [
                (remote(1, 80), true),
                (remote(1, 81), other_port),
                (remote(2, 80), other_address),
            ];
            for (from, gets_in) in tries {
                let expected = if gets_in {
                    Ok((1, inner(1, 5000)))
                } else {
                    Err(Refusal::Filtered)
                };
                let answer = world.answer(protocol, from, external);
                assert_eq!(answer, expected, "{filtering:?} {protocol:?} {from}");
            }
        }
    }
}

#[test]
fn req_8_what_nobody_asked_for_has_its_own_reason() {
    let mut world = World::new(|_| ());
    let external = world.call(Udp, 1, inner(1, 5000), remote(1, 9)).unwrap();
    let mut other_port = external;
    other_port.set_port(external.port() ^ 1);
    let mut other_address = external;
    other_address.set_ip([203, 0, 113, 1].into());
    let cases = [
        (Udp, external, Refusal::Filtered),
        (Udp, other_port, Refusal::NoMapping),
        (Tcp, external, Refusal::NoMapping),
        (Udp, other_address, Refusal::NotNatAddress),
    ];
    for (protocol, to, refusal) in cases {
        assert_eq!(
            world.answer(protocol, remote(2, 9), to),
            Err(refusal),
            "{to}"
        );
    }
}

/// Peers are apart unless they may meet; then both see each other's external ends.
#[test]
fn req_9_hairpinning() {
    let mut world = World::new(|_| ());
    let external = world.call(Udp, 1, inner(1, 5000), remote(1, 9)).unwrap();
    let refused = world.call(Udp, 2, inner(2, 6000), external);
    assert_eq!(refused, Err(Refusal::Hairpin));

    for protocol in [Udp, Tcp] {
        let mut world = World::new(|config| {
            config.hairpinning = true;
            config.filtering = Filtering::EndpointIndependent;
        });
        let external = world
            .call(protocol, 1, inner(1, 5000), remote(1, 9))
            .unwrap();
        let sent = world
            .out(
                2,
                &support::packet(protocol, inner(2, 6000), external, true),
            )
            .unwrap();
        let (source, destination) = ends(&sent);
        assert!(POOL.contains(source.ip()), "req 9 a: the external source");
        assert_eq!(destination, external);
        let (subscriber, received) = world.back(&sent).unwrap();
        assert_eq!((subscriber, ends(&received)), (1, (source, inner(1, 5000))));
        // And back.
        let answer = support::packet(protocol, inner(1, 5000), source, true);
        let returned = world.out(1, &answer).unwrap();
        let (subscriber, received) = world.back(&returned).unwrap();
        assert_eq!(
            (subscriber, ends(&received)),
            (2, (external, inner(2, 6000)))
        );
    }
}

#[test]
fn req_14_later_fragments_follow_their_first() {
    let long = [7_u8; 1000];
    let mut world = World::new(|_| ());
    for (first_bytes, identification) in [(8, 1), (512, 2)] {
        let whole = udp(inner(1, 5000), remote(1, 9), &long);
        let parts = fragments(&whole, identification, first_bytes);
        let early = world.out(1, &parts[1]);
        assert_eq!(early, Err(Refusal::FragmentUnknown), "before its first");
        let sent = [0, 1].map(|nth| world.out(1, &parts[nth]).unwrap());
        let received = reassembled(&sent);
        support::check_sums(&received);
        let (external, destination) = ends(&received);
        assert_eq!(destination, remote(1, 9));
        assert_eq!(&received[28..], long);
        // Of another subscriber with the same inner address it is unknown.
        assert_eq!(world.out(2, &parts[1]), Err(Refusal::FragmentUnknown));

        let parts = fragments(
            &udp(remote(1, 9), external, &long),
            identification,
            first_bytes,
        );
        assert_eq!(world.back(&parts[1]), Err(Refusal::FragmentUnknown));
        let received = [0, 1].map(|nth| world.back(&parts[nth]).unwrap());
        assert!(received.iter().all(|(subscriber, _)| *subscriber == 1));
        let received = reassembled(&received.map(|(_, bytes)| bytes));
        support::check_sums(&received);
        assert_eq!(ends(&received), (remote(1, 9), inner(1, 5000)));
    }
    world.wait(10);
    let parts = fragments(&udp(inner(1, 5000), remote(1, 9), &long), 2, 512);
    assert_eq!(
        world.out(1, &parts[1]),
        Err(Refusal::FragmentUnknown),
        "too late"
    );
}

#[test]
fn req_14_fragments_are_bounded_in_all_and_for_each_subscriber() {
    let mut world = World::new(|config| {
        config.limits.fragments_max = 5;
        config.limits.fragments_per_subscriber_max = 3;
    });
    let first = |subscriber: u32, identification| {
        let whole = udp(inner(subscriber, 5000), remote(1, 9), &[0; 100]);
        fragments(&whole, identification, 16)[0].clone()
    };
    for (subscriber, taken) in [(1, 3), (2, 2)] {
        for identification in 0..4 {
            let expected = identification < taken;
            let sent = world.out(subscriber, &first(subscriber, identification));
            assert_eq!(sent.is_ok(), expected, "{subscriber} {identification}");
            let why = [Refusal::FragmentsFull];
            assert!(sent.is_ok() || why.contains(&sent.unwrap_err()));
        }
    }
    // One that is known already needs no place, and keeps those behind it from no end.
    world.wait(9);
    world.out(1, &first(1, 0)).unwrap();
    world.wait(9);
    assert_eq!(world.nat.counters().fragments, 1);
    world.wait(1);
    assert_eq!(world.nat.counters().fragments, 0);
    assert!(world.out(2, &first(2, 9)).is_ok());
}

#[test]
fn a_fragment_of_a_subscriber_that_is_gone_goes_nowhere() {
    let mut world = World::new(|_| ());
    let external = world.call(Udp, 1, inner(1, 5000), remote(1, 9)).unwrap();
    let parts = fragments(&udp(remote(1, 9), external, &[0; 100]), 1, 16);
    world.back(&parts[0]).unwrap();
    world.remove(1);
    world.call(Udp, 2, inner(2, 5000), remote(1, 9)).unwrap();
    assert_eq!(world.back(&parts[1]), Err(Refusal::FragmentUnknown));
    world.wait(11);
    assert_eq!(world.nat.counters().fragments, 0);
}

#[test]
fn fragments_that_hide_something_are_refused() {
    let mut world = World::new(|_| ());
    let syn = tcp(inner(1, 5000), remote(1, 80), support::SYN, &[0; 64]);
    let [tiny, rest] = fragments(&syn, 1, 16);
    assert_eq!(world.out(1, &tiny), Err(Refusal::Malformed), "no flags");
    let [_, mut overlap] = fragments(&syn, 1, 24);
    overlap[7] = 1;
    mend_header(&mut overlap);
    assert_eq!(
        world.out(1, &overlap),
        Err(Refusal::Malformed),
        "over the flags"
    );
    let mut beyond = rest;
    beyond[6..8].copy_from_slice(&0x1fff_u16.to_be_bytes());
    mend_header(&mut beyond);
    assert_eq!(
        world.out(1, &beyond),
        Err(Refusal::Malformed),
        "beyond 65535"
    );
}

#[test]
fn checksums_are_mended_and_never_made() {
    let mut world = World::new(|_| ());
    let external = world.call(Udp, 1, inner(1, 5000), remote(1, 9)).unwrap();

    let mut without = udp(inner(1, 5000), remote(1, 9), b"x");
    without[26..28].copy_from_slice(&[0, 0]);
    let sent = world.out(1, &without).unwrap();
    assert_eq!(sent[26..28], [0, 0]);

    let mut wrong = udp(inner(1, 5000), remote(1, 9), b"x");
    wrong[28] ^= 0xff;
    let mut sent = wrong.clone();
    let outward = world
        .nat
        .translate_out(world.now_ms, topnet_nat::Subscriber(1), &mut sent);
    assert_eq!(outward, Ok(topnet_nat::Outward::Leaves));
    sent[28] ^= 0xff;
    support::check_sums(&sent);

    // A payload whose checksum comes out as zero after translation.
    let zero = udp(external, remote(1, 9), &[0, 0]);
    let sum = u16::from_be_bytes([zero[26], zero[27]]);
    let before = udp(inner(1, 5000), remote(1, 9), &sum.to_be_bytes());
    let sent = world.out(1, &before).unwrap();
    assert_eq!(sent[26..28], [0xff, 0xff]);
    assert_eq!(internet_checksum(&sent[..20]), 0);
}

#[test]
fn limits_refuse_and_evict_nobody() {
    let mut world = World::new(|config| {
        config.limits.mappings_per_subscriber_max = 3;
        config.limits.flows_per_mapping_max = 2;
        config.limits.flows_per_subscriber_max = 4;
        config.limits.mappings_max = 4;
        config.limits.flows_max = 6;
        config.limits.subscribers_max = 2;
    });
    let steps = [
        (1, 1, 1, None),
        (1, 1, 2, None),
        (1, 1, 3, Some(Refusal::MappingFlows)),
        (1, 2, 1, None),
        (1, 3, 1, None),
        (1, 3, 2, Some(Refusal::SubscriberFlows)),
        (1, 4, 1, Some(Refusal::SubscriberMappings)),
        (2, 1, 1, None),
        (2, 2, 1, Some(Refusal::MappingsFull)),
        (2, 1, 2, None),
        (3, 1, 1, Some(Refusal::SubscribersFull)),
        (2, 2, 1, Some(Refusal::MappingsFull)),
    ];
    for round in 0..2 {
        for (nth, (subscriber, port, to, refusal)) in steps.into_iter().enumerate() {
            let call = world.call(Udp, subscriber, inner(subscriber, port), remote(to, 9));
            assert_eq!(call.err(), refusal, "step {nth} of round {round}");
        }
    }
    let mut world = World::new(|config| {
        config.limits.subscribers_max = 1;
        config.limits.flows_max = 1;
    });
    world.call(Udp, 1, inner(1, 1), remote(1, 9)).unwrap();
    let full = world.call(Udp, 2, inner(2, 1), remote(1, 9));
    assert_eq!(full, Err(Refusal::FlowsFull));
    let mut world = World::new(|config| config.limits.subscribers_max = 1);
    world.call(Udp, 1, inner(1, 1), remote(1, 9)).unwrap();
    let full = world.call(Udp, 2, inner(2, 1), remote(1, 9));
    assert_eq!(full, Err(Refusal::SubscribersFull));
}

#[test]
fn time_that_runs_backwards_stands_still() {
    let mut world = World::new(|_| ());
    let external = world.call(Udp, 1, inner(1, 5000), remote(1, 9)).unwrap();
    world.now_ms = 0;
    assert!(world.answer(Udp, remote(1, 9), external).is_ok());
    world.now_ms = u64::MAX;
    assert_eq!(
        world.answer(Udp, remote(1, 9), external),
        Err(Refusal::NoMapping)
    );
    // Nothing overflows at the end of time.
    let _ = world.call(Udp, 1, inner(1, 5000), remote(1, 9));
    world.nat.sweep(world.now_ms, usize::MAX);
}
