//! `[dataplane.nat]`: the public addresses that clients share.
//!
//! Bounds and defaults are the NAT's own ([`topnet_nat::config`]); here they get the names that an
//! operator writes.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::Deserialize;
use topnet_nat::config::prefix_addresses;
use topnet_nat::{Config, Limits, PoolPart};

use crate::{Base, Ipv4Subnet, default, error::Problems};

/// Address translation for IPv4 (RFC 6888).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nat {
    /// The pool: a network that is routed to this machine and none of whose addresses it has.
    pub addresses: Ipv4Subnet,
    /// Ports of a block. A client is lent blocks, and each lending is one line of the log.
    #[serde(default = "default::u16::<512>")]
    pub block_ports: u16,
    /// Blocks that one client may have.
    #[serde(default = "default::u16::<8>")]
    pub blocks_per_client_max: u16,
    /// Flows of all clients: what a port has to do with one remote. Half of them are for all
    /// clients that there may be in equal parts, the rest for whoever comes first.
    pub flows_max: Option<u32>,
    /// Flows of one client.
    pub flows_per_client_max: Option<u32>,
    /// Mappings of all clients: ports that are in use. Shared out as flows are.
    pub mappings_max: Option<u32>,
    /// Mappings of one client.
    pub mappings_per_client_max: Option<u32>,
    /// Who had which ports when: one line for each block that is lent or given back.
    #[serde(default)]
    pub log_file: PathBuf,
}

impl Nat {
    /// Fills in what depends on how many clients there may be.
    pub(crate) fn resolve(&mut self, clients_max: u32, base: &Base<'_>) {
        base.join_data(&mut self.log_file, "dataplane/nat.log");
        let usual = Limits::for_subscribers(clients_max);
        self.flows_max.get_or_insert(usual.flows_max);
        self.flows_per_client_max
            .get_or_insert(usual.flows_per_subscriber_max);
        self.mappings_max.get_or_insert(usual.mappings_max);
        self.mappings_per_client_max
            .get_or_insert(usual.mappings_per_subscriber_max);
    }

    /// What the NAT is to be told, for so many clients at most.
    pub fn translation(&self, clients_max: u32) -> Result<Config, topnet_nat::ConfigError> {
        let first = self.addresses.network();
        let pool = prefix_addresses(first, self.addresses.prefix_bits())?;
        Ok(self.with_pool(clients_max, pool))
    }

    fn with_pool(&self, clients_max: u32, pool: Vec<Ipv4Addr>) -> Config {
        let mut config = Config::new(pool);
        config.block_ports = self.block_ports;
        let usual = Limits::for_subscribers(clients_max);
        let own_flows_max = self
            .flows_per_client_max
            .unwrap_or(usual.flows_per_subscriber_max);
        config.limits = Limits {
            blocks_per_subscriber_max: self.blocks_per_client_max,
            flows_max: self.flows_max.unwrap_or(usual.flows_max),
            flows_per_subscriber_max: own_flows_max,
            mappings_max: self.mappings_max.unwrap_or(usual.mappings_max),
            mappings_per_subscriber_max: self
                .mappings_per_client_max
                .unwrap_or(usual.mappings_per_subscriber_max),
            ..usual
        };
        config
    }

    pub(crate) fn check(
        &self,
        inner: Ipv4Subnet,
        clients_max: u32,
        workers: u32,
        problems: &mut Problems<'_>,
    ) {
        let pool = self.addresses;
        if inner.contains(pool.network()) || pool.contains(inner.network()) {
            problems.add(
                "nat.addresses",
                format!("{pool} and inner_subnet {inner} overlap"),
                "choose addresses that no client has",
            );
        }
        let config = match self.translation(clients_max) {
            Ok(config) => config,
            Err(error) => {
                problems.add(
                    "nat.addresses",
                    format!("it {}", error.what()),
                    error.mend(),
                );
                // Any address will do to look at the rest.
                self.with_pool(clients_max, vec![[192, 0, 2, 1].into()])
            }
        };
        // Every worker lends a part of each address.
        let part = PoolPart {
            number: 0,
            of: workers.max(1),
        };
        let config = config.with_part(part);
        for error in config.problems() {
            // That many clients are not this section's.
            let Some(key) = key_of(error.field()) else {
                continue;
            };
            problems.add(key, format!("it {}", error.what()), error.mend());
        }
        let limits = &config.limits;
        let tables = [
            (
                "nat.flows_max",
                limits.flows_max,
                limits.sure_flows(),
                "nat.flows_per_client_max",
                limits.flows_per_subscriber_max,
            ),
            (
                "nat.mappings_max",
                limits.mappings_max,
                limits.sure_mappings(),
                "nat.mappings_per_client_max",
                limits.mappings_per_subscriber_max,
            ),
        ];
        for (key, all, sure, own_key, own) in tables {
            // Nothing at all was named already.
            if sure == 0 && all > 0 {
                // A part has room for twice its share of clients.
                let spread = if workers > 1 { 2 } else { 1 };
                let least = u64::from(clients_max) * 2 * spread;
                problems.add(
                    key,
                    format!("{all} leaves none that each of {clients_max} clients can be sure of"),
                    format!("choose at least {least}, or a smaller sessions_max"),
                );
            }
            if own > all {
                problems.add(
                    own_key,
                    format!("{own} for one client is more than {all} for all"),
                    format!("choose 1 to {all}"),
                );
            }
        }
    }
}

/// The key for a field of the NAT's.
fn key_of(field: &str) -> Option<&'static str> {
    Some(match field {
        "pool" => "nat.addresses",
        "block_ports" | "part" => "nat.block_ports",
        "blocks_per_subscriber_max" => "nat.blocks_per_client_max",
        "flows_max" => "nat.flows_max",
        "flows_per_subscriber_max" => "nat.flows_per_client_max",
        "mappings_max" => "nat.mappings_max",
        "mappings_per_subscriber_max" => "nat.mappings_per_client_max",
        _ => return None,
    })
}
