//! Every input that was worth keeping, through its target, without a fuzzer.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::PathBuf};

use topnet_fuzz::{TARGETS, target};

/// So that nobody minds having it.
const CORPUS_BYTES_MAX: u64 = 200_000;

fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

#[test]
fn every_kept_input_is_in_order() {
    let mut bytes_in_all = 0;
    for (name, target) in TARGETS {
        let directory = corpus().join(name);
        let mut files: Vec<PathBuf> = fs::read_dir(&directory)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert!(!files.is_empty(), "{name} has no input");
        for file in files {
            // Shown if the target panics.
            println!("{}", file.display());
            let bytes = fs::read(&file).unwrap();
            bytes_in_all += bytes.len() as u64;
            target(&bytes);
        }
    }
    assert!(bytes_in_all <= CORPUS_BYTES_MAX, "{bytes_in_all} bytes");
}

#[test]
fn every_directory_of_inputs_has_its_target() {
    let directories: BTreeSet<String> = fs::read_dir(corpus())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(directories, targets);
    assert_eq!(targets.len(), TARGETS.len(), "two targets have one name");
    assert!(target("payee").is_some() && target("nobody").is_none());
}
