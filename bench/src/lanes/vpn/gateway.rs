//! The gateways under measurement, each a process of its own on the gateway's CPU: the product's
//! data plane, and the peers with the kernel's forwarding behind their TUN interface.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use boringtun::x25519::{PublicKey, StaticSecret};
use data_encoding::BASE64;
use tempfile::TempDir;
use topnet_lab::interrupt::Interrupt;
use topnet_lab::process::{Process, output};
use topnet_netns::Namespace;

use super::links::{Links, Polling};
use super::product::Product;
use super::{GATEWAY_CPU, INNER_MTU, WIREGUARD_PORT};
use crate::cpus;
use crate::lanes::VERSION;
use crate::place::Place;
use crate::taken::resident_bytes;

/// Names the file of boringtun-cli, where it is not in the path.
pub const BORINGTUN_ENV: &str = "TOPNET_BORINGTUN_CLI";
/// A peer gateway's TUN interface. Its socket's directory is the machine's, so it is unique there.
const GATEWAY_INTERFACE: &str = "tnbvgw";
/// Where userspace implementations of WireGuard listen for `wg`.
const SOCKETS: &str = "/var/run/wireguard";
const READY_WAIT: Duration = Duration::from_secs(15);
const COMMAND_WAIT: Duration = Duration::from_secs(10);

/// Ways in which the product reaches the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// AF_XDP sockets.
    AfXdp,
    /// UDP sockets and a TUN device.
    Kernel,
}

impl Backend {
    /// Those that are measured. The first stands for the product in a record, the others beside.
    pub const ALL: [Backend; 2] = [Backend::AfXdp, Backend::Kernel];

    /// Its name in a record.
    pub fn name(self) -> &'static str {
        match self {
            Backend::AfXdp => "af-xdp",
            Backend::Kernel => "kernel",
        }
    }

    /// `dataplane.io` in the configuration.
    pub fn io(self) -> &'static str {
        match self {
            Backend::AfXdp => "af-xdp-copy",
            Backend::Kernel => "kernel",
        }
    }

    /// Whether it needs checksums that senders have finished.
    fn needs_whole_checksums(self) -> bool {
        match self {
            Backend::AfXdp => true,
            Backend::Kernel => false,
        }
    }
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The product.
    Topnet(Backend),
    /// Debian's wireguard-go.
    WireguardGo,
    /// Cloudflare's boringtun with its own command.
    Boringtun,
    /// The kernel forwards, and nobody encrypts.
    NoTunnel,
}

impl Kind {
    /// All that are WireGuard gateways; the first is ours.
    pub fn tunnels() -> Vec<Kind> {
        let ours = Backend::ALL.into_iter().map(Kind::Topnet);
        ours.chain([Kind::WireguardGo, Kind::Boringtun]).collect()
    }

    /// Its name in a record.
    pub fn name(self) -> String {
        match self {
            Kind::Topnet(backend) => format!("topnet ({})", backend.name()),
            Kind::WireguardGo => "wireguard-go".to_owned(),
            Kind::Boringtun => "boringtun-cli".to_owned(),
            Kind::NoTunnel => "no tunnel".to_owned(),
        }
    }

    /// As it reports it; the measurement says what mends it where it is not there.
    pub fn version(self) -> String {
        let told = match self {
            Kind::Topnet(_) => Some(VERSION.to_owned()),
            Kind::NoTunnel => {
                let kernel = rustix::system::uname();
                Some(format!("Linux {}", kernel.release().to_string_lossy()))
            }
            Kind::WireguardGo => told_version("wireguard-go".into()),
            Kind::Boringtun => told_version(boringtun()),
        };
        told.unwrap_or_else(|| "not installed".to_owned())
    }

    /// See [`Links::create`].
    pub fn needs_whole_checksums(self) -> bool {
        matches!(self, Kind::Topnet(backend) if backend.needs_whole_checksums())
    }
}

/// Whom the gateway lets in.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Its key.
    pub public_key: [u8; 32],
    /// Its address in the tunnel.
    pub inner: Ipv4Addr,
}

/// A running gateway. Ended when dropped.
pub struct Gateway {
    kind: Kind,
    process: Option<Process>,
    /// Control and metering of the product.
    product: Option<Product>,
    /// Keys, configuration, log.
    _home: TempDir,
}

/// What a gateway is started with.
pub struct Plan<'a> {
    /// Who.
    pub kind: Kind,
    /// Where.
    pub links: &'a Links,
    /// For whom.
    pub peers: &'a [Peer],
    /// What the product's configuration says of shared addresses.
    pub nat: Option<&'a str>,
    /// Beside what.
    pub polling: Polling,
    /// This program's file.
    pub program: &'a Path,
    /// Ends what waits.
    pub interrupt: &'a Interrupt,
}

impl Gateway {
    /// The key of all gateways.
    pub fn public_key() -> PublicKey {
        PublicKey::from(&Gateway::secret())
    }

    /// Starts it and waits until it knows its peers.
    pub fn start(plan: &Plan<'_>) -> Result<Gateway> {
        let home = Place::Disk.directory()?;
        let mut gateway = Gateway {
            kind: plan.kind,
            process: None,
            product: None,
            _home: home,
        };
        gateway.start_process(plan).with_context(|| {
            let last_words = gateway.last_words();
            format!("{} does not start\n{last_words}", plan.kind.name())
        })?;
        plan.links.place_polling(plan.polling)?;
        Ok(gateway)
    }

    /// CPU time of the process so far; none where the kernel alone forwards.
    pub fn cpu_s(&self) -> Result<f64> {
        let process = self.process.as_ref();
        process.map_or(Ok(0.0), |process| cpus::process_cpu_s(process.pid()))
    }

    /// Memory that the process holds; none where the kernel alone forwards.
    pub fn resident_bytes(&self) -> Result<u64> {
        let process = self.process.as_ref();
        process.map_or(Ok(0), |process| resident_bytes(process.pid()))
    }

    /// Control of the product, if that is who is measured.
    pub fn product(&self) -> Option<&Product> {
        self.product.as_ref()
    }

    /// What it has said, and what it says it has dropped, for an error.
    pub fn last_words(&self) -> String {
        let said = self.process.as_ref().map(Process::last_words);
        let dropped = self.product.as_ref().map(Product::drops);
        [said, dropped]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// No client's: those are numbered from 2, below this.
    fn secret() -> StaticSecret {
        StaticSecret::from([0xf0; 32])
    }

    fn start_process(&mut self, plan: &Plan<'_>) -> Result<()> {
        let home = self._home.path().to_owned();
        let key_file = home.join("gateway.key");
        write_key(&key_file, &Gateway::secret())?;
        match plan.kind {
            Kind::NoTunnel => plan.links.provider.sysctl("net.ipv4.ip_forward", "1")?,
            Kind::Topnet(backend) => {
                if backend == Backend::Kernel {
                    plan.links.provider.sysctl("net.ipv4.ip_forward", "1")?;
                }
                let config = Product::configure(&home, &key_file, backend, plan.nat)?;
                let mut command = on_cpu(GATEWAY_CPU, plan.program.as_os_str().to_owned());
                command.arg("gateway").arg(config);
                let process = self.process.insert(process(plan, &home, command)?);
                let tables = Product::tables_socket(&home);
                process.wait_ready(plan.interrupt, READY_WAIT, || tables.exists())?;
                self.product = Some(Product::take(&home, plan.peers)?);
            }
            Kind::WireguardGo => {
                let mut command = on_cpu(GATEWAY_CPU, "wireguard-go".into());
                command.args(["-f", GATEWAY_INTERFACE]);
                command.env("GOMAXPROCS", "1").env("LOG_LEVEL", "error");
                self.process = Some(process(plan, &home, command)?);
                self.configure_peer(plan, &key_file)?;
            }
            Kind::Boringtun => {
                ensure!(
                    told_version(boringtun()).is_some(),
                    "boringtun-cli is not there: `cargo xtask bench vpn` installs it, or name its \
                     file in {BORINGTUN_ENV}"
                );
                let mut command = on_cpu(GATEWAY_CPU, boringtun());
                command.args([
                    "--foreground",
                    "--threads",
                    "1",
                    "--disable-drop-privileges",
                ]);
                command.arg(GATEWAY_INTERFACE);
                self.process = Some(process(plan, &home, command)?);
                self.configure_peer(plan, &key_file)?;
            }
        }
        Ok(())
    }

    /// Tells a peer gateway its key and its clients, and has the kernel forward for it.
    fn configure_peer(&mut self, plan: &Plan<'_>, key_file: &Path) -> Result<()> {
        let socket = socket_of(GATEWAY_INTERFACE);
        if let Some(process) = &mut self.process {
            process.wait_ready(plan.interrupt, READY_WAIT, || socket.exists())?;
        }
        let mut wg = Command::new("wg");
        wg.args(["set", GATEWAY_INTERFACE, "private-key"])
            .arg(key_file);
        wg.args(["listen-port", &WIREGUARD_PORT.to_string()]);
        for peer in plan.peers {
            wg.args(["peer", &BASE64.encode(&peer.public_key), "allowed-ips"]);
            wg.arg(format!("{}/32", peer.inner));
        }
        let provider = &plan.links.provider;
        output(provider, wg, plan.interrupt, COMMAND_WAIT)?;
        bring_up(provider, GATEWAY_INTERFACE, "10.78.0.1/16", plan.interrupt)?;
        provider.sysctl("net.ipv4.ip_forward", "1")?;
        Ok(())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Its control goes first, or it would find the gateway gone.
        drop(self.product.take());
        drop(self.process.take());
        if matches!(self.kind, Kind::WireguardGo | Kind::Boringtun) {
            // What was killed leaves its socket. It may also have removed it itself.
            let _ = fs::remove_file(socket_of(GATEWAY_INTERFACE));
        }
    }
}

/// Gives a TUN interface its address and MTU.
pub fn bring_up(
    namespace: &Namespace,
    interface: &str,
    address: &str,
    interrupt: &Interrupt,
) -> Result<()> {
    let mtu = INNER_MTU.to_string();
    for words in [
        &["address", "add", address, "dev", interface][..],
        &["link", "set", interface, "mtu", &mtu, "up"],
    ] {
        let mut command = Command::new("ip");
        command.args(words);
        output(namespace, command, interrupt, COMMAND_WAIT)?;
    }
    Ok(())
}

/// Where a userspace implementation of WireGuard listens for `wg`.
pub fn socket_of(interface: &str) -> PathBuf {
    Path::new(SOCKETS).join(format!("{interface}.sock"))
}

/// Writes a private key as `wg genkey` does.
pub fn write_key(path: &Path, secret: &StaticSecret) -> Result<()> {
    let mut options = File::options();
    options.create_new(true).write(true).mode(0o600);
    options
        .open(path)
        .and_then(|mut file| writeln!(file, "{}", BASE64.encode(&secret.to_bytes())))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// A program that runs on one CPU and ends with this one, even if this one is killed.
pub fn on_cpu(cpu: usize, program: OsString) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &cpu.to_string()]);
    command.args(["setpriv", "--pdeathsig", "KILL", "--"]);
    command.arg(program);
    command
}

fn process(plan: &Plan<'_>, home: &Path, command: Command) -> Result<Process> {
    let socket = socket_of(GATEWAY_INTERFACE);
    ensure!(
        !socket.exists() || fs::remove_file(&socket).is_ok(),
        "{} belongs to another run",
        socket.display()
    );
    let log = home.join("gateway.log");
    Process::start(&plan.links.provider, &plan.kind.name(), command, &log)
}

/// The last word of the first line that a program says of its version.
fn told_version(program: OsString) -> Option<String> {
    let told = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&told.stdout);
    let word = text.lines().next()?.split_whitespace().last()?;
    Some(word.to_owned())
}

fn boringtun() -> OsString {
    std::env::var_os(BORINGTUN_ENV).unwrap_or_else(|| "boringtun-cli".into())
}
