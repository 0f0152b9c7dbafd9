//! Handshakes: what the screener lets through, what its answers reach, and what waits.

use super::*;
use crate::handshakes::forging::refit_first_mac;
use crate::session::Addresses;

#[test]
fn without_keys_the_peer_is_greeted_and_nothing_is_billed() {
    let mut bench = Bench::new();
    bench.metering.credit.grant(SLOT, ENOUGH);
    let packet = udp(ORIGIN, INNER, 64, 8);
    assert_eq!(bench.down(&packet), None);
    assert_eq!(bench.dropped(), [(DropReason::NoTunnel, 1)]);
    let endpoint = Endpoint {
        remote: "10.77.1.2:40000".parse().unwrap(),
        local: GATEWAY.into(),
    };
    bench.session().resume_at(endpoint);
    let (_, greeting) = bench.down(&packet).unwrap();
    assert_eq!(greeting[OUTER_BYTES], 1, "a handshake initiation");
    assert_eq!(bench.usage(), 0);
    let answer = bench
        .client_receives(&greeting)
        .expect("the client answers");
    let (_, keepalive) = bench.client_sends(&answer).expect("a keepalive");
    bench.client_receives(&keepalive);
    assert!(bench.down(&packet).is_some());
    assert_eq!(bench.usage(), packet.len() as u64);
}

#[test]
fn an_answer_waits_for_its_neighbour() {
    let mut bench = Bench::new();
    let mut unknown = forwarding();
    unknown.neighbours.clear();
    bench.path.replace_forwarding(Arc::new(unknown));
    let mut buffer = [0; 2048];
    let TunnResult::WriteToNetwork(init) =
        bench.client.format_handshake_initiation(&mut buffer, false)
    else {
        panic!("no initiation");
    };
    let init = init.to_vec();
    assert_eq!(bench.client_sends(&init), None);
    assert!(bench.asked.try_recv().is_ok());
    assert_eq!(bench.path.waiting(), 1);
    bench.path.replace_forwarding(Arc::new(forwarding()));
    let mut out = [0; BUFFER];
    let transmit = bench.path.retry_waiting(&bench.plane, &mut out).unwrap();
    assert!(bench.client_receives(&out[..transmit.bytes]).is_some());
    assert_eq!(bench.path.waiting(), 0);
}

/// The client's next initiation, whatever came of the last one.
fn initiation(client: &mut Tunn) -> Vec<u8> {
    match client.format_handshake_initiation(&mut [0; 2048], true) {
        TunnResult::WriteToNetwork(message) => message.to_vec(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_screener_accepted_reaches_no_other_session() {
    let mut bench = Bench::connected();
    let message = initiation(&mut bench.client);
    let screen = |bench: &mut Bench| {
        let mut frame = outer(&message);
        let (arrived_bytes, mut out) = (frame.len(), [0; BUFFER]);
        let Bench { plane, path, .. } = bench;
        path.handle(plane, CLIENT_PORT, &mut frame, arrived_bytes, &mut out);
        assert_eq!(bench.screener.turn(1_000).answers, 1);
    };
    let answer = |bench: &mut Bench| {
        let Bench { plane, path, .. } = bench;
        let mut out = [0; BUFFER];
        path.answer(plane, Answer::Handshake, &mut out).is_some()
    };
    screen(&mut bench);
    let session = bench.plane.remove(SessionIndex(3)).unwrap();
    assert!(!answer(&mut bench));
    assert_eq!(bench.dropped(), [(DropReason::SessionUnknown, 1)]);

    // Its place is somebody else's before the answer is made.
    bench.plane.install(session);
    screen(&mut bench);
    let session = bench.plane.remove(SessionIndex(3)).unwrap();
    let mut other = session.plan.clone();
    other.public_key = [3; 32];
    other.addresses = Addresses::Client([10, 78, 0, 3].into());
    let identity = Arc::clone(&bench.plane.identity);
    bench
        .plane
        .install(Box::new(Session::new(&identity, other)));
    assert!(!answer(&mut bench));
    assert_eq!(bench.dropped(), [(DropReason::SessionUnknown, 2)]);
    let endpoint = bench.session().endpoint;
    assert_eq!(endpoint, None, "the other one was not heard");
}

#[test]
fn the_screener_is_told_of_sessions_and_of_the_interfaces_key() {
    let mut bench = Bench::connected();
    let session = bench.plane.remove(SessionIndex(3)).unwrap();
    let message = initiation(&mut bench.client);
    assert_eq!(bench.client_sends(&message), None);
    let mut expected = vec![(DropReason::PeerUnknown, 1)];
    assert_eq!(bench.dropped(), expected);

    let identity = Arc::new(Identity::new([8; 32]));
    bench.plane.replace_identity(Arc::clone(&identity));
    let renewed = Session::new(&identity, session.plan.clone());
    bench.plane.install(Box::new(renewed));
    let message = initiation(&mut bench.client);
    assert_eq!(bench.client_sends(&message), None, "it is for the old key");
    expected.insert(0, (DropReason::HandshakeInvalid, 1));
    assert_eq!(bench.dropped(), expected);

    let private = StaticSecret::from([5; 32]);
    bench.client = Tunn::new(private, identity.public, None, None, 1, None);
    let message = initiation(&mut bench.client);
    let (_, answer) = bench.client_sends(&message).expect("an answer");
    assert!(bench.client_receives(&answer).is_some(), "a keepalive");
}

#[test]
fn forged_responses_must_prove_their_address_and_a_true_one_gets_through() {
    let mut bench = Bench::new();
    bench.metering.credit.grant(SLOT, ENOUGH);
    let endpoint = Endpoint {
        remote: "10.77.1.2:40000".parse().unwrap(),
        local: GATEWAY.into(),
    };
    let session = bench.session();
    session.resume_at(endpoint);
    let (_, greeting) = bench.down(&udp(ORIGIN, INNER, 64, 8)).unwrap();
    let answer = bench.client_receives(&greeting).unwrap();
    // Somebody guesses which handshake is under way; he knows the gateway's key.
    let mut forged = answer.clone();
    forged[12] ^= 1;
    refit_first_mac(&bench.plane.identity.public, &mut forged);
    let believed = u64::from(RESPONSES_UNPROVEN_PER_SECOND_MAX);
    for _ in 0..believed {
        assert_eq!(bench.client_sends(&forged), None);
    }
    let refused = [
        (DropReason::NoTunnel, 1),
        (DropReason::HandshakeInvalid, believed),
    ];
    assert!(refused.iter().all(|count| bench.dropped().contains(count)));
    for sent in [&forged, &answer] {
        let (_, cookie) = bench.client_sends(sent).expect("a cookie");
        assert_eq!(cookie[OUTER_BYTES], 3);
        assert_eq!(bench.client_receives(&cookie), None);
    }
    assert!(refused.iter().all(|count| bench.dropped().contains(count)));

    // The client answers the next greeting with its cookie.
    let session = bench.session();
    let mut buffer = [0; 2048];
    let TunnResult::WriteToNetwork(greeting) = session
        .tunnel
        .format_handshake_initiation(&mut buffer, true)
    else {
        panic!("no greeting");
    };
    let mut frame = vec![0; OUTER_BYTES];
    frame.extend_from_slice(greeting);
    let answer = bench.client_receives(&frame).unwrap();
    let (_, keepalive) = bench.client_sends(&answer).expect("a keepalive");
    assert_eq!(keepalive[OUTER_BYTES], 4);
}
