//! `[settlement]`: the chains that this machine runs, and the keys that sign on them.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{Base, Section, default, error::Problems, tower::check_urls};

/// What settlement is told.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settlement {
    /// Blocks, state and index; `settlement` in the data directory if left out.
    #[serde(default)]
    pub storage_dir: PathBuf,
    /// Genesis of the main chain.
    pub main_genesis_file: PathBuf,
    /// Genesis of the service's chain.
    pub service_genesis_file: PathBuf,
    /// Encrypted key file of this validator, on both chains.
    pub validator_key_file: PathBuf,
    /// Encrypted key file of the account that channels pay to; it signs claims and closes.
    pub payee_key_file: PathBuf,
    /// File with the key files' passphrase; the environment's `TOPNET_PASSPHRASE` if left out.
    pub passphrase_file: Option<PathBuf>,
    /// What a channel has earned is claimed at most this long after, though it stays open. A
    /// claim costs a fee, and what is below the chain's `claim_payout_min` waits for more.
    #[serde(default = "default::u64::<3_600_000>")]
    pub claim_interval_ms: u64,
    /// A channel is claimed as soon as this much is unclaimed, in nTOP; left to
    /// `claim_interval_ms` alone if 0.
    #[serde(default = "default::u64::<10_000_000_000>")]
    pub claim_exposure_ntop: u64,
    /// Towers on other machines that held claims are handed to, by their RPC's address.
    #[serde(default)]
    pub towers: Vec<String>,
    /// Transactions that wait for a block at most, per chain.
    #[serde(default = "default::u32::<65_536>")]
    pub mempool_transactions_max: u32,
}

impl Section for Settlement {
    fn resolve(&mut self, base: &Base<'_>) {
        base.join_data(&mut self.storage_dir, "settlement");
        base.join(&mut self.main_genesis_file);
        base.join(&mut self.service_genesis_file);
        base.join(&mut self.validator_key_file);
        base.join(&mut self.payee_key_file);
        base.join_optional(&mut self.passphrase_file);
    }

    fn check(&self, problems: &mut Problems<'_>) {
        if self.main_genesis_file == self.service_genesis_file {
            problems.add(
                "service_genesis_file",
                "both chains have the same genesis",
                "name the service chain's own file",
            );
        }
        if self.claim_interval_ms == 0 {
            problems.add(
                "claim_interval_ms",
                "0 would claim without pause",
                "choose at least 1; each claim costs a fee",
            );
        }
        check_urls("towers", &self.towers, "http://192.0.2.7:8547", problems);
        if self.mempool_transactions_max == 0 {
            problems.add(
                "mempool_transactions_max",
                "no transaction could ever be taken",
                "choose at least 1",
            );
        }
    }

    fn files(&self) -> Vec<(&'static str, &Path)> {
        let mut files = vec![
            ("main_genesis_file", self.main_genesis_file.as_path()),
            ("service_genesis_file", self.service_genesis_file.as_path()),
            ("validator_key_file", self.validator_key_file.as_path()),
            ("payee_key_file", self.payee_key_file.as_path()),
        ];
        files.extend(
            self.passphrase_file
                .iter()
                .map(|path| ("passphrase_file", path.as_path())),
        );
        files
    }
}
