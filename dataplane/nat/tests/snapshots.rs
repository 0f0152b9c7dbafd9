//! State that outlives the process, or is refused whole.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;

use support::{ACK, POOL, SEED, World, inner, remote};
use topnet_nat::Protocol::{Icmp, Tcp, Udp};
use topnet_nat::{Config, Filtering, Nat44, RestoreError};

/// Some of everything.
fn lively() -> World {
    let mut world = World::new(|_| ());
    for subscriber in 1..5 {
        for port in 1..20 {
            let from = inner(subscriber, port);
            for (protocol, to) in [(Udp, 9), (Tcp, 443), (Icmp, 0)] {
                world
                    .call(protocol, subscriber, from, remote(1, to))
                    .unwrap();
            }
        }
    }
    world.connect(inner(1, 5000), remote(2, 443));
    world.remove(4);
    while world.nat.take_event().is_some() {}
    world
}

fn restored(snapshot: &[u8], change: impl FnOnce(&mut Config)) -> Result<Nat44, RestoreError> {
    let mut config = Config::new(POOL.to_vec());
    config.limits.mappings_max = 4096;
    config.limits.flows_max = 8192;
    config.limits.subscribers_max = 64;
    change(&mut config);
    Nat44::restore(config, [5; 32], 77, snapshot)
}

#[test]
fn connections_go_on_after_a_restart() {
    let mut world = lively();
    let external = world.connect(inner(1, 5001), remote(2, 443));
    let before: HashSet<_> = (1..5).flat_map(|id| world.mappings(id)).collect();
    let counters = world.nat.counters();
    world.nat = restored(&world.nat.snapshot(), |_| ()).unwrap();
    // Another clock, too.
    world.now_ms = 77;
    assert_eq!(world.nat.counters(), counters);
    let after: HashSet<_> = (1..5).flat_map(|id| world.mappings(id)).collect();
    assert_eq!(after, before);
    assert_eq!(world.nat.take_event(), None, "recorded before");
    assert_eq!(
        world.tcp_back(remote(2, 443), external, ACK),
        Ok((1, inner(1, 5001)))
    );
    for mapping in before.iter().filter(|m| m.protocol == Udp) {
        let (_, end) = world.answer(Udp, remote(1, 9), mapping.external).unwrap();
        assert_eq!(end, mapping.inner);
    }
    world.wait(8000);
    world.wait(300);
    let counters = world.nat.counters();
    assert_eq!(
        (
            counters.flows,
            counters.blocks_lent,
            counters.blocks_resting
        ),
        (0, 0, 0)
    );
}

/// Who was leaving has left: the ports rest, and nothing else is written.
#[test]
fn who_was_leaving_has_left_after_a_restart() {
    let mut world = lively();
    world.nat.remove(world.now_ms, topnet_nat::Subscriber(2));
    world.nat.sweep(world.now_ms, 3);
    let before = world.nat.counters();
    assert_eq!((before.subscribers, before.subscribers_leaving), (2, 1));
    let nat = restored(&world.nat.snapshot(), |_| ()).unwrap();
    world.nat.sweep(world.now_ms, usize::MAX);
    assert_eq!(
        nat.counters(),
        topnet_nat::Counters {
            events_waiting: 0,
            ..world.nat.counters()
        }
    );
    assert_eq!(nat.counters().blocks_resting, before.blocks_resting + 1);
}

#[test]
fn what_is_left_of_a_timeout_is_kept() {
    let mut world = World::new(|_| ());
    let external = world.call(Udp, 1, inner(1, 1), remote(1, 9)).unwrap();
    world.wait(299);
    world.nat = restored(&world.nat.snapshot(), |_| ()).unwrap();
    world.now_ms = 77 + 999;
    assert!(world.answer(Udp, remote(1, 9), external).is_ok());
    world.nat = restored(&world.nat.snapshot(), |_| ()).unwrap();
    world.now_ms = 77 + 300_000;
    assert!(world.answer(Udp, remote(1, 9), external).is_err());
}

#[test]
fn any_damage_refuses_the_whole() {
    let world = lively();
    let snapshot = world.nat.snapshot();
    assert!(restored(&snapshot, |_| ()).is_ok());
    for at in (0..snapshot.len()).step_by(13) {
        let mut damaged = snapshot.clone();
        damaged[at] ^= 0x40;
        let refused = restored(&damaged, |_| ()).unwrap_err();
        assert_eq!(refused, RestoreError::Damaged, "byte {at}");
        let refused = restored(&snapshot[..at], |_| ()).unwrap_err();
        assert_eq!(refused, RestoreError::Damaged, "cut at {at}");
    }
    let longer = [&snapshot[..], &[0]].concat();
    assert!(restored(&longer, |_| ()).is_err());
}

#[test]
fn another_configuration_is_named() {
    let snapshot = lively().nat.snapshot();
    type Change = fn(&mut Config);
    let cases: [(Change, &str); 9] = [
        (|c| c.block_ports = 64, "another `block_ports`"),
        (
            |c| c.filtering = Filtering::EndpointIndependent,
            "another `filtering`",
        ),
        (|c| c.pool = vec![[203, 0, 113, 1].into()], "not in `pool`"),
        (|c| c.limits.subscribers_max = 2, "`limits.subscribers_max`"),
        (|c| c.limits.mappings_max = 5, "`limits.mappings_max`"),
        (
            |c| c.limits.mappings_per_subscriber_max = 5,
            "`limits.mappings_per_subscriber_max`",
        ),
        (|c| c.limits.flows_max = 5, "`limits.flows_max`"),
        (
            |c| c.limits.flows_per_subscriber_max = 5,
            "`limits.flows_per_subscriber_max`",
        ),
        (|c| c.limits.flows_max = 0, "`flows_max` is 0"),
    ];
    for (change, what) in cases {
        let refused = restored(&snapshot, change).unwrap_err().to_string();
        assert!(refused.contains(what), "{refused}");
    }
    let more = |config: &mut Config| config.pool.insert(0, [203, 0, 113, 1].into());
    let nat = restored(&snapshot, more).unwrap();
    assert_eq!(nat.counters().blocks, 3 * 126);
}

/// The bound holds where every table is as full as it can be, and would not with a byte less.
#[test]
fn the_bound_of_a_snapshot_is_what_a_full_nat_writes() {
    let mut config = Config::new(POOL[..1].to_vec());
    config.block_ports = 32_256;
    config.limits.subscribers_max = 2;
    config.limits.mappings_max = 4;
    config.limits.flows_max = 6;
    let mut nat = Nat44::new(config.clone(), SEED).unwrap();
    let mut call = |id: u32, port, to| {
        let mut packet = support::udp(inner(id, port), remote(to, 9), b"");
        assert!(
            nat.translate_out(5, topnet_nat::Subscriber(id), &mut packet)
                .is_ok()
        );
    };
    for (id, port, to) in [
        (1, 1, 1),
        (1, 2, 1),
        (1, 2, 2),
        (2, 1, 1),
        (2, 2, 1),
        (2, 2, 2),
    ] {
        call(id, port, to);
    }
    let lent: Vec<_> = nat.lent_blocks().collect();
    let told: Vec<_> = std::iter::from_fn(|| nat.take_event()).collect();
    assert_eq!(lent.len(), 2);
    assert!(told.iter().all(|event| lent.contains(event)));
    // A lent block needs two bytes of the ten that a resting one does.
    let spare = 8 * lent.len() as u64;
    assert_eq!(
        nat.snapshot().len() as u64 + spare,
        config.snapshot_bytes_max()
    );
}

#[test]
fn an_empty_nat_is_a_snapshot_too() {
    let world = World::new(|_| ());
    let snapshot = world.nat.snapshot();
    let nat = restored(&snapshot, |_| ()).unwrap();
    assert_eq!(nat.snapshot(), snapshot);
    assert_eq!(nat.counters(), world.nat.counters());
    assert!(Nat44::restore(Config::new(vec![]), SEED, 0, &snapshot).is_err());
}
