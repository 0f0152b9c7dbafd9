//! Three machines and two links: client – provider – origin.
//!
//! ```text
//! topnet-client            topnet-provider                 topnet-origin
//!  uplink 10.77.1.2 ──── 10.77.1.1 clients   uplink 10.77.2.1 ──── 10.77.2.2 access
//!  (tunnel 10.78.x.y)                                     10.78.0.0/16 via 10.77.2.1
//! ```
//!
//! The client reaches the origin through the tunnel only: it has no other route, and the
//! provider's kernel does not forward.

use anyhow::Result;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;
use topnet_netns::{Endpoint, Namespace, Offload, Veth};

/// The client's own address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 2);
/// The provider's address towards its clients: WireGuard, payments and RPC.
pub const PROVIDER: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
/// The provider's address towards the origin.
pub const PROVIDER_UPLINK: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 1);
/// The origin's address.
pub const ORIGIN: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 2);
/// The origin's IPv6 address, where there is IPv6.
pub const ORIGIN6: Ipv6Addr = Ipv6Addr::new(0xfd77, 2, 0, 0, 0, 0, 0, 2);
/// Where addresses in the tunnel come from.
pub const INNER_SUBNET: &str = "10.78.0.0/16";
/// The provider's interface towards its clients.
pub const CLIENTS_INTERFACE: &str = "clients";
/// The provider's interface towards the origin.
pub const UPLINK_INTERFACE: &str = "uplink";

const ORIGIN_INTERFACE: &str = "access";

/// The three namespaces. Removed when dropped.
#[derive(Debug)]
pub struct Topology {
    /// Where wireguard-go, curl and the wallet run.
    pub client: Namespace,
    /// Where the product runs.
    pub provider: Namespace,
    /// Where nginx runs.
    pub origin: Namespace,
}

impl Topology {
    /// Makes it, with links of so many queues. `prefix` begins the namespaces' names; two at once
    /// need two prefixes.
    pub fn create(prefix: &str, queues: u32) -> Result<Topology> {
        let topology = Topology {
            client: Namespace::create(&format!("{prefix}client"))?,
            provider: Namespace::create(&format!("{prefix}provider"))?,
            origin: Namespace::create(&format!("{prefix}origin"))?,
        };
        let Topology {
            client,
            provider,
            origin,
        } = &topology;
        let links = [
            [
                (client, "uplink", CLIENT),
                (provider, CLIENTS_INTERFACE, PROVIDER),
            ],
            [
                (provider, UPLINK_INTERFACE, PROVIDER_UPLINK),
                (origin, ORIGIN_INTERFACE, ORIGIN),
            ],
        ];
        for ends in links {
            let addresses = ends.map(|(_, _, address)| format!("{address}/24"));
            let [near, far] = [0, 1].map(|end| Endpoint {
                namespace: ends[end].0,
                interface: ends[end].1,
                address: &addresses[end],
            });
            let veth = Veth {
                queues,
                ..Veth::default()
            };
            veth.connect(near, far)?;
            for (namespace, interface, _) in ends {
                // What goes through XDP must have its checksum, and be one packet each.
                namespace.offload(interface, Offload::TxChecksum, false)?;
                namespace.offload(interface, Offload::Gso, false)?;
                // What XDP redirects into a veth needs NAPI at the other end.
                namespace.offload(interface, Offload::Gro, true)?;
            }
        }
        origin.route(INNER_SUBNET, &PROVIDER_UPLINK.to_string())?;
        provider.sysctl("net.ipv4.ip_forward", "0")?;
        // wireguard-go receives into a small buffer: what a burst overruns there has been sent and
        // billed, so the sender keeps less in flight.
        origin.sysctl("net.ipv4.tcp_wmem", "4096 16384 65536")?;
        Ok(topology)
    }

    /// Lets the provider's kernel forward what comes over the uplink, and everybody send trains of
    /// packets again: for a data plane that leaves the routing to the kernel.
    pub fn route_in_kernel(&self) -> Result<()> {
        let forwarding = format!("net.ipv4.conf.{UPLINK_INTERFACE}.forwarding");
        self.provider.sysctl(&forwarding, "1")?;
        for (namespace, interface) in self.ends() {
            namespace.offload(interface, Offload::TxChecksum, true)?;
            namespace.offload(interface, Offload::Gso, true)?;
        }
        Ok(())
    }

    /// Gives the origin's link IPv6, and the origin a way to the clients behind `inner`.
    pub fn add_ipv6(&self, inner: &str) -> Result<()> {
        for namespace in [&self.client, &self.provider, &self.origin] {
            // A machine may be told to begin without it.
            for what in ["all", "default"] {
                namespace.sysctl(&format!("net.ipv6.conf.{what}.disable_ipv6"), "0")?;
            }
        }
        for (namespace, interface, address) in [
            (&self.provider, UPLINK_INTERFACE, "fd77:2::1/64".to_owned()),
            (&self.origin, ORIGIN_INTERFACE, format!("{ORIGIN6}/64")),
        ] {
            let mut add = Command::new("ip");
            add.args(["address", "add", &address, "dev", interface, "nodad"]);
            namespace.run(add)?;
        }
        let mut route = Command::new("ip");
        route.args(["route", "add", inner, "via", "fd77:2::1"]);
        self.origin.run(route)?;
        self.provider.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        Ok(())
    }

    /// Sends what is for a network of the provider's to it.
    pub fn route_to_provider(&self, network: &str) -> Result<()> {
        Ok(self.origin.route(network, &PROVIDER_UPLINK.to_string())?)
    }

    /// All ends of all links.
    fn ends(&self) -> [(&Namespace, &'static str); 4] {
        [
            (&self.client, "uplink"),
            (&self.provider, CLIENTS_INTERFACE),
            (&self.provider, UPLINK_INTERFACE),
            (&self.origin, ORIGIN_INTERFACE),
        ]
    }

    /// Lets the origin send at most so many bytes a second. Unlike curl's own limit this one does
    /// not catch up after a pause.
    pub fn limit_origin(&self, bytes_per_s: u64) -> Result<()> {
        let rate = format!("{}bit", bytes_per_s * 8);
        let mut limit = Command::new("tc");
        limit.args(["qdisc", "replace", "dev", ORIGIN_INTERFACE, "root", "tbf"]);
        limit.args(["rate", &rate, "burst", "64kb", "latency", "100ms"]);
        self.origin.run(limit)?;
        Ok(())
    }

    /// Leaves the namespaces and what runs in them; the next run removes them.
    pub fn keep(&mut self) {
        self.client.keep();
        self.provider.keep();
        self.origin.keep();
    }
}
