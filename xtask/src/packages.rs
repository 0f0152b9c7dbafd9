//! The Debian packages that the project stands on, and how to tell that one is there.

use crate::doctor::Group;
use crate::elevate::system_path;
use std::collections::BTreeSet;
use std::env;
use std::path::Path;
use std::process::Command;

/// A package and its proof.
pub struct Package {
    /// Debian's name.
    pub name: &'static str,
    /// What needs it.
    pub group: Group,
    /// What it is for.
    pub purpose: &'static str,
    /// What shows that it, or something as good, is installed.
    proof: Proof,
}

/// A command or a header proves a package on any distribution; the rest is dpkg's word.
enum Proof {
    Commands(&'static [&'static str]),
    File(&'static str),
    Dpkg,
}

/// All of them, in the order in which they are reported.
pub const PACKAGES: &[Package] = &[
    package(
        "build-essential",
        Group::Build,
        "compiles RocksDB, aws-lc and libxdp",
        Proof::Commands(&["cc", "c++", "make", "ar", "ld", "objcopy"]),
    ),
    package(
        "clang",
        Group::Build,
        "compiles libxdp's BPF programs",
        Proof::Commands(&["clang"]),
    ),
    package(
        "libclang-dev",
        Group::Build,
        "reads C headers for the bindings of RocksDB and libxdp",
        Proof::Dpkg,
    ),
    package(
        "m4",
        Group::Build,
        "expands libxdp's dispatcher",
        Proof::Commands(&["m4"]),
    ),
    package(
        "pkg-config",
        Group::Build,
        "finds libelf and zlib",
        Proof::Commands(&["pkg-config"]),
    ),
    package(
        "libelf-dev",
        Group::Build,
        "libbpf reads BPF objects with it",
        Proof::File("/usr/include/libelf.h"),
    ),
    package(
        "zlib1g-dev",
        Group::Build,
        "libelf needs it",
        Proof::File("/usr/include/zlib.h"),
    ),
    package(
        "iproute2",
        Group::Lab,
        "makes namespaces and links",
        Proof::Commands(&["ip"]),
    ),
    package(
        "ethtool",
        Group::Lab,
        "switches offloads of links",
        Proof::Commands(&["ethtool"]),
    ),
    package(
        "util-linux",
        Group::Lab,
        "gives each process its own user and capabilities",
        Proof::Commands(&["setpriv"]),
    ),
    package(
        "curl",
        Group::Lab,
        "the downloads and uploads",
        Proof::Commands(&["curl"]),
    ),
    package(
        "nginx-light",
        Group::Lab,
        "the origin server",
        Proof::Commands(&["nginx"]),
    ),
    package(
        "wireguard-go",
        Group::Lab,
        "the unmodified WireGuard client",
        Proof::Commands(&["wireguard-go"]),
    ),
    package(
        "wireguard-tools",
        Group::Lab,
        "`wg`, which configures it",
        Proof::Commands(&["wg"]),
    ),
    package(
        "rustc-web",
        Group::Bpf,
        "a rustc that knows the BPF target",
        Proof::Dpkg,
    ),
    package(
        "libstd-rust-web-dev-bpf",
        Group::Bpf,
        "the core library for the BPF target",
        Proof::Dpkg,
    ),
    package(
        "llvm-22",
        Group::Bpf,
        "makes the BPF object from rustc's bitcode",
        Proof::Commands(&["llc-22", "llvm-objdump-22", "llvm-strip-22"]),
    ),
];

const fn package(name: &'static str, group: Group, purpose: &'static str, proof: Proof) -> Package {
    Package {
        name,
        group,
        purpose,
        proof,
    }
}

/// The names of the packages that are not there.
pub fn missing() -> BTreeSet<&'static str> {
    let by_dpkg: Vec<&str> = PACKAGES
        .iter()
        .filter(|package| matches!(package.proof, Proof::Dpkg))
        .map(|package| package.name)
        .collect();
    let installed = installed_by_dpkg(&by_dpkg);
    PACKAGES
        .iter()
        .filter(|package| match package.proof {
            Proof::Commands(commands) => !commands.iter().all(|name| is_command(name)),
            Proof::File(path) => !Path::new(path).exists(),
            Proof::Dpkg => !installed.contains(package.name),
        })
        .map(|package| package.name)
        .collect()
}

/// True if a program of that name is on the system's path.
pub fn is_command(name: &str) -> bool {
    env::split_paths(&system_path()).any(|directory| directory.join(name).is_file())
}

fn installed_by_dpkg(names: &[&str]) -> BTreeSet<String> {
    let Ok(output) = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\\n"])
        .args(names)
        .output()
    else {
        return BTreeSet::new();
    };
    // Names that it does not know make it exit with 1; the rest is on standard output still.
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .map(str::to_owned)
        .collect()
}
