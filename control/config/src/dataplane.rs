//! `[dataplane]`: interfaces, the tunnel's addresses, the size of the tables.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    Base, InnerNetwork, Ipv4Subnet, Ipv6Subnet, Nat, Problem, Rates, Reach, Section, Unmetered,
    default, error::Problems,
};

/// Linux's `IFNAMSIZ` less the closing zero.
const INTERFACE_NAME_BYTES_MAX: usize = 15;

/// Workers of one data plane: as many as a message's receiver index can name.
pub const WORKERS_MAX: u32 = 16;

/// What every link that carries IPv6 must carry (RFC 8200, section 5).
const INNER_MTU6_MIN: u16 = 1_280;

/// What the data plane is told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dataplane {
    /// Interface on which clients' WireGuard packets arrive.
    pub client_interface: String,
    /// Interface towards what clients want to reach. May be the same.
    pub uplink_interface: String,
    /// UDP port of WireGuard.
    #[serde(default = "default::u16::<51_820>")]
    pub wireguard_port: u16,
    /// The gateway's WireGuard private key, in base64 as `wg genkey` writes it.
    pub key_file: PathBuf,
    /// Where clients' inner addresses come from.
    pub inner_subnet: Ipv4Subnet,
    /// Their IPv6 addresses, with the same host numbers; no IPv6 in the tunnel if left out.
    pub inner_subnet6: Option<Ipv6Subnet>,
    /// The gateway's own inner address; the subnet's first if left out.
    pub gateway_address: Option<Ipv4Addr>,
    /// Largest inner IP packet; handed to clients.
    #[serde(default = "default::u16::<1_420>")]
    pub inner_mtu: u16,
    /// How packets are received and sent.
    #[serde(default)]
    pub io: Io,
    /// The tunnel's network device, when the kernel's sockets carry the packets.
    #[serde(default = "default_tunnel_interface")]
    pub tunnel_interface: String,
    /// Public addresses that clients share; without it their own addresses leave.
    pub nat: Option<Nat>,
    /// The operator's own peers; without it every peer is a paying client.
    pub unmetered: Option<Unmetered>,
    /// How fast a paying session may go.
    #[serde(default)]
    pub rates: Rates,
    /// What peers reach beside the public Internet.
    #[serde(default)]
    pub reach: Reach,
    /// Threads that carry packets.
    #[serde(default = "default::u32::<1>")]
    pub workers: u32,
    /// CPUs that they are pinned to, one each; not pinned if left out.
    #[serde(default)]
    pub cpus: Vec<u16>,
    /// How they stand to other programs, as `nice` counts it: the lower, the more CPU they get where
    /// there is not enough.
    #[serde(default = "default::i8::<-10>")]
    pub nice: i8,
    /// Channels that the shared tables have room for, slot 0 (never used) included.
    #[serde(default = "default::u32::<65_536>")]
    pub slots_max: u32,
    /// WireGuard peers that there is room for.
    #[serde(default = "default::u32::<65_536>")]
    pub sessions_max: u32,
}

/// Ways to reach the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Io {
    /// The best that the interfaces can do, found by trying.
    #[default]
    Auto,
    /// XDP in the driver, AF_XDP sockets bound without a copy.
    AfXdpZeroCopy,
    /// XDP in the driver, AF_XDP sockets that copy.
    AfXdpCopy,
    /// XDP in the kernel's generic path.
    AfXdpGeneric,
    /// The kernel's UDP sockets and a TUN device.
    Kernel,
}

fn default_tunnel_interface() -> String {
    "topnet0".to_owned()
}

impl Dataplane {
    /// The gateway's own inner address.
    pub fn gateway_address(&self) -> Ipv4Addr {
        let first = || {
            self.inner_subnet
                .hosts()
                .next()
                .unwrap_or(self.inner_subnet.network())
        };
        self.gateway_address.unwrap_or_else(first)
    }

    /// All of the tunnel's inner addresses.
    pub fn inner_network(&self) -> InnerNetwork {
        InnerNetwork::new(
            self.inner_subnet,
            self.inner_subnet6,
            self.gateway_address(),
        )
    }

    /// Clients that there may be: sessions, as far as there are addresses for them.
    pub fn clients_max(&self) -> u32 {
        let host_bits = 32_u32.saturating_sub(self.inner_subnet.prefix_bits().into());
        let addresses = 1_u32.checked_shl(host_bits).unwrap_or(u32::MAX);
        self.sessions_max.min(addresses)
    }

    /// Keys that `new` has otherwise and that a running data plane cannot change.
    #[must_use]
    pub fn changes_for_restart(&self, new: &Self) -> Vec<&'static str> {
        // All are named, so that a new key is thought about here.
        let Self {
            client_interface,
            uplink_interface,
            wireguard_port,
            key_file,
            inner_subnet,
            inner_subnet6,
            gateway_address,
            inner_mtu,
            io,
            tunnel_interface,
            nat,
            unmetered,
            rates: _,
            reach: _,
            workers,
            cpus,
            nice,
            slots_max,
            sessions_max,
        } = self;
        let same = [
            (
                "client_interface",
                *client_interface == new.client_interface,
            ),
            (
                "uplink_interface",
                *uplink_interface == new.uplink_interface,
            ),
            ("wireguard_port", *wireguard_port == new.wireguard_port),
            ("key_file", *key_file == new.key_file),
            ("inner_subnet", *inner_subnet == new.inner_subnet),
            ("inner_subnet6", *inner_subnet6 == new.inner_subnet6),
            ("gateway_address", *gateway_address == new.gateway_address),
            ("inner_mtu", *inner_mtu == new.inner_mtu),
            ("io", *io == new.io),
            (
                "tunnel_interface",
                *tunnel_interface == new.tunnel_interface,
            ),
            ("nat", *nat == new.nat),
            ("unmetered", *unmetered == new.unmetered),
            ("workers", *workers == new.workers),
            ("cpus", *cpus == new.cpus),
            ("nice", *nice == new.nice),
            ("slots_max", *slots_max == new.slots_max),
            ("sessions_max", *sessions_max == new.sessions_max),
        ];
        let changed = same.into_iter().filter(|(_, same)| !same);
        changed.map(|(key, _)| key).collect()
    }

    /// Resolvers that clients are told of and do not reach.
    pub(crate) fn check_resolvers(&self, resolvers: &[Ipv4Addr], problems: &mut Problems<'_>) {
        let inner = self.inner_network();
        for resolver in resolvers {
            let address = IpAddr::from(*resolver);
            let (gateway, inside) = (inner.is_gateway(address), inner.contains(address));
            let beyond = !inside && self.reach.lets_out(address, false);
            let lent = inside && !self.is_operators(*resolver);
            if !gateway && !lent && (beyond || self.joins_clients(address)) {
                continue;
            }
            let (what, mend) = if gateway {
                (
                    "is the gateway's own address, at which clients reach nobody",
                    "name a resolver beyond the uplink, or one that is a peer".to_owned(),
                )
            } else if lent {
                (
                    "is lent to any client, who would answer all others' questions",
                    "name one in dataplane.unmetered.subnet, which the operator's own peers have"
                        .to_owned(),
                )
            } else if inside {
                (
                    "is a peer's address, and clients do not reach that peer",
                    "name both its address and the clients' in dataplane.reach.peers".to_owned(),
                )
            } else {
                (
                    "is private, and clients do not reach private networks",
                    format!("add \"{resolver}/32\" to dataplane.reach.private"),
                )
            };
            problems.add("dns", format!("{resolver} {what}"), mend);
        }
    }

    /// True for addresses that only the operator's own peers have.
    fn is_operators(&self, address: Ipv4Addr) -> bool {
        let own = self.unmetered.as_ref();
        own.is_some_and(|own| own.subnet.contains(address))
    }

    /// True if clients reach the peer that has `address`. The first client speaks for all.
    fn joins_clients(&self, address: IpAddr) -> bool {
        let is_clients =
            |host: &Ipv4Addr| *host != self.gateway_address() && !self.is_operators(*host);
        let first = self.inner_subnet.hosts().find(is_clients);
        first.is_some_and(|client| self.reach.joins(client.into(), address))
    }

    fn check_inner_subnet6(&self, subnet6: Ipv6Subnet, problems: &mut Problems<'_>) {
        // Host numbers are IPv4's, of 32 bits at most.
        let host_bits = 32 - self.inner_subnet.prefix_bits().min(32);
        if subnet6.prefix_bits() > 128 - host_bits {
            problems.add(
                "inner_subnet6",
                format!("{subnet6} has fewer addresses than {}", self.inner_subnet),
                "choose a wider network, such as fd78::/64",
            );
        }
        if self.inner_mtu < INNER_MTU6_MIN {
            problems.add(
                "inner_mtu",
                format!("{} is too small for IPv6", self.inner_mtu),
                "choose at least 1280 (RFC 8200), or leave inner_subnet6 out",
            );
        }
    }

    fn check_workers(&self, problems: &mut Problems<'_>) {
        if !(1..=WORKERS_MAX).contains(&self.workers) {
            problems.add(
                "workers",
                format!("{} is out of range", self.workers),
                format!("choose 1 to {WORKERS_MAX}"),
            );
        }
        let mut named = self.cpus.clone();
        named.sort_unstable();
        if let Some(pair) = named.windows(2).find(|pair| pair[0] == pair[1]) {
            problems.add(
                "cpus",
                format!("CPU {} is named twice", pair[0]),
                "name one for each worker",
            );
        }
        let cpus = self.cpus.len();
        if cpus > 0 && cpus != self.workers as usize {
            problems.add(
                "cpus",
                format!("{cpus} CPUs are named for {} workers", self.workers),
                "name one for each worker, or leave the key out",
            );
        }
    }

    fn check_nice(&self, problems: &mut Problems<'_>) {
        if !(-20..=19).contains(&self.nice) {
            problems.add(
                "nice",
                format!("{} is out of range", self.nice),
                "choose -20 to 19",
            );
        }
    }

    pub(crate) fn missing_interfaces(&self) -> Vec<Problem> {
        let named = [
            ("client_interface", &self.client_interface),
            ("uplink_interface", &self.uplink_interface),
        ];
        named
            .into_iter()
            .filter(|(_, name)| !Path::new("/sys/class/net").join(name).exists())
            .map(|(key, name)| Problem {
                line: None,
                place: format!("dataplane.{key}"),
                what: format!("there is no interface `{name}` on this machine"),
                mend: "choose one that `ip link` lists".to_owned(),
            })
            .collect()
    }
}

impl Section for Dataplane {
    fn resolve(&mut self, base: &Base<'_>) {
        base.join(&mut self.key_file);
        let clients_max = self.clients_max();
        if let Some(nat) = &mut self.nat {
            nat.resolve(clients_max, base);
        }
        if let Some(unmetered) = &mut self.unmetered {
            unmetered.resolve(base);
        }
    }

    fn check(&self, problems: &mut Problems<'_>) {
        let named = [
            ("client_interface", &self.client_interface),
            ("uplink_interface", &self.uplink_interface),
            ("tunnel_interface", &self.tunnel_interface),
        ];
        for (key, name) in named {
            let possible = (1..=INTERFACE_NAME_BYTES_MAX).contains(&name.len())
                && !name.contains(|c: char| c.is_whitespace() || c == '/' || c == '\0');
            if !possible {
                problems.add(
                    key,
                    format!("`{name}` cannot be an interface's name"),
                    "choose one that `ip link` lists",
                );
            }
        }
        if self.wireguard_port == 0 {
            problems.add(
                "wireguard_port",
                "0 is no port",
                "choose one from 1 to 65535",
            );
        }
        if self.inner_subnet.prefix_bits() > 30 {
            problems.add(
                "inner_subnet",
                format!(
                    "{} has no room for the gateway and a client",
                    self.inner_subnet
                ),
                "choose a network of at most 30 bits, such as 10.78.0.0/16",
            );
        } else if !self
            .inner_subnet
            .hosts()
            .any(|host| host == self.gateway_address())
        {
            problems.add(
                "gateway_address",
                format!(
                    "{} is not a host of {}",
                    self.gateway_address(),
                    self.inner_subnet
                ),
                "choose a host of inner_subnet, or leave the key out",
            );
        }
        if let Some(nat) = &self.nat {
            let (clients_max, workers) = (self.clients_max(), self.workers);
            nat.check(self.inner_subnet, clients_max, workers, problems);
        }
        self.rates.check(problems);
        self.reach.check(self.inner_network(), problems);
        if let Some(unmetered) = &self.unmetered {
            unmetered.check(self.inner_subnet, problems);
            if unmetered.subnet.contains(self.gateway_address()) {
                problems.add(
                    "unmetered.subnet",
                    format!("{} has the gateway's own address", unmetered.subnet),
                    "choose another part of inner_subnet",
                );
            }
        }
        if let Some(subnet6) = self.inner_subnet6 {
            self.check_inner_subnet6(subnet6, problems);
        }
        if !(576..=1_440).contains(&self.inner_mtu) {
            problems.add(
                "inner_mtu",
                format!("{} is out of range", self.inner_mtu),
                "choose 576 to 1440 (1420 fits any path of 1500 bytes)",
            );
        }
        self.check_workers(problems);
        self.check_nice(problems);
        for (key, count) in [
            ("slots_max", self.slots_max),
            ("sessions_max", self.sessions_max),
        ] {
            if !(2..=1 << 20).contains(&count) {
                problems.add(
                    key,
                    format!("{count} is out of range"),
                    "choose 2 to 1048576",
                );
            }
        }
    }

    fn files(&self) -> Vec<(&'static str, &Path)> {
        vec![("key_file", &self.key_file)]
    }
}
