//! Handshakes one after the other, each of another client: how many a second, and what each costs
//! the gateway's CPU.
//!
//! A gateway under load asks for a cookie first; the client brings it with its next initiation,
//! which is another round trip of the same handshake.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::client::Client;
use super::gateway::{Kind, Peer};
use super::links::Mode;
use super::{GATEWAY_CPU, Rig, Shared};
use crate::cpus::Busy;
use crate::lane::Measurement;

/// wireguard-go takes one initiation of a client in 20 ms; with so many none comes sooner again.
const CLIENTS: u8 = 96;
/// The first client's number; 1 would be the gateway's address.
const FIRST: u8 = 2;
/// After the first client's first, for the same reason.
const REST: Duration = Duration::from_millis(50);
const ROUND: Duration = Duration::from_millis(1_000);

/// The figure of `vpn/handshakes`.
pub fn measure(shared: &Shared, kind: Kind) -> Result<Measurement> {
    let numbers = FIRST..FIRST + CLIENTS;
    let peers: Vec<Peer> = numbers.clone().map(Client::peer).collect();
    let rig = Rig::start(shared, kind, Mode::Wire, &peers)?;
    let measured = numbers
        .map(|number| Client::create(&rig.links.client, number))
        .collect::<Result<Vec<_>>>()
        .and_then(|clients| shake_hands(shared, clients));
    measured.with_context(|| rig.gateway.last_words())
}

fn shake_hands(shared: &Shared, mut clients: Vec<Client>) -> Result<Measurement> {
    // Neighbours are found, and the first cookie is asked for.
    clients[0].shake_hands()?;
    thread::sleep(REST);
    let (busy, began) = (Busy::start(GATEWAY_CPU)?, Instant::now());
    let (mut done, mut unanswered) = (0, 0_u32);
    'round: loop {
        shared.setup.interrupt.check()?;
        for client in &mut clients {
            if began.elapsed() >= ROUND {
                break 'round;
            }
            if client.shake_hands()? {
                done += 1;
            } else {
                unanswered += 1;
            }
        }
    }
    let (elapsed_s, busy_s) = (began.elapsed().as_secs_f64(), busy.busy_s()?);
    ensure!(done > 0, "no handshake was answered");
    let done_f64 = done as f64;
    Ok(Measurement::new(done_f64 / elapsed_s, done, busy_s)
        .with("cpu", busy_s / done_f64 * 1e6, "us")
        .with("cookies_or_lost", f64::from(unanswered) / done_f64, "1"))
}
