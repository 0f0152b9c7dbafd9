//! Builds the BPF object, and tells whether the one beside the sources is made from them.
//!
//! The object is shipped with the sources, so that a plain `cargo build` needs no BPF toolchain;
//! `object/SOURCES.sha256` says what it was made from. The data plane's build script reads the
//! same file. How and why each step is done stands in `ebpf/README.md`.

use crate::workspace::Workspace;
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's `rustc-web`: the only stable compiler that comes with a core library for BPF.
const BPF_RUSTC: &str = "/usr/bin/rustc";
const BPF_TARGET: &str = "bpfel-unknown-none";
/// Written by the crate's library target.
const OBJECT: &str = "object/topnet.o";
const DIGESTS: &str = "object/SOURCES.sha256";
const TOOLCHAIN_MEND: &str =
    "apt-get install --no-install-recommends rustc-web libstd-rust-web-dev-bpf llvm-22";

/// `cargo xtask ebpf`.
pub fn build(workspace: &Workspace) -> Result<()> {
    let home = home(workspace);
    let object = home.join(OBJECT);
    fs::create_dir_all(home.join("object"))?;
    compile(workspace, &object)?;
    fs::write(home.join(DIGESTS), digests(&home)?)?;
    println!("built {}", workspace.short(&object).display());
    Ok(())
}

/// `cargo xtask ebpf --check`.
pub fn check(workspace: &Workspace) -> Result<()> {
    digest(workspace)?;
    println!("the recorded digests are those of the sources and of the object");
    if let Err(error) = toolchain() {
        println!("not rebuilt: {error:#}");
        return Ok(());
    }
    let rebuilt = workspace.target.join("ebpf-check.o");
    compile(workspace, &rebuilt)?;
    let shipped = home(workspace).join(OBJECT);
    for view in [
        // Instructions with their relocations, so the maps that they use; then what the maps are.
        &["--disassemble", "--reloc", "--no-show-raw-insn"][..],
        &["--full-contents", "--section=.maps", "--section=license"],
        &["--syms"],
    ] {
        ensure!(
            view_of(&shipped, view)? == view_of(&rebuilt, view)?,
            "{} is not what these sources compile to (llvm-objdump-22 {} differs): cargo xtask ebpf",
            workspace.short(&shipped).display(),
            view.join(" ")
        );
    }
    println!("a rebuild gives the same instructions and maps");
    Ok(())
}

/// Compares the recorded digests with the files.
pub fn digest(workspace: &Workspace) -> Result<()> {
    let home = home(workspace);
    let path = home.join(DIGESTS);
    let recorded = fs::read_to_string(&path)
        .with_context(|| format!("{} cannot be read", workspace.short(&path).display()))?;
    let present = digests(&home)?;
    if recorded == present {
        return Ok(());
    }
    let differing = present
        .lines()
        .chain(recorded.lines())
        .find(|line| !(recorded.contains(line) && present.contains(line)))
        .and_then(|line| line.split_whitespace().nth(1))
        .unwrap_or(DIGESTS);
    bail!("ebpf/{differing} is not what {DIGESTS} recorded; build the object: cargo xtask ebpf")
}

fn home(workspace: &Workspace) -> PathBuf {
    workspace.root.join("ebpf")
}

/// One line `DIGEST  PATH` per file that makes the object, and for the object, as `sha256sum`
/// writes them, sorted by path.
fn digests(home: &Path) -> Result<String> {
    let mut paths = vec![
        home.join("program/Cargo.toml"),
        home.join("program/Cargo.lock"),
        home.join(OBJECT),
    ];
    for sources in ["abi/src", "program/src"] {
        rust_files(&home.join(sources), &mut paths)?;
    }
    paths.sort();
    let mut lines = String::new();
    for path in paths {
        let bytes = fs::read(&path).with_context(|| format!("{} is missing", path.display()))?;
        let digest: String = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let name = path.strip_prefix(home)?.display();
        lines.push_str(&format!("{digest}  {name}\n"));
    }
    Ok(lines)
}

fn rust_files(directory: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, into)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
    Ok(())
}

fn toolchain() -> Result<()> {
    let library = Command::new(BPF_RUSTC)
        .args(["--print", "target-libdir", "--target", BPF_TARGET])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    ensure!(
        library.is_some_and(|path| path.is_dir()),
        "{BPF_RUSTC} has no core library for {BPF_TARGET}: {TOOLCHAIN_MEND}"
    );
    for tool in ["llc-22", "llvm-objdump-22", "llvm-strip-22"] {
        ensure!(
            crate::packages::is_command(tool),
            "{tool} is missing: {TOOLCHAIN_MEND}"
        );
    }
    Ok(())
}

/// Sources → bitcode → object, without anything in it that names this machine.
fn compile(workspace: &Workspace, object: &Path) -> Result<()> {
    toolchain()?;
    let home = home(workspace);
    let target = home.join("target");
    fs::create_dir_all(&target)?;
    let bitcode = target.join("topnet.bc");
    // The name of what cargo writes carries a hash: ask for a name of our own, and for a run
    // even when cargo thinks that all is fresh.
    let _ = fs::remove_file(&bitcode);
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;
    let mut flags = vec![
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clinker=/bin/true".to_owned(),
        "-Clto=fat".to_owned(),
        "-Cembed-bitcode=yes".to_owned(),
        format!("--remap-path-prefix={}/=/", workspace.root.display()),
    ];
    // Where a machine keeps libraries is nobody's business.
    for registry in fs::read_dir(cargo_home.join("registry/src"))
        .into_iter()
        .flatten()
    {
        flags.push(format!(
            "--remap-path-prefix={}/=/cargo/",
            registry?.path().display()
        ));
    }
    let flags = flags.join("\u{1f}");
    let mut cargo = workspace.cargo();
    cargo
        .current_dir(home.join("program"))
        .env("RUSTC", BPF_RUSTC)
        // Scoped to the one crate that uses nightly features; `1` would force build-std.
        .env("RUSTC_BOOTSTRAP", "aya_ebpf")
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env_remove("RUSTFLAGS")
        .arg("rustc")
        .args(["--quiet", "--release", "--locked", "--target", BPF_TARGET])
        .arg("--target-dir")
        .arg(&target)
        .arg("--")
        .arg(format!("--emit=llvm-bc={}", bitcode.display()));
    run(cargo, "compiling the BPF program")?;
    ensure!(
        bitcode.exists(),
        "cargo left no bitcode; remove {} and try again",
        workspace.short(&target).display()
    );
    let mut llc = Command::new("llc-22");
    // v3 has the atomic fetch-add that counting needs.
    llc.args(["-march=bpf", "-mcpu=v3", "-filetype=obj"])
        .arg(&bitcode)
        .arg("-o")
        .arg(object);
    run(llc, "making the BPF object")?;
    let mut strip = Command::new("llvm-strip-22");
    // DWARF names paths; BTF, which the kernel reads, stays.
    strip.arg("--strip-debug").arg(object);
    run(strip, "stripping the BPF object")
}

fn run(mut command: Command, what: &str) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{what}: cannot start {:?}", command.get_program()))?;
    ensure!(status.success(), "{what} failed ({status})");
    Ok(())
}

fn view_of(object: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("llvm-objdump-22")
        .args(arguments)
        .arg(object)
        .output()?;
    ensure!(
        output.status.success(),
        "llvm-objdump-22 cannot read {}",
        object.display()
    );
    // The first line that is not empty names the file.
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| !line.is_empty() && !line.contains("file format"))
        .collect::<Vec<_>>()
        .join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_what_sha256sum_prints() {
        let home = std::env::temp_dir().join(format!("xtask-ebpf-{}", std::process::id()));
        for directory in ["abi/src", "program/src/deep", "object"] {
            fs::create_dir_all(home.join(directory)).unwrap();
        }
        for (file, text) in [
            ("abi/src/lib.rs", "abc"),
            ("program/src/deep/a.rs", ""),
            ("program/src/notes.txt", "not a source"),
            ("program/Cargo.toml", "abc"),
            ("program/Cargo.lock", "abc"),
            ("object/topnet.o", "abc"),
        ] {
            fs::write(home.join(file), text).unwrap();
        }
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let expected = format!(
            "{abc}  abi/src/lib.rs\n{abc}  object/topnet.o\n{abc}  program/Cargo.lock\n\
             {abc}  program/Cargo.toml\n{empty}  program/src/deep/a.rs\n"
        );
        let found = digests(&home).unwrap();
        fs::remove_dir_all(&home).unwrap();
        assert_eq!(found, expected);
    }
}
