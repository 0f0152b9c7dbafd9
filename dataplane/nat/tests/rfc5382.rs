//! TCP as RFC 5382 asks for it, with what RFC 7857 changed. Named by requirement.
#![allow(clippy::unwrap_used)]

mod support;

use support::{ACK, FIN, RST, SYN, World, inner, remote};
use topnet_nat::{Filtering, Refusal};

const FROM: u16 = 5000;

#[test]
fn req_2_a_connection_lives_through_all_its_packets() {
    let mut world = World::new(|_| ());
    let (from, to) = (inner(1, FROM), remote(1, 443));
    let external = world.connect(from, to);
    for _ in 0..3 {
        assert_eq!(world.tcp_back(to, external, ACK), Ok((1, from)));
        assert_eq!(world.tcp_out(1, from, to, ACK), Ok(external));
    }
    world.tcp_out(1, from, to, FIN | ACK).unwrap();
    world.tcp_back(to, external, ACK).unwrap();
    world.tcp_back(to, external, FIN | ACK).unwrap();
    world.tcp_out(1, from, to, ACK).unwrap();
    world.wait(240);
    assert_eq!(world.nat.counters().flows, 0);
}

/// Both SYNs cross; then both SYN-ACKs do.
#[test]
fn req_2_a_simultaneous_open_is_accepted() {
    let mut world = World::new(|_| ());
    let (from, to) = (inner(1, FROM), remote(1, 443));
    let external = world.tcp_out(1, from, to, SYN).unwrap();
    assert_eq!(world.tcp_back(to, external, SYN), Ok((1, from)));
    assert_eq!(world.tcp_out(1, from, to, SYN | ACK), Ok(external));
    assert_eq!(world.tcp_back(to, external, SYN | ACK), Ok((1, from)));
    world.tcp_out(1, from, to, ACK).unwrap();
    world.wait(7439);
    assert_eq!(world.tcp_back(to, external, ACK), Ok((1, from)));
}

/// A connection from outside, where the filter lets one in, is one like any other.
#[test]
fn req_3_a_remote_may_call_back() {
    let mut world = World::new(|_| ());
    let from = inner(1, FROM);
    let external = world.tcp_out(1, from, remote(1, 21), SYN).unwrap();
    let caller = remote(1, 20);
    assert_eq!(world.tcp_back(caller, external, SYN), Ok((1, from)));
    assert_eq!(world.tcp_out(1, from, caller, SYN | ACK), Ok(external));
    assert_eq!(world.tcp_back(caller, external, ACK), Ok((1, from)));
    world.wait(7439);
    assert_eq!(world.tcp_out(1, from, caller, ACK), Ok(external));
    // The first connection is long over, and with it that address's right to call.
    world.tcp_out(1, from, caller, RST).unwrap();
    world.wait(10);
    assert_eq!(
        world.tcp_back(remote(1, 20), external, SYN),
        Err(Refusal::NoMapping)
    );
}

/// What the outside opens is bounded like what the inside does, and cannot be prolonged.
#[test]
fn req_3_calls_from_outside_are_bounded() {
    let mut world = World::new(|config| {
        config.filtering = Filtering::EndpointIndependent;
        config.limits.flows_per_mapping_max = 3;
    });
    let external = world
        .tcp_out(1, inner(1, FROM), remote(1, 80), SYN)
        .unwrap();
    for (nth, expected) in [(2, None), (3, None), (4, Some(Refusal::MappingFlows))] {
        let call = world.tcp_back(remote(nth, 80), external, SYN);
        assert_eq!(call.err(), expected, "{nth}");
    }
    for _ in 0..4 {
        world.wait(60);
        let _ = world.tcp_back(remote(2, 80), external, SYN);
        let _ = world.tcp_back(remote(2, 80), external, RST);
        let _ = world.tcp_back(remote(2, 80), external, ACK);
    }
    assert_eq!(world.nat.counters().flows, 0);
}

#[test]
fn req_4_an_unsolicited_syn_is_refused() {
    let mut world = World::new(|_| ());
    let external = world
        .tcp_out(1, inner(1, FROM), remote(1, 80), SYN)
        .unwrap();
    assert_eq!(
        world.tcp_back(remote(2, 80), external, SYN),
        Err(Refusal::Filtered)
    );
}

/// Flags, by whom (true: the subscriber), and how many seconds later it must still be and not
/// be any more.
#[test]
fn req_5_timeouts_by_state() {
    type Packets = &'static [(bool, u8)];
    let cases: &[(&str, Packets, u64)] = &[
        ("a SYN alone", &[], 240),
        ("a SYN answered", &[(false, SYN | ACK)], 240),
        ("open", &[(false, SYN | ACK), (true, ACK)], 7440),
        (
            "half closed from inside",
            &[
                (false, SYN | ACK),
                (true, ACK),
                (true, FIN | ACK),
                (false, ACK),
            ],
            7440,
        ),
        (
            "half closed from outside",
            &[
                (false, SYN | ACK),
                (true, ACK),
                (false, FIN | ACK),
                (true, ACK),
            ],
            7440,
        ),
        (
            "closed",
            &[
                (false, SYN | ACK),
                (true, ACK),
                (false, FIN | ACK),
                (true, FIN | ACK),
                (false, ACK),
            ],
            240,
        ),
        ("refused", &[(false, RST | ACK)], 10),
        (
            "reset by the subscriber",
            &[(false, SYN | ACK), (true, ACK), (true, RST)],
            10,
        ),
        (
            "reset from outside, maybe by a stranger (RFC 7857, section 2.2)",
            &[(false, SYN | ACK), (true, ACK), (false, RST)],
            240,
        ),
        (
            "that stranger contradicted",
            &[(false, SYN | ACK), (true, ACK), (false, RST), (true, ACK)],
            7440,
        ),
        (
            "what still comes after a reset",
            &[(false, SYN | ACK), (true, ACK), (true, RST), (false, ACK)],
            10,
        ),
    ];
    for (what, packets, timeout_s) in cases {
        let mut world = World::new(|_| ());
        let (from, to) = (inner(1, FROM), remote(1, 443));
        let external = world.tcp_out(1, from, to, SYN).unwrap();
        for (is_out, flags) in *packets {
            if *is_out {
                world.tcp_out(1, from, to, *flags).unwrap();
            } else {
                world.tcp_back(to, external, *flags).unwrap();
            }
        }
        world.now_ms += timeout_s * 1000 - 1;
        world.nat.sweep(world.now_ms, usize::MAX);
        assert_eq!(world.nat.counters().flows, 1, "{what}");
        // Without a sweep too.
        let mut unswept = world.now_ms + 1;
        std::mem::swap(&mut unswept, &mut world.now_ms);
        let late = world.tcp_back(to, external, ACK);
        assert_eq!(late, Err(Refusal::NoMapping), "{what}");
        world.nat.sweep(world.now_ms, usize::MAX);
        assert_eq!(world.nat.counters().flows, 0, "{what}");
    }
}

/// The 4-tuple of a connection that is over can be used again at once.
#[test]
fn req_5_a_closed_connection_can_begin_anew() {
    for last in [FIN | ACK, RST] {
        let mut world = World::new(|_| ());
        let (from, to) = (inner(1, FROM), remote(1, 443));
        let external = world.connect(from, to);
        world.tcp_back(to, external, FIN | ACK).unwrap();
        world.tcp_out(1, from, to, last).unwrap();
        assert_eq!(world.connect(from, to), external);
        world.wait(7439);
        assert_eq!(world.nat.counters().flows, 1);
    }
}

/// A mapping lives as long as any of its connections.
#[test]
fn req_5_connections_of_one_mapping_end_one_by_one() {
    let mut world = World::new(|_| ());
    let from = inner(1, FROM);
    let external = world.connect(from, remote(1, 443));
    world.tcp_out(1, from, remote(2, 443), SYN).unwrap();
    world.wait(240);
    assert_eq!(world.nat.counters().flows, 1);
    assert_eq!(
        world.tcp_back(remote(2, 443), external, SYN | ACK),
        Err(Refusal::Filtered)
    );
    assert_eq!(world.tcp_out(1, from, remote(3, 443), SYN), Ok(external));
}

#[test]
fn what_belongs_to_no_connection_is_refused() {
    let mut world = World::new(|_| ());
    let (from, to) = (inner(1, FROM), remote(1, 443));
    for flags in [ACK, SYN | ACK, FIN | ACK, RST, 0] {
        let out = world.tcp_out(1, from, to, flags);
        assert_eq!(out, Err(Refusal::TcpOutOfState), "{flags}");
    }
    assert_eq!(world.nat.counters().mappings, 0);
    let external = world.tcp_out(1, from, to, SYN).unwrap();
    for flags in [ACK, SYN | ACK, FIN | ACK, RST, 0] {
        let back = world.tcp_back(remote(1, 80), external, flags);
        assert_eq!(back, Err(Refusal::TcpOutOfState), "{flags}");
    }
    assert_eq!(
        world.tcp_out(1, from, to, SYN | FIN),
        Err(Refusal::Malformed)
    );
}
