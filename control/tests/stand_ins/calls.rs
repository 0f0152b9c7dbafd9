//! Calls of every method.

use serde_json::{Value, json};
use topnet_account::{Address, ChannelId, Hash};
use topnet_api::{
    HexBytes, RecoverySubject, SessionAction, SessionRequest, SessionStatus, StateSubject,
    WireguardPublicKey,
};

use super::{Setup, channel, payee, signer, status_of};

/// A call: a method, and what it is given for its parameters in their order.
pub type Call = (&'static str, Vec<Value>);

/// A world in which there is something of everything, and calls of all methods that show it.
pub fn calls(setup: &Setup) -> Vec<Call> {
    let id = setup.world.put(channel(9));
    let closing = setup.world.put(channel(8));
    setup.world.chain().height = 7;
    setup.world.chain().settles = true;
    for id in [id, closing] {
        setup.world.books().live.insert(id, status_of(id));
    }
    let key = WireguardPublicKey([1; 32]);
    setup.world.gateway().sessions.push(SessionStatus {
        channel: id,
        wireguard_public_key: key.0,
        inner_address: "10.78.0.2".parse().unwrap(),
        endpoint: Some("198.51.100.7:4711".parse().unwrap()),
        up_bytes: 1,
        down_bytes: 2,
        given_bytes: 0,
        handshake_age_s: Some(3),
        slot: 1,
        generation: 1,
        slot_usage_bytes: 3,
        slot_limit_bytes: u64::MAX,
    });
    let request = |action, nonce| {
        let mut request = SessionRequest::unsigned(id, key, nonce);
        request.signature = signer().sign(&request.signed_bytes(action));
        request
    };
    let before = ChannelId([0; 32]);
    let subject = |subject: StateSubject| vec![json!("vpn"), json!(subject)];
    vec![
        ("rpc.discover", vec![]),
        ("offers", vec![]),
        ("chains", vec![]),
        ("chain", vec![json!("vpn")]),
        (
            "submit",
            vec![json!("main"), json!(HexBytes(vec![0, 0xab]))],
        ),
        ("transaction", vec![json!("main"), json!(Hash([7; 32]))]),
        ("account", vec![json!("main"), json!(Address([2; 32]))]),
        ("channel", vec![json!(id)]),
        ("channels", vec![json!(payee()), json!(before)]),
        ("service", vec![json!("vpn")]),
        ("block", vec![json!("vpn"), json!(5)]),
        ("blocks", vec![json!("vpn"), json!(5), json!(7)]),
        (
            "account_history",
            vec![
                json!("main"),
                json!(payee()),
                json!({ "height": 9, "index": 0 }),
            ],
        ),
        ("batches", vec![json!("vpn"), json!(0)]),
        ("paid_claims", vec![json!(id), json!(0)]),
        ("prove", subject(StateSubject::Account(payee()))),
        ("prove", subject(StateSubject::Channel(id))),
        ("prove", subject(StateSubject::Batch(3))),
        ("prove", subject(StateSubject::Service(Hash([3; 32])))),
        (
            "recovery",
            vec![json!("vpn"), json!(RecoverySubject::Account(payee()))],
        ),
        (
            "prove",
            subject(StateSubject::Offer {
                provider: payee(),
                service: Hash([3; 32]),
            }),
        ),
        ("genesis", vec![json!("vpn")]),
        ("offer_publish", vec![]),
        ("market", vec![json!("vpn"), json!(Address([0; 32]))]),
        ("offer_retract", vec![]),
        (
            "session_start",
            vec![json!(request(SessionAction::Start, 10))],
        ),
        ("status", vec![]),
        ("sessions", vec![]),
        ("provider_channels", vec![]),
        ("live_channels", vec![json!(before)]),
        ("claims", vec![json!(before)]),
        ("earnings", vec![json!(0)]),
        ("channel_close", vec![json!(closing)]),
        ("channel", vec![json!(closing)]),
        ("services", vec![]),
        ("service_create", vec![json!("cdn"), json!(200), json!(50)]),
        ("service_stop", vec![json!("cdn")]),
        ("service_start", vec![json!("cdn")]),
        ("provider_channel", vec![json!(closing)]),
        (
            "session_stop",
            vec![json!(request(SessionAction::Stop, 11))],
        ),
    ]
}
