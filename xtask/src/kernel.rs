//! What the running kernel must be able to do, and how to find out without root.

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::path::Path;
use std::process::Command;

/// A feature of the kernel: what it is for, and the option that it is compiled by.
pub struct Feature {
    /// Its name in a report.
    pub name: &'static str,
    /// The kernel's configuration option.
    pub option: &'static str,
    /// A look at the running kernel: `Some` if it tells.
    probe: fn() -> Option<bool>,
}

/// All of them, in the order in which they are reported.
pub const FEATURES: &[Feature] = &[
    Feature {
        name: "BPF programs",
        option: "CONFIG_BPF_SYSCALL",
        probe: || Some(Path::new("/proc/sys/kernel/unprivileged_bpf_disabled").exists()),
    },
    Feature {
        name: "BPF compiler in the kernel",
        option: "CONFIG_BPF_JIT",
        probe: || Some(Path::new("/proc/sys/net/core/bpf_jit_enable").exists()),
    },
    Feature {
        name: "XDP sockets",
        option: "CONFIG_XDP_SOCKETS",
        probe: xdp_sockets,
    },
    Feature {
        name: "network namespaces",
        option: "CONFIG_NET_NS",
        probe: || Some(Path::new("/proc/self/ns/net").exists()),
    },
    Feature {
        name: "veth links",
        option: "CONFIG_VETH",
        probe: || module("veth"),
    },
    Feature {
        name: "TUN devices",
        option: "CONFIG_TUN",
        probe: || Some(Path::new("/dev/net/tun").exists()),
    },
];

impl Feature {
    /// What the kernel says, then what its configuration says; `None` if neither tells.
    pub fn present(&self, config: Option<&str>) -> Option<bool> {
        let compiled = config.map(|text| {
            text.lines().any(|line| {
                line.strip_prefix(self.option)
                    .is_some_and(|rest| rest == "=y" || rest == "=m")
            })
        });
        match (self.probe)() {
            Some(true) => Some(true),
            // A module that nobody has asked for yet does not show.
            Some(false) | None => compiled,
        }
    }
}

/// The running kernel's configuration, where the distribution leaves it.
pub fn config() -> Option<String> {
    let release = release();
    let boot = format!("/boot/config-{release}");
    if let Ok(text) = std::fs::read_to_string(boot) {
        return Some(text);
    }
    let output = Command::new("zcat").arg("/proc/config.gz").output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The kernel's version, as `uname -r` prints it.
pub fn release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

fn xdp_sockets() -> Option<bool> {
    let made = socket_with(
        AddressFamily::XDP,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    );
    match made {
        // Refused for want of a capability, by code that is there.
        Ok(_) | Err(Errno::PERM | Errno::ACCESS) => Some(true),
        Err(Errno::AFNOSUPPORT) => Some(false),
        Err(_) => None,
    }
}

fn module(name: &str) -> Option<bool> {
    if Path::new("/sys/module").join(name).exists() {
        return Some(true);
    }
    let found = Command::new("modinfo").arg(name).output().ok()?;
    Some(found.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_decides_where_the_kernel_does_not_tell() {
        let feature = Feature {
            name: "veth links",
            option: "CONFIG_VETH",
            probe: || None,
        };
        for (config, expected) in [
            (None, None),
            (Some("CONFIG_VETH=m\n"), Some(true)),
            (Some("CONFIG_VETH=y\n"), Some(true)),
            (Some("# CONFIG_VETH is not set\n"), Some(false)),
            (Some("CONFIG_VETHER=y\n"), Some(false)),
        ] {
            assert_eq!(feature.present(config), expected, "{config:?}");
        }
    }
}
