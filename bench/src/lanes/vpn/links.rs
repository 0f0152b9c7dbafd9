//! Client, provider and origin with their links, made anew for each measurement, and who does the
//! kernel's part of each.
//!
//! On a veth the sender's CPU does what the receiver's interrupt would do. That would put the
//! kernel's receiving, a good part of a gateway's work, on the generator's bill. So whatever
//! arrives at an interface of the gateway is taken up on the gateway's CPU, and whatever arrives
//! elsewhere on the load's: where the interface polls (XDP or GRO) by its own kernel thread, which
//! goes before every program as an interrupt would ([`Polling`]), elsewhere by receive packet steering. Where
//! everything is dropped on arrival the sender's CPU does it ([`Links::sink_client`]).

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use topnet_lab::topology::{CLIENT, INNER_SUBNET, ORIGIN, PROVIDER, PROVIDER_UPLINK};
use topnet_netns::{Endpoint, Namespace, Veth};

use super::{GATEWAY_CPU, LOAD_CPU};

/// Begins the namespaces' names, so that a lab or another lane can run beside.
const PREFIX: &str = "topnet-bench-vpn-";
/// The interfaces' names are unique on the machine, because their kernel threads are named after
/// them and threads have no namespace.
pub const CLIENT_INTERFACE: &str = "tnbvclient";
/// The gateway's towards the client.
pub const CLIENTS_INTERFACE: &str = "tnbvin";
/// The gateway's towards the origin.
pub const UPLINK_INTERFACE: &str = "tnbvout";
/// The origin's.
pub const ORIGIN_INTERFACE: &str = "tnbvorigin";
/// A hardware address that nobody has: what is sent there costs the receiver little.
const SINK: &str = "02:00:00:00:00:99";
/// What makes packets on a link other than packets on a wire.
const OFFLOADS: [&str; 9] = [
    "rx",
    "tx",
    "sg",
    "tso",
    "gso",
    "gro",
    "tx-udp-segmentation",
    "rx-udp-gro-forwarding",
    "rx-gro-list",
];

/// How packets cross the links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// One by one with their checksums, as over a network card without offloads.
    Wire,
    /// Many at once, cut and checked by nobody, as veths have it. A card brings trains of TCP,
    /// which it joins (GRO); it brings datagrams one by one unless UDP GRO is switched on.
    Offload,
}

impl Mode {
    /// Both.
    pub const ALL: [Mode; 2] = [Mode::Wire, Mode::Offload];

    /// In a case's name.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Wire => "wire",
            Mode::Offload => "offload",
        }
    }

    /// In a case's description.
    pub fn about(self) -> &'static str {
        match self {
            Mode::Wire => "veth of MTU 1500 without offloads",
            Mode::Offload => "veth of MTU 1500 with its offloads and GRO",
        }
    }
}

/// How the threads that poll interfaces stand to programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polling {
    /// Before all of them, as an interrupt that comes now and then.
    First,
    /// Beside them, as the kernel has it once interrupts would take all of a CPU.
    Beside,
}

/// The three namespaces. Removed when dropped.
#[derive(Debug)]
pub struct Links {
    /// Where clients are.
    pub client: Namespace,
    /// Where the gateway is.
    pub provider: Namespace,
    /// Where the rest of the world is.
    pub origin: Namespace,
}

impl Links {
    /// Makes them. A gateway with `whole_checksums` cannot finish what a sender left to a card.
    pub fn create(mode: Mode, whole_checksums: bool) -> Result<Links> {
        let namespace = |role: &str| Namespace::create(&format!("{PREFIX}{role}"));
        let links = Links {
            client: namespace("client")?,
            provider: namespace("provider")?,
            origin: namespace("origin")?,
        };
        for [near, far] in links.pairs() {
            let addresses = [near.address, far.address].map(|address| format!("{address}/24"));
            Veth::default().connect(near.endpoint(&addresses[0]), far.endpoint(&addresses[1]))?;
            for end in [near, far] {
                end.switch(mode, whole_checksums)?;
                end.steer()?;
            }
        }
        let Links {
            provider, origin, ..
        } = &links;
        origin.route(INNER_SUBNET, &PROVIDER_UPLINK.to_string())?;
        provider.sysctl("net.ipv4.ip_forward", "0")?;
        Ok(links)
    }

    /// Gives interfaces that poll a thread on the right CPU. To be called once the gateway is
    /// there: its XDP program makes an interface poll.
    pub fn place_polling(&self, polling: Polling) -> Result<()> {
        for end in self.pairs().iter().flatten() {
            end.poll_by_thread(polling)?;
        }
        Ok(())
    }

    /// Has the client's kernel drop what the gateway sends it as soon as it was counted.
    pub fn sink_client(&self) -> Result<()> {
        let [[client, clients], _] = self.pairs();
        self.sink(&client, &clients)
    }

    /// The same for the origin.
    pub fn sink_origin(&self) -> Result<()> {
        let [_, [uplink, origin]] = self.pairs();
        self.sink(&origin, &uplink)
    }

    fn sink(&self, sink: &End<'_>, near: &End<'_>) -> Result<()> {
        let address = sink.address.to_string();
        let mut command = Command::new("ip");
        command.args(["neigh", "replace", &address, "lladdr", SINK]);
        command.args(["dev", near.interface]);
        self.provider.run(command)?;
        sink.take_up_by_sender()
    }

    fn pairs(&self) -> [[End<'_>; 2]; 2] {
        let end = |namespace, interface, address, cpu| End {
            namespace,
            interface,
            address,
            cpu,
        };
        [
            [
                end(&self.client, CLIENT_INTERFACE, CLIENT, LOAD_CPU),
                end(&self.provider, CLIENTS_INTERFACE, PROVIDER, GATEWAY_CPU),
            ],
            [
                end(
                    &self.provider,
                    UPLINK_INTERFACE,
                    PROVIDER_UPLINK,
                    GATEWAY_CPU,
                ),
                end(&self.origin, ORIGIN_INTERFACE, ORIGIN, LOAD_CPU),
            ],
        ]
    }
}

/// An interface, and the CPU that takes up what arrives at it.
struct End<'a> {
    namespace: &'a Namespace,
    interface: &'static str,
    address: Ipv4Addr,
    cpu: usize,
}

impl<'a> End<'a> {
    fn endpoint(&self, address: &'a str) -> Endpoint<'a> {
        Endpoint {
            namespace: self.namespace,
            interface: self.interface,
            address,
        }
    }

    fn switch(&self, mode: Mode, whole_checksums: bool) -> Result<()> {
        let mut command = Command::new("ethtool");
        command.args(["-K", self.interface]);
        match mode {
            Mode::Wire => {
                command.args(OFFLOADS.iter().flat_map(|name| [*name, "off"]));
            }
            Mode::Offload => {
                command.args(["gro", "on"]);
                if whole_checksums {
                    command.args(["tx", "off"]);
                }
            }
        }
        self.namespace.run(command)?;
        Ok(())
    }

    /// What does not poll is handed to the CPU by the one that sent it. What does, comes from its
    /// thread, which is there already; another hand-over would only cost.
    fn steer(&self) -> Result<()> {
        let polls = self.feature("generic-receive-offload")?;
        let mask = if polls { 0 } else { 1_u32 << self.cpu };
        self.write("queues/rx-0/rps_cpus", &format!("{mask:x}"))
    }

    /// Writes a setting of the interface.
    fn write(&self, setting: &str, value: &str) -> Result<()> {
        let script = format!("echo {value} > /sys/class/net/{}/{setting}", self.interface);
        // `ip netns exec` shows the namespace's own interfaces below /sys.
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.namespace.name(), "sh", "-c", &script]);
        self.namespace.run(command)?;
        Ok(())
    }

    fn feature(&self, name: &str) -> Result<bool> {
        let mut command = Command::new("ethtool");
        command.args(["-k", self.interface]);
        let output = self.namespace.run(command)?.stdout;
        let text = String::from_utf8_lossy(&output);
        feature_in(&text, name)
            .with_context(|| format!("`ethtool -k {}` does not tell of {name}", self.interface))
    }

    /// Leaves it to the CPU that sends. Dropping a packet is less work than telling another CPU
    /// of it, which no network card would ask of a gateway.
    fn take_up_by_sender(&self) -> Result<()> {
        let mut command = Command::new("ethtool");
        command.args(["-K", self.interface, "gro", "off"]);
        self.namespace.run(command)?;
        self.write("queues/rx-0/rps_cpus", "0")
    }

    fn poll_by_thread(&self, polling: Polling) -> Result<()> {
        // The kernel refuses where nothing polls; there steering does it.
        if self.write("threaded", "1").is_err() {
            return Ok(());
        }
        let threads = polling_threads(self.interface)?;
        anyhow::ensure!(
            !threads.is_empty(),
            "the kernel has no thread that polls {}",
            self.interface
        );
        for thread in threads {
            let mut set = CpuSet::new();
            set.set(self.cpu);
            let pid = Pid::from_raw(thread).context("a thread without a number")?;
            sched_setaffinity(Some(pid), &set).with_context(|| {
                format!("cannot place the thread that polls {}", self.interface)
            })?;
            if polling == Polling::First {
                let mut command = Command::new("chrt");
                command.args(["--fifo", "--pid", "1", &thread.to_string()]);
                self.namespace.run(command)?;
            }
        }
        Ok(())
    }
}

/// Numbers of the kernel's threads that poll an interface.
fn polling_threads(interface: &str) -> Result<Vec<i32>> {
    let begin = format!("napi/{interface}-");
    let numbers = fs::read_dir("/proc")?.filter_map(|entry| {
        let entry = entry.ok()?;
        let number = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        name.starts_with(&begin).then_some(number)
    });
    Ok(numbers.collect())
}

/// Whether a line of `ethtool -k` says that a feature is on.
fn feature_in(text: &str, name: &str) -> Option<bool> {
    text.lines().find_map(|line| {
        let (known, state) = line.trim().split_once(": ")?;
        (known == name).then(|| state.starts_with("on"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_told_by_their_whole_names() {
        let text = "Features for x:\nrx-checksumming: on\ngeneric-receive-offload: off\n\
                    \ttx-udp-segmentation: on [fixed]\n";
        for (name, expected) in [
            ("rx-checksumming", Some(true)),
            ("generic-receive-offload", Some(false)),
            ("tx-udp-segmentation", Some(true)),
            ("receive-offload", None),
        ] {
            assert_eq!(feature_in(text, name), expected, "{name}");
        }
    }
}
