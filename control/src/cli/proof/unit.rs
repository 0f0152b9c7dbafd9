//! One line of the service log, against the root in its channel's close: who used these units,
//! when, and where they were counted.

use std::path::Path;

use serde::{Deserialize, Serialize};
use topnet_account::{ChannelId, Hash};
use topnet_api::{ChainName, HexBytes, StateProof, StateSubject};
use topnet_config::Config;
use topnet_ledger::Genesis;
use topnet_log::{Frontier, LINE_BYTES, Line, Proof, log_root, prove};

use super::{Value, Verified, check, write};
use crate::{
    cli::{
        arguments::Options,
        client::Rpc,
        error::CliError,
        log::archive,
        output::Output,
        text::{Table, Text, bytes},
    },
    rpc::PublicClient,
};

/// A line, and its way up to the root that the payee's close carries.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct UnitProof {
    /// The unit that was asked for, counted from 1.
    unit: u64,
    /// The line as the log has it.
    line: HexBytes,
    /// Its place among the channel's lines, from 0.
    index: u64,
    /// The channel's lines.
    lines: u64,
    /// From the line's sibling upwards.
    path: Vec<Hash>,
    /// The channel, with the root.
    channel: StateProof,
}

/// What it shows.
#[derive(Debug, Serialize)]
pub(super) struct VerifiedUnit {
    unit: u64,
    units_before: u64,
    units: u64,
    channel_bytes: u64,
    time_ms: u64,
    boot: String,
    slot: u32,
    channel: Verified,
}

/// Makes the proof out of the provider's own log.
pub(in crate::cli) async fn make(
    options: &Options,
    chain: ChainName,
    channel: ChannelId,
    unit: u64,
    out: Option<&Path>,
    output: Output,
) -> Result<(), CliError> {
    let config = Config::load(&options.config)?;
    let archive = archive(config.metering()?)?;
    let rpc = Rpc::public(options)?;
    let genesis = rpc.check(rpc.client.genesis(chain.clone()).await)?;
    let genesis: Genesis = serde_json::from_value(genesis.into())
        .map_err(|error| CliError::new("genesis", error.to_string(), "update this command"))?;
    let subject = StateSubject::Channel(channel);
    let proof = rpc.check(rpc.client.prove(chain, subject).await)?;
    let root = match check(proof.clone(), &genesis)?.value {
        Value::Channel { log_root, .. } if log_root != Hash::ZERO => log_root,
        _ => {
            return Err(CliError::new(
                "not_closed",
                format!("channel {channel} has no close of its payee with a claim yet"),
                "close it first: `topnet channel close`",
            ));
        }
    };
    let lines = archive.lines_of(&channel).await?;
    let closed = closed_lines(&lines, &channel, &root).ok_or_else(|| {
        CliError::new(
            "log_lost",
            format!(
                "the {} lines of channel {channel} in the service log do not lead to the root in \
                 its close",
                lines.len()
            ),
            "`topnet log verify` says which segments are missing; bring them back",
        )
    })?;
    let place = closed.iter().position(|line| line.covers(unit));
    let shown = place.and_then(|place| prove(closed, place));
    let Some(shown) = shown else {
        let units = closed.last().map_or(0, |line| line.units);
        return Err(CliError::new(
            "unit_unknown",
            format!("the close of channel {channel} is about units 1 to {units}"),
            "name one of those",
        ));
    };
    let proof = UnitProof {
        unit,
        line: HexBytes(shown.line.to_bytes().to_vec()),
        index: shown.index,
        lines: shown.lines,
        path: shown.path,
        channel: proof,
    };
    write(&proof, out, output, || {
        format!("unit {unit} of channel {channel}")
    })
}

/// Those of the lines that the root is over. Lines may have come after the close.
fn closed_lines<'a>(lines: &'a [Line], channel: &ChannelId, root: &Hash) -> Option<&'a [Line]> {
    let mut tree = Frontier::default();
    for (count, line) in (1..).zip(lines) {
        tree.append(line);
        if log_root(channel, count, &tree.root()) == *root {
            return lines.get(..usize::try_from(count).ok()?);
        }
    }
    None
}

pub(super) fn verify(proof: UnitProof, genesis: &Genesis) -> Result<VerifiedUnit, CliError> {
    let wrong = |what: &str| {
        let mend = "do not rely on it: ask the provider for the line again";
        CliError::new("proof_false", what, mend)
    };
    let UnitProof {
        unit,
        line,
        index,
        lines,
        path,
        channel,
    } = proof;
    let StateSubject::Channel(id) = channel.subject else {
        return Err(wrong("it does not prove a channel"));
    };
    let channel = check(channel, genesis)?;
    let bytes: [u8; LINE_BYTES] = line
        .0
        .try_into()
        .map_err(|_| wrong("the line has another length"))?;
    let line = Line::from_bytes(&bytes).ok_or_else(|| wrong("the line is about no unit"))?;
    let root = Proof {
        line,
        index,
        lines,
        path,
    }
    .root();
    let claimed = match &channel.value {
        Value::Channel { log_root, .. } => Some(*log_root),
        _ => None,
    };
    if line.channel != id || root.is_none() || root != claimed {
        return Err(wrong(
            "the line does not lead to the root in the channel's close",
        ));
    }
    if !line.covers(unit) {
        return Err(wrong("the line is about other units"));
    }
    Ok(VerifiedUnit {
        unit,
        units_before: line.units_before,
        units: line.units,
        channel_bytes: line.channel_bytes,
        time_ms: line.time_ms,
        boot: line.boot.to_string(),
        slot: line.slot.index,
        channel,
    })
}

impl Text for VerifiedUnit {
    fn text(&self) -> String {
        let first = self.units_before + 1;
        let line = Table::new(format_args!("unit {}: proved", self.unit))
            .row("line", format_args!("units {first} to {}", self.units))
            .row("used by then", bytes(self.channel_bytes))
            .row("time", format_args!("{} ms since 1970", self.time_ms))
            .row(
                "counted in",
                format_args!("slot {} of data plane {}", self.slot, self.boot),
            )
            .end();
        format!("{line}{}", self.channel.text())
    }
}
