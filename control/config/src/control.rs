//! `[control]`: the two RPC listeners and what the offer says beside the terms.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{Base, Ipv4Subnet, Section, default, error::Problems};

/// What control is told.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// TCP address of the operator's methods. Loopback only: whoever reaches it is the operator.
    #[serde(default = "default::loopback::<8_546>")]
    pub operator_listen: SocketAddr,
    /// TCP address of the public methods.
    #[serde(default = "default::any::<8_545>")]
    pub public_listen: SocketAddr,
    /// Sessions that are to survive a restart; `control` in the data directory if left out.
    #[serde(default)]
    pub state_dir: PathBuf,
    /// Largest RPC request.
    #[serde(default = "default::u32::<393_216>")]
    pub request_bytes_max: u32,
    /// RPC connections at once, per listener.
    #[serde(default = "default::u32::<1_024>")]
    pub connections_max: u32,
    /// Sessions that one channel may have at once.
    #[serde(default = "default::u32::<16>")]
    pub sessions_per_channel_max: u32,
    /// What a client is told.
    pub offer: Offer,
}

/// How a client reaches this provider.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// What the provider calls itself.
    #[serde(default)]
    pub name: String,
    /// Where it is: an ISO 3166 country, and more if it likes: `DE`, `DE-BE`.
    #[serde(default)]
    pub region: String,
    /// Address and UDP port that a client's WireGuard sends to.
    pub wireguard_endpoint: SocketAddr,
    /// Address and UDP port that a client's wallet pays at.
    pub payment_endpoint: SocketAddr,
    /// Where strangers reach the public RPC, as the offer on main tells; `http://` with the
    /// WireGuard endpoint's address and the public listener's port if left out.
    #[serde(default)]
    pub rpc_url: Option<String>,
    /// What clients send through the tunnel.
    #[serde(default = "default::all_addresses")]
    pub allowed_ips: Vec<Ipv4Subnet>,
    /// Resolvers that clients are told to use.
    #[serde(default)]
    pub dns: Vec<Ipv4Addr>,
    /// The least that a channel must still have to start a session, in units.
    #[serde(default = "default::u64::<1>")]
    pub headroom_units_min: u64,
}

impl Section for Control {
    fn resolve(&mut self, base: &Base<'_>) {
        base.join_data(&mut self.state_dir, "control");
    }

    fn check(&self, problems: &mut Problems<'_>) {
        if !self.operator_listen.ip().is_loopback() {
            problems.add(
                "operator_listen",
                format!(
                    "{} is not a loopback address, and whoever reaches it may close channels",
                    self.operator_listen
                ),
                "use 127.0.0.1:8546, and an ssh tunnel from elsewhere",
            );
        }
        let fixed_port = self.operator_listen.port() != 0;
        if fixed_port && self.operator_listen.port() == self.public_listen.port() {
            problems.add(
                "public_listen",
                "both listeners have the same port",
                "give each its own: 8545 for the public, 8546 for the operator",
            );
        }
        if self.request_bytes_max < 4_096 {
            problems.add(
                "request_bytes_max",
                format!("{} bytes do not hold a transaction", self.request_bytes_max),
                "choose at least 4096",
            );
        }
        let counts = [
            ("connections_max", self.connections_max),
            ("sessions_per_channel_max", self.sessions_per_channel_max),
        ];
        for (key, count) in counts {
            if count == 0 {
                problems.add(key, "0 would refuse everybody", "choose at least 1");
            }
        }
        self.offer.check(problems);
    }

    fn files(&self) -> Vec<(&'static str, &Path)> {
        Vec::new()
    }
}

impl Offer {
    fn check(&self, problems: &mut Problems<'_>) {
        problems.enter("control.offer");
        let endpoints = [
            ("wireguard_endpoint", self.wireguard_endpoint),
            ("payment_endpoint", self.payment_endpoint),
        ];
        for (key, endpoint) in endpoints {
            if endpoint.ip().is_unspecified() || endpoint.port() == 0 {
                problems.add(
                    key,
                    format!("nobody can reach {endpoint}"),
                    "name the address and port that clients see from outside",
                );
            }
        }
        if self.allowed_ips.is_empty() {
            problems.add(
                "allowed_ips",
                "nothing would go through the tunnel",
                "use [\"0.0.0.0/0\"] for everything",
            );
        }
    }
}
