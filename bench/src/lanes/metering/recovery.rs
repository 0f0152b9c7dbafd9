//! Opening a journal of many channels after a crash, in a process of its own.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use topnet_account::{Amount, ChannelId, PublicKey};
use topnet_books::{Books, Entry, NewLine, facts::Facts};
use topnet_channel::{
    Payee, PayeeTerms, PayerMessage, Promise, SlotUse, TOKENS_PER_VOUCHER_MAX, Voucher,
};
use topnet_log::{Frontier, Line};
use topnet_metering::journal::Journal;
use topnet_unit::UNIT_BYTES;

use super::{
    VERSION,
    parties::{ALLOCATION, BOOT, channel, offer, served, signer, slot},
    process::{Another, Asked, Role},
};
use crate::{
    lane::{Better, Case, Contender, Measurement, process_cpu_s},
    lanes::Setup,
    place::Place,
    taken::{Taken, bytes_below},
};

/// Channels that are written with one commit.
const BATCH: u32 = 1024;
/// What each channel has used.
const USED_UNITS: u64 = 100;
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(300);

/// What the opening process needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Needs {
    journal: PathBuf,
}

/// What it found.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Opened {
    channels: u64,
    open_s: f64,
    read_s: f64,
    restore_s: f64,
    taken: Taken,
}

/// The journal, made when it is first needed and gone with the lane.
type Made = Arc<Mutex<Option<Arc<TempDir>>>>;

/// The case.
pub fn case(setup: &Setup) -> Case {
    let channels = setup.size.journalled_channels();
    let made = Made::default();
    let (ours, files) = ((setup.clone(), made.clone()), made);
    Case {
        name: "journal/recovery".to_owned(),
        metric: "seconds_to_serve".to_owned(),
        unit: "s".to_owned(),
        better: Better::Lower,
        mode: format!(
            "{channels} channels, each with a voucher, a token, a slot and a line of the service log (one payee's record with \
             each channel's name in its place, so the signatures are not each channel's); opened, \
             read and restored by a new process, files in the page cache"
        ),
        ours: Contender::new(VERSION, move || {
            let (setup, made) = &ours;
            opened(setup, journal(made, channels)?.path(), channels)
        }),
        peers: vec![(
            "reading its files".to_owned(),
            Contender::new("std::io", move || read(journal(&files, channels)?.path())),
        )],
    }
}

fn journal(made: &Made, channels: u32) -> Result<Arc<TempDir>> {
    let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(directory) = &*made {
        return Ok(Arc::clone(directory));
    }
    let directory = Arc::new(Place::Disk.directory()?);
    fill(directory.path(), channels)?;
    Ok(Arc::clone(made.insert(directory)))
}

fn fill(directory: &Path, channels: u32) -> Result<()> {
    let (record, template) = (template_record()?, channel(0));
    let mut journal = Journal::open(directory)?;
    for first in (0..channels).step_by(BATCH as usize) {
        let entry = |number| Entry {
            channel: channel(number),
            facts: Some(facts(number)),
            record: Some(renamed(&record, template, channel(number))),
            line: Some(line(number)),
            forget: false,
        };
        let last = channels.min(first + BATCH);
        let entries: Vec<Entry> = (first..last).map(entry).collect();
        journal.commit(&entries)?;
    }
    Ok(())
}

fn facts(number: u32) -> Facts {
    Facts {
        signer: PublicKey(channel(number).0),
        allocation: ALLOCATION,
        close_window_blocks: 600,
        window_units_max: 64,
        unpaid_bytes_max: 0,
    }
}

/// What the service log says of a channel's first use.
fn line(number: u32) -> NewLine {
    let line = Line {
        channel: channel(number),
        units_before: 0,
        units: USED_UNITS,
        channel_bytes: USED_UNITS * UNIT_BYTES,
        time_ms: 0,
        boot: BOOT,
        slot: slot(number),
    };
    NewLine {
        line,
        lines: 1,
        peak: Frontier::default().append(&line),
    }
}

/// The record of channel 0 with half of a voucher spent.
fn template_record() -> Result<Vec<u8>> {
    let secret = signer(0)?;
    let mut payee = Payee::new(PayeeTerms {
        channel: channel(0),
        signer: secret.public_key(),
        allocation: ALLOCATION,
        offer: offer(),
    });
    let voucher = Voucher {
        channel: channel(0),
        seq: 1,
        cumulative_amount: Amount::ZERO,
        cumulative_units: 0,
        unit_price: offer().unit_price,
        tokens: TOKENS_PER_VOUCHER_MAX,
        root: [0; 32],
    };
    let index = TOKENS_PER_VOUCHER_MAX / 2;
    let preimage = voucher.chain(&secret).preimage(index);
    let promise = Promise {
        voucher: voucher.sign(&secret),
        index,
        preimage: preimage.ok_or_else(|| anyhow!("the chain is short"))?,
    };
    payee
        .handle_message(&PayerMessage::Resume(Some(promise)))
        .map_err(|code| anyhow!("the voucher was refused: {code:?}"))?;
    let slot_use = SlotUse {
        boot: BOOT,
        slot: slot(0),
    };
    payee.handle_slot(slot_use, 0);
    payee.handle_usage(slot_use, USED_UNITS * UNIT_BYTES);
    payee
        .poll_record()
        .ok_or_else(|| anyhow!("the payee has nothing to write"))
}

/// The same record of another channel.
fn renamed(record: &[u8], from: ChannelId, to: ChannelId) -> Vec<u8> {
    let mut renamed = record.to_vec();
    let mut place = 0;
    while let Some(found) = renamed[place..]
        .windows(ChannelId::SIZE)
        .position(|bytes| bytes == from.as_bytes())
    {
        place += found;
        renamed[place..][..ChannelId::SIZE].copy_from_slice(to.as_bytes());
        place += ChannelId::SIZE;
    }
    renamed
}

fn opened(setup: &Setup, journal: &Path, channels: u32) -> Result<Measurement> {
    let disk_bytes = bytes_below(journal)? as f64;
    let needs = Needs {
        journal: journal.to_owned(),
    };
    let mut opener = Another::start(&setup.program, Role::Opener, &needs)?;
    let opened: Opened = opener.hear(&setup.interrupt, PATIENCE)?;
    ensure!(
        opened.channels == u64::from(channels),
        "{} of {channels} channels were found",
        opened.channels
    );
    let seconds = opened.open_s + opened.read_s + opened.restore_s;
    let count = f64::from(channels);
    let memory_bytes = opened.taken.resident_bytes_max as f64;
    Ok(
        Measurement::new(seconds, opened.channels, opened.taken.cpu_s)
            .with("open", opened.open_s, "s")
            .with("read", opened.read_s, "s")
            .with("restore", opened.restore_s, "s")
            .with("time per channel", seconds * 1e6 / count, "us")
            .with("most memory", memory_bytes, "bytes")
            .with("most memory per channel", memory_bytes / count, "bytes")
            .with("files", disk_bytes, "bytes")
            .with("files per channel", disk_bytes / count, "bytes"),
    )
}

fn read(journal: &Path) -> Result<Measurement> {
    let (cpu_s, began) = (process_cpu_s(), Instant::now());
    let bytes = read_below(journal)?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Measurement::new(seconds, bytes, process_cpu_s() - cpu_s))
}

fn read_below(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        bytes += if path.is_dir() {
            read_below(&path)?
        } else {
            io::copy(&mut File::open(path)?, &mut io::sink())?
        };
    }
    Ok(bytes)
}

/// The role.
pub fn play() -> Result<()> {
    let (needs, asked) = Asked::begin::<Needs>()?;
    let began = Instant::now();
    let journal = Journal::open(&needs.journal)?;
    let open_s = began.elapsed().as_secs_f64();
    let stored = journal.stored()?;
    let read_s = began.elapsed().as_secs_f64() - open_s;
    let channels = stored.len() as u64;
    let books = Books::restore(served(), offer(), stored)
        .map_err(|(channel, error)| anyhow!("channel {channel}: {error}"))?;
    let restore_s = began.elapsed().as_secs_f64() - open_s - read_s;
    ensure!(
        books.channels().count() as u64 == channels,
        "channels were lost on the way"
    );
    asked.answer(&Opened {
        channels,
        open_s,
        read_s,
        restore_s,
        taken: Taken::now()?,
    })
}
