//! The scenarios: what a provider and a client do, step by step, with nothing in their place.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::chown,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use topnet_unit::UNIT_BYTES;

use crate::{
    files::{digest, write_random},
    interrupt::Interrupt,
    origin::Origin,
    process::{Lifetime, Process},
    product::{CLOSE_WINDOW_BLOCKS, Provider, Wallet},
    report::{Amounts, Bytes, Client, Evidence, Fees, Io, Kill, Report, Transferred, Units},
    run_dir::RunDir,
    topology::Topology,
    transfer,
    tunnel::{Interface, KeyPair, Tunnel},
    users,
};

const DOWNLOAD_BYTES: u64 = 64 << 20;
const UPLOAD_BYTES: u64 = 16 << 20;
/// What the payer has on main.
const BALANCE_NTOP: u64 = 1_000_000_000_000;
/// Units that the channel can pay for: the transfers and as much again.
const ALLOCATION_UNITS: u64 = 512;
const TRANSFER_WAIT: Duration = Duration::from_secs(120);
/// Where the download is when the wallet is stopped.
const STOP_AT_BYTES: u64 = DOWNLOAD_BYTES / 4;
/// How long nothing must arrive to call it stopped.
const STILL_FOR: Duration = Duration::from_secs(3);
const STILL_WAIT: Duration = Duration::from_secs(30);
/// TCP waits longer and longer while nothing passes.
const RESUME_WAIT: Duration = Duration::from_secs(60);
/// The network that is reached through the tunnel.
const ORIGIN_NETWORK: &str = "10.77.2.0/24";

/// A scenario by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Download, upload, close, settle.
    PaidDownload,
    /// The wallet is stopped in the middle of the download and returns.
    UnpaidStops,
}

impl Scenario {
    /// Every scenario, in the order in which `all` runs them.
    pub const ALL: [Self; 2] = [Self::PaidDownload, Self::UnpaidStops];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::PaidDownload => "paid-download",
            Self::UnpaidStops => "unpaid-stops",
        }
    }

    /// What it shows, in a line.
    pub fn about(self) -> &'static str {
        match self {
            Self::PaidDownload => {
                "a WireGuard client downloads and uploads, pays by the unit, and the main chain settles"
            }
            Self::UnpaidStops => {
                "the wallet stops in mid-download: traffic stops within the window, and goes on when it returns"
            }
        }
    }
}

/// How a scenario is run.
pub struct Options<'a> {
    /// Signals.
    pub interrupt: &'a Interrupt,
    /// Leaves everything running.
    pub keep: bool,
    /// Told what is done now.
    pub progress: &'a dyn Fn(&str),
}

/// What `--keep` leaves.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Keys, logs, state, programs.
    pub directory: PathBuf,
    /// Its namespaces' names.
    pub namespaces: [String; 3],
    /// The channel.
    pub channel: String,
}

/// Runs a scenario from nothing to the removal of all that it made.
pub fn run(scenario: Scenario, options: &Options<'_>) -> Result<(Report, Option<Kept>)> {
    let began = Instant::now();
    let mut lab = Lab::build(options)?;
    let outcome = lab.play(scenario);
    let (mut report, channel) = match outcome {
        Ok(outcome) => outcome,
        Err(error) => return Err(error.context(lab.last_words())),
    };
    report.scenario = scenario.name().to_owned();
    report.ok = report.mismatches().is_empty();
    report.seconds = began.elapsed().as_secs_f64();
    report.machine = topnet_machine::machine();
    report.commit = topnet_machine::commit();
    let kept = options.keep.then(|| lab.keep(channel));
    Ok((report, kept))
}

/// One run's parts. Fields are dropped in order: processes before the namespaces they live in.
struct Lab<'a> {
    options: &'a Options<'a>,
    paying: Option<Process>,
    tunnel: Option<Tunnel>,
    provider: Provider,
    origin: Origin,
    wallet: Wallet,
    topology: Topology,
    run_dir: RunDir,
}

impl<'a> Lab<'a> {
    fn build(options: &'a Options<'a>) -> Result<Self> {
        let interrupt = options.interrupt;
        let lifetime = if options.keep {
            Lifetime::Stays
        } else {
            Lifetime::Run
        };
        (options.progress)("making three namespaces");
        let run_dir = RunDir::create()?;
        let topology = Topology::create("topnet-")?;
        let origin = Origin::start(&topology, &run_dir, users::ORIGIN, lifetime, interrupt)?;
        (options.progress)("making keys and chains");
        let wallet = Wallet::create(&topology, &run_dir, lifetime, interrupt)?;
        let mut provider = Provider::create(
            &topology,
            &run_dir,
            lifetime,
            interrupt,
            &wallet.address,
            BALANCE_NTOP,
        )?;
        (options.progress)("starting settlement, dataplane, metering and control");
        provider.start(&topology, &run_dir, interrupt)?;
        Ok(Self {
            options,
            paying: None,
            tunnel: None,
            provider,
            origin,
            wallet,
            topology,
            run_dir,
        })
    }

    fn play(&mut self, scenario: Scenario) -> Result<(Report, String)> {
        let mut report = Report::default();
        let before = (
            self.main_balance(&self.wallet.address)?,
            self.main_balance(&self.provider.payee)?,
        );
        let boot = self.boot()?;
        let channel = self.open_channel(&mut report)?;
        self.say("starting a session, the wallet and wireguard-go");
        self.connect(&channel)?;

        let served = self.origin.offer_random("download", DOWNLOAD_BYTES)?;
        let here = self.wallet.home.join("download");
        let client = self.client();
        let download = client.download(&Origin::download_url("download"), &here)?;
        let download = match scenario {
            Scenario::PaidDownload => download,
            Scenario::UnpaidStops => self.stop_and_return(download, &channel, &mut report)?,
        };
        let say = |bytes: u64| {
            self.say(&format!(
                "downloading: {} of {} MiB",
                bytes >> 20,
                served.bytes >> 20
            ))
        };
        download.finish(self.options.interrupt, TRANSFER_WAIT, say)?;
        report.files.push(Transferred {
            bytes: served.bytes,
            sha256_origin: served.sha256,
            sha256_client: digest(&here)?.sha256,
        });

        self.say("uploading 16 MiB");
        let there = self.wallet.home.join("upload");
        let sent = write_random(&there, UPLOAD_BYTES)?;
        chown(&there, Some(users::CLIENT.uid), Some(users::CLIENT.gid))?;
        let upload = self
            .client()
            .upload(&there, &Origin::upload_url("upload"))?;
        upload.finish(self.options.interrupt, TRANSFER_WAIT, |_| ())?;
        report.files.push(Transferred {
            bytes: sent.bytes,
            sha256_origin: self.origin.uploaded("upload")?.sha256,
            sha256_client: sent.sha256,
        });

        self.provider.check()?;
        self.count(&channel, &mut report)?;
        self.settle(&channel, before, &mut report)?;
        report.boots = 1 + u64::from(self.boot()? != boot);
        Ok((report, channel))
    }

    /// Funds the service's account with exactly what opening takes, so that nothing stays there.
    fn open_channel(&self, report: &mut Report) -> Result<String> {
        self.say("funding the service chain and opening a channel");
        let offers = self.client_asks(&["offers"])?;
        let price: u64 = number(&offers[0]["unit_price"]).context("the offer has no price")?;
        let allocation = price * ALLOCATION_UNITS;
        let vpn = self.client_asks(&["chain", "vpn"])?;
        let closing_fee = find_number(&vpn, "closing_fee").context("no closing fee")?;
        let rules = |chain: &str| -> Result<Value> {
            let file = self.run_dir.join(&format!("provider/genesis/{chain}.json"));
            Ok(serde_json::from_slice(&fs::read(file)?)?)
        };
        let fund_fee =
            find_number(&rules("main")?["rules"]["fees"], "fund").context("no fee for fund")?;
        let open_fee =
            find_number(&rules("vpn")?["rules"]["fees"], "open").context("no fee for open")?;
        report.fees_ntop.payer = fund_fee + open_fee;
        let amount = (allocation + closing_fee + open_fee).to_string();
        self.client_asks(&["wallet", "fund", &amount])?;
        let window = CLOSE_WINDOW_BLOCKS.to_string();
        let opened = self.client_asks(&[
            "wallet",
            "open",
            &allocation.to_string(),
            "--close-window",
            &window,
        ])?;
        text(&opened["channel"]).context("no channel id")
    }

    fn connect(&mut self, channel: &str) -> Result<()> {
        let interrupt = self.options.interrupt;
        let client = &self.topology.client;
        let key_file = self.wallet.home.join("wireguard.key");
        let keys = KeyPair::generate(client, interrupt, &key_file)?;
        chown(&key_file, Some(users::CLIENT.uid), Some(users::CLIENT.gid))?;
        let config = self.wallet.home.join("wireguard.conf");
        let path = |path: &PathBuf| {
            path.to_str()
                .map(str::to_owned)
                .context("a path that is not UTF-8")
        };
        let grant = self.client_asks(&[
            "session",
            "start",
            "--channel",
            channel,
            "--wg-public-key",
            &keys.public,
            "--private-key-file",
            &path(&key_file)?,
            "--format",
            "wg",
            "--out",
            &path(&config)?,
        ])?;
        let wireguard = &grant["wireguard"];
        let address = text(&wireguard["address"]).context("no inner address")?;
        let address: Ipv4Addr = address.split('/').next().unwrap_or_default().parse()?;
        let mtu_bytes = number(&wireguard["mtu"]).and_then(|mtu| u16::try_from(mtu).ok());
        let name = format!("tn{}", std::process::id());
        let interface = Interface {
            name: &name,
            address,
            mtu_bytes: mtu_bytes.context("no MTU")?,
        };
        let tunnel = Tunnel::start(client, &self.run_dir, interface, &config, interrupt)?;
        tunnel.route(client, ORIGIN_NETWORK, interrupt)?;
        self.tunnel = Some(tunnel);
        self.pay(channel, &name)
    }

    fn pay(&mut self, channel: &str, interface: &str) -> Result<()> {
        let mut paying = self
            .wallet
            .pay(&self.topology, &self.run_dir, channel, interface)?;
        let status = self.wallet.status_file();
        // An earlier run's words are not this one's.
        let _ = fs::remove_file(&status);
        paying.wait_ready(self.options.interrupt, TRANSFER_WAIT, || {
            paying_status(&status).is_ok_and(|status| status["state"] == "paying")
        })?;
        self.paying = Some(paying);
        Ok(())
    }

    /// Stops the wallet in the middle of the download, sees the traffic stop within what was
    /// paid ahead, and lets it return.
    fn stop_and_return(
        &mut self,
        download: transfer::Transfer,
        channel: &str,
        report: &mut Report,
    ) -> Result<transfer::Transfer> {
        let interrupt = self.options.interrupt;
        interrupt.wait("a quarter has arrived", TRANSFER_WAIT, || {
            Ok((download.bytes() >= STOP_AT_BYTES).then_some(()))
        })?;
        self.say("stopping the wallet");
        self.paying
            .take()
            .context("the wallet does not run")?
            .stop();
        let at_stop = self.channel(channel)?;
        let at_bytes = download.bytes();
        let (mut last, mut since) = (at_bytes, Instant::now());
        interrupt.wait("traffic stops", STILL_WAIT, || {
            let bytes = download.bytes();
            if bytes != last {
                (last, since) = (bytes, Instant::now());
            }
            Ok((since.elapsed() >= STILL_FOR).then_some(()))
        })?;
        let stopped = self.channel(channel)?;
        let metering = &stopped["metering"];
        let accepted = number(&metering["accepted_units"]).context("no accepted units")?;
        let usage = number(&metering["usage_bytes"]).context("no usage")?;
        ensure!(
            usage <= accepted * UNIT_BYTES,
            "{usage} bytes passed, {accepted} units are paid"
        );
        let room = accepted * UNIT_BYTES - usage;
        // Less than a packet's room is left: it was the limit that stopped it.
        ensure!(room < 1500, "traffic stopped {room} bytes before its limit");
        let paid_then = number(&at_stop["metering"]["accepted_units"]).unwrap_or(0);
        self.say(&format!(
            "stopped {} units after the last payment seen; the wallet returns",
            accepted - paid_then
        ));

        let returned = Instant::now();
        let name = format!("tn{}", std::process::id());
        self.pay(channel, &name)?;
        interrupt.wait("traffic resumes", RESUME_WAIT, || {
            Ok((download.bytes() > last).then_some(()))
        })?;
        report.kills.push(Kill {
            process: "wallet".to_owned(),
            at_bytes,
            resumed_ms: u64::try_from(returned.elapsed().as_millis())?,
        });
        Ok(download)
    }

    /// Ends the traffic, then takes the client's own counts.
    fn count(&mut self, channel: &str, report: &mut Report) -> Result<()> {
        self.say("waiting until the last unit is paid");
        let interrupt = self.options.interrupt;
        let status_file = self.wallet.status_file();
        let mut last = (0, Instant::now());
        interrupt.wait("the counts rest", STILL_WAIT, || {
            let metering = self.channel(channel)?["metering"].clone();
            let usage = number(&metering["usage_bytes"]).context("no usage")?;
            if usage != last.0 {
                last = (usage, Instant::now());
            }
            let rests = last.1.elapsed() >= Duration::from_millis(700);
            let journalled = number(&metering["metered_bytes"]) == Some(usage);
            Ok((rests && journalled).then_some(()))
        })?;
        // No handshake or keepalive of the last moment is billed: neither count needs the tunnel
        // to be down, but what comes after belongs to nobody.
        let tunnel = self.tunnel.as_ref().context("no tunnel")?;
        let (received_bytes, sent_bytes) = tunnel.interface_bytes(&self.topology.client)?;
        report.client = Client {
            interface_bytes: received_bytes + sent_bytes,
            sent_bytes,
            received_bytes,
            transfer_bytes: tunnel.transfer_bytes(&self.topology.client, interrupt)?,
        };
        // While the session stands: its counters go with it.
        let sessions =
            self.provider
                .topnet
                .ask::<Value>(&self.topology.provider, interrupt, &["sessions"])?;
        let traffic = &sessions[0]["traffic"];
        report.bytes.up = number(&traffic["up_bytes"]).context("no session counts")?;
        report.bytes.down = number(&traffic["down_bytes"]).context("no session counts")?;
        let io = self.provider.status(&self.topology, interrupt)?["dataplane"]["io"].clone();
        report.io = Io {
            backend: text(&io["backend"]).unwrap_or_default(),
            mode: text(&io["mode"]).unwrap_or_default(),
        };
        let status = paying_status(&status_file)?;
        report.units.window_max = number(&status["lead_units_max"]).context("no lead")?;
        Ok(())
    }

    /// Closes the channel, waits for main and reconciles.
    fn settle(&mut self, channel: &str, before: (u64, u64), report: &mut Report) -> Result<()> {
        self.say("closing the channel and waiting for the main chain");
        let interrupt = self.options.interrupt;
        let words = ["channel", "close", channel, "--wait", "--timeout", "60"];
        let close: Value = self
            .provider
            .topnet
            .ask(&self.topology.provider, interrupt, &words)?;
        if let Some(mut paying) = self.paying.take() {
            paying.stop();
        }
        let status = paying_status(&self.wallet.status_file())?;
        let shown = self.channel(channel)?;
        let metering = &shown["metering"];
        let of = |value: &Value, name: &str| {
            number(&value[name]).with_context(|| format!("no {name} in {value}"))
        };
        report.bytes = Bytes {
            usage: of(metering, "usage_bytes")?,
            metered: of(metering, "metered_bytes")?,
            ..report.bytes
        };
        let redeemed = of(&close, "redeemed")?;
        let price = of(&status, "promised")?
            .checked_div(of(&status, "released_units")?)
            .context("nothing was released")?;
        let owed = of(metering, "owed_units")?;
        ensure!(
            redeemed.is_multiple_of(price),
            "{redeemed} is no whole number of units at {price}"
        );
        let (service_block, main_block) = (&close["service_block"], &close["main_block"]);
        let after = interrupt.wait("main has both payouts", STILL_WAIT, || {
            let balances = (
                self.main_balance(&self.wallet.address)?,
                self.main_balance(&self.provider.payee)?,
            );
            // Both stand in the same batch; a balance that has not moved yet would show it.
            Ok((balances.1 != before.1 && main_block["height"].is_u64()).then_some(balances))
        })?;
        report.fees_ntop = Fees {
            payee: of(&close, "payee_fees")?,
            ..report.fees_ntop
        };
        report.amount_ntop = Amounts {
            redeemed,
            payer_main_delta: i128::from(after.0) - i128::from(before.0),
            payee_main_delta: i128::from(after.1) - i128::from(before.1),
        };
        let settled = u64::try_from(report.amount_ntop.payee_main_delta)
            .ok()
            .and_then(|delta| delta.checked_add(report.fees_ntop.payee))
            .context("the payee lost money")?;
        report.units = Units {
            owed,
            accepted: of(metering, "accepted_units")?,
            released: of(&status, "released_units")?,
            window_max: report.units.window_max.max(of(&status, "lead_units_max")?),
            redeemed: redeemed / price,
            settled: settled / price,
            remainder_bytes: owed * UNIT_BYTES - report.bytes.metered,
        };
        report.unpaid_bytes = of(metering, "unpaid_bytes")?;
        report.evidence = Evidence {
            channel: channel.to_owned(),
            close_tx: text(&close["transaction"]).unwrap_or_default(),
            service_block: of(service_block, "height")?,
            main_block: of(main_block, "height")?,
        };
        Ok(())
    }

    fn client(&self) -> transfer::Client<'_> {
        transfer::Client {
            namespace: &self.topology.client,
            run_dir: &self.run_dir,
            user: users::CLIENT,
        }
    }

    fn client_asks(&self, words: &[&str]) -> Result<Value> {
        self.wallet
            .topnet
            .ask(&self.topology.client, self.options.interrupt, words)
    }

    fn channel(&self, channel: &str) -> Result<Value> {
        let words = ["channel", "show", channel];
        self.provider
            .topnet
            .ask(&self.topology.provider, self.options.interrupt, &words)
    }

    fn main_balance(&self, address: &str) -> Result<u64> {
        let account = self.client_asks(&["account", address])?;
        number(&account["balance"]).context("no balance")
    }

    fn boot(&self) -> Result<String> {
        let status = self
            .provider
            .status(&self.topology, self.options.interrupt)?;
        text(&status["dataplane"]["boot"]).context("the data plane has no boot id")
    }

    fn say(&self, what: &str) {
        (self.options.progress)(what);
    }

    fn last_words(&self) -> String {
        let paying = self.paying.as_ref().map(Process::last_words);
        format!(
            "{}\n{}",
            self.provider.last_words(),
            paying.unwrap_or_default()
        )
    }

    fn keep(mut self, channel: String) -> Kept {
        for process in &mut self.provider.processes {
            process.keep();
        }
        if let Some(paying) = &mut self.paying {
            paying.keep();
        }
        if let Some(tunnel) = &mut self.tunnel {
            tunnel.process().keep();
        }
        self.origin.process().keep();
        self.topology.keep();
        self.run_dir.keep();
        Kept {
            directory: self.run_dir.path().to_owned(),
            namespaces: ["client", "provider", "origin"].map(|name| format!("topnet-{name}")),
            channel,
        }
    }
}

fn paying_status(file: &PathBuf) -> Result<Value> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(value),
        Err(error) => bail!("{}: {error}", file.display()),
    }
}

/// A number, or an amount that JSON carries as a string.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// The first number of this name, at whatever depth.
fn find_number(value: &Value, name: &str) -> Option<u64> {
    let fields = value.as_object()?;
    let here = fields.get(name).and_then(number);
    here.or_else(|| fields.values().find_map(|field| find_number(field, name)))
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}
