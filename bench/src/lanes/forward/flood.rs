//! The generator: UDP datagrams from the origin to an inner address, as fast as one CPU sends.
//!
//! Sent one by one they would cost more than they cost the gateway. So the kernel is given many
//! at once and cuts them (`UDP_SEGMENT`); since the origin's interface has no segmentation
//! offload, that happens before they leave it, and each crosses the link as a packet of its own.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use topnet_lab::topology::{ORIGIN, Topology};

use super::GENERATOR_CPU;
use crate::cpus::pin;

/// Datagrams handed to the kernel with one call, at most; kernels before 6.9 cut no more.
const BATCH_MAX: usize = 64;
/// Bytes that one call can hand over.
const BATCH_BYTES_MAX: usize = 65_507;
/// Where the datagrams go: nobody listens.
const DISCARD_PORT: u16 = 9;
/// IPv4 and UDP header.
const HEADER_BYTES: usize = 28;

/// A running flood. Ends when it is dropped.
pub struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Flood {
    /// Floods `destination` from the origin with IPv4 packets of `packet_bytes`.
    pub fn start(topology: &Topology, destination: Ipv4Addr, packet_bytes: usize) -> Result<Flood> {
        let socket = topology.origin.enter(|| {
            let socket = UdpSocket::bind((ORIGIN, 0))?;
            socket.connect((destination, DISCARD_PORT))?;
            std::io::Result::Ok(socket)
        })?;
        let socket = socket.context("the generator has no socket")?;
        let payload_bytes = packet_bytes - HEADER_BYTES;
        setsockopt(&socket, UdpGsoSegment, &i32::try_from(payload_bytes)?)
            .context("the generator cannot send many datagrams at once")?;
        let batch = BATCH_MAX.min(BATCH_BYTES_MAX / payload_bytes);
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (ended, counted) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = thread::Builder::new()
            .name("generator".to_owned())
            .spawn(move || {
                pin(GENERATOR_CPU)?;
                send(&socket, batch, payload_bytes, &ended, &counted)
            })?;
        Ok(Flood {
            stop,
            sent,
            thread: Some(thread),
        })
    }

    /// Packets sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends it, and says if it had ended by itself.
    pub fn finish(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        thread
            .join()
            .map_err(|_| anyhow!("the generator panicked"))?
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Whoever wanted to know how it ended has asked.
            let _ = thread.join();
        }
    }
}

fn send(
    socket: &UdpSocket,
    batch: usize,
    payload_bytes: usize,
    stop: &AtomicBool,
    sent: &AtomicU64,
) -> Result<()> {
    let payloads = vec![0x5a; batch * payload_bytes];
    while !stop.load(Ordering::Relaxed) {
        match socket.send(&payloads) {
            Ok(_) => {
                sent.fetch_add(batch as u64, Ordering::Relaxed);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(error).context(
                    "the generator cannot send (where the interface makes no checksums, the \
                     kernel cuts datagrams from 6.11 on)",
                );
            }
        }
    }
    Ok(())
}
