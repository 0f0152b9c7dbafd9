//! The product's own processes, started and asked through the `topnet` command as an operator
//! and a client would.

use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{PermissionsExt, chown},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use topnet_channel::SecretKey;
use topnet_netns::{Namespace, with_tunnel_driver};
use topnet_wallet::key_file;

use crate::{
    interrupt::Interrupt,
    process::{Lifetime, Process, User, as_user, output},
    run_dir::RunDir,
    topology::{CLIENTS_INTERFACE, INNER_SUBNET, PROVIDER, Topology, UPLINK_INTERFACE},
    users::{CLIENT, CONTROL, DATAPLANE, GROUP, METERING, SETTLEMENT},
};

const READY_WAIT: Duration = Duration::from_secs(30);
const COMMAND_WAIT: Duration = Duration::from_secs(90);
/// What clients reach beside public addresses: where the origin is.
const WORLD: &str = "private = [\"10.77.2.0/24\", \"fd77:2::/64\"]";
/// Milliseconds between blocks.
const BLOCK_INTERVAL_MS: u32 = 100;
/// A batch every two seconds, so that nobody waits long for the main chain.
const EPOCH_BLOCKS: u32 = 20;
/// Ten seconds: the lab has no time for a real one.
pub const CLOSE_WINDOW_BLOCKS: u32 = 100;

/// What the processes are called, in the order in which they start.
pub const PROCESSES: [(&str, User); 4] = [
    ("settlement", SETTLEMENT),
    ("dataplane", DATAPLANE),
    ("metering", METERING),
    ("control", CONTROL),
];

/// The `topnet` command with one configuration, as one user.
#[derive(Clone, Debug)]
pub struct Topnet {
    program: PathBuf,
    config: PathBuf,
    user: User,
    lifetime: Lifetime,
}

impl Topnet {
    /// `program` with this configuration, as this user.
    pub fn new(program: PathBuf, config: PathBuf, user: User, lifetime: Lifetime) -> Self {
        Self {
            program,
            config,
            user,
            lifetime,
        }
    }

    /// The command with these words, to be started.
    pub fn with(&self, words: &[&str]) -> Command {
        let mut command = as_user(self.user, self.lifetime, &self.program);
        command.arg("--config").arg(&self.config).args(words);
        command
    }

    /// The same command as another user.
    #[must_use]
    pub fn run_by(&self, user: User) -> Topnet {
        Topnet {
            program: self.program.clone(),
            config: self.config.clone(),
            user,
            lifetime: self.lifetime,
        }
    }

    /// Asks with `--json` and reads the answer.
    pub fn ask<T: DeserializeOwned>(
        &self,
        namespace: &Namespace,
        interrupt: &Interrupt,
        words: &[&str],
    ) -> Result<T> {
        let mut with_json = vec!["--json"];
        with_json.extend(words);
        let text = output(namespace, self.with(&with_json), interrupt, COMMAND_WAIT)?;
        serde_json::from_str(&text)
            .with_context(|| format!("`topnet {}` said: {}", words.join(" "), text.trim()))
    }

    /// The configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }
}

/// The client's wallet.
#[derive(Debug)]
pub struct Wallet {
    /// The command as the client uses it.
    pub topnet: Topnet,
    /// Its private directory.
    pub home: PathBuf,
    /// Its address.
    pub address: String,
}

impl Wallet {
    /// Makes a client's key and configuration, in a directory of this name.
    pub fn create(
        topology: &Topology,
        run_dir: &RunDir,
        name: &str,
        lifetime: Lifetime,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let home = run_dir.private(name, CLIENT.uid, CLIENT.gid)?;
        let passphrase = passphrase_file(&Self::passphrase_in(&home), CLIENT, 0o600)?;
        let topnet = Topnet {
            program: run_dir.program("topnet")?,
            config: home.join("topnet/topnet.toml"),
            user: CLIENT,
            lifetime,
        };
        let mut init = as_user(CLIENT, lifetime, &topnet.program);
        init.args(["--json", "init"]).arg(home.join("topnet"));
        init.arg("--passphrase-file").arg(&passphrase);
        init.args(["wallet", "--unit-price-max", "30000", "--provider"]);
        init.arg(format!("http://{PROVIDER}:8545"));
        let made = output(&topology.client, init, interrupt, COMMAND_WAIT)?;
        let made: serde_json::Value = serde_json::from_str(&made)?;
        let address = made["address"].as_str().context("no address")?.to_owned();
        Ok(Self {
            topnet,
            home,
            address,
        })
    }

    /// Starts to pay.
    pub fn pay(
        &self,
        topology: &Topology,
        run_dir: &RunDir,
        channel: &str,
        interface: &str,
    ) -> Result<Process> {
        let status = self.status_file();
        let words = [
            "wallet",
            "pay",
            "--channel",
            channel,
            "--interface",
            interface,
            "--status-file",
            status.to_str().context("a path that is not UTF-8")?,
        ];
        // wireguard-go's socket is root's, and it ends when anybody changes that: like a person's
        // own `wg show`, the wallet's needs the right to open it.
        let payer = Topnet {
            user: User {
                capabilities: &["dac_override"],
                ..CLIENT
            },
            ..self.topnet.clone()
        };
        let command = payer.with(&words);
        Process::start(&topology.client, "wallet", command, &run_dir.log("wallet"))
    }

    /// The key that signs its channels' vouchers, as whoever holds the file and the passphrase
    /// has it: the session's where the wallet keeps one apart from the account's.
    pub fn secret(&self) -> Result<SecretKey> {
        let keys = self.home.join("topnet/keys");
        let file = ["session.key", "wallet.key"]
            .map(|name| keys.join(name))
            .into_iter()
            .find(|file| file.exists());
        let file = file.with_context(|| format!("there is no key in {}", keys.display()))?;
        secret(&file, &Self::passphrase_in(&self.home))
    }

    fn passphrase_in(home: &Path) -> PathBuf {
        home.join("passphrase")
    }

    /// Where it keeps what it promised.
    pub fn state_dir(&self) -> PathBuf {
        self.home.join("topnet/wallet")
    }

    /// Where `pay` shows how it stands.
    pub fn status_file(&self) -> PathBuf {
        self.home.join("paying.json")
    }
}

/// The provider's processes. They end in the order opposite to their start.
#[derive(Debug)]
pub struct Provider {
    /// The command as the operator uses it.
    pub topnet: Topnet,
    /// The payee's address.
    pub payee: String,
    /// Hash of main's genesis.
    pub main_genesis: String,
    /// In the order of [`PROCESSES`].
    pub processes: Vec<Process>,
    /// Its configuration and keys.
    home: PathBuf,
    passphrase: PathBuf,
    /// Where the TUN driver's stand-in is, if the data plane needs the driver.
    tunnel_driver: Option<PathBuf>,
}

impl Provider {
    /// Makes keys, chains and configuration, with `balance` nTOP for each of `payers` and these
    /// `rules` (options of `topnet init`).
    pub fn create(
        topology: &Topology,
        run_dir: &RunDir,
        lifetime: Lifetime,
        interrupt: &Interrupt,
        payers: &[&str],
        balance: u64,
        rules: &[(&str, u32)],
    ) -> Result<Self> {
        let home = run_dir.join("provider");
        let passphrase = passphrase_file(&run_dir.join("passphrase"), METERING, 0o440)?;
        let runtime_dir = runtime_dir(run_dir);
        fs::create_dir(&runtime_dir)?;
        chown(&runtime_dir, None, Some(GROUP))?;
        fs::set_permissions(&runtime_dir, Permissions::from_mode(0o2770))?;
        let data_dir = run_dir.join("data");
        for (name, user) in PROCESSES {
            run_dir.program(&format!("topnet-{name}"))?;
            run_dir.private(&format!("data/{name}"), user.uid, user.gid)?;
        }
        let program = run_dir.program("topnet")?;
        let mut init = Command::new(&program);
        init.args(["--json", "init"]).arg(&home);
        init.arg("--passphrase-file").arg(&passphrase);
        init.args(["provider", "--client-interface", CLIENTS_INTERFACE]);
        init.args(["--uplink-interface", UPLINK_INTERFACE]);
        init.args(["--public-address", &PROVIDER.to_string()]);
        init.args(["--inner-subnet", INNER_SUBNET, "--name", "lab"]);
        init.arg("--runtime-dir").arg(&runtime_dir);
        init.arg("--data-dir").arg(&data_dir);
        for payer in payers {
            init.args(["--balance", &format!("{payer}={balance}")]);
        }
        init.args(["--block-interval-ms", &BLOCK_INTERVAL_MS.to_string()]);
        init.args(["--epoch-blocks", &EPOCH_BLOCKS.to_string()]);
        init.args(["--close-window-min", &CLOSE_WINDOW_BLOCKS.to_string()]);
        for (option, blocks) in rules {
            init.args([option, &*blocks.to_string()]);
        }
        let made = output(&topology.provider, init, interrupt, COMMAND_WAIT)?;
        let made: serde_json::Value = serde_json::from_str(&made)?;
        let keys = [
            ("wireguard", DATAPLANE),
            ("payment", METERING),
            ("payee", SETTLEMENT),
            ("validator", SETTLEMENT),
        ];
        for (key, user) in keys {
            let file = home.join("keys").join(format!("{key}.key"));
            chown(&file, Some(user.uid), Some(user.gid))
                .with_context(|| format!("cannot hand over {}", file.display()))?;
        }
        let topnet = Topnet {
            program,
            config: home.join("topnet.toml"),
            user: CONTROL,
            lifetime,
        };
        let of = |name: &str| made[name].as_str().map(str::to_owned);
        // The origin's network is a private one.
        add_section(&topnet.config, "dataplane.reach", WORLD)?;
        let payee = of("payee").context("no payee")?;
        let main_genesis = of("main_genesis").context("no genesis")?;
        Ok(Self {
            topnet,
            payee,
            main_genesis,
            processes: Vec::new(),
            home,
            passphrase,
            tunnel_driver: None,
        })
    }

    /// Has settlement hand its claims to a tower, once it is started.
    pub fn hand_over_to(&self, tower: &str) -> Result<()> {
        self.configure("settlement", &format!("towers = [\"{tower}\"]"))
    }

    /// Has the kernel's sockets carry the packets, once the data plane is started. Its driver is
    /// where the data plane's user can open it; what that takes is kept in `run_dir`.
    pub fn carry_by_kernel(&mut self, run_dir: &RunDir) -> Result<()> {
        self.tunnel_driver = Some(run_dir.private("driver", DATAPLANE.uid, DATAPLANE.gid)?);
        self.configure("dataplane", "io = \"kernel\"")
    }

    /// Adds a section at the end of the configuration.
    pub fn add_section(&self, section: &str, lines: &str) -> Result<()> {
        add_section(self.topnet.config(), section, lines)
    }

    /// Writes a line at the start of a section of the configuration.
    pub fn configure(&self, section: &str, line: &str) -> Result<()> {
        let (config, section) = (self.topnet.config(), format!("[{section}]\n"));
        let text = fs::read_to_string(config)?;
        let with_line = format!("{section}{line}\n");
        fs::write(config, text.replacen(&section, &with_line, 1))
            .with_context(|| format!("cannot write {}", config.display()))
    }

    /// Starts every process and waits until each answers.
    pub fn start(
        &mut self,
        topology: &Topology,
        run_dir: &RunDir,
        interrupt: &Interrupt,
    ) -> Result<()> {
        for (name, user) in PROCESSES {
            let process = self.start_one(name, user, topology, run_dir, interrupt)?;
            self.processes.push(process);
        }
        self.wait_all_answer(topology, interrupt)
    }

    /// Starts one of [`PROCESSES`] anew, in the place of its last run.
    pub fn restart(
        &mut self,
        name: &str,
        topology: &Topology,
        run_dir: &RunDir,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let place = PROCESSES.iter().position(|(process, _)| *process == name);
        let place = place.with_context(|| format!("there is no process {name}"))?;
        self.processes[place].stop();
        let (name, user) = PROCESSES[place];
        self.processes[place] = self.start_one(name, user, topology, run_dir, interrupt)?;
        Ok(())
    }

    fn start_one(
        &self,
        name: &str,
        user: User,
        topology: &Topology,
        run_dir: &RunDir,
        interrupt: &Interrupt,
    ) -> Result<Process> {
        let topnet = Topnet {
            user,
            ..self.topnet.clone()
        };
        let mut command = topnet.with(&["run", name]);
        if let (Some(dir), "dataplane") = (&self.tunnel_driver, name) {
            command = with_tunnel_driver(dir, command)?;
        }
        let log = run_dir.log(name);
        let mut process = Process::start(&topology.provider, name, command, &log)?;
        // A run that was killed leaves its socket behind: only one that is listened at counts.
        let socket = runtime_dir(run_dir).join(format!("{name}.sock"));
        process.wait_ready(interrupt, READY_WAIT, || {
            name == "control" || UnixStream::connect(&socket).is_ok()
        })?;
        Ok(process)
    }

    /// Waits until control says that every process answers.
    pub fn wait_all_answer(&self, topology: &Topology, interrupt: &Interrupt) -> Result<()> {
        let asked = interrupt.wait("every process answers", READY_WAIT, || {
            Ok(self.status(topology, interrupt).ok().filter(all_answer))
        });
        asked.map(drop).with_context(|| self.last_words())
    }

    /// One of [`PROCESSES`].
    pub fn process(&mut self, name: &str) -> Result<&mut Process> {
        let mut processes = self.processes.iter_mut();
        let found = processes.find(|process| process.name() == name);
        found.with_context(|| format!("there is no process {name}"))
    }

    /// One of the provider's keys (`payment`, `payee`), as whoever runs the provider has it.
    pub fn secret(&self, key: &str) -> Result<SecretKey> {
        let file = self.home.join("keys").join(format!("{key}.key"));
        secret(&file, &self.passphrase)
    }

    /// What the operator sees.
    pub fn status(&self, topology: &Topology, interrupt: &Interrupt) -> Result<serde_json::Value> {
        self.topnet.ask(&topology.provider, interrupt, &["status"])
    }

    /// An error if a process has ended.
    pub fn check(&mut self) -> Result<()> {
        for process in &mut self.processes {
            let ended = process.ended()?;
            ensure!(
                ended.is_none(),
                "{} ended\n{}",
                process.name(),
                process.last_words()
            );
        }
        Ok(())
    }

    /// The end of every process's log.
    pub fn last_words(&self) -> String {
        let words: Vec<_> = self.processes.iter().map(Process::last_words).collect();
        words.join("\n")
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        while self.processes.pop().is_some() {}
    }
}

/// Where the processes' sockets are.
pub fn runtime_dir(run_dir: &RunDir) -> PathBuf {
    run_dir.join("run")
}

fn secret(file: &Path, passphrase: &Path) -> Result<SecretKey> {
    let read = || key_file::read(file, &key_file::passphrase(Some(passphrase))?);
    read().with_context(|| format!("cannot read the key {}", file.display()))
}

fn add_section(config: &Path, section: &str, lines: &str) -> Result<()> {
    let add = || {
        let text = fs::read_to_string(config)?;
        fs::write(config, format!("{text}\n[{section}]\n{lines}\n"))
    };
    add().with_context(|| format!("cannot write {}", config.display()))
}

fn all_answer(status: &serde_json::Value) -> bool {
    let answers = |process: &serde_json::Value| process["answers"] == true;
    let processes = status["processes"].as_array();
    processes.is_some_and(|list| !list.is_empty() && list.iter().all(answers))
}

/// A passphrase of this run. Keys are encrypted with it as they would be anywhere.
fn passphrase_file(path: &Path, owner: User, mode: u32) -> Result<PathBuf> {
    let write = || {
        fs::write(path, format!("lab {}\n", std::process::id()))?;
        fs::set_permissions(path, Permissions::from_mode(mode))?;
        chown(path, Some(owner.uid), Some(owner.gid))
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path.to_owned())
}
