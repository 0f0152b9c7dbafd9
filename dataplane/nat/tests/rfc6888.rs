//! What makes a NAT carrier-grade (RFC 6888): limits, logs and fairness. Named by requirement.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{HashMap, HashSet};

use support::{POOL, SEED, World, inner, remote};
use topnet_nat::Protocol::Udp;
use topnet_nat::{BlockEvent, BlockEventKind, Config, Nat44, Refusal, Subscriber};

fn events(world: &mut World) -> Vec<BlockEvent> {
    std::iter::from_fn(|| world.nat.take_event()).collect()
}

/// Calls from inner ports 1, 2 …; how many got through.
fn call_many(world: &mut World, subscriber: u32, ports: u16) -> usize {
    (1..=ports)
        .filter(|port| {
            let from = inner(subscriber, *port);
            world.call(Udp, subscriber, from, remote(1, 9)).is_ok()
        })
        .count()
}

#[test]
fn req_4_a_subscriber_s_ports_are_limited_and_others_keep_theirs() {
    let mut world = World::new(|config| {
        config.block_ports = 64;
        config.limits.blocks_per_subscriber_max = 3;
    });
    assert_eq!(call_many(&mut world, 1, 300), 192);
    assert_eq!(call_many(&mut world, 2, 10), 10);
    assert_eq!(world.nat.subscribers().count(), 2);
}

/// Nobody's sure part of a table is taken, however many others take all that they can get.
#[test]
fn req_4_no_others_take_a_subscriber_s_part() {
    type Limit = fn(&mut Config);
    let cases: [(&str, Limit, Refusal); 3] = [
        ("flows", |c| c.limits.flows_max = 640, Refusal::FlowsFull),
        (
            "mappings",
            |c| c.limits.mappings_max = 640,
            Refusal::MappingsFull,
        ),
        // 15 blocks an address, seven of which may be further ones.
        ("blocks", |c| c.block_ports = 4288, Refusal::PoolExhausted),
    ];
    for (what, limit, refusal) in cases {
        let mut world = World::new(|config| {
            config.limits.subscribers_max = 16;
            config.limits.mappings_max = 1 << 17;
            config.limits.flows_max = 1 << 17;
            config.limits.mappings_per_subscriber_max = u32::MAX;
            config.limits.flows_per_subscriber_max = u32::MAX;
            config.limits.blocks_per_subscriber_max = 64;
            limit(config);
        });
        let mut got = [0; 17];
        for greedy in 1..16 {
            let refused = (1..=u16::MAX).find_map(|port| {
                let called = world.call(Udp, greedy, inner(greedy, port), remote(1, 9));
                got[greedy as usize] += usize::from(called.is_ok());
                called.err()
            });
            assert_eq!(refused, Some(refusal), "{what} of {greedy}");
        }
        for port in 1..=20 {
            let called = world.call(Udp, 16, inner(16, port), remote(1, 9));
            assert!(called.is_ok(), "{what}: {called:?} of port {port}");
        }
        // And what is nobody's for sure is there for whoever comes first.
        let most = match what {
            "blocks" => 8 * 4288,
            _ => 20 + 320,
        };
        assert_eq!(got.into_iter().max(), Some(most), "{what}");
    }
}

#[test]
fn req_4_an_address_without_blocks_refuses() {
    // One block is all of an address.
    let mut world = World::new(|config| config.block_ports = 64_512);
    assert!(world.call(Udp, 1, inner(1, 1), remote(1, 9)).is_ok());
    assert!(world.call(Udp, 2, inner(2, 1), remote(1, 9)).is_ok());
    let third = world.call(Udp, 3, inner(3, 1), remote(1, 9));
    assert_eq!(third, Err(Refusal::PoolExhausted));
    world.remove(1);
    let third = world.call(Udp, 3, inner(3, 1), remote(1, 9));
    assert_eq!(third, Err(Refusal::PoolExhausted), "it rests");
    world.wait(120);
    assert!(world.call(Udp, 3, inner(3, 1), remote(1, 9)).is_ok());
}

/// A port is not another's before it has rested for two minutes.
#[test]
fn req_8_blocks_rest() {
    let mut world = World::new(|_| ());
    world.call(Udp, 1, inner(1, 1), remote(1, 53)).unwrap();
    assert_eq!(events(&mut world).len(), 1);
    world.wait(30);
    assert_eq!(world.nat.counters().mappings, 0);
    world.wait(119);
    assert_eq!(world.nat.counters().blocks_lent, 1);
    assert_eq!(events(&mut world), []);
    world.wait(1);
    let counters = world.nat.counters();
    assert_eq!((counters.blocks_lent, counters.subscribers), (0, 0));
    assert_eq!(events(&mut world).len(), 1);
}

/// One that is used again in between is looked at again.
#[test]
fn req_8_a_block_in_use_again_stays() {
    let mut world = World::new(|_| ());
    world.call(Udp, 1, inner(1, 1), remote(1, 53)).unwrap();
    world.wait(100);
    world.call(Udp, 1, inner(1, 1), remote(1, 53)).unwrap();
    world.wait(119);
    assert_eq!(world.nat.counters().blocks_lent, 1);
    world.wait(300);
    assert_eq!(world.nat.counters().blocks_lent, 0);
    assert_eq!(events(&mut world).len(), 2);
}

#[test]
fn req_12_each_block_is_recorded_once_when_lent_and_once_when_given_back() {
    let mut world = World::new(|config| config.block_ports = 64);
    call_many(&mut world, 1, 100);
    let lent = events(&mut world);
    assert_eq!(lent.len(), 2);
    for event in &lent {
        assert_eq!(event.kind, BlockEventKind::Allocated);
        assert_eq!(event.subscriber, Subscriber(1));
        assert_eq!(event.time_ms, world.now_ms);
        assert_eq!(event.port_count, 64);
    }
    let range = |event: &BlockEvent| event.first_port..event.first_port + event.port_count;
    for mapping in world.mappings(1) {
        let external = mapping.external;
        let in_one = lent
            .iter()
            .filter(|event| range(event).contains(&external.port()))
            .filter(|event| event.external == *external.ip());
        assert_eq!(in_one.count(), 1, "{external}");
    }
    world.wait(5);
    world.remove(1);
    let given_back = events(&mut world);
    let key = |event: &BlockEvent| (event.external, event.first_port, event.port_count);
    let both: [HashSet<_>; 2] = [lent, given_back.clone()].map(|e| e.iter().map(key).collect());
    assert_eq!(both[0], both[1]);
    assert!(
        given_back.iter().all(|event| {
            event.kind == BlockEventKind::Released && event.time_ms == world.now_ms
        })
    );
    let counters = world.nat.counters();
    assert_eq!(
        (counters.mappings, counters.flows, counters.subscribers),
        (0, 0, 0)
    );
    world.remove(1);
    assert_eq!(events(&mut world), [], "nothing to remove");
}

/// However much a subscriber had, a call ends no more of it than it may; nobody has its ports, its
/// number or its packets meanwhile.
#[test]
fn a_removed_subscriber_is_gone_at_once_and_ended_in_slices() {
    const WORK: usize = 10;
    let mut world = World::new(|config| {
        config.pool.truncate(1);
        config.block_ports = 64;
        config.limits.blocks_per_subscriber_max = 64;
    });
    assert_eq!(call_many(&mut world, 1, 700), 700);
    for to in 2..60 {
        let flow = world.call(Udp, 1, inner(1, 1), remote(to, 9));
        assert!(flow.is_ok());
    }
    let connection = world.connect(inner(1, 800), remote(1, 443));
    let old: Vec<_> = world.mappings(1).into_iter().map(|m| m.external).collect();
    let lent = events(&mut world);
    assert_eq!(lent.len(), 11);
    world.nat.remove(world.now_ms, Subscriber(1));
    assert_eq!(world.nat.subscribers().count(), 0);
    assert_eq!(world.nat.counters().flows, 759, "nothing is ended yet");

    // Another has the number now, and the same inner ends, and calls the same remotes.
    let mut new = HashSet::new();
    for port in 1..=20 {
        new.insert(world.call(Udp, 1, inner(1, port), remote(1, 9)).unwrap());
    }
    let unknown = world.tcp_out(1, inner(1, 800), remote(1, 443), support::ACK);
    assert_eq!(unknown, Err(Refusal::TcpOutOfState));
    new.insert(world.connect(inner(1, 800), remote(1, 443)));
    assert!(old.iter().all(|external| !new.contains(external)));
    for (nth, external) in old.iter().enumerate().filter(|(nth, _)| nth % 7 == 0) {
        let refused = world.answer(Udp, remote(1, 9), *external);
        assert_eq!(refused, Err(Refusal::NoMapping), "{nth}");
    }
    let refused = world.tcp_back(remote(1, 443), connection, support::ACK);
    assert_eq!(refused, Err(Refusal::NoMapping));
    let unreachable = support::icmp(
        *remote(1, 9).ip(),
        *old[5].ip(),
        3,
        &support::udp(old[5], remote(1, 9), b"payload"),
    );
    assert_eq!(world.back(&unreachable), Err(Refusal::IcmpErrorUnmatched));

    let held = |world: &World| {
        let counters = world.nat.counters();
        (counters.flows + counters.blocks_lent) as usize
    };
    let [mut slices, mut released] = [0; 2];
    let first = events(&mut world);
    assert!(
        first
            .iter()
            .all(|event| event.kind == BlockEventKind::Allocated)
    );
    while world.nat.counters().subscribers_leaving > 0 {
        let before = held(&world);
        world.nat.sweep(world.now_ms, WORK);
        assert!(
            before - held(&world) <= WORK,
            "{before} and {}",
            held(&world)
        );
        released += events(&mut world).len();
        slices += 1;
        assert!(slices < 100);
    }
    assert!(slices > 50, "{slices}");
    // Its blocks alone came back, and rest.
    assert_eq!(released, lent.len());
    let counters = world.nat.counters();
    assert_eq!((counters.flows, counters.blocks_resting), (21, 11));
    assert_eq!(world.mappings(1).len(), 21);
}

/// A caller that takes no records gets no blocks after a while, and loses none.
#[test]
fn req_12_no_record_is_lost() {
    let mut world = World::new(|config| {
        config.block_ports = 32_256;
        config.timeouts.block_rest_ms = 0;
    });
    let blocks = world.nat.counters().blocks;
    assert_eq!(blocks, 4);
    let mut lent = 0;
    let mut refused = false;
    for subscriber in 0..40 {
        match world.call(Udp, subscriber, inner(subscriber, 1), remote(1, 9)) {
            Ok(_) => lent += 1,
            Err(refusal) => {
                assert_eq!(refusal, Refusal::EventsFull);
                refused = true;
            }
        }
        world.remove(subscriber);
    }
    assert!(refused);
    assert_eq!(events(&mut world).len(), 2 * lent);
    assert!(world.call(Udp, 1, inner(1, 1), remote(1, 9)).is_ok());
}

/// Another seed, other blocks and ports; the same one, the same.
#[test]
fn req_15_ports_cannot_be_foreseen() {
    let ports = |seed: [u8; 32]| {
        let mut world = World::new(|_| ());
        world.nat = Nat44::new(Config::new(POOL.to_vec()), seed).unwrap();
        (1..50_u16)
            .map(|port| world.call(Udp, 1, inner(1, port), remote(1, 9)).unwrap())
            .collect::<Vec<_>>()
    };
    let mut other = SEED;
    other[31] ^= 1;
    assert_eq!(ports(SEED), ports(SEED));
    assert_ne!(ports(SEED), ports(other));
    let in_row = ports(SEED)
        .windows(2)
        .filter(|pair| pair[1].port().abs_diff(pair[0].port()) <= 2)
        .count();
    assert!(in_row < 5, "{in_row} of 48 are neighbours");
}

#[test]
fn status_says_what_there_is() {
    let mut world = World::new(|_| ());
    let mut external = HashMap::new();
    for subscriber in [3, 70_000] {
        for port in [10, 11] {
            let from = inner(subscriber, port);
            let end = world.call(Udp, subscriber, from, remote(1, 9)).unwrap();
            external.insert(from, end);
        }
        world
            .call(Udp, subscriber, inner(subscriber, 10), remote(2, 9))
            .unwrap();
    }
    for status in world.nat.subscribers() {
        assert_eq!((status.blocks, status.mappings, status.flows), (1, 2, 3));
        for mapping in world.nat.mappings(status.subscriber) {
            assert_eq!(external[&mapping.inner], mapping.external);
            assert_eq!(*mapping.external.ip(), status.external);
            assert_eq!(
                mapping.flows,
                if mapping.inner.port() == 10 { 2 } else { 1 }
            );
        }
    }
    assert_eq!(world.mappings(5), []);
    let counters = world.nat.counters();
    assert_eq!(
        (counters.subscribers, counters.mappings, counters.flows),
        (2, 4, 6)
    );
    assert_eq!((counters.blocks, counters.blocks_lent), (2 * 126, 2));
    assert_eq!(counters.events_waiting, 2);
}
