//! One run's parts, and the steps that scenarios share.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::chown,
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use topnet_small_disk::SmallDisk;

use crate::{
    origin::Origin,
    process::{Lifetime, Process},
    product::{CLOSE_WINDOW_BLOCKS, Provider, Wallet, runtime_dir},
    report::Report,
    run_dir::RunDir,
    topology::{ORIGIN, Topology},
    tower::{self, Tower},
    transfer,
    tunnel::{Interface, KeyPair, Tunnel},
    users,
    watch::Watch,
};

use super::{Kept, Options, READY_WAIT, TRANSFER_WAIT, vpn_many_peers, vpn_ways};

/// What the payer has on main.
const BALANCE_NTOP: u64 = 1_000_000_000_000;
/// All of metering's disk where it is to be full at times: room for the journal's logs and what
/// they reserve.
const SMALL_DISK_BYTES: u64 = 32 << 20;
/// The network that is reached through the tunnel.
pub(super) const ORIGIN_NETWORK: &str = "10.77.2.0/24";

/// What a scenario needs beyond a client and a provider.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Needs {
    /// How the namespaces' names begin: two runs at once need two of them.
    pub(super) namespaces: &'static str,
    /// A second client, who has money and is up to no good.
    pub(super) forger: bool,
    /// A disk for metering that can be filled.
    pub(super) small_disk: bool,
    /// A tower on another machine.
    pub(super) tower: bool,
    /// Peers of the operator's own: what their section says.
    pub(super) own_peers: Option<&'static str>,
    /// Thousands of them are configured already.
    pub(super) many_peers: bool,
    /// A name server that is offered to clients, at the origin.
    pub(super) name_server: bool,
    /// Addresses that clients share.
    pub(super) nat: bool,
    /// IPv6 in the tunnel and at the origin.
    pub(super) ipv6: bool,
    /// Packets carried by the kernel's sockets, not by frames.
    pub(super) kernel_sockets: bool,
    /// Threads that carry packets, and queues of every link.
    pub(super) workers: u32,
    /// Rules of the chains that are not as usual, as `topnet init` has them.
    pub(super) rules: &'static [(&'static str, u32)],
}

/// A channel of the client's, and what its parties had before it was opened.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub(super) id: String,
    /// On main, in nTOP: payer and payee.
    pub(super) before: (u64, u64),
}

/// One run's parts. Fields are dropped in order: processes before the namespaces they live in.
pub(super) struct Lab<'a> {
    pub(super) options: &'a Options<'a>,
    pub(super) paying: Option<Process>,
    pub(super) tunnel: Option<Tunnel>,
    /// The IPv6 address that the session was granted, if it was.
    pub(super) inner6: Option<Ipv6Addr>,
    pub(super) watch: Watch,
    pub(super) provider: Provider,
    pub(super) tower: Option<Tower>,
    pub(super) disk: Option<SmallDisk>,
    pub(super) origin: Origin,
    pub(super) wallet: Wallet,
    pub(super) forger: Option<Wallet>,
    pub(super) topology: Topology,
    pub(super) run_dir: RunDir,
}

impl<'a> Lab<'a> {
    pub(super) fn build(options: &'a Options<'a>, needs: Needs) -> Result<Self> {
        let interrupt = options.interrupt;
        let lifetime = if options.keep {
            Lifetime::Stays
        } else {
            Lifetime::Run
        };
        (options.progress)("making three namespaces");
        let run_dir = RunDir::create()?;
        let topology = Topology::create(needs.namespaces, needs.workers)?;
        let origin = Origin::start(&topology, &run_dir, users::ORIGIN, lifetime, interrupt)?;
        (options.progress)("making keys and chains");
        let wallet = |name| Wallet::create(&topology, &run_dir, name, lifetime, interrupt);
        let (client, forger) = (wallet("client")?, needs.forger.then(|| wallet("forger")));
        let forger = forger.transpose()?;
        let payers: Vec<&str> = std::iter::once(&client)
            .chain(&forger)
            .map(|wallet| wallet.address.as_str())
            .collect();
        let mut provider = Provider::create(
            &topology,
            &run_dir,
            lifetime,
            interrupt,
            &payers,
            BALANCE_NTOP,
            needs.rules,
        )?;
        let journal_dir = run_dir.join("data/metering");
        let owner = (users::METERING.uid, users::METERING.gid);
        let disk = needs
            .small_disk
            .then(|| SmallDisk::mount(&journal_dir, SMALL_DISK_BYTES, owner))
            .transpose()?;
        if needs.tower {
            provider.hand_over_to(&tower::url())?;
        }
        if let Some(section) = needs.own_peers {
            provider.add_section("dataplane.unmetered", section)?;
        }
        if needs.many_peers {
            vpn_many_peers::configure(&run_dir)?;
        }
        if needs.name_server {
            provider.configure("control.offer", &format!("dns = [\"{ORIGIN}\"]"))?;
        }
        if needs.nat {
            let pool = vpn_ways::POOL;
            topology.route_to_provider(pool)?;
            provider.add_section("dataplane.nat", &format!("addresses = \"{pool}\""))?;
        }
        if needs.ipv6 {
            let inner = vpn_ways::INNER_SUBNET6;
            topology.add_ipv6(inner)?;
            provider.configure("dataplane", &format!("inner_subnet6 = \"{inner}\""))?;
        }
        if needs.workers > 1 {
            let workers = format!("workers = {}", needs.workers);
            provider.configure("dataplane", &workers)?;
        }
        if needs.kernel_sockets {
            topology.route_in_kernel()?;
            provider.carry_by_kernel(&run_dir)?;
        }
        (options.progress)("starting settlement, dataplane, metering and control");
        provider.start(&topology, &run_dir, interrupt)?;
        let tower = needs
            .tower
            .then(|| Tower::start(&topology, &run_dir, &provider, lifetime, interrupt))
            .transpose()?;
        let watch = Watch::start(&runtime_dir(&run_dir))?;
        interrupt.wait("the tables are seen", READY_WAIT, || {
            Ok((!watch.boots().is_empty()).then_some(()))
        })?;
        Ok(Self {
            options,
            paying: None,
            tunnel: None,
            inner6: None,
            watch,
            provider,
            tower,
            disk,
            origin,
            wallet: client,
            forger,
            topology,
            run_dir,
        })
    }

    /// Opens a channel for the client that can pay for so many units, connects and begins to pay.
    pub(super) fn begin(&mut self, units: u64, report: &mut Report) -> Result<Opened> {
        let before = (
            self.main_balance(&self.wallet.address)?,
            self.main_balance(&self.provider.payee)?,
        );
        self.say("funding the service chain and opening a channel");
        let (id, fees) = self.open_channel(&self.wallet, units)?;
        report.fees_ntop.payer = fees;
        self.say("starting a session, the wallet and wireguard-go");
        self.connect(&id)?;
        Ok(Opened { id, before })
    }

    /// Funds the service's account with exactly what opening takes, so that nothing stays there.
    /// Gives the allocation of so many units and what is spent on fees.
    pub(super) fn fund_channel(&self, wallet: &Wallet, units: u64) -> Result<(u64, u64)> {
        let offers = self.client_asks(&["offers"])?;
        let price: u64 = number(&offers[0]["unit_price"]).context("the offer has no price")?;
        let allocation = price * units;
        let vpn = self.client_asks(&["chain", "vpn"])?;
        let closing_fee = find_number(&vpn, "closing_fee").context("no closing fee")?;
        let fund_fee = self.fee("main", "fund")?;
        let open_fee = self.fee("vpn", "open")?;
        let amount = (allocation + closing_fee + open_fee).to_string();
        self.ask_as(wallet, &["wallet", "fund", &amount])?;
        Ok((allocation, fund_fee + open_fee))
    }

    /// Funds and opens. Gives the channel and what was spent on fees.
    pub(super) fn open_channel(&self, wallet: &Wallet, units: u64) -> Result<(String, u64)> {
        let (allocation, fees) = self.fund_channel(wallet, units)?;
        let (allocation, window) = (allocation.to_string(), CLOSE_WINDOW_BLOCKS.to_string());
        let words = ["wallet", "open", &allocation, "--close-window", &window];
        let opened = self.ask_as(wallet, &words)?;
        let channel = text(&opened["channel"]).context("no channel id")?;
        Ok((channel, fees))
    }

    fn ask_as(&self, wallet: &Wallet, words: &[&str]) -> Result<Value> {
        let (client, interrupt) = (&self.topology.client, self.options.interrupt);
        wallet.topnet.ask(client, interrupt, words)
    }

    /// What something costs, by a chain's rules.
    pub(super) fn fee(&self, chain: &str, what: &str) -> Result<u64> {
        let file = self.run_dir.join(&format!("provider/genesis/{chain}.json"));
        let genesis: Value = serde_json::from_slice(&fs::read(file)?)?;
        let fee = find_number(&genesis["rules"]["fees"], what);
        fee.with_context(|| format!("{chain} has no fee for {what}"))
    }

    pub(super) fn connect(&mut self, channel: &str) -> Result<()> {
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
        let address6 = text(&wireguard["address6"]);
        self.inner6 = address6.map(|address| address.parse()).transpose()?;
        let mtu_bytes = number(&wireguard["mtu"]).and_then(|mtu| u16::try_from(mtu).ok());
        let name = tunnel_name();
        let interface = Interface {
            name: &name,
            address,
            mtu_bytes: mtu_bytes.context("no MTU")?,
        };
        let tunnel = Tunnel::start(client, &self.run_dir, interface, &config, interrupt)?;
        tunnel.route(client, ORIGIN_NETWORK, interrupt)?;
        self.tunnel = Some(tunnel);
        self.pay(channel)
    }

    /// Starts the wallet and waits until it pays.
    pub(super) fn pay(&mut self, channel: &str) -> Result<()> {
        let interface = tunnel_name();
        let mut paying = self
            .wallet
            .pay(&self.topology, &self.run_dir, channel, &interface)?;
        let status = self.wallet.status_file();
        // An earlier run's words are not this one's.
        let _ = fs::remove_file(&status);
        paying.wait_ready(self.options.interrupt, TRANSFER_WAIT, || {
            paying_status(&status).is_ok_and(|status| status["state"] == "paying")
        })?;
        self.paying = Some(paying);
        Ok(())
    }

    pub(super) fn client(&self) -> transfer::Client<'_> {
        transfer::Client {
            namespace: &self.topology.client,
            run_dir: &self.run_dir,
            user: users::CLIENT,
        }
    }

    pub(super) fn client_asks(&self, words: &[&str]) -> Result<Value> {
        self.wallet
            .topnet
            .ask(&self.topology.client, self.options.interrupt, words)
    }

    pub(super) fn channel(&self, channel: &str) -> Result<Value> {
        let words = ["channel", "show", channel];
        self.provider
            .topnet
            .ask(&self.topology.provider, self.options.interrupt, &words)
    }

    pub(super) fn main_balance(&self, address: &str) -> Result<u64> {
        let account = self.client_asks(&["account", address])?;
        number(&account["balance"]).context("no balance")
    }

    pub(super) fn say(&self, what: &str) {
        (self.options.progress)(what);
    }

    pub(super) fn last_words(&self) -> String {
        let paying = self.paying.as_ref().map(Process::last_words);
        let tower = self.tower.as_ref().map(|tower| tower.process.last_words());
        format!(
            "{}\n{}\n{}",
            self.provider.last_words(),
            tower.unwrap_or_default(),
            paying.unwrap_or_default()
        )
    }

    pub(super) fn keep(mut self, channel: String) -> Kept {
        for process in &mut self.provider.processes {
            process.keep();
        }
        if let Some(paying) = &mut self.paying {
            paying.keep();
        }
        if let Some(tower) = &mut self.tower {
            tower.process.keep();
        }
        if let Some(tunnel) = &mut self.tunnel {
            tunnel.process().keep();
        }
        self.origin.process().keep();
        self.topology.keep();
        if let Some(disk) = &mut self.disk {
            disk.keep();
        }
        self.run_dir.keep();
        Kept {
            directory: self.run_dir.path().to_owned(),
            namespaces: [
                &self.topology.client,
                &self.topology.provider,
                &self.topology.origin,
            ]
            .map(|namespace| namespace.name().to_owned()),
            channel,
        }
    }
}

/// The client's interface.
pub(super) fn tunnel_name() -> String {
    format!("tn{}", std::process::id())
}

pub(super) fn paying_status(file: &PathBuf) -> Result<Value> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(value),
        Err(error) => bail!("{}: {error}", file.display()),
    }
}

/// A number, or an amount that JSON carries as a string.
pub(super) fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// The first number of this name, at whatever depth.
pub(super) fn find_number(value: &Value, name: &str) -> Option<u64> {
    let fields = value.as_object()?;
    let here = fields.get(name).and_then(number);
    here.or_else(|| fields.values().find_map(|field| find_number(field, name)))
}

pub(super) fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}
