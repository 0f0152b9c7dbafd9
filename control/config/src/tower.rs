//! `[tower]`: whose claims this machine holds for others, and where it makes them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use topnet_account::{Address, Hash};

use crate::{Base, Section, default, error::Problems};

/// Nodes, towers or payees in one list, at most.
const LIST_MAX: usize = 64;

/// What a tower is told.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tower {
    /// TCP address on which claims are brought.
    #[serde(default = "default::any::<8_547>")]
    pub listen: SocketAddr,
    /// Public RPCs of nodes that it asks and submits to; the next one is asked where one does not
    /// answer.
    pub rpc_urls: Vec<String>,
    /// Hash of the main chain's genesis: what the chains' validators have signed is believed, and
    /// nothing that a node says.
    pub main_genesis: Hash,
    /// Whose claims it holds.
    pub payees: Vec<Address>,
    /// Held claims; `tower` in the data directory if left out.
    #[serde(default)]
    pub storage_dir: PathBuf,
    /// An open channel is claimed if nobody else has claimed it for so long. More than the
    /// provider's own `claim_interval_ms`, or fees are paid twice.
    #[serde(default = "default::u64::<21_600_000>")]
    pub claim_interval_ms: u64,
    /// Channels that it holds claims for, at most, per payee and service.
    #[serde(default = "default::u32::<16_384>")]
    pub channels_max: u32,
}

impl Section for Tower {
    fn resolve(&mut self, base: &Base<'_>) {
        base.join_data(&mut self.storage_dir, "tower");
    }

    fn check(&self, problems: &mut Problems<'_>) {
        check_urls(
            "rpc_urls",
            &self.rpc_urls,
            "http://203.0.113.1:8545",
            problems,
        );
        if self.rpc_urls.is_empty() {
            problems.add(
                "rpc_urls",
                "there is no node to ask",
                "name one, such as \"http://203.0.113.1:8545\", better two of different owners",
            );
        }
        if self.payees.is_empty() || self.payees.len() > LIST_MAX {
            problems.add(
                "payees",
                format!("it holds claims for 1 to {LIST_MAX} payees"),
                "name the payee's address, which `topnet status` shows its provider",
            );
        }
        if self.claim_interval_ms == 0 {
            problems.add(
                "claim_interval_ms",
                "0 would claim without pause",
                "choose at least 1; each claim costs its payee a fee",
            );
        }
        if self.channels_max == 0 {
            problems.add(
                "channels_max",
                "0 would hold nothing",
                "choose at least 1, or leave it out",
            );
        }
    }

    fn files(&self) -> Vec<(&'static str, &Path)> {
        Vec::new()
    }
}

/// Says what is wrong with a list of RPCs' addresses.
pub(crate) fn check_urls(
    key: &'static str,
    urls: &[String],
    example: &str,
    problems: &mut Problems<'_>,
) {
    if urls.len() > LIST_MAX {
        problems.add(
            key,
            "there are too many",
            format!("name {LIST_MAX} at most"),
        );
    }
    for (place, url) in urls.iter().enumerate() {
        let known_scheme = ["http://", "https://"].iter().any(|s| url.starts_with(s));
        if !known_scheme {
            problems.add(
                key,
                format!("`{url}` is not an HTTP address"),
                format!("write it as {example}"),
            );
        }
        if urls[..place].contains(url) {
            problems.add(key, format!("`{url}` stands there twice"), "name it once");
        }
    }
}
