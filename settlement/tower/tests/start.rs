//! The process from its command line. What it does with nodes and claims is in settlement's
//! `tower.rs`, where there is a chain.
#![allow(clippy::unwrap_used)]

use std::{fs, net::TcpListener, path::Path, process::Command};

/// What the process says when it cannot start.
fn error(dir: &Path, text: &str) -> String {
    let config = dir.join("topnet.toml");
    fs::write(&config, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_topnet-tower"));
    let output = command.arg("--config").arg(&config).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn what_cannot_start_names_the_key_and_the_mend() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let with = |node: &str| {
        format!(
            "data_dir = \"data\"\n\
             [tower]\n\
             listen = \"{listen}\"\n\
             rpc_urls = [\"{node}\"]\n\
             main_genesis = \"0x{}\"\n\
             payees = [\"top1yvt34m4dpkcply0xnrjr6kj5ag9z38mzqc5c8fqcx3vzdxqckenqmv7ctm\"]\n",
            "04".repeat(32)
        )
    };
    for (text, expected) in [
        (String::new(), "tower: the section is missing; add [tower]"),
        (with("ftp://node"), "`ftp://node` is not an HTTP address"),
        (with("http://"), "[tower] rpc_urls"),
        (
            with("http://127.0.0.1:9"),
            "[tower] listen): Address already in use",
        ),
    ] {
        let said = error(dir.path(), &text);
        assert!(said.contains(expected), "{expected}: {said}");
    }
}
