//! A reload: reads the configuration again while packets go on.
//!
//! What peers reach and how fast sessions go is changed at once, for standing sessions too. All else
//! needs a restart and is named, so that nobody believes that it is in force. A file that cannot be
//! used changes nothing.

use std::path::{Path, PathBuf};

use tokio::signal::unix::Signal;
use topnet_config::{Config, ConfigError, Dataplane};

use crate::service::Shared;

/// What is read again, and what of it is in force.
pub(crate) struct Reload {
    path: PathBuf,
    runtime_dir: PathBuf,
    in_force: Dataplane,
}

impl Reload {
    /// The configuration that this run began with.
    pub(crate) fn new(config: &Config, section: &Dataplane, path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            runtime_dir: config.runtime_dir.clone(),
            in_force: section.clone(),
        }
    }

    /// Reads it again at each signal, for ever.
    pub(crate) async fn serve(mut self, signal: &mut Signal, shared: &Shared) {
        while signal.recv().await.is_some() {
            let waiting = match self.read() {
                Ok(waiting) => waiting,
                Err(error) => {
                    tracing::error!("nothing is changed by the reload: {error}");
                    continue;
                }
            };
            let section = &self.in_force;
            shared.change_rules(&section.rates, &section.reach).await;
            tracing::info!("dataplane.rates and dataplane.reach are as the file says");
            if !waiting.is_empty() {
                let keys = waiting.join(", ");
                tracing::warn!(keys, "changed in the file, and in force after a restart");
            }
        }
    }

    /// Takes what can change from the file, and names what waits for a restart.
    fn read(&mut self) -> Result<Vec<&'static str>, ConfigError> {
        let config = Config::load(&self.path)?;
        let section = config.dataplane()?;
        let mut waiting = self.in_force.changes_for_restart(section);
        if config.runtime_dir != self.runtime_dir {
            waiting.push("runtime_dir");
        }
        self.in_force.rates = section.rates;
        self.in_force.reach = section.reach.clone();
        Ok(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &str = "client_interface = \"a\"\nuplink_interface = \"b\"\nkey_file = \"k\"\n\
                        inner_subnet = \"10.78.0.0/16\"\n";

    #[test]
    fn what_can_change_does_and_what_cannot_is_named_and_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("topnet.toml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write(&format!("[dataplane]\n{KEYS}"));
        let config = Config::load(&path).unwrap();
        let mut reload = Reload::new(&config, config.dataplane().unwrap(), &path);
        assert_eq!(reload.read().unwrap(), [""; 0]);
        write(&format!(
            "runtime_dir = \"elsewhere\"\n[dataplane]\n{KEYS}workers = 2\nsessions_max = 9\n\
             [dataplane.rates]\nup_bits_per_s = 64000\n[dataplane.reach]\nprivate = [\"10.9.0.0/16\"]\n"
        ));
        let waiting = reload.read().unwrap();
        assert_eq!(waiting, ["workers", "sessions_max", "runtime_dir"]);
        assert_eq!(reload.in_force.rates.up_bits_per_s, Some(64_000));
        assert_eq!(reload.in_force.reach.private.len(), 1);
        assert_eq!(reload.in_force.workers, 1);
        // Still not in force, so still named.
        assert_eq!(reload.read().unwrap(), waiting);
        for broken in [
            "[dataplane",
            "",
            &format!("[dataplane]\n{KEYS}[dataplane.rates]\nup_bits_per_s = 1\n"),
            &format!("[dataplane]\n{KEYS}[dataplane.reach]\nprivate = [\"9.9.9.0/24\"]\n"),
        ] {
            write(broken);
            assert!(reload.read().is_err(), "{broken}");
            assert_eq!(reload.in_force.rates.up_bits_per_s, Some(64_000));
            assert_eq!(reload.in_force.reach.private.len(), 1);
        }
    }
}
