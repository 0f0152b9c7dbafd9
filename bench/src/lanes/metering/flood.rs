//! Whether those who pay feel a flood at the payment port.
//!
//! The flood comes from this machine, too. Its process is the nicest there is, so that it takes
//! what the others leave: what is measured is the payee's work for it and not the flood's own.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{getpid, setpriority_process};
use serde::{Deserialize, Serialize};
use tokio::runtime::Builder;
use topnet_account::{Amount, PublicKey, Signature};
use topnet_channel::{
    PROTOCOL_VERSION, PayeeMessage, PayerMessage, Roll, SecretKey, SignedVoucher, Voucher,
};
use topnet_link::Dialer;

use super::{
    VERSION,
    parties::{WINDOW, channel, offer, signer},
    payers::Paying,
    plane::Timed,
    process::{Another, Asked, Role},
    provider::Provider,
    quic::{EASY_UNITS_PER_S, units},
};
use crate::{
    lane::{Better, Case, Contender, Measurement, process_cpu_s},
    lanes::Setup,
    place::Place,
};

const WARM_UP_S: f64 = 60.0;
/// Of each channel before a measurement: its window is open then.
const WARM_UP_UNITS: u64 = 2 * WINDOW;
const PATIENCE: Duration = Duration::from_secs(30);
/// Links or handshakes that the flood keeps under way at once.
const AT_ONCE: u32 = 64;
/// Datagrams of garbage, sent every [`GARBAGE_INTERVAL`].
const GARBAGE_BURST: u32 = 20;
const GARBAGE_INTERVAL: Duration = Duration::from_millis(1);
const NICEST: i32 = 19;

/// What it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Flood {
    /// Datagrams that look like the beginning of a handshake.
    Garbage,
    /// Whole handshakes of keys that nobody knows.
    Strangers,
    /// Vouchers with wrong signatures, by payers that have channels; links made anew when they
    /// are ended for it.
    Forgers,
}

/// What the flood needs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Needs {
    flood: Flood,
    address: SocketAddr,
    identity: PublicKey,
    /// The first of [`AT_ONCE`] channels that forgers have.
    first_channel: u32,
}

/// Asks how much there was; answered with [`Status`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Question;

/// How much there was.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Status {
    /// Datagrams, handshakes or vouchers.
    sent: u64,
    cpu_s: f64,
}

/// The cases.
pub fn cases(setup: &Setup) -> Vec<Case> {
    let case = |name: &str, flood, how: &str| {
        let contender = |flood| {
            let setup = setup.clone();
            Contender::new(VERSION, move || round(&setup, flood))
        };
        Case {
            name: name.to_owned(),
            metric: "p99_boundary_to_credit".to_owned(),
            unit: "us".to_owned(),
            better: Better::Lower,
            mode: format!(
                "{} payers, each unit paid at once, {EASY_UNITS_PER_S} units a second; the slowest \
                 hundredth from passed boundary to credit, while {how}, from a process of the \
                 lowest priority",
                setup.size.payers(),
            ),
            ours: contender(Some(flood)),
            peers: vec![("the same without a flood".to_owned(), contender(None))],
        }
    };
    vec![
        case(
            "metering/flood-garbage",
            Flood::Garbage,
            "20,000 datagrams a second ask for a handshake with garbage",
        ),
        case(
            "metering/flood-strangers",
            Flood::Strangers,
            "unknown keys make 64 handshakes at a time without end",
        ),
        case(
            "metering/flood-forgers",
            Flood::Forgers,
            "64 payers that have channels send vouchers with wrong signatures without end",
        ),
    ]
}

fn round(setup: &Setup, flood: Option<Flood>) -> Result<Measurement> {
    let payers = setup.size.payers();
    let channels = [payers, AT_ONCE];
    let mut provider = Provider::start_with_idle(setup, channels, Timed::Every, Place::Disk, None)?;
    provider.connect(payers, Paying::AtOnce)?;
    provider.warm_up(WARM_UP_UNITS, WARM_UP_S)?;
    let needs = flood.map(|flood| Needs {
        flood,
        address: provider.ready.address,
        identity: provider.ready.identity,
        first_channel: payers,
    });
    let mut flooding = None;
    if let Some(needs) = needs {
        let another = Another::start(&setup.program, Role::Flood, &needs)?;
        flooding = Some(another);
    }
    let mut ask = || match &mut flooding {
        Some(flooding) => flooding.ask(&setup.interrupt, PATIENCE, &Question),
        None => Ok(Status::default()),
    };
    let before = ask()?;
    let phase = provider.phase(units(EASY_UNITS_PER_S), setup.size.quic_seconds() / 2.0)?;
    let after = ask()?;
    let latency = phase.plane.latency.context("no credit came")?;
    let elapsed_s = phase.plane.elapsed_s;
    let sent = (after.sent - before.sent) as f64;
    ensure!(flood.is_none() || sent > 0.0, "there was no flood");
    Ok(
        Measurement::new(latency.p99_us, phase.plane.units, phase.payee.taken.cpu_s)
            .with_latency(Some(latency))
            .with("units", phase.units_per_s(), "1/s")
            .with("flood", sent / elapsed_s, "1/s")
            .with(
                "flood's CPU",
                (after.cpu_s - before.cpu_s) / elapsed_s,
                "cores",
            )
            .with("payee's CPU", phase.payee.taken.cpu_s / elapsed_s, "cores"),
    )
}

/// The role.
pub fn play() -> Result<()> {
    let (needs, mut asked) = Asked::begin::<Needs>()?;
    setpriority_process(Some(getpid()), NICEST)?;
    let sent = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sent);
    thread::spawn(move || {
        if let Err(error) = run(needs, &counter) {
            eprintln!("error: the flood ended: {error:#}");
        }
    });
    while asked.next::<Question>()?.is_some() {
        asked.answer(&Status {
            sent: sent.load(Ordering::Relaxed),
            cpu_s: process_cpu_s(),
        })?;
    }
    Ok(())
}

fn run(needs: Needs, sent: &Arc<AtomicU64>) -> Result<()> {
    if needs.flood == Flood::Garbage {
        return garbage(needs.address, sent);
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let dialer = Arc::new(Dialer::new(needs.address)?);
        let floods = (0..AT_ONCE).map(|number| {
            let (dialer, sent) = (Arc::clone(&dialer), Arc::clone(sent));
            tokio::spawn(async move {
                loop {
                    // Refused, ended or timed out: all the same, the next one follows.
                    let _ = match needs.flood {
                        Flood::Garbage => return,
                        Flood::Strangers => stranger(&dialer, needs, &sent).await,
                        Flood::Forgers => forger(&dialer, needs, number, &sent).await,
                    };
                }
            })
        });
        for flood in floods.collect::<Vec<_>>() {
            flood.await?;
        }
        Ok(())
    })
}

/// Long headers of QUIC version 1 (RFC 9000, 17.2.2), and noise.
fn garbage(address: SocketAddr, sent: &AtomicU64) -> Result<()> {
    let local = match address {
        SocketAddr::V4(_) => "127.0.0.1:0",
        SocketAddr::V6(_) => "[::1]:0",
    };
    let socket = UdpSocket::bind(local)?;
    let mut datagram = [0x5a; 1_200];
    datagram[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
    // Behind two ids of 8 bytes: no token, and the rest of the datagram is the packet.
    datagram[14] = 8;
    datagram[23] = 0;
    datagram[24..26].copy_from_slice(&(0x4000_u16 | (1_200 - 26)).to_be_bytes());
    for number in 0_u64.. {
        datagram[6..14].copy_from_slice(&number.to_be_bytes());
        // A full socket is what is meant to happen.
        let _ = socket.send_to(&datagram, address);
        sent.fetch_add(1, Ordering::Relaxed);
        if number % u64::from(GARBAGE_BURST) == 0 {
            thread::sleep(GARBAGE_INTERVAL);
        }
    }
    Ok(())
}

async fn stranger(dialer: &Dialer, needs: Needs, sent: &AtomicU64) -> Result<()> {
    let number = sent.fetch_add(1, Ordering::Relaxed);
    let mut seed = [0x77; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    dialer
        .connect(needs.identity, &SecretKey::from_seed(seed)?)
        .await?;
    Ok(())
}

async fn forger(dialer: &Dialer, needs: Needs, number: u32, sent: &AtomicU64) -> Result<()> {
    let number = needs.first_channel + number;
    let secret = signer(number)?;
    let mut link = dialer.connect(needs.identity, &secret).await?;
    let channel = channel(number);
    let hello = PayerMessage::Hello {
        version: PROTOCOL_VERSION,
        channel,
    };
    link.sender.send(&hello.to_bytes()).await?;
    let voucher = Voucher {
        channel,
        seq: 1,
        cumulative_amount: Amount::ZERO,
        cumulative_units: 0,
        unit_price: offer().unit_price,
        tokens: 1,
        root: [0; 32],
    };
    let signature = Signature(voucher.sign(&secret).signature.0.map(|byte| byte ^ 1));
    let forged = PayerMessage::Roll(Roll {
        voucher: SignedVoucher { voucher, signature },
        retired_index: 0,
        retired_preimage: [0; 32],
    });
    loop {
        link.sender.send(&forged.to_bytes()).await?;
        sent.fetch_add(1, Ordering::Relaxed);
        loop {
            let answer = link.receiver.recv().await?;
            let answer = answer.context("the payee ended the link")?;
            if let Ok(PayeeMessage::Refused(_)) = PayeeMessage::from_bytes(&answer) {
                break;
            }
        }
    }
}
