//! What peers reach beside the public Internet: nothing, unless the operator says so.

use super::*;
use crate::rate::RateLimit;
use crate::session::Addresses;
use topnet_config::Reach;
use topnet_uapi::IpNetwork;

const OTHER: SessionIndex = SessionIndex(4);
const OTHERS_SLOT: Slot = Slot {
    index: 2,
    generation: 1,
};
const OTHER_INNER: [u8; 4] = [10, 78, 0, 9];
/// A network behind the other peer.
const SITE: [u8; 4] = [172, 20, 0, 7];

fn reach(private: &[&str], unmetered_private: &[&str], peers: &[&str]) -> Arc<Reach> {
    let networks = |list: &[&str]| list.iter().map(|it| it.parse().unwrap()).collect();
    Arc::new(Reach {
        private: networks(private),
        unmetered_private: networks(unmetered_private),
        peers: networks(peers),
    })
}

/// A bench with a second peer, whose tunnel is up too.
fn with_another(payer: Option<Payer>) -> (Bench, Tunn) {
    let mut bench = Bench::connected();
    let private = StaticSecret::from([6; 32]);
    let identity = Arc::clone(&bench.plane.identity);
    let addresses = match payer {
        Some(_) => Addresses::Client(OTHER_INNER.into()),
        None => Addresses::Networks(vec![
            IpNetwork::host(IpAddr::from(OTHER_INNER)),
            "172.20.0.0/16".parse().unwrap(),
        ]),
    };
    let plan = SessionPlan {
        index: OTHER,
        public_key: PublicKey::from(&private).to_bytes(),
        payer,
        addresses,
        preshared_key: None,
        persistent_keepalive_s: 0,
        endpoint: None,
    };
    bench.plane.install(Box::new(Session::new(&identity, plan)));
    let mut other = Tunn::new(private, identity.public, None, None, 2, None);
    let mut buffer = [0; 2048];
    let TunnResult::WriteToNetwork(init) = other.format_handshake_initiation(&mut buffer, false)
    else {
        panic!("no initiation");
    };
    let (_, answer) = bench.client_sends(init).expect("an answer");
    let received = other.decapsulate(None, &answer[OUTER_BYTES..], &mut buffer);
    let TunnResult::WriteToNetwork(keepalive) = received else {
        panic!("no keepalive");
    };
    bench.client_sends(keepalive);
    bench.metering.credit.grant(OTHERS_SLOT, ENOUGH);
    assert_eq!(bench.dropped(), []);
    (bench, other)
}

const fn others_payer() -> Payer {
    Payer {
        channel: ChannelId([2; 32]),
        slot: OTHERS_SLOT,
    }
}

/// What a peer finds in a frame for it.
fn opened(peer: &mut Tunn, frame: &[u8]) -> Vec<u8> {
    let mut buffer = [0; 2048];
    match peer.decapsulate(None, &frame[OUTER_BYTES..], &mut buffer) {
        TunnResult::WriteToTunnelV4(packet, _) => packet.to_vec(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn private_networks_beyond_the_uplink_are_closed_and_what_is_named_is_open() {
    let mut bench = Bench::connected();
    let packet = udp(INNER, ORIGIN, 64, 100);
    bench.plane.change_reach(Arc::default());
    assert_eq!(bench.up(&packet), None);
    assert_eq!(bench.dropped(), [(DropReason::PrivateNetwork, 1)]);
    assert_eq!(bench.usage(), 0, "and nobody pays for it");
    // What is for the operator's own peers is not for clients.
    bench.plane.change_reach(reach(&[], &["10.77.2.0/24"], &[]));
    assert_eq!(bench.up(&packet), None);
    bench.plane.change_reach(reach(&["10.77.2.0/24"], &[], &[]));
    let (port, frame) = bench.up(&packet).expect("it is allowed");
    assert_eq!(port, UPLINK_PORT);
    assert_eq!(frame[ETHERNET_BYTES + IPV4_BYTES..], packet[IPV4_BYTES..]);
    assert_eq!(bench.dropped(), [(DropReason::PrivateNetwork, 2)]);
    assert_eq!(bench.usage(), packet.len() as u64);
}

#[test]
fn an_operator_s_own_peer_reaches_what_is_named_for_it() {
    let (mut bench, mut own) = with_another(None);
    bench.plane.change_reach(reach(&[], &["10.77.2.0/24"], &[]));
    let mut buffer = [0; 2048];
    let packet = udp(OTHER_INNER, ORIGIN, 64, 100);
    let TunnResult::WriteToNetwork(sealed) = own.encapsulate(&packet, &mut buffer) else {
        panic!("no keys");
    };
    let (port, _) = bench.client_sends(sealed).expect("it is allowed");
    assert_eq!((port, bench.dropped()), (UPLINK_PORT, vec![]));
    assert_eq!(bench.up(&udp(INNER, ORIGIN, 64, 100)), None);
    assert_eq!(bench.dropped(), [(DropReason::PrivateNetwork, 1)]);
}

#[test]
fn peers_that_are_named_reach_each_other_and_each_pays() {
    let (mut bench, mut other) = with_another(Some(others_payer()));
    let packet = udp(INNER, OTHER_INNER, 64, 100);
    // Nobody, then one of the two, then both.
    assert_eq!(bench.up(&packet), None);
    bench.plane.change_reach(reach(&[], &[], &["10.78.0.9/32"]));
    assert_eq!(bench.up(&packet), None);
    assert_eq!(bench.dropped(), [(DropReason::BetweenClients, 2)]);
    let both = ["10.78.0.2/32", "10.78.0.9/32"];
    bench.plane.change_reach(reach(&[], &[], &both));
    let (port, frame) = bench.up(&packet).expect("they are joined");
    let received = opened(&mut other, &frame);
    assert_eq!(port, CLIENT_PORT);
    assert_eq!(received[IPV4_BYTES..], packet[IPV4_BYTES..]);
    assert_eq!((packet[8], received[8]), (64, 63), "one hop");
    assert_eq!(checksum(&received[..IPV4_BYTES]), 0);
    let bytes = packet.len() as u64;
    let others = |bench: &Bench| bench.metering.usage.totals(OTHERS_SLOT.index).bytes;
    assert_eq!((bench.usage(), others(&bench)), (bytes, bytes));
    assert_eq!(bench.dropped(), [(DropReason::BetweenClients, 2)]);
    // From outside nobody comes with a peer's address, joined or not.
    assert_eq!(bench.down(&udp(OTHER_INNER, INNER, 64, 8)), None);
    assert_eq!(bench.dropped(), [(DropReason::BetweenClients, 3)]);
    // What is nobody's.
    bench.plane.change_reach(reach(&[], &[], &["10.78.0.0/16"]));
    assert_eq!(bench.up(&udp(INNER, [10, 78, 0, 77], 64, 8)), None);
    assert_eq!(bench.up(&udp(INNER, INNER, 64, 8)), None);
    assert_eq!(
        bench.dropped(),
        [(DropReason::BetweenClients, 4), (DropReason::NoSession, 1)]
    );
    assert_eq!((bench.usage(), others(&bench)), (bytes, bytes));
}

#[test]
fn who_has_no_credit_neither_sends_to_peers_nor_hears_them() {
    let (mut bench, _) = with_another(Some(others_payer()));
    bench.plane.change_reach(reach(&[], &[], &["10.78.0.0/16"]));
    let packet = udp(INNER, OTHER_INNER, 64, 100);
    let bytes = packet.len() as u64;
    let up_to = |limit_bytes| CreditGrant {
        limit_bytes,
        record_at_bytes: u64::MAX,
    };
    bench.metering.credit.grant(OTHERS_SLOT, up_to(1));
    let others = |bench: &Bench| bench.metering.usage.totals(OTHERS_SLOT.index).bytes;
    assert_eq!(bench.up(&packet), None);
    assert_eq!(
        bench.usage(),
        0,
        "its sender does not pay for what is dropped"
    );
    bench.metering.credit.grant(OTHERS_SLOT, ENOUGH);
    bench.metering.credit.grant(SLOT, up_to(bytes - 1));
    assert_eq!(bench.up(&packet), None);
    assert_eq!((bench.usage(), others(&bench)), (0, 0));
    assert_eq!(bench.dropped(), [(DropReason::CreditExhausted, 2)]);
    bench.metering.credit.grant(SLOT, up_to(bytes));
    assert!(bench.up(&packet).is_some());
    assert_eq!((bench.usage(), others(&bench)), (bytes, bytes));
}

#[test]
fn a_channel_that_has_both_peers_pays_for_both_ways_or_neither() {
    let payer = Payer {
        slot: SLOT,
        ..others_payer()
    };
    let (mut bench, _) = with_another(Some(payer));
    bench.plane.change_reach(reach(&[], &[], &["10.78.0.0/16"]));
    let packet = udp(INNER, OTHER_INNER, 64, 100);
    let both = 2 * packet.len() as u64;
    let up_to = |limit_bytes| CreditGrant {
        limit_bytes,
        record_at_bytes: u64::MAX,
    };
    bench.metering.credit.grant(SLOT, up_to(both - 1));
    assert_eq!(bench.up(&packet), None);
    assert_eq!(bench.usage(), 0);
    assert_eq!(bench.dropped(), [(DropReason::CreditExhausted, 1)]);
    bench.metering.credit.grant(SLOT, up_to(both));
    assert!(bench.up(&packet).is_some());
    assert_eq!(bench.usage(), both);
}

#[test]
fn what_its_receiver_refuses_takes_nothing_of_its_sender_s_rate() {
    let (mut bench, _) = with_another(Some(others_payer()));
    bench.plane.change_reach(reach(&[], &[], &["10.78.0.0/16"]));
    let unused = Some(RateLimit::new(1_000_000));
    bench.session().rates.up = unused;
    let packet = udp(INNER, OTHER_INNER, 64, 100);
    bench.metering.credit.close(OTHERS_SLOT);
    assert_eq!(bench.up(&packet), None);
    assert_eq!(bench.session().rates.up, unused);
    bench.metering.credit.grant(OTHERS_SLOT, ENOUGH);
    assert!(bench.up(&packet).is_some());
    assert_ne!(bench.session().rates.up, unused);
}

#[test]
fn nobody_pays_for_what_finds_no_tunnel() {
    let mut bench = Bench::connected();
    let plan = SessionPlan {
        index: OTHER,
        public_key: PublicKey::from(&StaticSecret::from([6; 32])).to_bytes(),
        payer: Some(others_payer()),
        addresses: Addresses::Client(OTHER_INNER.into()),
        preshared_key: None,
        persistent_keepalive_s: 0,
        endpoint: Some("10.77.1.3:6".parse().unwrap()),
    };
    let identity = Arc::clone(&bench.plane.identity);
    bench.plane.install(Box::new(Session::new(&identity, plan)));
    bench.metering.credit.grant(OTHERS_SLOT, ENOUGH);
    bench.plane.change_reach(reach(&[], &[], &["10.78.0.0/16"]));
    bench.up(&udp(INNER, OTHER_INNER, 64, 100));
    assert_eq!(bench.dropped(), [(DropReason::NoTunnel, 1)]);
    assert_eq!(bench.usage(), 0);
}

#[test]
fn who_sends_too_far_or_too_much_to_a_peer_is_told() {
    let (mut bench, _) = with_another(Some(others_payer()));
    bench.plane.change_reach(reach(&[], &[], &["10.78.0.0/16"]));
    let cases = [
        (1, 100, DropReason::TtlExceeded),
        (64, 1440, DropReason::TooLarge),
    ];
    for (hops, payload_bytes, reason) in cases {
        let packet = udp(INNER, OTHER_INNER, hops, payload_bytes);
        let (port, frame) = bench.up(&packet).expect("an answer");
        assert_eq!(port, CLIENT_PORT);
        let message = bench.client_opens(&frame[OUTER_BYTES..]);
        assert_eq!(message[28..56], packet[..28], "it is about that packet");
        assert!(bench.dropped().contains(&(reason, 1)));
    }
    let others = bench.metering.usage.totals(OTHERS_SLOT.index).bytes;
    assert_eq!(others, 0);
}

#[test]
fn a_site_of_an_operator_s_peer_is_reached_through_the_tunnel() {
    let (mut bench, mut site) = with_another(None);
    let packet = udp(INNER, SITE, 64, 100);
    assert_eq!(bench.up(&packet), None, "it is another peer's");
    let named = ["172.20.0.0/16", "10.78.0.2/32"];
    bench.plane.change_reach(reach(&[], &[], &named));
    let (_, frame) = bench.up(&packet).expect("they are joined");
    assert_eq!(
        opened(&mut site, &frame)[IPV4_BYTES..],
        packet[IPV4_BYTES..]
    );
    let mut buffer = [0; 2048];
    let answer = udp(SITE, INNER, 64, 50);
    let TunnResult::WriteToNetwork(sealed) = site.encapsulate(&answer, &mut buffer) else {
        panic!("no keys");
    };
    let (_, frame) = bench.client_sends(sealed).expect("both ways");
    let received = opened(&mut bench.client, &frame);
    assert_eq!(received[IPV4_BYTES..], answer[IPV4_BYTES..]);
    assert_eq!(bench.usage(), (packet.len() + answer.len()) as u64);
    assert_eq!(bench.dropped(), [(DropReason::BetweenClients, 1)]);
}

#[test]
fn peers_of_two_workers_reach_each_other() {
    let (first, second) = (SessionIndex(3), SessionIndex::new(WorkerNumber(1), 0));
    let mut pair = super::team::Pair::new();
    let addresses = Addresses::Client(OTHER_INNER.into());
    pair.bench.plane.note_owner(second, &addresses);
    pair.other.note_owner(second, &addresses);
    let joined = reach(&[], &[], &["10.78.0.0/16"]);
    pair.bench.plane.change_reach(Arc::clone(&joined));
    pair.other.change_reach(joined);
    // From the other worker's peer, as that worker passes it on once it has opened it.
    let packet = udp(OTHER_INNER, INNER, 64, 100);
    pair.other
        .pass(first.worker(), first, Content::Relayed, &packet)
        .unwrap();
    let sent = pair.take();
    let [(CLIENT_PORT, frame)] = &sent[..] else {
        panic!("{sent:?}");
    };
    let received = opened(&mut pair.bench.client, frame);
    assert_eq!(received[IPV4_BYTES..], packet[IPV4_BYTES..]);
    assert_eq!(pair.bench.usage(), packet.len() as u64);
    // And to it: it is charged here, and nothing leaves here.
    let packet = udp(INNER, OTHER_INNER, 64, 60);
    let used = pair.bench.usage();
    assert_eq!(pair.bench.up(&packet), None);
    assert_eq!(pair.bench.usage(), used + packet.len() as u64);
    let parcel = pair.other.take_parcel().expect("it was passed on");
    assert_eq!(parcel.content, Content::Relayed);
    assert_eq!(parcel.data[..parcel.bytes], packet);
    pair.other.give_back(parcel);
    // Nor is it charged where the other worker cannot take it.
    while pair.bench.dropped().is_empty() {
        let used = pair.bench.usage();
        assert_eq!(pair.bench.up(&packet), None);
        let full = !pair.bench.dropped().is_empty();
        let charged = if full { 0 } else { packet.len() as u64 };
        assert_eq!(pair.bench.usage(), used + charged);
    }
    let [(DropReason::WorkerQueueFull, 1)] = pair.bench.dropped()[..] else {
        panic!("{:?}", pair.bench.dropped());
    };
    while let Some(parcel) = pair.other.take_parcel() {
        pair.other.give_back(parcel);
    }
    // Also if the message itself came to the other worker first.
    let sealed = pair.sealed(&packet);
    assert_eq!(pair.frame(CLIENT_PORT, &sealed), []);
    let parcel = pair.other.take_parcel().expect("it came and went");
    assert_eq!(parcel.content, Content::Relayed);
    assert_eq!(parcel.data[..parcel.bytes], packet);
    assert_eq!(pair.bench.dropped(), [(DropReason::WorkerQueueFull, 1)]);
}
