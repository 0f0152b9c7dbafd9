//! Clients behind public addresses that they share.

use super::*;

pub(super) fn pool() -> topnet_config::Nat {
    serde_json::from_value(serde_json::json!({ "addresses": "198.51.100.0/28" })).unwrap()
}

#[test]
fn a_client_that_opens_flows_without_end_takes_nobody_else_s() {
    let few = topnet_config::Nat {
        flows_max: Some(80),
        flows_per_client_max: Some(44),
        ..pool()
    };
    // Of 80 flows each of eight clients is sure of five; 40 are for whoever comes first.
    for (section, most, reason) in [
        (&few, 44, Refusal::SubscriberFlows),
        (
            &topnet_config::Nat {
                flows_per_client_max: Some(80),
                ..few.clone()
            },
            45,
            Refusal::FlowsFull,
        ),
    ] {
        let mut bench = Bench::connected();
        bench.plane.translation =
            Some(Translation::new(section, 8, PoolPart::WHOLE, [7; 32]).unwrap());
        let calls = (1..=100).filter(|host| {
            let packet = udp(INNER, [10, 77, 2, 100 + host], 64, 8);
            let neighbour = Neighbour {
                interface: 2,
                address: IpAddr::from([10, 77, 2, 100 + host]),
            };
            let mut known = forwarding();
            known.neighbours.insert(neighbour, MacAddress(ORIGIN_MAC));
            bench.path.replace_forwarding(Arc::new(known));
            bench.up(&packet).is_some()
        });
        assert_eq!(calls.count(), most, "{reason:?}");
        let refused = 100 - most as u64;
        assert_eq!(bench.dropped(), [(DropReason::Nat(reason), refused)]);
        let levels = bench.plane.translation.as_ref().unwrap().levels();
        bench.plane.sweep();
        let drops = [Arc::clone(&bench.plane.drops)];
        let status = PoolLevels::status(&[levels], &drops).unwrap();
        assert_eq!((status.flows, status.flows_max), (most as u32, 80));
        assert_eq!((status.clients, status.blocks_lent), (1, 1));
        let told = status.refused.iter().filter(|count| count.packets > 0);
        let told: Vec<_> = told.map(|count| (&*count.reason, count.packets)).collect();
        assert_eq!(told, [(reason.name(), refused)]);
        let translation = bench.plane.translation.as_mut().unwrap();
        for host in 3..10 {
            for remote in 1..=5 {
                let mut packet = udp([10, 78, 0, host], [192, 0, 2, remote], 64, 8);
                let called = translation.out(0, host.into(), &mut packet);
                assert_eq!(called, Ok(()), "{reason:?}: {host} to {remote}");
            }
        }
    }
}

#[test]
fn clients_share_public_addresses_and_nobody_unasked_gets_through() {
    let mut bench = Bench::connected();
    bench.plane.translation = Some(Translation::new(&pool(), 8, PoolPart::WHOLE, [7; 32]).unwrap());
    let packet = udp(INNER, ORIGIN, 64, 100);
    let (_, frame) = bench.up(&packet).unwrap();
    let sent = Ipv4::parse(&frame[ETHERNET_BYTES..]).unwrap();
    assert_eq!(sent.source.octets()[..3], [198, 51, 100]);
    assert_eq!(bench.usage(), packet.len() as u64);
    let event = bench.plane.take_block_event().unwrap();
    assert_eq!(event.external, sent.source);

    // The answer arrives at the client's own address.
    let at = ETHERNET_BYTES + IPV4_BYTES;
    let port = u16::from_be_bytes([frame[at], frame[at + 1]]);
    let mut answer = Vec::new();
    let builder = PacketBuilder::ipv4(ORIGIN, sent.source.octets(), 64).udp(2, port);
    builder.write(&mut answer, &[3; 50]).unwrap();
    let (_, frame) = bench.down(&answer).unwrap();
    let mut buffer = [0; 2048];
    let received = bench
        .client
        .decapsulate(None, &frame[OUTER_BYTES..], &mut buffer);
    let TunnResult::WriteToTunnelV4(received, from) = received else {
        panic!("{received:?}");
    };
    assert_eq!(from.octets(), ORIGIN);
    assert_eq!(Ipv4::parse(received).unwrap().destination.octets(), INNER);
    let billed = (packet.len() + answer.len()) as u64;
    assert_eq!(bench.usage(), billed);

    // Not so what nobody asked for, nor a client's own address, nor from client to client.
    let unasked = udp(ORIGIN, [198, 51, 100, 3], 64, 8);
    assert_eq!(bench.down(&unasked), None);
    assert_eq!(bench.down(&udp(ORIGIN, INNER, 64, 8)), None);
    let route = Route {
        network: Ipv4Addr::new(198, 51, 100, 0).into(),
        prefix_bits: 28,
        metric: 0,
        target: RouteTarget::Forward {
            interface: 2,
            gateway: Some(IpAddr::from(ORIGIN)),
        },
    };
    let mut routed = forwarding();
    let more = RouteTable::from_iter([route]);
    routed.tables = [routed.tables[0].clone(), more].into();
    bench.path.replace_forwarding(Arc::new(routed));
    assert_eq!(bench.up(&udp(INNER, [198, 51, 100, 3], 64, 8)), None);
    let expected = [
        (DropReason::NotSteered, 1),
        (DropReason::Nat(Refusal::Hairpin), 1),
        (DropReason::Nat(Refusal::NoMapping), 1),
    ];
    assert_eq!(bench.dropped(), expected);
    assert_eq!(bench.usage(), billed);
}
