//! The command's words.

mod connect;
mod log;
mod vpn;

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use topnet_account::{Address, Amount, ChannelId, Hash, PublicKey};
use topnet_api::{ChainName, HexBytes, WireguardPublicKey};
use topnet_config::{Ipv4Subnet, Process};
use topnet_ledger::genesis::Rules;

use super::since::Since;

pub(super) use connect::Connect;
pub(super) use log::{LogCommand, SegmentName};
pub(super) use vpn::{VpnAdd, VpnCapture, VpnCommand};

/// Sells and buys traffic, paid unit by unit.
#[derive(Debug, Parser)]
#[command(name = "topnet", version, propagate_version = true)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) options: Options,
    /// Print values for programs.
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What every command may be told.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The configuration.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        default_value = "/etc/topnet/topnet.toml"
    )]
    pub(super) config: PathBuf,
    /// RPC to ask, instead of the one that the configuration names.
    #[arg(long, global = true, value_name = "URL")]
    pub(super) rpc: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run one of the processes: dataplane, metering, settlement, control or tower.
    Run {
        /// Which.
        process: Process,
    },
    /// Make a directory with keys, a configuration and, for a provider, new chains.
    Init(Init),
    /// Say what is wrong with the configuration and this machine, and the mend.
    CheckConfig,
    /// Show the provider at a glance.
    Status,
    /// List the provider's sessions.
    Sessions(Watch),
    /// List the channels that pay the provider, or watch those that are in use.
    Channels(Watch),
    /// Show or close one channel.
    #[command(subcommand)]
    Channel(ChannelCommand),
    /// List the claims that settlement holds, and how far each has come.
    Claims,
    /// Show what claims brought the provider, by day.
    Earnings {
        /// From that day on: `30d`, `2026-11-25`; from the first if left out.
        #[arg(long, value_name = "TIME")]
        since: Option<Since>,
    },
    /// Show a final block, and what its transactions did.
    Block {
        /// Its height.
        height: u64,
        /// The chain.
        #[arg(long, default_value = "main")]
        chain: ChainName,
    },
    /// List final blocks; the newest hundred if nothing is said.
    Blocks {
        /// The chain.
        #[arg(long, default_value = "main")]
        chain: ChainName,
        /// From this height on.
        #[arg(long, value_name = "HEIGHT")]
        from: Option<u64>,
        /// Up to this height.
        #[arg(long, value_name = "HEIGHT")]
        to: Option<u64>,
    },
    /// Show what happened to an account and its channels on a chain, the newest first.
    History {
        /// The account's address.
        address: Address,
        /// The chain.
        #[arg(long, default_value = "main")]
        chain: ChainName,
        /// So much of it.
        #[arg(long, value_name = "N", default_value_t = 100)]
        count: usize,
    },
    /// List the batches that a service has cut for main, and where main has accepted them.
    Batches {
        /// The service's chain.
        #[arg(long, default_value = "vpn")]
        chain: ChainName,
        /// From this number on.
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        from: u64,
    },
    /// List what the provider offers.
    Offers,
    /// List what providers offer on main for a service, the cheapest first.
    Market {
        /// The service's chain.
        #[arg(default_value = "vpn")]
        chain: ChainName,
    },
    /// Have main tell what this provider offers, or no longer.
    #[command(subcommand)]
    Offer(OfferCommand),
    /// Show an account on a chain.
    Account {
        /// The account's address.
        address: Address,
        /// The chain.
        #[arg(long, default_value = "main")]
        chain: ChainName,
    },
    /// Submit a signed transaction, or show what became of one.
    #[command(subcommand)]
    Tx(TxCommand),
    /// Show the chains and where they are, or run service chains.
    #[command(args_conflicts_with_subcommands = true)]
    Chain {
        #[command(subcommand)]
        command: Option<ChainCommand>,
        /// Only this one.
        chain: Option<ChainName>,
    },
    /// Print what a chain starts from: its genesis file.
    Genesis {
        /// The chain.
        chain: ChainName,
    },
    /// Get a proof of what stands in a chain's state, for whoever does not trust the provider.
    Prove {
        /// Where to write it; printed if left out.
        #[arg(long, value_name = "FILE", global = true)]
        out: Option<PathBuf>,
        #[command(subcommand)]
        subject: ProveSubject,
    },
    /// Check a proof with the chain's genesis alone. Needs no provider.
    Verify {
        /// The proof.
        file: PathBuf,
        /// The chain's genesis file: who its validators are.
        #[arg(long, value_name = "FILE")]
        genesis: PathBuf,
    },
    /// Look at the service log: its segments, in the directory and the archive.
    #[command(subcommand)]
    Log(LogCommand),
    /// Show a service as the main chain knows it.
    Service {
        /// The service's chain.
        #[arg(default_value = "vpn")]
        chain: ChainName,
    },
    /// Connect to a provider and pay for it as long as this runs: offer, channel, session, tunnel.
    Connect(Connect),
    /// List, add and remove the operator's own WireGuard peers, for whom nobody pays.
    #[command(subcommand)]
    Vpn(VpnCommand),
    /// Start or stop a session with the provider.
    #[command(subcommand)]
    Session(SessionCommand),
    /// Hold money, open channels and pay.
    #[command(subcommand)]
    Wallet(WalletCommand),
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(super) enum OfferCommand {
    /// Publish on main what the configuration says, in the place of what stands there.
    Publish {
        #[command(flatten)]
        patience: Patience,
    },
    /// Take the offer from main; the deposit returns.
    Retract {
        #[command(flatten)]
        patience: Patience,
    },
}

/// What is to be proved.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum ProveSubject {
    /// An account on a chain.
    Account {
        /// Its address.
        address: Address,
        /// The chain.
        #[arg(long, default_value = "main")]
        chain: ChainName,
    },
    /// A channel.
    Channel {
        /// Its id.
        id: ChannelId,
        /// The service's chain.
        #[arg(long, default_value = "vpn")]
        chain: ChainName,
    },
    /// A batch that a service's chain has cut for main.
    Batch {
        /// Its number, from 0.
        number: u64,
        /// The service's chain.
        #[arg(long, default_value = "vpn")]
        chain: ChainName,
    },
    /// Who used a unit of a closed channel and when: a line of this provider's service log.
    Unit {
        /// The channel.
        channel: ChannelId,
        /// Which unit, counted from 1.
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        unit: u64,
        /// The service's chain.
        #[arg(long, default_value = "vpn")]
        chain: ChainName,
    },
    /// A provider's offer for a service, as it stands on main.
    Offer {
        /// The provider's address.
        provider: Address,
        /// Hash of the service's genesis; `topnet chain` shows it.
        service: Hash,
    },
    /// A service as the main chain knows it.
    Service {
        /// Hash of its genesis; `topnet chain` shows it.
        genesis: Hash,
    },
}

/// Whether to look once or on and on.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Watch {
    /// Look again every so many seconds, with rates, until Ctrl-C; `--json` prints a line each
    /// time.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(super) watch: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(super) enum ChannelCommand {
    /// Show a channel on its chain and with the payee.
    Show {
        /// The channel.
        channel: ChannelId,
    },
    /// Close a channel as its payee, with its last claim.
    Close {
        /// The channel.
        channel: ChannelId,
        #[command(flatten)]
        wait: Wait,
    },
}

/// How long to wait for a chain.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Wait {
    /// Wait until it is final, with progress.
    #[arg(long)]
    pub(super) wait: bool,
    /// Give up after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub(super) timeout: u64,
}

#[derive(Debug, Subcommand)]
pub(super) enum TxCommand {
    /// Hand a signed transaction to a chain.
    Submit {
        /// Its bytes: 0x and hex.
        transaction: HexBytes,
        /// The chain.
        #[arg(long, default_value = "main")]
        chain: ChainName,
    },
    /// Show what became of a transaction.
    Show {
        /// Its id.
        id: Hash,
        /// The chain.
        #[arg(long, default_value = "main")]
        chain: ChainName,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum SessionCommand {
    /// Let a WireGuard key have service that a channel pays for, and print its configuration.
    Start {
        #[command(flatten)]
        session: SessionArguments,
        /// For which of WireGuard's own tools.
        #[arg(long, value_enum, default_value_t = ConfigFormat::WgQuick)]
        format: ConfigFormat,
        /// The client's private key, to be put into the configuration here on this machine.
        #[arg(long, value_name = "FILE")]
        private_key_file: Option<PathBuf>,
        /// Write the configuration here, readable by its owner only, instead of printing it.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Take a WireGuard key its service.
    Stop {
        #[command(flatten)]
        session: SessionArguments,
    },
}

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct SessionArguments {
    /// The channel that pays.
    #[arg(long)]
    pub(super) channel: ChannelId,
    /// The client's public key, as `wg pubkey` prints it.
    #[arg(long, value_name = "KEY")]
    pub(super) wg_public_key: WireguardPublicKey,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ConfigFormat {
    /// `wg-quick`: address, MTU and resolvers too.
    WgQuick,
    /// `wg setconf`: the peer alone.
    Wg,
}

/// What `init` makes.
#[derive(Debug, Args)]
pub(super) struct Init {
    /// The directory; it must not hold a configuration yet.
    pub(super) dir: PathBuf,
    /// File with the passphrase for the new keys. The configuration refers to it; without it
    /// the passphrase comes from TOPNET_PASSPHRASE or a prompt, now and at each start.
    #[arg(long, value_name = "FILE")]
    pub(super) passphrase_file: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) role: InitRole,
}

#[derive(Debug, Subcommand)]
pub(super) enum InitRole {
    /// A provider: all processes on this machine.
    Provider(Box<InitProvider>),
    /// A client: a wallet.
    Wallet(InitWallet),
}

#[derive(Debug, Args)]
pub(super) struct InitProvider {
    /// Interface on which clients' WireGuard packets arrive.
    #[arg(long, value_name = "NAME")]
    pub(super) client_interface: String,
    /// Interface towards what clients want to reach.
    #[arg(long, value_name = "NAME")]
    pub(super) uplink_interface: String,
    /// Address at which clients reach this machine.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) public_address: IpAddr,
    /// Price of 512 KiB.
    #[arg(long, value_name = "AMOUNT", default_value = "26000")]
    pub(super) unit_price: Amount,
    /// Where clients' inner addresses come from.
    #[arg(long, value_name = "SUBNET", default_value = "10.78.0.0/16")]
    pub(super) inner_subnet: Ipv4Subnet,
    /// What the provider calls itself.
    #[arg(long, default_value = "")]
    pub(super) name: String,
    /// Where it is: an ISO 3166 country.
    #[arg(long, default_value = "")]
    pub(super) region: String,
    /// Where the processes' Unix sockets are.
    #[arg(long, value_name = "DIR", default_value = "/run/topnet")]
    pub(super) runtime_dir: PathBuf,
    /// What must survive a reboot.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/topnet")]
    pub(super) data_dir: PathBuf,
    #[command(flatten)]
    pub(super) chains: InitChains,
}

/// New chains, with this machine as their only validator.
#[derive(Debug, Args)]
pub(super) struct InitChains {
    /// An account that has money from the start, as ADDRESS=AMOUNT; may be repeated. Without any
    /// the payee has a million TOP.
    #[arg(long = "balance", value_name = "ADDRESS=AMOUNT", value_parser = parse_balance)]
    pub(super) balances: Vec<(Address, Amount)>,
    /// Milliseconds between blocks.
    #[arg(long, value_name = "MS", default_value_t = 100)]
    pub(super) block_interval_ms: u64,
    /// Blocks between batches from the service's chain to main.
    #[arg(long, value_name = "BLOCKS", default_value_t = 600)]
    pub(super) epoch_blocks: u64,
    /// The shortest close window, on the chain and in the offer.
    #[arg(long, value_name = "BLOCKS", default_value_t = 6_000)]
    pub(super) close_window_min: u32,
    /// A service that brings main no batch for more than so many of its blocks is dead.
    #[arg(long, value_name = "BLOCKS", default_value_t = Rules::default().service_silence)]
    pub(super) service_silence: u64,
    /// A dead service's channels can be claimed on main for so many blocks.
    #[arg(long, value_name = "BLOCKS", default_value_t = Rules::default().recovery_window)]
    pub(super) recovery_window: u32,
}

#[derive(Debug, Args)]
pub(super) struct InitWallet {
    /// The provider's public RPC: http://203.0.113.1:8545.
    #[arg(long, value_name = "URL")]
    pub(super) provider: String,
    /// The most that 512 KiB may cost.
    #[arg(long, value_name = "AMOUNT")]
    pub(super) unit_price_max: Amount,
    /// What the wallet promised to whom.
    #[arg(long, value_name = "DIR", default_value = "wallet")]
    pub(super) state_dir: PathBuf,
    /// Make the keys from the words of an earlier wallet, not from new ones.
    #[arg(long)]
    pub(super) restore: bool,
    #[command(flatten)]
    pub(super) phrase: PhraseSource,
    /// For a machine that only pays: a key file that `topnet wallet session-key` made. No other
    /// key is made here.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["restore", "phrase_file"])]
    pub(super) session_key_file: Option<PathBuf>,
}

fn parse_balance(text: &str) -> Result<(Address, Amount), String> {
    let (address, amount) = text.split_once('=').ok_or("expected ADDRESS=AMOUNT")?;
    let address = address.parse().map_err(|error| format!("{error}"))?;
    let amount = amount.parse().map_err(|error| format!("{error}"))?;
    Ok((address, amount))
}

#[derive(Debug, Subcommand)]
pub(super) enum ChainCommand {
    /// List the service chains of this place, and how main sees them.
    List,
    /// Make a service chain, run it and register it on main. The payee's account locks the
    /// deposit.
    Create {
        /// Its name: 1 to 32 lower-case letters, digits and dashes.
        chain: ChainName,
        /// Milliseconds between its blocks; main's if left out.
        #[arg(long, value_name = "MS")]
        block_interval_ms: Option<u64>,
        /// Blocks between its batches; main's if left out.
        #[arg(long, value_name = "BLOCKS")]
        epoch_blocks: Option<u64>,
    },
    /// Stop a service chain. One that stays silent for too long is dead for good.
    Stop {
        /// Its name.
        chain: ChainName,
    },
    /// Start a service chain that was stopped.
    Start {
        /// Its name.
        chain: ChainName,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum WalletCommand {
    /// Make a phrase of 24 words, and the wallet's keys from it. The phrase is shown once.
    Create,
    /// Make the wallet's keys from its phrase again.
    Restore {
        #[command(flatten)]
        phrase: PhraseSource,
    },
    /// Make another session key from the wallet's phrase, for a machine that only pays.
    SessionKey {
        /// Which: 0 is the wallet's own; use a number of its own for each machine.
        index: u16,
        /// Where to write its key file.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// File with the passphrase for it, which the other machine has to know; this wallet's
        /// if left out.
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
        #[command(flatten)]
        phrase: PhraseSource,
    },
    /// Show the wallet's address and public keys.
    Address,
    /// Show what the wallet has, on main and on the service's chain.
    Balance {
        /// The service's chain.
        #[arg(long, default_value = "vpn")]
        service: ChainName,
    },
    /// Move money from main to the wallet's account on the service's chain.
    Fund {
        /// How much.
        amount: Amount,
        /// The service's chain.
        #[arg(long, default_value = "vpn")]
        service: ChainName,
        #[command(flatten)]
        patience: Patience,
    },
    /// Send money from the service's chain home to main, with the next batch.
    Withdraw {
        /// How much.
        amount: Amount,
        /// The service's chain.
        #[arg(long, default_value = "vpn")]
        service: ChainName,
        #[command(flatten)]
        patience: Patience,
    },
    /// Move money to another account of the same chain.
    Transfer {
        /// Whose account.
        to: Address,
        /// How much.
        amount: Amount,
        /// The chain.
        #[arg(long, default_value = "main")]
        chain: ChainName,
        #[command(flatten)]
        patience: Patience,
    },
    /// Open a channel to the provider, once its payment endpoint has proved the offer's key.
    Open(WalletOpen),
    /// Add to a channel's allocation.
    TopUp {
        /// The channel.
        channel: ChannelId,
        /// How much.
        amount: Amount,
        #[command(flatten)]
        patience: Patience,
    },
    /// Bring home what the wallet has in a service that is dead. Ask again until nothing is left:
    /// a channel returns its rest when its claims have had their time.
    Recover {
        /// The service's chain.
        #[arg(long, default_value = "vpn")]
        service: ChainName,
        #[command(flatten)]
        patience: Patience,
    },
    /// Pay for a session's traffic, unit by unit, until stopped.
    Pay(WalletPay),
    /// Show the wallet's channels, and how paying on them stands.
    Status {
        /// Only this one.
        channel: Option<ChannelId>,
    },
    /// Show what was used, paid and redeemed, to whom, with the receipts.
    Statement(WalletStatement),
    /// Check a receipt, or all of a statement in JSON. Needs no wallet and no provider.
    VerifyReceipt {
        /// The file.
        file: PathBuf,
    },
    /// Start a channel's close window as its payer.
    Close {
        /// The channel.
        channel: ChannelId,
        #[command(flatten)]
        patience: Patience,
    },
}

#[derive(Debug, Args)]
pub(super) struct WalletStatement {
    /// Only this channel.
    #[arg(long, value_name = "ID")]
    pub(super) channel: Option<ChannelId>,
    /// From then on: `24h`, `7d`, `2026-11-25`, `2026-11-25T13:00:00Z`. From the channel's
    /// beginning if left out.
    #[arg(long, value_name = "TIME")]
    pub(super) since: Option<Since>,
    /// As what.
    #[arg(long, value_enum, default_value_t = StatementFormat::Table)]
    pub(super) format: StatementFormat,
    /// Do not ask the provider what the chain says.
    #[arg(long)]
    pub(super) offline: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum StatementFormat {
    /// For people.
    Table,
    /// A row for each channel (RFC 4180).
    Csv,
    /// For programs, as with `--json`.
    Json,
}

/// Where a phrase comes from.
#[derive(Debug, Args)]
pub(super) struct PhraseSource {
    /// File that holds the phrase, `-` for standard input. Without it the phrase is asked for on
    /// the terminal, unseen.
    #[arg(long, value_name = "FILE")]
    pub(super) phrase_file: Option<PathBuf>,
}

/// How long to wait until a transaction is final.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Patience {
    /// Do not wait until it is final.
    #[arg(long)]
    pub(super) no_wait: bool,
    /// Give up waiting after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(super) timeout: u64,
}

#[derive(Debug, Args)]
pub(super) struct WalletOpen {
    /// The most that the channel can pay.
    pub(super) allocation: Amount,
    /// Blocks between a close by the wallet and its end; the least that the offer takes if left
    /// out.
    #[arg(long, value_name = "BLOCKS")]
    pub(super) close_window: Option<u32>,
    /// Blocks after which anybody may close the channel: a week at 100 ms.
    #[arg(long, value_name = "BLOCKS", default_value_t = Rules::default().service_silence)]
    pub(super) expiry_blocks: u64,
    /// Public key of the session key that signs the channel's vouchers, where another machine
    /// has it; this wallet's own if left out.
    #[arg(long, value_name = "KEY")]
    pub(super) signer: Option<PublicKey>,
    #[command(flatten)]
    pub(super) patience: Patience,
}

#[derive(Debug, Args)]
pub(super) struct WalletPay {
    /// The channel.
    #[arg(long)]
    pub(super) channel: ChannelId,
    /// WireGuard's interface, in whose counters the wallet sees what it used.
    #[arg(long, value_name = "NAME")]
    pub(super) interface: String,
    /// Where to keep how paying stands; `CHANNEL.json` in the wallet's directory if left out.
    #[arg(long, value_name = "FILE")]
    pub(super) status_file: Option<PathBuf>,
}
