//! The `topnet` command, run as a person runs it.
#![allow(clippy::unwrap_used)]

mod stand_ins;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use stand_ins::{Setup, channel, signer};
use topnet_account::{Amount, ChannelId};
use topnet_channel::{PROTOCOL_VERSION, PayeeMessage, Payer, PayerTerms, SecretKey};
use topnet_wallet::{
    Checkpoint, History, Journal, OwnCount, Parties,
    key_file::{self, Cost},
};

fn topnet(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_topnet"))
        .args(arguments)
        .env("TOPNET_PASSPHRASE", "open sesame")
        .output()
        .unwrap()
}

fn succeed(arguments: &[&str]) -> String {
    let output = topnet(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--json"]].concat();
    serde_json::from_str(&succeed(&arguments)).unwrap()
}

fn fail(arguments: &[&str]) -> Value {
    let output = topnet(&[arguments, &["--json"]].concat());
    assert!(!output.status.success(), "{arguments:?}");
    let error: Value = serde_json::from_slice(&output.stderr)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    error["error"].clone()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn init_makes_a_provider_that_checks_out() {
    let dir = tempfile::tempdir().unwrap();
    let provider = dir.path().join("provider");
    let arguments = [
        "init",
        text(&provider),
        "provider",
        "--client-interface",
        "lo",
        "--uplink-interface",
        "lo",
        "--public-address",
        "127.0.0.1",
        "--block-interval-ms",
        "50",
        "--close-window-min",
        "20",
        "--name",
        "A \"quoted\" name",
    ];
    let made = json(&arguments);
    assert!(
        made["payee"].as_str().unwrap().starts_with("top1"),
        "{made}"
    );
    let config = provider.join("topnet.toml");
    assert_eq!(
        json(&["check-config", "--config", text(&config)])["ok"],
        true
    );

    let mode = |name: &str| {
        let path = provider.join("keys").join(name);
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    for key in ["wireguard.key", "payment.key", "payee.key", "validator.key"] {
        assert_eq!(mode(key), 0o600, "{key}");
    }
    let main: topnet_ledger::Genesis =
        serde_json::from_slice(&fs::read(provider.join("genesis/main.json")).unwrap()).unwrap();
    main.validate().unwrap();
    assert_eq!(
        main.hash().to_string(),
        made["main_genesis"].as_str().unwrap()
    );
    let vpn: topnet_ledger::Genesis =
        serde_json::from_slice(&fs::read(provider.join("genesis/vpn.json")).unwrap()).unwrap();
    vpn.validate().unwrap();
    assert_ne!(main.salt, topnet_account::Hash::ZERO);
    assert_eq!(vpn.rules.close_window_min, 20);

    // What stands is never overwritten.
    assert_eq!(fail(&arguments)["code"], "exists");
}

/// What `init` makes of a wallet in `dir`, with `more` words.
fn init_wallet(dir: &Path, more: &[&str]) -> Value {
    let words = [
        "init",
        text(dir),
        "wallet",
        "--provider",
        "http://127.0.0.1:8545",
        "--unit-price-max",
        "0.0001TOP",
    ];
    json(&[&words, more].concat())
}

fn restore<'a>(config: &'a Path, paper: &'a Path) -> [&'a str; 6] {
    let (config, paper) = (text(config), text(paper));
    [
        "wallet",
        "restore",
        "--config",
        config,
        "--phrase-file",
        paper,
    ]
}

#[test]
fn init_makes_a_wallet_and_it_has_an_address() {
    let dir = tempfile::tempdir().unwrap();
    let wallet = dir.path().join("wallet");
    let made = init_wallet(&wallet, &[]);
    let config = wallet.join("topnet.toml");
    let address = json(&["wallet", "address", "--config", text(&config)]);
    assert_eq!(address["address"], made["address"]);
    assert_eq!(address["session"], made["session"]);
    assert_ne!(made["session"]["public_key"], made["public_key"]);
    assert_eq!(address.get("phrase"), None, "it is shown once");
    assert_eq!(
        fail(&["wallet", "create", "--config", text(&config)])["code"],
        "key_file"
    );
    for key in ["wallet.key", "session.key"] {
        let metadata = fs::metadata(wallet.join("keys").join(key)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{key}");
    }
}

#[test]
fn a_phrase_brings_the_same_keys_back() {
    let dir = tempfile::tempdir().unwrap();
    let made = init_wallet(&dir.path().join("first"), &[]);
    let phrase = made["phrase"].as_str().unwrap();
    assert_eq!(phrase.split(' ').count(), 24);
    let paper = dir.path().join("paper");
    fs::write(&paper, phrase).unwrap();

    let restored = init_wallet(
        &dir.path().join("second"),
        &["--restore", "--phrase-file", text(&paper)],
    );
    assert_eq!(restored["address"], made["address"]);
    assert_eq!(
        restored["session"]["public_key"],
        made["session"]["public_key"]
    );
    assert_eq!(restored.get("phrase"), None);

    // The same by `restore`, once the keys are lost.
    let config = dir.path().join("first/topnet.toml");
    for key in ["wallet.key", "session.key"] {
        fs::remove_file(dir.path().join("first/keys").join(key)).unwrap();
    }
    let wrong = dir.path().join("wrong");
    let (_, rest) = phrase.split_once(' ').unwrap();
    fs::write(&wrong, format!("hodl {rest}")).unwrap();
    let error = fail(&restore(&config, &wrong));
    assert_eq!(error["code"], "phrase", "{error}");
    assert!(
        error["what"].as_str().unwrap().contains("word 1, `hodl`"),
        "{error}"
    );
    let words = restore(&config, &paper);
    assert_eq!(json(&words)["address"], made["address"]);
    // What stands is never overwritten.
    assert_eq!(fail(&words)["code"], "key_file");
}

#[test]
fn people_see_the_words_and_pipes_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let output = topnet(&[
        "init",
        text(&dir.path().join("wallet")),
        "wallet",
        "--provider",
        "http://127.0.0.1:8545",
        "--unit-price-max",
        "1",
    ]);
    assert!(output.status.success());
    let (out, seen) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert!(seen.contains("24. ") && seen.contains("on paper"), "{seen}");
    assert!(!out.contains("24. ") && out.contains("top1"), "{out}");
}

#[test]
fn a_machine_that_only_pays_has_a_session_key_alone() {
    let dir = tempfile::tempdir().unwrap();
    let made = init_wallet(&dir.path().join("home"), &[]);
    let paper = dir.path().join("paper");
    fs::write(&paper, made["phrase"].as_str().unwrap()).unwrap();
    let home = dir.path().join("home/topnet.toml");
    let key = dir.path().join("gateway.key");
    let passphrase = dir.path().join("gateway.passphrase");
    fs::write(&passphrase, "another\n").unwrap();
    let session = json(&[
        "wallet",
        "session-key",
        "3",
        "--out",
        text(&key),
        "--passphrase-file",
        text(&passphrase),
        "--phrase-file",
        text(&paper),
        "--config",
        text(&home),
    ]);
    let opened = key_file::read(&key, b"another").unwrap();
    assert_eq!(
        session["public_key"],
        opened.public_key().to_string().as_str()
    );
    assert_eq!(session["derivation"], "m/44'/7630704'/0'/1'/3'");

    let gateway = dir.path().join("gateway");
    let made = init_wallet(&gateway, &["--session-key-file", text(&key)]);
    assert_eq!(made["session"]["public_key"], session["public_key"]);
    assert!(made["address"].is_null(), "{made}");
    let config = gateway.join("topnet.toml");
    for words in [
        &["wallet", "fund", "1TOP"][..],
        &["wallet", "open", "1TOP"],
        &["wallet", "balance"],
    ] {
        let error = fail(&[words, &["--config", text(&config)]].concat());
        assert_eq!(error["code"], "key_file", "{error}");
        assert!(
            error["what"].as_str().unwrap().contains("no account's key"),
            "{error}"
        );
    }
}

/// A wallet's directory with one channel whose journal, history and chain are known.
fn paid_channel(state_dir: &Path, secret: &SecretKey) -> ChannelId {
    let view = channel(9);
    let terms = PayerTerms {
        channel: view.id,
        allocation: view.allocation,
        unit_price_max: Amount::from_ntop(7),
        window_max: 1,
    };
    let mut payer = Payer::new(SecretKey::from_seed(*secret.seed()).unwrap(), terms, None);
    let _ = payer.hello();
    let offer = topnet_channel::Offer {
        version: PROTOCOL_VERSION,
        unit_price: Amount::from_ntop(7),
        epsilon_ppm: 0,
        window_max: 1,
    };
    payer.handle_message(&PayeeMessage::Offer(offer)).unwrap();
    payer.handle_message(&PayeeMessage::Resume(None)).unwrap();
    let mut journal = Journal::open(state_dir, view.id).unwrap();
    while let Some(unsaved) = payer.poll_send() {
        let _ = journal.save(unsaved, OwnCount::default()).unwrap();
    }
    let parties = Parties {
        channel: view.id,
        chain: "vpn".to_owned(),
        payer: view.payer,
        payee: view.payee,
        provider: "One, \"Ltd\"".to_owned(),
        signer: secret.public_key(),
        allocation: view.allocation,
    };
    History::note_parties(state_dir, &parties).unwrap();
    let checkpoint = Checkpoint {
        at_ms: 1_000,
        own_bytes_least: 90,
        own_bytes_most: 100,
        metered_bytes: u64::MAX,
        owed_units: 1,
        ..Checkpoint::default()
    };
    History::note_checkpoint(state_dir, view.id, checkpoint).unwrap();
    view.id
}

#[test]
fn a_statement_is_had_offline_and_its_receipt_checks() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("topnet.toml");
    let lines = "[wallet]\nrpc_url = \"http://127.0.0.1:9\"\nsession_key_file = \"none\"\n\
                 state_dir = \"state\"\nunit_price_ntop_max = 7\n";
    fs::write(&config, lines).unwrap();
    let id = paid_channel(&dir.path().join("state"), &signer()).to_string();
    let ask = |more: &[&str]| {
        let words = ["wallet", "statement", "--config", text(&config)];
        succeed(&[&words[..], more].concat())
    };

    let rows: Value = serde_json::from_str(&ask(&["--format", "json"])).unwrap();
    let row = &rows[0];
    assert_eq!(row["channel"], id.as_str());
    assert_eq!(
        (&row["paid_units"], &row["promised"]),
        (&1.into(), &"7".into())
    );
    assert_eq!(row["metered_above_bytes"], u64::MAX - 100);
    assert_eq!(row["chain"], Value::Null);
    assert!(
        row["chain_unknown"].as_str().unwrap().contains("no answer"),
        "{row}"
    );

    let csv = ask(&["--format", "csv", "--offline"]);
    let (header, row) = csv.split_once("\r\n").unwrap();
    assert!(header.starts_with("channel,chain,payer,payee,provider,"));
    assert!(row.contains(",\"One, \"\"Ltd\"\"\","), "{row}");
    assert!(row.contains(&format!(",90,100,{},", u64::MAX)), "{row}");
    assert!(ask(&["--since", "1970-01-02"]).contains("0 (0 B)"));
    assert!(ask(&["--channel", &id]).contains("1 units (0.000000007 TOP)"));

    let file = dir.path().join("statement.json");
    fs::write(&file, rows.to_string()).unwrap();
    let proved = json(&["wallet", "verify-receipt", text(&file)]);
    assert_eq!(proved[0]["amount"], "7");
    assert_eq!(proved[0]["channel"], id.as_str());
    let mut forged = rows[0]["receipt"].clone();
    forged["index"] = 2.into();
    fs::write(&file, forged.to_string()).unwrap();
    let error = fail(&["wallet", "verify-receipt", text(&file)]);
    assert_eq!(error["code"], "receipt", "{error}");
}

#[test]
fn mistakes_are_named_with_the_mend() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("topnet.toml");
    let missing = fail(&["status", "--config", text(&config)]);
    assert!(
        missing["what"].as_str().unwrap().contains("topnet init"),
        "{missing}"
    );

    fs::write(&config, "[metering]\nprice = 3\n").unwrap();
    let output = topnet(&["check-config", "--config", text(&config)]);
    let words = String::from_utf8(output.stdout).unwrap();
    assert!(
        words.contains("topnet.toml:2: metering") && words.contains("`price`"),
        "{words}"
    );
    assert!(!output.status.success());

    let nobody = fail(&["offers", "--rpc", "http://127.0.0.1:9"]);
    assert_eq!(nobody["code"], "rpc_unreachable");
    assert!(
        nobody["mend"]
            .as_str()
            .unwrap()
            .contains("topnet run control"),
        "{nobody}"
    );

    let lost = dir.path().join("topnet");
    fs::copy(env!("CARGO_BIN_EXE_topnet"), &lost).unwrap();
    let output = Command::new(&lost)
        .args(["run", "metering"])
        .output()
        .unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(
        words.contains("install topnet-metering beside topnet"),
        "{words}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_word_speaks_with_a_provider() {
    let setup = Setup::start().await;
    let id = setup.world.put(channel(9)).to_string();
    setup.world.chain().settles = true;
    setup.world.chain().accepted_batches = 2;
    let operator = format!("http://{}", setup.listeners().operator_address);
    let public = format!("http://{}", setup.listeners().public_address);
    let key = setup.dir.path().join("wallet.key");
    key_file::write(
        &key,
        &signer(),
        b"open sesame",
        Cost {
            memory_kib: 64,
            passes: 1,
            lanes: 1,
        },
    )
    .unwrap();
    let config = setup.dir.path().join("wallet.toml");
    let lines = [
        "[wallet]".to_owned(),
        format!("rpc_url = \"{public}\""),
        "key_file = \"wallet.key\"".to_owned(),
        "unit_price_ntop_max = 1000".to_owned(),
        "state_dir = \"state\"".to_owned(),
    ];
    paid_channel(&setup.dir.path().join("state"), &signer());
    fs::write(&config, lines.join("\n")).unwrap();
    // A machine that has the channel's key and no account.
    let gateway = setup.dir.path().join("gateway.toml");
    fs::write(
        &gateway,
        lines.join("\n").replace("key_file", "session_key_file"),
    )
    .unwrap();
    let gateway = text(&gateway).to_owned();
    let (config, out) = (text(&config).to_owned(), setup.dir.path().join("wg.conf"));

    tokio::task::spawn_blocking(move || {
        let ask = |arguments: &[&str]| {
            let with_rpc = [arguments, &["--rpc", operator.as_str()]].concat();
            succeed(&with_rpc);
            json(&with_rpc)
        };
        assert_eq!(ask(&["status"])["processes"][0]["answers"], true);
        assert_eq!(ask(&["offers"])[0]["name"], "Test");
        assert_eq!(ask(&["chain"]).as_array().unwrap().len(), 2);
        assert_eq!(ask(&["chain", "vpn"])["chain"], "vpn");
        assert_eq!(ask(&["service"])["batches"], 2);
        let payee = stand_ins::payee().to_string();
        assert_eq!(ask(&["account", &payee])["nonce"], 3);
        assert_eq!(ask(&["block", "5"])["height"], 5);
        let range = ["blocks", "--chain", "vpn", "--from", "3", "--to", "5"];
        assert_eq!(ask(&range)[2]["transaction_count"], 1);
        assert_eq!(ask(&["history", &payee])[1]["place"]["height"], 4);
        assert_eq!(ask(&["history", &payee, "--count", "1"])[1], Value::Null);
        assert_eq!(ask(&["batches", "--from", "1"])[0]["number"], 1);
        assert_eq!(ask(&["offer", "publish"]), Value::Null, "the second time");
        assert_eq!(ask(&["market"])[0]["provider"], payee);
        assert_eq!(ask(&["offer", "retract"]), Value::Null);
        let transaction = ask(&["tx", "submit", "0x0102"])["id"]
            .as_str()
            .unwrap()
            .to_owned();
        assert_eq!(
            ask(&["tx", "show", &transaction])["events"][0],
            "transferred"
        );

        let wg_key = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=";
        let session = [
            "--channel",
            &id,
            "--wg-public-key",
            wg_key,
            "--config",
            &config,
        ];
        let start = [&["session", "start", "--out", text(&out)][..], &session].concat();
        assert_eq!(json(&start)["wireguard"]["address"], "10.78.0.2");
        let written = fs::read_to_string(&out).unwrap();
        assert!(
            written.contains("Address = 10.78.0.2/32") && written.contains("[Peer]"),
            "{written}"
        );
        let again = [&start[..8], &["--config", &gateway]].concat();
        assert_eq!(json(&again)["wireguard"]["address"], "10.78.0.2");
        assert_eq!(ask(&["sessions"])[0]["session"], wg_key);
        assert_eq!(ask(&["channels"])[0]["sessions"][0], wg_key);
        let stop = [&["session", "stop"][..], &session].concat();
        assert_eq!(json(&stop)["stopped"], true);
        assert_eq!(ask(&["channel", "show", &id])["chain"]["state"], "open");
        let statement = ["wallet", "statement", "--config", &config];
        let statement = &json(&statement)[0];
        assert_eq!(statement["chain"]["state"], "open", "{statement}");
        assert_eq!(statement["chain"]["redeemed"], "0");
        let closed = json(&["channel", "close", &id, "--wait", "--rpc", &operator]);
        assert_eq!(closed["redeemed"], "100");
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_are_listed_over_as_many_answers_as_it_takes() {
    let setup = Setup::start().await;
    setup.world.chain().height = 250;
    let operator = format!("http://{}", setup.listeners().operator_address);
    tokio::task::spawn_blocking(move || {
        for (range, told) in [
            (&["--from", "1"][..], (1, 250)),
            (&["--from", "120", "--to", "240"], (120, 240)),
            (&["--from", "240"], (240, 250)),
        ] {
            let listed = json(&[&["blocks", "--rpc", &operator], range].concat());
            let listed = listed.as_array().unwrap();
            let heights = listed.iter().map(|block| block["height"].as_u64().unwrap());
            assert!(heights.eq(told.0..=told.1), "{range:?}");
        }
    })
    .await
    .unwrap();
}

/// `[wallet] rpc_url` is a stranger's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_rpc_that_gives_the_same_page_again_is_not_asked_for_ever() {
    let setup = Setup::start().await;
    setup.world.chain().height = 250;
    let operator = format!("http://{}", setup.listeners().operator_address);
    let world = setup.world.clone();
    tokio::task::spawn_blocking(move || {
        succeed(&["offer", "publish", "--rpc", &operator]);
        let payee = stand_ins::payee().to_string();
        for words in [
            &["market"][..],
            &["batches"],
            &["history", &payee],
            &["blocks", "--from", "1"],
        ] {
            world.chain().repeats = 9;
            let error = fail(&[words, &["--rpc", &operator]].concat());
            assert_eq!(error["code"], "rpc_repeats", "{words:?}");
        }
    })
    .await
    .unwrap();
}
