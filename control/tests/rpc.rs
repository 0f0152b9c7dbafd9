//! Control over its sockets: JSON-RPC in front, stand-ins for the other processes behind.
#![allow(clippy::unwrap_used)]

mod stand_ins;

use std::time::Duration;

use jsonrpsee::{core::client::ClientT, rpc_params, ws_client::WsClientBuilder};
use std::net::SocketAddr;

use stand_ins::{Setup, channel, code, eventually, payee, payment_key, signer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};
use topnet_account::{Address, Amount, ChannelId, Hash, Signature};
use topnet_api::{
    ChainName, ChannelState, ChannelView, ClaimBytes, HexBytes, Offer, SessionAction,
    SessionRequest, SocketName, StateSubject, WireguardPublicKey,
};
use topnet_control::{
    provider::Provider,
    rpc::{ListenError, Listeners, OperatorClient, PublicClient},
};

fn request(action: SessionAction, channel: ChannelId, key: u8, nonce: u64) -> SessionRequest {
    let mut request = SessionRequest::unsigned(channel, WireguardPublicKey([key; 32]), nonce);
    request.signature = signer().sign(&request.signed_bytes(action));
    request
}

#[tokio::test]
async fn offer_says_terms_and_keys_of_all_processes() {
    let setup = Setup::start().await;
    let offers = setup.public().offers().await.unwrap();
    let [offer] = offers.as_slice() else {
        panic!("{offers:?}")
    };
    assert_eq!(offer.payee, payee());
    assert_eq!(offer.payment.key, payment_key());
    assert_eq!(offer.unit_price, Amount::from_ntop(100));
    assert_eq!(offer.unit_bytes, topnet_unit::UNIT_BYTES);
    assert_eq!(offer.chains.len(), 2);
    // The same over WebSocket.
    let url = format!("ws://{}", setup.listeners().public_address);
    let client = WsClientBuilder::default().build(url).await.unwrap();
    let over_ws: Vec<Offer> = client.request("offers", rpc_params![]).await.unwrap();
    assert_eq!(over_ws, offers);
}

#[tokio::test]
async fn questions_about_chains_are_passed_on() {
    let setup = Setup::start().await;
    let rpc = setup.public();
    setup.world.chain().height = 77;
    assert_eq!(rpc.chain(ChainName::vpn()).await.unwrap().height, 77);
    assert_eq!(
        code(rpc.chain(ChainName("cdn".into())).await),
        "chain_unknown"
    );
    let account = rpc
        .account(ChainName::main(), Address([2; 32]))
        .await
        .unwrap();
    assert_eq!((account.balance, account.nonce), (Amount::MAX, 3));
    let id = rpc
        .submit(ChainName::main(), HexBytes(vec![1, 2, 3]))
        .await
        .unwrap()
        .id;
    assert_eq!(setup.world.chain().submitted, [vec![1, 2, 3]]);
    let status = rpc.transaction(ChainName::main(), id).await.unwrap();
    assert_eq!(status.block.unwrap().height, 77);
    let id = setup.world.put(channel(9));
    assert_eq!(rpc.channel(id).await.unwrap(), channel(9));
    assert_eq!(rpc.channels(payee(), None).await.unwrap(), [channel(9)]);
    assert_eq!(
        code(rpc.channel(ChannelId([1; 32])).await),
        "channel_unknown"
    );
    assert!(!rpc.service(ChainName::vpn()).await.unwrap().dead);
    let block = rpc.block(ChainName::vpn(), 5).await.unwrap();
    assert_eq!(
        (block.header.block.height, block.transactions.len()),
        (5, 1)
    );
    let blocks = rpc
        .blocks(ChainName::vpn(), Some(3), Some(5))
        .await
        .unwrap();
    let heights: Vec<u64> = blocks.iter().map(|b| b.header.block.height).collect();
    assert_eq!(heights, [3, 4, 5]);
    let main = ChainName::main();
    let history = rpc
        .account_history(main.clone(), payee(), None)
        .await
        .unwrap();
    assert_eq!(history[1].transaction, None);
    let before = Some(history[0].place);
    let rest = rpc.account_history(main, payee(), before).await.unwrap();
    assert_eq!(rest, history[1..]);
    assert_eq!(rpc.paid_claims(id, None).await.unwrap().len(), 1);
    assert_eq!(rpc.paid_claims(id, Some(1_000)).await.unwrap(), []);
    let subject = StateSubject::Channel(id);
    let proof = rpc.prove(ChainName::vpn(), subject.clone()).await.unwrap();
    assert_eq!((proof.height, proof.subject), (7, subject));
    assert_eq!(rpc.genesis(ChainName::vpn()).await.unwrap()["name"], "vpn");
    let earned = setup.operator().earnings(None).await.unwrap();
    assert_eq!(earned[0].units, 3);
}

/// Whoever subscribes is told at once, and of what comes; what is not there is refused.
#[tokio::test]
async fn blocks_and_channels_are_told_to_whoever_subscribed() {
    let setup = Setup::start().await;
    let id = setup.world.put(channel(9));
    let url = format!("ws://{}", setup.listeners().public_address);
    let rpc = WsClientBuilder::new().build(url).await.unwrap();
    let mut blocks = rpc.subscribe_blocks(ChainName::vpn()).await.unwrap();
    let mut heights = Vec::new();
    for _ in 0..3 {
        heights.push(blocks.next().await.unwrap().unwrap().block.height);
    }
    assert!(heights.is_sorted_by(|a, b| a < b), "{heights:?}");
    let mut views = rpc.subscribe_channel(id).await.unwrap();
    assert_eq!(views.next().await.unwrap().unwrap(), channel(9));
    let closing = ChannelView {
        state: ChannelState::Closing { deadline: 99 },
        ..channel(9)
    };
    setup.world.put(closing.clone());
    assert_eq!(views.next().await.unwrap().unwrap(), closing);
    let refused = rpc.subscribe_channel(ChannelId([1; 32])).await.unwrap_err();
    assert!(
        refused.to_string().contains("there is no channel"),
        "{refused}"
    );
    blocks.unsubscribe().await.unwrap();
}

/// What main tells is what the provider serves.
#[tokio::test]
async fn the_offer_is_published_as_it_is_served_and_retracted() {
    let setup = Setup::start().await;
    let (rpc, operator) = (setup.public(), setup.operator());
    let vpn = ChainName::vpn();
    assert_eq!(rpc.market(vpn.clone(), None).await.unwrap(), []);
    assert!(operator.offer_publish().await.unwrap().is_some());
    assert_eq!(operator.offer_publish().await.unwrap(), None);
    let offer = rpc.offers().await.unwrap().remove(0);
    let market = rpc.market(vpn.clone(), None).await.unwrap();
    let terms = &market[0].terms;
    assert_eq!(market[0].provider, offer.payee);
    assert_eq!(terms.unit_price, offer.unit_price);
    assert_eq!(terms.payment_key, offer.payment.key);
    assert_eq!(terms.payment_address, offer.payment.address.to_string());
    assert_eq!(terms.name, offer.name);
    assert!(terms.rpc_url.starts_with("http://"), "{}", terms.rpc_url);
    assert!(operator.offer_retract().await.unwrap().is_some());
    assert_eq!(operator.offer_retract().await.unwrap(), None);
    assert_eq!(rpc.market(vpn, None).await.unwrap(), []);
}

/// None is left out, whoever subscribes when, and one that main has not accepted is not told.
#[tokio::test]
async fn batches_are_told_one_after_the_other_once_main_has_accepted_them() {
    let setup = Setup::start().await;
    setup.world.chain().accepted_batches = 2;
    let url = format!("ws://{}", setup.listeners().public_address);
    let rpc = WsClientBuilder::new().build(url).await.unwrap();
    let vpn = ChainName::vpn();
    let mut next = rpc.subscribe_batches(vpn.clone(), None).await.unwrap();
    let mut all = rpc.subscribe_batches(vpn.clone(), Some(0)).await.unwrap();
    for number in [0, 1] {
        assert_eq!(all.next().await.unwrap().unwrap().number, number);
    }
    setup.world.chain().accepted_batches = 4;
    for number in [2, 3] {
        let batch = next.next().await.unwrap().unwrap();
        assert_eq!(batch.number, number);
        assert!(batch.main_block.is_some());
        assert_eq!(all.next().await.unwrap().unwrap(), batch);
    }
    let cut = rpc.batches(vpn, Some(3)).await.unwrap();
    let accepted: Vec<bool> = cut.iter().map(|b| b.main_block.is_some()).collect();
    assert_eq!(accepted, [true, false]);
}

#[tokio::test]
async fn session_starts_once_whatever_is_repeated() {
    let setup = Setup::start().await;
    let rpc = setup.public();
    let id = setup.world.put(channel(9));
    let start = request(SessionAction::Start, id, 1, 10);
    let grant = rpc.session_start(start).await.unwrap();
    assert!(grant.installed);
    assert_eq!(
        grant.wireguard.server_public_key,
        WireguardPublicKey([9; 32])
    );
    assert_eq!(grant.wireguard.address.to_string(), "10.78.0.2");
    assert_eq!(grant.payment.key, payment_key());
    {
        let gateway = setup.world.gateway();
        let [session] = gateway.installed.sessions.as_slice() else {
            panic!("{gateway:?}")
        };
        assert_eq!(
            (session.channel, session.wireguard_public_key),
            (id, [1; 32])
        );
    }
    assert_eq!(rpc.session_start(start).await.unwrap(), grant);

    let stop = request(SessionAction::Stop, id, 1, 11);
    assert!(rpc.session_stop(stop).await.unwrap().stopped);
    eventually("the session is gone", || {
        setup.world.gateway().installed.sessions.is_empty()
    })
    .await;
    // Who heard the first request cannot start the session again.
    assert_eq!(code(rpc.session_start(start).await), "nonce_used");
    assert!(setup.world.gateway().installed.sessions.is_empty());
}

#[tokio::test]
async fn session_is_refused_for_each_reason() {
    let setup = Setup::start().await;
    let rpc = setup.public();
    setup.world.chain().height = 1_000;
    let open = channel(1);
    let id = setup.world.put(open.clone());
    let put = |id: u8, change: &dyn Fn(&mut ChannelView)| {
        let mut view = channel(id);
        change(&mut view);
        setup.world.put(view)
    };
    let start = |channel| request(SessionAction::Start, channel, 1, 1);
    let unsigned = SessionRequest {
        signature: Signature([0; 64]),
        ..start(id)
    };
    let other_action = request(SessionAction::Stop, id, 1, 1);
    let other_key = SessionRequest {
        wireguard_public_key: WireguardPublicKey([2; 32]),
        ..start(id)
    };
    let cases = [
        ("channel_unknown", start(ChannelId([77; 32]))),
        ("signature_wrong", unsigned),
        ("signature_wrong", other_action),
        ("signature_wrong", other_key),
        (
            "wrong_service",
            start(put(2, &|c| c.chain = ChainName::main())),
        ),
        (
            "wrong_payee",
            start(put(3, &|c| c.payee = Address([9; 32]))),
        ),
        (
            "channel_closed",
            start(put(4, &|c| c.state = ChannelState::Closed)),
        ),
        ("channel_expired", start(put(5, &|c| c.expiry = 1_000))),
        (
            "close_window_short",
            start(put(6, &|c| c.close_window = 5_999)),
        ),
        (
            "headroom_short",
            start(put(7, &|c| c.paid = Amount::from_ntop(999_901))),
        ),
    ];
    for (expected, request) in cases {
        assert_eq!(code(rpc.session_start(request).await), expected);
    }
    assert!(setup.world.gateway().installed.sessions.is_empty());
    rpc.session_start(start(id)).await.unwrap();
    // Another channel cannot take the key over.
    let thief = setup.world.put(channel(8));
    assert_eq!(
        code(rpc.session_start(start(thief)).await),
        "wireguard_key_in_use"
    );
}

#[tokio::test]
async fn sessions_survive_restarts_of_control_and_data_plane() {
    let mut setup = Setup::start().await;
    let id = setup.world.put(channel(9));
    setup
        .public()
        .session_start(request(SessionAction::Start, id, 1, 10))
        .await
        .unwrap();

    // The data plane comes back empty, under another name.
    setup.kill_process(SocketName::Dataplane).await;
    *setup.world.gateway() = Default::default();
    setup.world.gateway().boot = "boot-2".to_owned();
    setup.start_process(SocketName::Dataplane).await;
    eventually("installed again", || {
        setup.world.gateway().installed.sessions.len() == 1
    })
    .await;

    // While it is away a session is granted all the same, and said to be on its way.
    setup.kill_process(SocketName::Dataplane).await;
    let grant = setup
        .public()
        .session_start(request(SessionAction::Start, id, 2, 11))
        .await
        .unwrap();
    assert!(!grant.installed);
    let status = setup.operator().status().await.unwrap();
    let down = status
        .processes
        .iter()
        .find(|process| process.process == "dataplane")
        .unwrap();
    let error = down.error.as_ref().unwrap();
    assert_eq!(error.code, "process_unreachable");
    assert!(error.what.contains("dataplane.sock"), "{error}");
    assert!(error.mend.contains("topnet run dataplane"), "{error}");
    setup.start_process(SocketName::Dataplane).await;
    eventually("both installed", || {
        setup.world.gateway().installed.sessions.len() == 2
    })
    .await;

    // Control comes back with both.
    setup.stop_control().await;
    setup.start_control().await;
    assert_eq!(setup.operator().sessions().await.unwrap().len(), 2);
    assert_eq!(
        code(
            setup
                .public()
                .session_start(request(SessionAction::Start, id, 1, 10))
                .await
        ),
        "nonce_used"
    );
}

#[tokio::test]
async fn lost_state_rises_above_the_data_planes_revision() {
    let mut setup = Setup::start().await;
    setup.world.gateway().installed.revision = 41;
    let id = setup.world.put(channel(9));
    let grant = setup
        .public()
        .session_start(request(SessionAction::Start, id, 1, 10))
        .await
        .unwrap();
    assert_eq!(grant.session.0, WireguardPublicKey([1; 32]));
    eventually("installed", || {
        setup.world.gateway().installed.sessions.len() == 1
    })
    .await;
    assert!(setup.world.gateway().installed.revision > 41);
    setup.kill_process(SocketName::Dataplane).await;
}

#[tokio::test]
async fn session_without_a_slot_says_so() {
    let setup = Setup::start().await;
    setup.world.gateway().full = true;
    let id = setup.world.put(channel(9));
    let start = request(SessionAction::Start, id, 1, 10);
    assert_eq!(code(setup.public().session_start(start).await), "slots_max");
    let sessions = setup.operator().sessions().await.unwrap();
    assert_eq!(sessions[0].refused.as_ref().unwrap().code, "slots_max");
    // It is tried again until there is room, and the request may be repeated.
    setup.world.gateway().full = false;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert!(setup.public().session_start(start).await.unwrap().installed);
}

fn claim() -> ClaimBytes {
    ClaimBytes {
        voucher: vec![1; 191],
        index: 3,
        preimage: [2; 32],
        log_root: Hash([3; 32]),
    }
}

#[tokio::test]
async fn close_ends_sessions_first_and_goes_on_by_itself() {
    let mut setup = Setup::start().await;
    let id = setup.world.put(channel(9));
    setup.world.books().claims.insert(id, claim());
    setup
        .public()
        .session_start(request(SessionAction::Start, id, 1, 10))
        .await
        .unwrap();

    let progress = setup.operator().channel_close(id).await.unwrap();
    assert_eq!(progress.transaction, Hash([7; 32]));
    assert_eq!(progress.main_block, None);
    // Nothing could be counted any more when metering gave its last claim.
    assert_eq!(setup.world.books().finished[0], (id, 0));
    assert_eq!(setup.world.chain().closes[0], (id, Some(claim())));
    let start = request(SessionAction::Start, id, 1, 11);
    assert_eq!(
        code(setup.public().session_start(start).await),
        "channel_closing"
    );

    // A restart in between forgets nothing.
    setup.stop_control().await;
    setup.start_control().await;
    assert_eq!(setup.operator().status().await.unwrap().closing, [id]);
    setup.world.chain().settles = true;
    eventually("closed", || {
        setup.world.chain().channels[&id].state == ChannelState::Closed
    })
    .await;
    let report = setup.operator().provider_channel(id).await.unwrap();
    assert!(report.close.unwrap().main_block.is_some());
    assert!(report.sessions.is_empty());
    let again = setup.operator().channel_close(id).await.unwrap();
    assert!(again.main_block.is_some());
    assert!(setup.operator().status().await.unwrap().closing.is_empty());
}

#[tokio::test]
async fn channel_that_never_paid_closes_without_a_claim() {
    let setup = Setup::start().await;
    let id = setup.world.put(channel(9));
    setup.operator().channel_close(id).await.unwrap();
    assert_eq!(setup.world.chain().closes[0], (id, None));
    let foreign = setup.world.put(ChannelView {
        payee: Address([9; 32]),
        ..channel(8)
    });
    assert_eq!(
        code(setup.operator().channel_close(foreign).await),
        "wrong_payee"
    );
}

#[tokio::test]
async fn close_that_others_finished_is_not_tried_for_ever() {
    let setup = Setup::start().await;
    let id = setup.world.put(channel(9));
    setup.operator().channel_close(id).await.unwrap();
    assert_eq!(setup.operator().status().await.unwrap().closing, [id]);
    setup.world.chain().closed_by_others = true;
    assert_eq!(
        code(setup.operator().channel_close(id).await),
        "channel_closed"
    );
    assert!(setup.operator().status().await.unwrap().closing.is_empty());
}

#[tokio::test]
async fn payers_close_is_answered_with_the_claim() {
    let setup = Setup::start().await;
    let id = setup.world.put(channel(9));
    setup.world.books().claims.insert(id, claim());
    setup
        .public()
        .session_start(request(SessionAction::Start, id, 1, 10))
        .await
        .unwrap();
    setup.world.put(ChannelView {
        state: ChannelState::Closing { deadline: 9 },
        ..channel(9)
    });
    eventually("claimed", || !setup.world.chain().closes.is_empty()).await;
    assert_eq!(setup.world.chain().closes[0], (id, Some(claim())));
    eventually("no session", || {
        setup.world.gateway().installed.sessions.is_empty()
    })
    .await;
}

#[tokio::test]
async fn every_payers_close_is_answered_however_many_there_are() {
    let setup = Setup::start().await;
    let closing = ChannelState::Closing { deadline: 9 };
    for number in 1..=10 {
        setup.world.put(ChannelView {
            state: closing,
            ..channel(number)
        });
    }
    eventually("all claimed", || setup.world.chain().closes.len() == 10).await;
    let listed = setup.operator().provider_channels().await.unwrap();
    assert_eq!(listed.len(), 10);
}

#[tokio::test]
async fn operators_methods_are_not_public_and_not_for_web_pages() {
    let setup = Setup::start().await;
    let refused = setup.public().status().await.unwrap_err().to_string();
    assert!(refused.contains("Method not found"), "{refused}");
    setup.operator().status().await.unwrap();
    let refused = setup.public().claims(None).await.unwrap_err().to_string();
    assert!(refused.contains("Method not found"), "{refused}");
    assert_eq!(setup.operator().claims(None).await.unwrap(), []);

    let body = r#"{"jsonrpc":"2.0","id":1,"method":"status","params":[]}"#;
    let address = setup.listeners().operator_address;
    let plain = http(address, &format!("Host: {address}\r\n"), body).await;
    assert!(plain.starts_with("HTTP/1.1 200"), "{plain}");
    let page = http(
        address,
        &format!("Host: {address}\r\nOrigin: https://x.example\r\n"),
        body,
    )
    .await;
    assert!(
        page.starts_with("HTTP/1.1 403") && page.contains("not for web pages"),
        "{page}"
    );
    let rebound = http(address, "Host: x.example\r\n", body).await;
    assert!(rebound.starts_with("HTTP/1.1 403"), "{rebound}");
}

/// One HTTP request by hand, and the whole answer.
async fn http(address: std::net::SocketAddr, headers: &str, body: &str) -> String {
    let length = body.len();
    let request = format!(
        "POST / HTTP/1.1\r\n{headers}Content-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn the_operators_listener_has_a_page_for_monitoring_and_the_public_one_has_none() {
    let setup = Setup::start().await;
    let listeners = setup.listeners();
    let scrape = async |address: SocketAddr, headers: &str| {
        let request = format!(
            "GET /metrics HTTP/1.1\r\nHost: {address}\r\n{headers}Connection: close\r\n\r\n"
        );
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    let page = scrape(listeners.operator_address, "").await;
    assert!(page.contains("application/openmetrics-text"), "{page}");
    for process in ["dataplane", "metering", "settlement", "control"] {
        let line = format!("topnet_up{{process=\"{process}\"}} 1");
        assert!(page.contains(&line), "{line}: {page}");
    }
    assert!(
        page.contains("topnet_unpaid_bytes 0") && page.contains("# EOF"),
        "{page}"
    );
    let for_a_web_page = scrape(listeners.operator_address, "Origin: http://a.example\r\n").await;
    assert!(!for_a_web_page.contains("topnet_up"), "{for_a_web_page}");
    let public = scrape(listeners.public_address, "").await;
    assert!(!public.contains("topnet_up"), "{public}");
}

#[tokio::test]
async fn garbage_on_the_rpc_ports_hurts_nobody() {
    let setup = Setup::start().await;
    for address in [
        setup.listeners().public_address,
        setup.listeners().operator_address,
    ] {
        for garbage in [
            &b"\0\xff\xfe garbage"[..],
            b"GET / HTTP/9.9\r\n\r\n",
            &[b'A'; 70_000],
        ] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(garbage).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
        }
        let host = format!("Host: {address}\r\n");
        let cases = [
            ("{", "Parse error"),
            ("[]", "Invalid request"),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"format_disk"}"#,
                "Method not found",
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"channel","params":["0x00"]}"#,
                "Invalid params",
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"account","params":["main","top1x"]}"#,
                "Invalid params",
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"session_start","params":[{"colour":1}]}"#,
                "Invalid params",
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"submit","params":["main","xyz"]}"#,
                "Invalid params",
            ),
        ];
        for (body, expected) in cases {
            let answer = http(address, &host, body).await;
            assert!(answer.contains(expected), "{body}: {answer}");
        }
        let large = http(address, &host, &"x".repeat(5_000)).await;
        assert!(
            large.contains("413") || large.contains("too big"),
            "{large}"
        );
    }
    setup.public().offers().await.unwrap();
    setup.operator().status().await.unwrap();
}

#[tokio::test]
async fn garbage_on_the_unix_sockets_hurts_nobody() {
    let setup = Setup::start().await;
    for name in [
        SocketName::Settlement,
        SocketName::Dataplane,
        SocketName::Metering,
    ] {
        // A frame that claims more than any, one that is not JSON, and half a length.
        for garbage in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x05hello", b"\0\0"] {
            let mut stream = UnixStream::connect(setup.socket(name)).await.unwrap();
            stream.write_all(garbage).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(answer.is_empty(), "{name}: {answer:?}");
        }
    }
    setup.public().offers().await.unwrap();
}

/// A process that answers with garbage is named, and asked again when it has come to its senses.
#[tokio::test]
async fn process_that_talks_garbage_is_named() {
    let mut setup = Setup::without_processes();
    let path = setup.socket(SocketName::Settlement);
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let babbler = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"\0\0\0\x05hello").await;
        }
    });
    setup.start_process(SocketName::Metering).await;
    setup.start_process(SocketName::Dataplane).await;
    setup.start_control().await;
    assert_eq!(code(setup.public().offers().await), "process_failed");
    babbler.abort();
    let _ = babbler.await;
    assert_eq!(code(setup.public().offers().await), "process_unreachable");
    setup.start_process(SocketName::Settlement).await;
    setup.public().offers().await.unwrap();
}

#[tokio::test]
async fn address_in_use_is_named_with_its_key() {
    let setup = Setup::start().await;
    let second = Setup::without_processes();
    let provider = std::sync::Arc::new(Provider::open(second.config()).unwrap());
    let mut control = setup.config().control().unwrap().clone();
    control.public_listen = setup.listeners().public_address;
    let words = Listeners::start(&provider, &control)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        words.contains("[control] public_listen") && words.contains("ss -ltnp"),
        "{words}"
    );

    control.operator_listen = "0.0.0.0:0".parse().unwrap();
    let refused = Listeners::start(&provider, &control).await;
    assert!(
        matches!(refused, Err(ListenError::NotLoopback(_))),
        "{refused:?}"
    );
}
