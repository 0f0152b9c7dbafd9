//! `[wallet]`: the payer's side. It is usually a file of its own, on the client's machine.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use topnet_account::Amount;

use crate::{Base, Section, default, error::Problems};

/// What the wallet is told.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wallet {
    /// The provider's public RPC: `http://203.0.113.1:8545`.
    pub rpc_url: String,
    /// Encrypted key file of the account that holds the money. A machine that only pays on
    /// channels does without it.
    pub key_file: Option<PathBuf>,
    /// Encrypted key file of the key that signs vouchers and session requests; the account's own
    /// key does if left out.
    pub session_key_file: Option<PathBuf>,
    /// File with the key files' passphrase; the environment's `TOPNET_PASSPHRASE`, then a
    /// prompt, if left out.
    pub passphrase_file: Option<PathBuf>,
    /// What was promised to whom; `wallet` in the data directory if left out. Losing it loses
    /// money.
    #[serde(default)]
    pub state_dir: PathBuf,
    /// The most units that are paid ahead.
    #[serde(default = "default::u64::<64>")]
    pub window_units_max: u64,
    /// The most that a unit may cost, in nTOP.
    pub unit_price_ntop_max: u64,
    /// The most that an offer's count may lead ours, in millionths.
    #[serde(default = "default::u32::<5_000>")]
    pub epsilon_ppm_max: u32,
    /// The most that is promised to one provider in any hour, in nTOP; no such limit if left out.
    pub hourly_spend_ntop_max: Option<u64>,
    /// The most bytes that one provider is paid for in any hour; no such limit if left out.
    pub hourly_volume_bytes_max: Option<u64>,
    /// The most bytes that one provider is paid for in a second, on average; no such limit if
    /// left out.
    pub rate_bytes_per_s_max: Option<u64>,
}

impl Wallet {
    /// The most that a unit may cost.
    pub const fn unit_price_max(&self) -> Amount {
        Amount::from_ntop(self.unit_price_ntop_max)
    }
}

impl Section for Wallet {
    fn resolve(&mut self, base: &Base<'_>) {
        base.join_optional(&mut self.key_file);
        base.join_optional(&mut self.session_key_file);
        base.join_optional(&mut self.passphrase_file);
        base.join_data(&mut self.state_dir, "wallet");
    }

    fn check(&self, problems: &mut Problems<'_>) {
        let known_scheme = ["http://", "https://"]
            .iter()
            .any(|s| self.rpc_url.starts_with(s));
        if !known_scheme {
            problems.add(
                "rpc_url",
                format!("`{}` is not an HTTP address", self.rpc_url),
                "write it as http://203.0.113.1:8545",
            );
        }
        if self.key_file.is_none() && self.session_key_file.is_none() {
            problems.add(
                "key_file",
                "there is no key".to_owned(),
                "name the account's key_file, or session_key_file alone to pay on channels only",
            );
        }
        if self.key_file.is_some() && self.key_file == self.session_key_file {
            problems.add(
                "session_key_file",
                "it is the account's own key_file".to_owned(),
                "leave it out to use one key for both, or name another file",
            );
        }
        if !(1..=256).contains(&self.window_units_max) {
            problems.add(
                "window_units_max",
                format!("{} is out of range", self.window_units_max),
                "choose 1 to 256 units",
            );
        }
        let limits = [
            ("hourly_spend_ntop_max", self.hourly_spend_ntop_max),
            ("hourly_volume_bytes_max", self.hourly_volume_bytes_max),
            ("rate_bytes_per_s_max", self.rate_bytes_per_s_max),
        ];
        for (key, _) in limits.iter().filter(|(_, most)| *most == Some(0)) {
            problems.add(
                key,
                "nothing could be paid",
                "leave it out for no limit, or raise it",
            );
        }
        if self.epsilon_ppm_max > 100_000 {
            problems.add(
                "epsilon_ppm_max",
                format!("{} is more than a tenth", self.epsilon_ppm_max),
                "set millionths: 5000 is 0.5 %",
            );
        }
    }

    fn files(&self) -> Vec<(&'static str, &Path)> {
        let named = [
            ("key_file", &self.key_file),
            ("session_key_file", &self.session_key_file),
            ("passphrase_file", &self.passphrase_file),
        ];
        named
            .into_iter()
            .filter_map(|(key, path)| Some((key, path.as_deref()?)))
            .collect()
    }
}
