//! A settlement process on new chains, started and killed as a test likes.
#![allow(dead_code)]

pub mod facts;
pub mod steps;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tarpc::context::{self, Context};
use tempfile::TempDir;
use topnet_account::{Address, Amount, Hash, NTOP_PER_TOP};
use topnet_api::{
    ApiError, BlockRef, ChainName, SettlementClient, SocketName, TransactionStatus, connect,
};
use topnet_channel::SecretKey;
use topnet_ledger::{
    Genesis, Transaction,
    genesis::{Role, Rules},
    transaction::{Action, Message as _, Order},
};
use topnet_wallet::key_file::{self, Cost};

pub const EPOCH_BLOCKS: u64 = 10;
/// How long anything may take before a test calls it lost.
const PATIENCE: Duration = Duration::from_secs(60);
/// As cheap as a key file can be.
const CHEAP: Cost = Cost {
    memory_kib: 8,
    passes: 1,
    lanes: 1,
};

pub fn top(amount: u64) -> Amount {
    Amount::from_ntop(amount * NTOP_PER_TOP)
}

pub fn secret(seed: u8) -> SecretKey {
    SecretKey::from_seed([seed; 32]).unwrap()
}

/// The files of a provider, and the process that runs on them.
pub struct Provider {
    pub dir: TempDir,
    pub main: Genesis,
    pub service: Genesis,
    pub payer: SecretKey,
    pub payee: SecretKey,
    process: Option<Child>,
}

impl Provider {
    /// Writes the files. The payer has 1,000 TOP on main.
    pub fn new() -> Self {
        Self::with(|_| {}, 1_000)
    }

    /// The same with other rules, and claims that wait so long.
    pub fn with(change: impl FnOnce(&mut Rules), claim_interval_ms: u64) -> Self {
        let mut rules = Rules {
            close_window_min: 20,
            ..Rules::default()
        };
        change(&mut rules);
        let dir = tempfile::tempdir().unwrap();
        let (payer, payee, validator) = (secret(1), secret(2), secret(3));
        let mut main = Genesis {
            name: "main".to_owned(),
            salt: Hash([4; 32]),
            block_interval_ms: 100,
            epoch_blocks: EPOCH_BLOCKS,
            validators: vec![validator.public_key()],
            rules,
            role: Role::Main {
                services: Vec::new(),
            },
            balances: BTreeMap::from([(payer.address(), top(1_000))]),
        };
        let service = Genesis {
            name: "vpn".to_owned(),
            role: Role::Service {
                main: main.counterpart(),
            },
            balances: BTreeMap::new(),
            ..main.clone()
        };
        main.role = Role::Main {
            services: vec![service.counterpart()],
        };

        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("main.json", &serde_json::to_string(&main).unwrap());
        write("vpn.json", &serde_json::to_string(&service).unwrap());
        write("passphrase", "correct horse\n");
        let key = |name: &str, secret: &SecretKey| {
            key_file::write(&dir.path().join(name), secret, b"correct horse", CHEAP).unwrap();
        };
        key("validator.key", &validator);
        key("payee.key", &payee);
        write(
            "topnet.toml",
            &format!(
                "runtime_dir = \"run\"\n\
             data_dir = \"data\"\n\
             [settlement]\n\
             main_genesis_file = \"main.json\"\n\
             service_genesis_file = \"vpn.json\"\n\
             validator_key_file = \"validator.key\"\n\
             payee_key_file = \"payee.key\"\n\
             passphrase_file = \"passphrase\"\n\
             claim_interval_ms = {claim_interval_ms}\n"
            ),
        );
        Self {
            dir,
            main,
            service,
            payer,
            payee,
            process: None,
        }
    }

    /// Adds lines to the configuration, of which `[settlement]` comes last.
    pub fn configure(&self, lines: &str) {
        let path = self.dir.path().join("topnet.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text + lines).unwrap();
    }

    /// Copies what the process has stored.
    pub fn copy_storage(&self, to: &Path) {
        copy(&self.storage_dir(), to);
    }

    /// Replaces what the process has stored by a copy.
    pub fn restore_storage(&self, from: &Path) {
        fs::remove_dir_all(self.storage_dir()).unwrap();
        copy(from, &self.storage_dir());
    }

    pub fn storage_dir(&self) -> PathBuf {
        self.dir.path().join("data/settlement")
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_topnet-settlement"));
        command
            .arg("--config")
            .arg(self.dir.path().join("topnet.toml"));
        command
    }

    /// Starts the process and connects to it.
    pub async fn start(&mut self) -> SettlementClient {
        let started = self.try_start().await;
        started.unwrap_or_else(|words| panic!("settlement ended: {words}"))
    }

    /// The same for one that may end instead; what it said then.
    pub async fn try_start(&mut self) -> Result<SettlementClient, String> {
        let words = fs::File::create(self.words_file()).unwrap();
        let mut command = self.command();
        command.stdin(Stdio::null()).stderr(words);
        self.process = Some(command.spawn().unwrap());
        let path = SocketName::Settlement.below(&self.dir.path().join("run"));
        let began = Instant::now();
        loop {
            if let Some(client) = client(&path).await {
                return Ok(client);
            }
            if let Some(words) = self.ended() {
                return Err(words);
            }
            assert!(began.elapsed() < PATIENCE, "settlement does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What the process said, if it has ended by itself.
    pub fn ended(&mut self) -> Option<String> {
        let ended = self.process.as_mut()?.try_wait().unwrap();
        ended.map(|_| {
            self.process = None;
            self.words()
        })
    }

    /// What the process has said since it was started.
    pub fn words(&self) -> String {
        fs::read_to_string(self.words_file()).unwrap()
    }

    fn words_file(&self) -> PathBuf {
        self.dir.path().join("settlement.err")
    }

    /// SIGKILL, at once.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub fn order(&self, chain: &Genesis, nonce: u64, action: Action) -> Transaction {
        Order { nonce, action }.sign(&chain.hash(), &self.payer)
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.kill();
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

async fn client(path: &Path) -> Option<SettlementClient> {
    let transport = connect(path).await.ok()?;
    let client = SettlementClient::new(tarpc::client::Config::default(), transport).spawn();
    // A connection that nobody answers was left by a process that was killed.
    client.payee(soon()).await.ok()?;
    Some(client)
}

/// A context that waits longer than tarpc's ten seconds: this machine may be busy.
pub fn soon() -> Context {
    let mut context = context::current();
    context.deadline = Instant::now() + PATIENCE;
    context
}

/// Asks again until there is an answer.
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Submits until the transaction is final.
pub async fn settle(
    client: &SettlementClient,
    chain: &ChainName,
    transaction: &Transaction,
) -> (BlockRef, Vec<String>) {
    let bytes = transaction.to_bytes();
    until("a transaction", async || {
        let submitted = client
            .submit(soon(), chain.clone(), bytes.clone())
            .await
            .unwrap();
        assert_eq!(submitted.unwrap().id, transaction.id());
        let status: Result<TransactionStatus, ApiError> = client
            .transaction(soon(), chain.clone(), transaction.id())
            .await
            .unwrap();
        let status = status.unwrap();
        status.block.map(|block| (block, status.events))
    })
    .await
}

pub async fn balance(client: &SettlementClient, chain: &ChainName, address: Address) -> Amount {
    client
        .account(soon(), chain.clone(), address)
        .await
        .unwrap()
        .unwrap()
        .balance
}

pub fn other_hash() -> Hash {
    Hash([0xee; 32])
}
