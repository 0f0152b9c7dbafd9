//! `topnet init`: keys, chains and a configuration to start from.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use ring::rand::{SecureRandom, SystemRandom};
use serde::Serialize;
use topnet_account::{Address, Amount, Hash, NTOP_PER_TOP, PublicKey};
use topnet_channel::SecretKey;
use topnet_config::Config;
use topnet_ledger::genesis::{Counterpart, Genesis, Role, Rules};
use topnet_wallet::key_file::{self, Cost};
use zeroize::Zeroizing;

use super::{
    arguments::{Init, InitChains, InitProvider, InitRole, InitWallet},
    error::CliError,
    output::Output,
    passphrase::passphrase,
    text::{Table, Text},
    wallet::keys::{KeyFiles, Keys},
};

const WIREGUARD_PORT: u16 = 51_820;
const PAYMENT_PORT: u16 = 7_447;
const SERVICE: &str = "vpn";
/// What the payee has on new chains without other balances.
const FIRST_BALANCE: Amount = Amount::from_ntop(1_000_000 * NTOP_PER_TOP);

/// What was made for a provider.
#[derive(Debug, Serialize)]
struct ProviderMade {
    config: PathBuf,
    payee: Address,
    validator: PublicKey,
    payment_key: PublicKey,
    main_genesis: Hash,
    service_genesis: Hash,
}

/// What was made for a client.
#[derive(Debug, Serialize)]
struct WalletMade {
    config: PathBuf,
    /// The account's; `None` on a machine that only pays.
    key_file: Option<PathBuf>,
    #[serde(flatten)]
    keys: Keys,
}

/// Makes it all in one directory, and checks what it made by reading it back.
pub(super) fn init(init: Init, output: Output) -> Result<(), CliError> {
    let config = init.dir.join("topnet.toml");
    if config.exists() {
        return Err(CliError::new(
            "exists",
            format!("{} exists already", config.display()),
            "choose another directory, or move what is there away",
        ));
    }
    let passphrase_file = match &init.passphrase_file {
        Some(file) => Some(std::path::absolute(file).map_err(|e| CliError::file(file, e))?),
        None => None,
    };
    let secret = passphrase(passphrase_file.as_deref(), true)?;
    fs::create_dir_all(init.dir.join("keys")).map_err(|e| CliError::file(&init.dir, e))?;
    let made = Making {
        dir: &init.dir,
        config: &config,
        passphrase_file,
        secret,
    };
    match init.role {
        InitRole::Provider(provider) => output.print(&made.provider(&provider)?),
        InitRole::Wallet(wallet) => output.print(&made.wallet(&wallet, output)?),
    }
    Config::load(&config)?;
    Ok(())
}

struct Making<'a> {
    dir: &'a Path,
    config: &'a Path,
    passphrase_file: Option<PathBuf>,
    secret: Zeroizing<String>,
}

impl Making<'_> {
    fn provider(&self, init: &InitProvider) -> Result<ProviderMade, CliError> {
        self.wireguard_key()?;
        let payment = self.key("payment")?;
        let payee = self.key("payee")?;
        let validator = self.key("validator")?;
        let mut salt = [0; 32];
        fill_random(&mut salt)?;
        let (main, service) = chains(
            &init.chains,
            Hash(salt),
            validator.public_key(),
            payee.address(),
        )?;
        fs::create_dir_all(self.dir.join("genesis")).map_err(|e| CliError::file(self.dir, e))?;
        self.genesis("main", &main)?;
        self.genesis(SERVICE, &service)?;
        write_new(self.config, 0o644, self.provider_config(init).as_bytes())?;
        Ok(ProviderMade {
            config: self.config.to_owned(),
            payee: payee.address(),
            validator: validator.public_key(),
            payment_key: payment.public_key(),
            main_genesis: main.hash(),
            service_genesis: service.hash(),
        })
    }

    fn wallet(&self, init: &InitWallet, output: Output) -> Result<WalletMade, CliError> {
        let (account, session) = match &init.session_key_file {
            Some(file) => {
                let file = std::path::absolute(file).map_err(|e| CliError::file(file, e))?;
                (None, file)
            }
            None => (Some(self.key_path("wallet")), self.key_path("session")),
        };
        let files = KeyFiles {
            account: account.as_deref(),
            session: Some(&session),
        };
        let keys = if account.is_none() {
            files.read()?
        } else if init.restore || init.phrase.phrase_file.is_some() {
            files.restore(&init.phrase, self.secret.as_bytes())?
        } else {
            files.create(self.secret.as_bytes(), output)?
        };
        let key_lines = match &account {
            Some(_) => "key_file = \"keys/wallet.key\"\n\
                        session_key_file = \"keys/session.key\"\n"
                .to_owned(),
            None => format!("session_key_file = {}\n", quoted_path(&session)),
        };
        let text = format!(
            "# Made by `topnet init`; control/config/example.toml shows every key.\n\n\
             [wallet]\n\
             rpc_url = {}\n\
             {key_lines}\
             {}state_dir = {}\n\
             unit_price_ntop_max = {}\n",
            quoted(&init.provider),
            self.passphrase_line(),
            quoted_path(&init.state_dir),
            init.unit_price_max.ntop(),
        );
        write_new(self.config, 0o644, text.as_bytes())?;
        Ok(WalletMade {
            config: self.config.to_owned(),
            key_file: account,
            keys,
        })
    }

    fn provider_config(&self, init: &InitProvider) -> String {
        let endpoint = |port| SocketAddr::new(init.public_address, port);
        format!(
            "# Made by `topnet init`; control/config/example.toml shows every key.\n\n\
             runtime_dir = {runtime_dir}\n\
             data_dir = {data_dir}\n\n\
             [dataplane]\n\
             client_interface = {client_interface}\n\
             uplink_interface = {uplink_interface}\n\
             wireguard_port = {WIREGUARD_PORT}\n\
             key_file = \"keys/wireguard.key\"\n\
             inner_subnet = \"{inner_subnet}\"\n\n\
             [metering]\n\
             payment_listen = \"0.0.0.0:{PAYMENT_PORT}\"\n\
             key_file = \"keys/payment.key\"\n\
             {passphrase}\
             service = \"{SERVICE}\"\n\
             unit_price_ntop = {unit_price}\n\
             close_window_blocks_min = {close_window}\n\n\
             [settlement]\n\
             main_genesis_file = \"genesis/main.json\"\n\
             service_genesis_file = \"genesis/{SERVICE}.json\"\n\
             validator_key_file = \"keys/validator.key\"\n\
             payee_key_file = \"keys/payee.key\"\n\
             {passphrase}\n\
             [control]\n\
             operator_listen = \"127.0.0.1:8546\"\n\
             public_listen = \"0.0.0.0:8545\"\n\n\
             [control.offer]\n\
             name = {name}\n\
             region = {region}\n\
             wireguard_endpoint = \"{wireguard}\"\n\
             payment_endpoint = \"{payment}\"\n",
            runtime_dir = quoted_path(&init.runtime_dir),
            data_dir = quoted_path(&init.data_dir),
            client_interface = quoted(&init.client_interface),
            uplink_interface = quoted(&init.uplink_interface),
            inner_subnet = init.inner_subnet,
            passphrase = self.passphrase_line(),
            unit_price = init.unit_price.ntop(),
            close_window = init.chains.close_window_min,
            name = quoted(&init.name),
            region = quoted(&init.region),
            wireguard = endpoint(WIREGUARD_PORT),
            payment = endpoint(PAYMENT_PORT),
        )
    }

    fn passphrase_line(&self) -> String {
        match &self.passphrase_file {
            Some(file) => format!("passphrase_file = {}\n", quoted_path(file)),
            None => String::new(),
        }
    }

    fn key_path(&self, name: &str) -> PathBuf {
        self.dir.join("keys").join(format!("{name}.key"))
    }

    fn key(&self, name: &str) -> Result<SecretKey, CliError> {
        key_file::create(&self.key_path(name), self.secret.as_bytes(), Cost::DEFAULT).map_err(
            |error| CliError::new("key_file", error.to_string(), "start in an empty directory"),
        )
    }

    /// As `wg genkey` makes one: 32 random bytes, clamped (RFC 7748), in base64. WireGuard's own
    /// tools and the data plane read it as it is.
    fn wireguard_key(&self) -> Result<(), CliError> {
        let mut key = Zeroizing::new([0; 32]);
        fill_random(key.as_mut())?;
        key[0] &= 0xf8;
        key[31] = key[31] & 0x7f | 0x40;
        let text = Zeroizing::new(BASE64_STANDARD.encode(key.as_ref()) + "\n");
        write_new(&self.key_path("wireguard"), 0o600, text.as_bytes())
    }

    fn genesis(&self, name: &str, genesis: &Genesis) -> Result<(), CliError> {
        let path = self.dir.join("genesis").join(format!("{name}.json"));
        let mut text =
            serde_json::to_string_pretty(genesis).map_err(|e| CliError::file(&path, e))?;
        text.push('\n');
        write_new(&path, 0o644, text.as_bytes())
    }
}

fn fill_random(bytes: &mut [u8]) -> Result<(), CliError> {
    SystemRandom::new()
        .fill(bytes)
        .map_err(|_| CliError::new("random", "the system has no randomness", "try again"))
}

/// Two new chains that know each other and, by their `salt`, are nobody else's.
fn chains(
    init: &InitChains,
    salt: Hash,
    validator: PublicKey,
    payee: Address,
) -> Result<(Genesis, Genesis), CliError> {
    let rules = Rules {
        close_window_min: init.close_window_min,
        service_silence: init.service_silence,
        recovery_window: init.recovery_window,
        ..Rules::default()
    };
    if rules.service_silence <= init.epoch_blocks {
        return Err(CliError::new(
            "genesis",
            format!(
                "a batch every {} blocks, and dead after {} without one: the service would never live",
                init.epoch_blocks, rules.service_silence
            ),
            "raise --service-silence, or lower --epoch-blocks",
        ));
    }
    let balances = match init.balances.as_slice() {
        [] => [(payee, FIRST_BALANCE)].into(),
        balances => balances.iter().copied().collect(),
    };
    let mut main = Genesis {
        name: "main".to_owned(),
        salt,
        block_interval_ms: init.block_interval_ms,
        epoch_blocks: init.epoch_blocks,
        validators: vec![validator],
        rules: rules.clone(),
        role: Role::Main {
            services: Vec::new(),
        },
        balances,
    };
    let service = Genesis {
        name: SERVICE.to_owned(),
        rules,
        role: Role::Service {
            main: main.counterpart(),
        },
        balances: Default::default(),
        ..main.clone()
    };
    // Main's id does not depend on the services that it begins with.
    let services: Vec<Counterpart> = vec![service.counterpart()];
    main.role = Role::Main { services };
    for genesis in [&main, &service] {
        genesis.validate().map_err(|error| {
            CliError::new(
                "genesis",
                error.to_string(),
                "correct the arguments of `topnet init`",
            )
        })?;
    }
    Ok((main, service))
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), CliError> {
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.map_err(|error| CliError::file(path, error))
}

impl Text for ProviderMade {
    fn text(&self) -> String {
        Table::new(self.config.display())
            .row("payee", self.payee)
            .row("validator", self.validator)
            .row("payment key", self.payment_key)
            .row("main genesis", self.main_genesis)
            .row("service genesis", self.service_genesis)
            .end()
    }
}

impl Text for WalletMade {
    fn text(&self) -> String {
        Table::new(self.config.display())
            .row_if(
                "key file",
                self.key_file.as_ref().map(|path| path.display()),
            )
            .end()
            + &self.keys.text()
    }
}
