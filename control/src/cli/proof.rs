//! `topnet prove` and `topnet verify`: what stands in a chain's state, for whoever does not trust
//! the provider. Checking needs the chain's genesis file and nothing else.

mod unit;

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use serde::{Deserialize, Serialize};
use topnet_account::{Address, Amount, Hash, PublicKey};
use topnet_api::{ChainName, StateProof, StateSubject};
use topnet_ledger::{
    CodecError, Genesis,
    outbox::Batch,
    state::{Account, Channel, ChannelState, PublishedOffer, Record as _, Service, subject_key},
};
use topnet_light::EngineVerifier;

use super::{
    arguments::{Options, ProveSubject},
    client::Rpc,
    error::CliError,
    output::Output,
    text::{Table, Text},
};
use crate::rpc::PublicClient;

/// A file that is longer is neither a proof nor a genesis.
const FILE_BYTES_MAX: u64 = 16 << 20;

pub(super) async fn genesis(
    options: &Options,
    chain: ChainName,
    output: Output,
) -> Result<(), CliError> {
    let rpc = Rpc::public(options)?;
    let genesis = rpc.check(rpc.client.genesis(chain).await)?;
    output.print(&Document(genesis.into()));
    Ok(())
}

pub(super) async fn prove(
    options: &Options,
    subject: ProveSubject,
    out: Option<&Path>,
    output: Output,
) -> Result<(), CliError> {
    let (chain, subject) = match subject {
        ProveSubject::Account { address, chain } => (chain, StateSubject::Account(address)),
        ProveSubject::Channel { id, chain } => (chain, StateSubject::Channel(id)),
        ProveSubject::Batch { number, chain } => (chain, StateSubject::Batch(number)),
        ProveSubject::Service { genesis } => (ChainName::main(), StateSubject::Service(genesis)),
        ProveSubject::Offer { provider, service } => {
            let subject = StateSubject::Offer { provider, service };
            (ChainName::main(), subject)
        }
        ProveSubject::Unit {
            channel,
            unit,
            chain,
        } => return unit::make(options, chain, channel, unit, out, output).await,
    };
    let rpc = Rpc::public(options)?;
    let proof = rpc.check(rpc.client.prove(chain, subject).await)?;
    write(&proof, out, output, || {
        format!("as of block {} of {}", proof.height, proof.chain)
    })
}

/// Writes a proof into a file and says so, or prints it.
fn write<T: Serialize>(
    proof: &T,
    out: Option<&Path>,
    output: Output,
    of: impl FnOnce() -> String,
) -> Result<(), CliError> {
    let Some(out) = out else {
        output.print(&Document(serde_json::json!(proof)));
        return Ok(());
    };
    let failed = |error| CliError::file(out, error);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(out)
        .map_err(failed)?;
    let text = serde_json::to_string_pretty(proof).unwrap_or_default();
    writeln!(file, "{text}").map_err(failed)?;
    output.progress(&format!("{}: {}", out.display(), of()));
    Ok(())
}

pub(super) fn verify(file: &Path, genesis: &Path, output: Output) -> Result<(), CliError> {
    let genesis: Genesis = read(genesis)?;
    match read(file)? {
        AnyProof::Unit(proof) => output.print(&unit::verify(proof, &genesis)?),
        AnyProof::State(proof) => output.print(&check(proof, &genesis)?),
    }
    Ok(())
}

/// What a file may hold.
#[derive(Deserialize)]
#[serde(untagged)]
enum AnyProof {
    Unit(unit::UnitProof),
    State(StateProof),
}

/// What a proof shows.
#[derive(Debug, Serialize)]
struct Verified {
    chain: ChainName,
    genesis: Hash,
    height: u64,
    block: Hash,
    time_ms: u64,
    subject: StateSubject,
    value: Value,
}

/// What stands there.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Value {
    Account {
        balance: Amount,
        nonce: u64,
        homeward: Amount,
    },
    Channel {
        payer: Address,
        payee: Address,
        allocation: Amount,
        paid: Amount,
        expiry: u64,
        log_root: Hash,
        state: &'static str,
        deadline: Option<u64>,
    },
    Batch {
        cut_at: u64,
        funds_credited: u64,
        burn: Amount,
        payouts: Vec<(Address, Amount)>,
    },
    Service {
        name: String,
        escrow: Amount,
        batches: u64,
        height: u64,
        state_root: Hash,
    },
    Offer {
        unit_price: Amount,
        close_window_blocks_min: u32,
        payment_key: PublicKey,
        payment_address: String,
        rpc_url: String,
        name: String,
        region: String,
        deposit: Amount,
        published_at: u64,
    },
}

fn check(proof: StateProof, genesis: &Genesis) -> Result<Verified, CliError> {
    let wrong = |what: String| {
        let mend = "do not rely on it: ask another provider for the same";
        CliError::new("proof_false", what, mend)
    };
    genesis
        .validate()
        .map_err(|error| wrong(error.to_string()))?;
    let chain = genesis.hash();
    if chain != proof.genesis {
        return Err(CliError::new(
            "other_chain",
            format!(
                "the proof is of chain {}, the genesis file of {chain}",
                proof.genesis
            ),
            "name the genesis file of the proof's chain",
        ));
    }
    let key = subject_key(&proof.subject, &genesis.role)
        .ok_or_else(|| wrong("the chain keeps no such thing".to_owned()))?;
    let validators = &genesis.validators;
    let shown = EngineVerifier.prove_value(&chain, validators, &key, &proof.proof.0);
    let Some((header, bytes)) = shown else {
        return Err(wrong(
            "the chain's validators have signed no such thing".to_owned(),
        ));
    };
    if header.height() != proof.height {
        return Err(wrong(format!(
            "it is of block {}, and says {}",
            header.height(),
            proof.height
        )));
    }
    let value = value_of(&proof.subject, &bytes)
        .map_err(|error| wrong(format!("the value is of another version: {error}")))?;
    Ok(Verified {
        chain: ChainName(genesis.name.clone()),
        genesis: chain,
        height: header.height(),
        block: header.hash(),
        time_ms: header.time_ms(),
        subject: proof.subject,
        value,
    })
}

fn value_of(subject: &StateSubject, bytes: &[u8]) -> Result<Value, CodecError> {
    Ok(match subject {
        StateSubject::Account(_) => {
            let account = Account::from_bytes(bytes)?;
            Value::Account {
                balance: account.balance,
                nonce: account.nonce,
                homeward: account.homeward,
            }
        }
        StateSubject::Channel(_) => {
            let channel = Channel::from_bytes(bytes)?;
            let (state, deadline) = match channel.state {
                ChannelState::Open => ("open", None),
                ChannelState::Closing { deadline } => ("closing", Some(deadline)),
                ChannelState::Closed => ("closed", None),
            };
            Value::Channel {
                payer: channel.payer,
                payee: channel.payee,
                allocation: channel.allocation,
                paid: channel.paid,
                expiry: channel.expiry,
                log_root: channel.log_root,
                state,
                deadline,
            }
        }
        StateSubject::Batch(_) => {
            let batch = Batch::from_bytes(bytes)?;
            let payouts = batch.payouts.iter();
            Value::Batch {
                cut_at: batch.height,
                funds_credited: batch.credited,
                burn: batch.burn,
                payouts: payouts
                    .map(|payout| (payout.account, payout.amount))
                    .collect(),
            }
        }
        StateSubject::Service(_) => {
            let service = Service::from_bytes(bytes)?;
            Value::Service {
                name: service.name,
                escrow: service.escrow,
                batches: service.inbox.next,
                height: service.height,
                state_root: service.state_root,
            }
        }
        StateSubject::Offer { .. } => {
            let PublishedOffer {
                offer,
                deposit,
                height,
            } = PublishedOffer::from_bytes(bytes)?;
            Value::Offer {
                unit_price: offer.unit_price,
                close_window_blocks_min: offer.close_window_min,
                payment_key: offer.payment_key,
                payment_address: offer.payment_address,
                rpc_url: offer.rpc_url,
                name: offer.name,
                region: offer.region,
                deposit,
                published_at: height,
            }
        }
    })
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, CliError> {
    let failed = |error| CliError::file(path, error);
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > FILE_BYTES_MAX {
        return Err(CliError::file(path, "is too long to be one"));
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    serde_json::from_str(&text).map_err(|error| CliError::file(path, error))
}

/// A document that is the same for people and for programs.
#[derive(Serialize)]
#[serde(transparent)]
struct Document(serde_json::Value);

impl Text for Document {
    fn text(&self) -> String {
        let text = serde_json::to_string_pretty(&self.0);
        text.unwrap_or_default() + "\n"
    }
}

impl Text for Verified {
    fn text(&self) -> String {
        let (what, name) = match &self.subject {
            StateSubject::Account(address) => ("account", address.to_string()),
            StateSubject::Channel(id) => ("channel", id.to_string()),
            StateSubject::Batch(seq) => ("batch", seq.to_string()),
            StateSubject::Service(id) => ("service", id.to_string()),
            StateSubject::Offer { provider, .. } => ("offer of", provider.to_string()),
        };
        let table = Table::new(format_args!("{what} {name}: proved"))
            .row("chain", format_args!("{} {}", self.chain, self.genesis))
            .row("block", format_args!("{} {}", self.height, self.block));
        match &self.value {
            Value::Account {
                balance,
                nonce,
                homeward,
            } => table
                .row("balance", balance)
                .row("going home", homeward)
                .row("nonce", nonce),
            Value::Channel {
                payer,
                payee,
                allocation,
                paid,
                expiry,
                log_root,
                state,
                deadline,
            } => table
                .row("state", state)
                .row_if("deadline", deadline.map(|height| format!("block {height}")))
                .row("payer", payer)
                .row("payee", payee)
                .row("allocation", allocation)
                .row("paid", paid)
                .row("expiry", format_args!("block {expiry}"))
                .row("log root", log_root),
            Value::Batch {
                cut_at,
                funds_credited,
                burn,
                payouts,
            } => {
                let table = table
                    .row("cut", format_args!("at block {cut_at}"))
                    .row("funds credited", funds_credited)
                    .row("burn", burn);
                payouts.iter().fold(table, |table, (account, amount)| {
                    table.row("pays", format_args!("{amount} to {account}"))
                })
            }
            Value::Service {
                name,
                escrow,
                batches,
                height,
                state_root,
            } => table
                .row("name", name)
                .row("escrow", escrow)
                .row("batches", batches)
                .row(
                    "accepted up to",
                    format_args!("block {height}, state {state_root}"),
                ),
            Value::Offer {
                unit_price,
                close_window_blocks_min,
                payment_key,
                payment_address,
                rpc_url,
                name,
                region,
                deposit,
                published_at,
            } => table
                .row("name", format_args!("{name} {region}"))
                .row("price", format_args!("{unit_price} per unit"))
                .row("RPC", rpc_url)
                .row(
                    "payment",
                    format_args!("{payment_address} key {payment_key}"),
                )
                .row(
                    "close window",
                    format_args!("{close_window_blocks_min} blocks at least"),
                )
                .row("deposit", deposit)
                .row("published", format_args!("block {published_at}")),
        }
        .end()
    }
}
