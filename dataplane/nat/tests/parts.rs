//! Several NATs with a part of one pool each: what comes from outside is for exactly the one that
//! is named, and the others would refuse it.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;

use support::{
    POOL, World, ends, fragments, icmp, inner, mend_header, packet, remote, request, tcp, udp,
};
use topnet_nat::{PoolPart, Protocol, Refusal, Whose};

const PARTS: u32 = 3;

fn worlds() -> Vec<World> {
    let part = |number| {
        World::new(|config| *config = config.clone().with_part(PoolPart { number, of: PARTS }))
    };
    (0..PARTS).map(part).collect()
}

fn part_of(world: &World, bytes: &[u8]) -> u32 {
    match Whose::of(bytes).unwrap() {
        Whose::Port(port) | Whose::First(port, _) => world.nat.part_of(port),
        Whose::Later(_) => panic!("it has no port"),
    }
}

/// Only the part that is named knows whom it is for.
fn is_for(worlds: &mut [World], bytes: &[u8], number: u32, subscriber: u32) {
    assert_eq!(part_of(&worlds[0], bytes), number);
    for (nth, world) in (0..).zip(worlds) {
        let back = world.back(bytes);
        match nth == number {
            true => assert_eq!(back.unwrap().0, subscriber),
            false => assert!(back.is_err()),
        }
    }
}

#[test]
fn an_answer_is_for_the_part_that_lent_the_port() {
    let mut worlds = worlds();
    let mut lent = BTreeSet::new();
    for number in 0..PARTS {
        for subscriber in [2 * number, 2 * number + 1] {
            for protocol in [Protocol::Udp, Protocol::Tcp, Protocol::Icmp] {
                let world = &mut worlds[number as usize];
                let (from, to) = (inner(subscriber, 5000), remote(1, 80));
                let out = world
                    .out(subscriber, &packet(protocol, from, to, true))
                    .unwrap();
                let (external, _) = ends(&out);
                assert!(lent.insert((protocol, external)), "nobody else has it");
                let answer = packet(protocol, to, external, false);
                is_for(&mut worlds, &answer, number, subscriber);
                let about = icmp(*remote(9, 0).ip(), *external.ip(), 3, &out);
                is_for(&mut worlds, &about, number, subscriber);
            }
        }
    }
}

#[test]
fn later_fragments_are_known_by_their_first() {
    let mut worlds = worlds();
    let out = worlds[2]
        .out(7, &udp(inner(7, 5000), remote(1, 9), b""))
        .unwrap();
    let (external, _) = ends(&out);
    let parts = fragments(&udp(remote(1, 9), external, &[7; 600]), 77, 512);
    let Ok(Whose::First(port, id)) = Whose::of(&parts[0]) else {
        panic!("the first has the port");
    };
    assert_eq!(worlds[0].nat.part_of(port), 2);
    assert_eq!(Whose::of(&parts[1]), Ok(Whose::Later(id)));
    let other = fragments(&udp(remote(1, 9), external, &[7; 600]), 78, 512);
    assert_ne!(Whose::of(&other[1]), Ok(Whose::Later(id)));
    assert!(parts.iter().all(|part| worlds[2].back(part).is_ok()));
}

#[test]
fn what_every_part_would_refuse_is_refused_at_once() {
    let to = remote(1, 80);
    let mut other_protocol = udp(to, inner(1, 1), b"");
    other_protocol[9] = 47;
    mend_header(&mut other_protocol);
    assert_eq!(Whose::of(&[0; 20]), Err(Refusal::Malformed));
    assert_eq!(
        Whose::of(&other_protocol),
        Err(Refusal::ProtocolUnsupported)
    );
    assert_eq!(
        Whose::of(&request(to, POOL[0], b"")),
        Err(Refusal::IcmpType)
    );
    assert_eq!(
        Whose::of(&tcp(to, inner(1, 1), 0, b"")[..30]),
        Err(Refusal::Malformed)
    );
}

#[test]
fn every_part_lends_all_that_it_has_and_no_more() {
    let mut worlds = worlds();
    let mut blocks = BTreeSet::new();
    let (mut lent, mut refused) = (0, 0);
    for world in &mut worlds {
        for subscriber in 0..64 {
            match world.out(subscriber, &udp(inner(subscriber, 5000), remote(1, 9), b"")) {
                Ok(out) => {
                    let (external, _) = ends(&out);
                    blocks.insert((*external.ip(), (external.port() - 1024) / 512));
                    lent += 1;
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert_eq!(lent, blocks.len(), "each has a block of its own");
    // Twice a part's share of 64 subscribers.
    assert_eq!((lent, refused), (3 * 44, 3 * 20));
}
