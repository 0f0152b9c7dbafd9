//! `topnet log`, run as a person runs it, over a directory and a folder.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;
use topnet_account::ChannelId;
use topnet_archive::{Archive, ObjectHash};
use topnet_config::Config;
use topnet_log::{Line, Segments};
use topnet_unit::{BootId, Slot};

const LINES_MAX: u64 = 4;

fn topnet(config: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_topnet"))
        .arg("--config")
        .arg(config)
        .args(arguments)
        .output()
        .unwrap()
}

fn succeed(config: &Path, arguments: &[&str]) -> Value {
    let output = topnet(config, &[arguments, &["--json"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What it printed, and the error.
fn fail(config: &Path, arguments: &[&str]) -> (Value, Value) {
    let output = topnet(config, &[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    let shown = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    (shown, error["error"].clone())
}

fn line(units: u64) -> Line {
    Line {
        channel: ChannelId([1; 32]),
        units_before: units - 1,
        units,
        channel_bytes: units * 1000,
        time_ms: 1_700_000_000_000 + units,
        boot: BootId([3; 16]),
        slot: Slot {
            index: 4,
            generation: 5,
        },
    }
}

fn config(dir: &Path, keys: &str) -> PathBuf {
    let path = dir.join("topnet.toml");
    let text = format!(
        "data_dir = \"data\"\n[metering]\nkey_file = \"payment.key\"\nunit_price_ntop = 1\n\
         [metering.archive]\n{keys}"
    );
    fs::write(&path, text).unwrap();
    path
}

/// A log of which the first segment is archived, the second sealed and the third open.
async fn log(config: &Path) -> PathBuf {
    let config = Config::load(config).unwrap();
    let metering = config.metering().unwrap();
    let dir = &metering.service_log_dir;
    let mut segments = Segments::open(dir, None, LINES_MAX).unwrap();
    let lines: Vec<Line> = (1..=10).map(line).collect();
    segments.append(&lines).unwrap();
    segments.sync().unwrap();
    let archive = Archive::open(dir, &metering.archive).unwrap();
    archive.take(1).await.unwrap();
    metering.archive.dir.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn segments_are_listed_fetched_verified_and_restored() {
    let dir = tempfile::tempdir().unwrap();
    let provider = config(dir.path(), "");
    let store = log(&provider).await;
    let listed = succeed(&provider, &["log", "list"]);
    let states: Vec<&Value> = (0..3).map(|place| &listed[place]["state"]).collect();
    assert_eq!(states, ["archived", "sealed", "open"]);
    assert_eq!(
        (&listed[0]["lines"], &listed[2]["lines"]),
        (&4.into(), &2.into())
    );
    let hash = listed[0]["hash"].as_str().unwrap().to_owned();
    let object = store.join("objects").join(&hash);
    assert_eq!(listed[0]["place"], object.to_str().unwrap());
    let shown = topnet(&provider, &["log", "list"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("2023-11-14T22:13:20Z to"), "{shown}");

    let file = dir.path().join("fetched");
    let out = file.to_str().unwrap();
    for (name, number) in [("1", 1), (hash.as_str(), 1), ("2", 2)] {
        let fetched = succeed(&provider, &["log", "fetch", name, "--out", out]);
        assert_eq!(
            (&fetched["number"], &fetched["bytes"]),
            (&number.into(), &528.into())
        );
        let found = ObjectHash::of(&fs::read(&file).unwrap());
        assert_eq!(listed[number - 1]["hash"], found.to_string());
    }
    let (_, error) = fail(&provider, &["log", "fetch", "3", "--out", out]);
    assert_eq!(error["code"], "segment_unknown");
    assert_eq!(
        topnet(&provider, &["log", "fetch", "x", "--out", out])
            .status
            .code(),
        Some(2)
    );

    let verdict = succeed(&provider, &["log", "verify"]);
    assert_eq!(
        (&verdict["segments"], &verdict["lines"]),
        (&3.into(), &10.into())
    );

    // Somebody with the store alone.
    let elsewhere = tempfile::tempdir().unwrap();
    let alone = config(elsewhere.path(), &format!("dir = \"{}\"", store.display()));
    assert_eq!(succeed(&alone, &["log", "list"])[0]["hash"], hash);
    assert_eq!(succeed(&alone, &["log", "restore"])["entries"], 1);
    assert_eq!(succeed(&alone, &["log", "verify"])["lines"], 4);

    let mut bytes = fs::read(&object).unwrap();
    bytes[200] ^= 1;
    fs::write(&object, &bytes).unwrap();
    let (verdict, error) = fail(&provider, &["log", "verify"]);
    assert_eq!(error["code"], "log_damaged");
    assert_eq!(verdict["findings"][0]["code"], "object_damaged");
    assert!(
        verdict["findings"][0]["what"]
            .as_str()
            .unwrap()
            .contains(&hash)
    );
    let (_, error) = fail(&provider, &["log", "fetch", "1", "--out", out]);
    assert_eq!(error["code"], "object_damaged");
    let said = topnet(&provider, &["log", "verify"]);
    assert_eq!(said.status.code(), Some(1));
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(
        said.contains("bring it back from a copy of the store"),
        "{said}"
    );

    fs::remove_file(&object).unwrap();
    let (verdict, _) = fail(&provider, &["log", "verify"]);
    assert_eq!(verdict["findings"][0]["code"], "object_missing");

    fs::remove_file(store.join("segments/0000000000000001")).unwrap();
    let (restored, error) = fail(&provider, &["log", "restore"]);
    assert_eq!(error["code"], "log_damaged");
    assert_eq!(restored["findings"][0]["code"], "object_missing");
}

/// Fetched into the log's directory, half a file would hide the archived segment.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_fetch_that_fails_leaves_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let provider = config(dir.path(), "");
    log(&provider).await;
    let out = dir.path().join("fetched");
    let fetch = ["log", "fetch", "1", "--out", out.to_str().unwrap()];
    fs::write(&out, "an earlier copy").unwrap();
    fs::set_permissions(&out, fs::Permissions::from_mode(0o644)).unwrap();
    // No file may have a byte: an error, and then a signal that kills.
    for on_signal in ["trap '' XFSZ;", ""] {
        let failed = Command::new("sh")
            .arg("-c")
            .arg(format!("{on_signal} ulimit -f 0; exec \"$0\" \"$@\""))
            .args([env!("CARGO_BIN_EXE_topnet"), "--config"])
            .arg(&provider)
            .args(fetch)
            .output()
            .unwrap();
        assert!(!failed.status.success());
        assert_eq!(fs::read(&out).unwrap(), b"an earlier copy");
        let names = fs::read_dir(dir.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left = names.filter(|name| name.ends_with(".new")).count();
        assert_eq!(left, usize::from(on_signal.is_empty()));
    }
    succeed(&provider, &fetch);
    assert_eq!(fs::read(&out).unwrap().len(), 528);
    let mode = fs::metadata(&out).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let piped = ["log", "fetch", "1", "--out", "/dev/stderr"];
    let piped = topnet(&provider, &piped);
    assert_eq!(piped.stderr.len(), 528);
}

#[test]
fn a_log_that_is_not_there_is_empty_and_a_bucket_without_credentials_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let provider = config(dir.path(), "");
    assert_eq!(succeed(&provider, &["log", "list"]), serde_json::json!([]));
    assert!(!dir.path().join("data").exists(), "reading makes nothing");
    let keys = "bucket = \"topnet-log\"\ncredentials_file = \"credentials\"";
    let provider = config(dir.path(), keys);
    let (_, error) = fail(&provider, &["log", "verify"]);
    assert_eq!(error["code"], "archive_credentials");
    let mend = error["mend"].as_str().unwrap();
    assert!(mend.contains("aws_access_key_id"), "{mend}");
}
