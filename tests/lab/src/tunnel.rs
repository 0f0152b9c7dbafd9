//! The client's end of the tunnel: wireguard-go, which nobody here wrote, configured with `wg`.

use crate::interrupt::Interrupt;
use crate::process::{Process, output};
use crate::run_dir::RunDir;
use anyhow::{Context, Result};
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use topnet_netns::Namespace;

const READY_WAIT: Duration = Duration::from_secs(10);
const COMMAND_WAIT: Duration = Duration::from_secs(10);

/// A WireGuard key pair whose private half lives in a file.
#[derive(Clone, Debug)]
pub struct KeyPair {
    /// Where `wg` reads the private key.
    pub private_file: PathBuf,
    /// The public key in base64.
    pub public: String,
}

impl KeyPair {
    /// Makes one with `wg genkey`.
    pub fn generate(
        namespace: &Namespace,
        interrupt: &Interrupt,
        private_file: &Path,
    ) -> Result<KeyPair> {
        let private = wg(namespace, interrupt, &["genkey"])?;
        let mut options = fs::File::options();
        options.create_new(true).write(true).mode(0o600);
        options
            .open(private_file)
            .and_then(|mut file| file.write_all(private.as_bytes()))
            .with_context(|| format!("cannot write {}", private_file.display()))?;
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec wg pubkey <\"$0\""])
            .arg(private_file);
        let public = output(namespace, command, interrupt, COMMAND_WAIT)?;
        Ok(KeyPair {
            private_file: private_file.to_owned(),
            public: public.trim().to_owned(),
        })
    }
}

/// What the interface needs beside WireGuard's own configuration.
#[derive(Clone, Copy, Debug)]
pub struct Interface<'a> {
    /// Its name. The sockets of all of a machine's userspace implementations share a
    /// directory, so it is unique on the machine.
    pub name: &'a str,
    /// Its address in the tunnel.
    pub address: Ipv4Addr,
    /// Its MTU in bytes.
    pub mtu_bytes: u16,
}

/// A running wireguard-go. The interface goes with it.
#[derive(Debug)]
pub struct Tunnel {
    process: Process,
    interface: String,
}

impl Tunnel {
    /// Starts wireguard-go in `namespace` and gives it its key and address.
    pub fn start(
        namespace: &Namespace,
        run_dir: &RunDir,
        interface: Interface<'_>,
        config: &Path,
        interrupt: &Interrupt,
    ) -> Result<Tunnel> {
        let name = interface.name;
        let mut command = Command::new("wireguard-go");
        command.args(["-f", name]).env("LOG_LEVEL", "error");
        let log = run_dir.log(name);
        let process = Process::start(namespace, &format!("wireguard-go {name}"), command, &log)?;
        let mut tunnel = Tunnel {
            process,
            interface: name.to_owned(),
        };
        let socket = tunnel.socket();
        tunnel
            .process
            .wait_ready(interrupt, READY_WAIT, || socket.exists())?;
        tunnel.set_config(namespace, config, interrupt)?;
        let address = format!("{}/32", interface.address);
        let mtu = interface.mtu_bytes.to_string();
        for words in [
            &["address", "add", &address, "dev", name][..],
            &["link", "set", name, "mtu", &mtu, "up"],
        ] {
            let mut command = Command::new("ip");
            command.args(words);
            output(namespace, command, interrupt, COMMAND_WAIT)?;
        }
        Ok(tunnel)
    }

    /// Reads a new configuration, as `wg setconf` does.
    pub fn set_config(
        &self,
        namespace: &Namespace,
        config: &Path,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let file = config.to_str().context("a path that is not UTF-8")?;
        wg(namespace, interrupt, &["setconf", &self.interface, file]).map(drop)
    }

    /// Sends a network through the tunnel.
    pub fn route(
        &self,
        namespace: &Namespace,
        destination: &str,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["route", "replace", destination, "dev", &self.interface]);
        output(namespace, command, interrupt, COMMAND_WAIT).map(drop)
    }

    /// Bytes of inner packets that the interface received, and that it sent.
    pub fn interface_bytes(&self, namespace: &Namespace) -> Result<(u64, u64)> {
        // `/proc/net` would be the main thread's, which lives elsewhere.
        let table = "/proc/thread-self/net/dev";
        let text = namespace
            .enter(|| fs::read_to_string(table))?
            .with_context(|| format!("cannot read {table}"))?;
        interface_bytes_in(&text, &self.interface)
            .with_context(|| format!("there is no interface {}", self.interface))
    }

    /// Bytes that WireGuard counts for its peers, both ways: with its own overhead.
    pub fn transfer_bytes(&self, namespace: &Namespace, interrupt: &Interrupt) -> Result<u64> {
        let (received, sent) = self.transfer_ways(namespace, interrupt)?;
        Ok(received + sent)
    }

    /// The same each way: received, and sent.
    pub fn transfer_ways(
        &self,
        namespace: &Namespace,
        interrupt: &Interrupt,
    ) -> Result<(u64, u64)> {
        let text = wg(namespace, interrupt, &["show", &self.interface, "transfer"])?;
        transfer_in(&text).with_context(|| format!("`wg show transfer` said: {}", text.trim()))
    }

    /// The process, for whoever keeps or watches it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    fn socket(&self) -> PathBuf {
        PathBuf::from(format!("/var/run/wireguard/{}.sock", self.interface))
    }
}

fn wg(namespace: &Namespace, interrupt: &Interrupt, words: &[&str]) -> Result<String> {
    let mut command = Command::new("wg");
    command.args(words);
    output(namespace, command, interrupt, COMMAND_WAIT)
}

/// Received and sent bytes in the text of `/proc/net/dev`: name, then eight columns of received,
/// bytes first, then eight of sent.
fn interface_bytes_in(text: &str, interface: &str) -> Option<(u64, u64)> {
    let columns = text.lines().find_map(|line| {
        let (name, columns) = line.split_once(':')?;
        (name.trim() == interface).then_some(columns)
    })?;
    let mut numbers = columns.split_whitespace().map(str::parse::<u64>);
    let received = numbers.next()?.ok()?;
    let sent = numbers.nth(7)?.ok()?;
    Some((received, sent))
}

/// Received and sent bytes in a line a peer: its key, then the two.
fn transfer_in(text: &str) -> Option<(u64, u64)> {
    let mut sums = (0, 0);
    for line in text.lines() {
        let mut numbers = line.split_whitespace().skip(1).map(str::parse::<u64>);
        sums.0 += numbers.next()?.ok()?;
        sums.1 += numbers.next()?.ok()?;
    }
    Some(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfer_is_summed_over_peers_each_way() {
        let text = "mHwGD6hEqhWOTwQmSDlJ\t5000\t700\nxTIBA5rboUvnH4htodjb\t1\t2\n";
        assert_eq!(transfer_in(text), Some((5001, 702)));
        assert_eq!(transfer_in("mHwGD6hEqhWOTwQmSDlJ\t5000"), None);
    }

    #[test]
    fn bytes_are_read_from_the_kernels_table() {
        let text = "Inter-|   Receive            |  Transmit\n face |bytes    packets errs\n\
                    \x20   lo:     10       1    0    0    0     0          0         0       10       1    0    0    0     0       0          0\n\
                    topnet0: 5000      40    0    0    0     0          0         0      700       9    0    0    0     0       0          0\n";
        assert_eq!(interface_bytes_in(text, "topnet0"), Some((5000, 700)));
        assert_eq!(interface_bytes_in(text, "topnet1"), None);
    }
}
