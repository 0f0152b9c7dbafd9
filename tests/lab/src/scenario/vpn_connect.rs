//! `topnet connect`: one command in the place of the wallet, `wg` and wireguard-go.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::Value;
use topnet_netns::with_tunnel_driver;

use crate::{
    machine::{Machine, Tools},
    process::{Process, User, output},
    report::{Client, Report},
    users,
};

use super::{
    TRANSFER_WAIT,
    lab::{Lab, Opened, number, text, tunnel_name},
    paid_download::{ALLOCATION_UNITS, DOWNLOAD_BYTES},
    vpn_names::Names,
};

/// From the payer's close until the payee's is on main: its deadline, an epoch, and some.
const CLOSE_WAIT: Duration = Duration::from_secs(60);
const COMMAND_WAIT: Duration = Duration::from_secs(10);

impl Lab<'_> {
    pub(super) fn vpn_connect(&mut self, report: &mut Report) -> Result<Opened> {
        let interrupt = self.options.interrupt;
        let before = (
            self.main_balance(&self.wallet.address)?,
            self.main_balance(&self.provider.payee)?,
        );
        self.say("funding the service chain");
        let (allocation, fees) = self.fund_channel(&self.wallet, ALLOCATION_UNITS)?;
        report.fees_ntop.payer = fees + self.fee("vpn", "close")?;
        let names = Names::start(self)?;
        let told = names.told(self)?;
        self.say("connecting");
        self.run_dir.program("topnet-wireguard")?;
        let log = self.run_dir.log("connect");
        let allocation = allocation.to_string();
        let words = ["--allocation", &allocation];
        let mut connected = self.start_connect(&names.machine, Tools::Openresolv, &words, &log)?;
        connected.wait_ready(interrupt, TRANSFER_WAIT, || is_paying(&log))?;
        let look = looks(&log).pop().context("nothing was shown")?;
        let id = text(&look["channel"]).context("no channel")?;
        let channel = Opened { id, before };

        names.check_meanwhile(self)?;
        let download = self.begin_download(DOWNLOAD_BYTES)?;
        self.finish_download(download, report)?;
        self.upload(report)?;
        self.provider.check()?;
        self.wait_until_counts_rest(&channel.id)?;
        self.note_session(report)?;

        self.say("disconnecting, which closes the channel");
        connected.signal_group(Signal::INT)?;
        connected.wait_success(interrupt, TRANSFER_WAIT)?;
        let spent = values(&log).pop().context("it said nothing at its end")?;
        let of = |value: &Value, name: &str| {
            number(&value[name]).with_context(|| format!("no {name} in {value}"))
        };
        let look = looks(&log).pop().context("nothing was shown")?;
        let (sent_bytes, received_bytes) = (of(&look, "up_bytes")?, of(&look, "down_bytes")?);
        report.client = Client {
            interface_bytes: sent_bytes + received_bytes,
            sent_bytes,
            received_bytes,
            transfer_bytes: of(&spent, "own_bytes")?,
        };
        names.check_all_is_taken_back(self, &told)?;

        self.say("waiting for the payee's claim on the main chain");
        let began = Instant::now();
        let close: Value = interrupt.wait("the payee's close is on main", CLOSE_WAIT, || {
            let close = self.channel(&channel.id)?["close"].clone();
            Ok(close["main_block"]["height"].is_u64().then_some(close))
        })?;
        self.say(&format!("settled {} s after", began.elapsed().as_secs()));
        // Where reconciling looks for the wallet's own words.
        let words = self.wallet.state_dir().join(format!("{}.json", channel.id));
        fs::copy(&words, self.wallet.status_file())
            .with_context(|| format!("cannot read {}", words.display()))?;
        self.note_window(report)?;
        self.reconcile(&channel, &close, report)?;
        self.kill_connect(&names, &told)?;
        Ok(channel)
    }

    /// The client's command, with the right to make a device and routes and no other.
    pub(super) fn start_connect(
        &self,
        machine: &Machine,
        tools: Tools,
        words: &[&str],
        log: &Path,
    ) -> Result<Process> {
        let client = self.wallet.topnet.run_by(User {
            capabilities: &["net_admin"],
            ..users::CLIENT
        });
        let name = tunnel_name();
        let command = client.with(&[&["--json", "connect", "--interface", &name], words].concat());
        let driver = self
            .run_dir
            .private("client-driver", users::CLIENT.uid, users::CLIENT.gid)?;
        let command = machine.inside(&with_tunnel_driver(&driver, command)?, tools);
        Process::start(&self.topology.client, "connect", command, log)
    }

    pub(super) fn client_runs(&self, command: Command) -> Result<String> {
        let interrupt = self.options.interrupt;
        output(&self.topology.client, command, interrupt, COMMAND_WAIT)
    }
}

/// True if the command says that it pays.
pub(super) fn is_paying(log: &Path) -> bool {
    let look = looks(log).pop();
    look.is_some_and(|look| look["state"] == "paying")
}

/// What the command printed, value by value; what is no JSON was for people.
fn values(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap_or_default();
    // What it prints at its end has several lines.
    let mut values = Vec::new();
    for part in text
        .split("\n{")
        .map(|part| format!("{{{}", part.trim_start_matches('{')))
    {
        let value = serde_json::Deserializer::from_str(&part).into_iter().next();
        values.extend(value.and_then(Result::ok));
    }
    values
}

/// The looks among them.
fn looks(log: &Path) -> Vec<Value> {
    let mut values = values(log);
    values.retain(|value| value["interface"].is_string());
    values
}
