//! Refuses to build when the shipped BPF object is not the one of the sources beside it.

use std::path::{Path, PathBuf};
use std::{fs, process};

use sha2::{Digest, Sha256};

/// Everything that the object is made from, and the object.
const RECORDED: [&str; 5] = [
    "abi/src",
    "object/topnet.o",
    "program/Cargo.lock",
    "program/Cargo.toml",
    "program/src",
];
const RECORD: &str = "object/SOURCES.sha256";

fn main() {
    // Asked for when this runs: what was compiled may be another checkout's, in a cache that both use.
    let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    let ebpf = Path::new(&here).join("../ebpf");
    println!("cargo::rerun-if-changed=../ebpf/{RECORD}");
    let mut lines = Vec::new();
    for recorded in RECORDED {
        println!("cargo::rerun-if-changed=../ebpf/{recorded}");
        for file in files(&ebpf.join(recorded)) {
            lines.push(line(&ebpf, &file));
        }
    }
    lines.sort_by(|a, b| a[64..].cmp(&b[64..]));
    let actual: String = lines.concat();
    let expected = fs::read_to_string(ebpf.join(RECORD)).unwrap_or_default();
    if actual != expected {
        println!(
            "cargo::error=ebpf/object/topnet.o is not built from the sources in ebpf \
             (ebpf/{RECORD} differs); run `cargo xtask ebpf` and commit the result"
        );
        process::exit(1);
    }
}

/// The file itself, or the Rust files below a directory.
fn files(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let entries = entries.flat_map(|entry| files(&entry));
    entries
        .filter(|entry| entry.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

fn line(ebpf: &Path, file: &Path) -> String {
    let digest = Sha256::digest(fs::read(file).unwrap_or_default());
    let name = file
        .strip_prefix(ebpf)
        .unwrap_or(file)
        .display()
        .to_string();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}  {name}\n")
}
