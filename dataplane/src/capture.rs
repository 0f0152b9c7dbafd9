//! Copies of inner packets for whoever looks for what is wrong (`topnet vpn capture`).
//!
//! A worker that is tapped copies a packet into a room that is free and never waits; where none is,
//! the copy is lost and counted. While nobody looks, a packet costs a branch. What peers send and are
//! sent is nobody's business but the operator's, so the socket is for root and the data plane's own
//! user alone.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam::queue::ArrayQueue;
use data_encoding::BASE64;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{sleep, timeout};
use topnet_api::{CAPTURE_ALL, CAPTURE_PEER, CAPTURE_REFUSED, CaptureRecord, pcap_header};

use crate::files::listen_private;
use crate::io::monotonic_ns;
use crate::service::Shared;
use crate::worker::Command;

/// Copies that may wait for whoever looks.
const ROOMS: usize = 1_024;
/// Bytes of the longest request.
const REQUEST_BYTES_MAX: usize = 64;
/// How long a connection may not say what it wants, or take nothing.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often waiting copies are looked for.
const LOOK_PERIOD: Duration = Duration::from_millis(5);
/// How long is rested when the system has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where workers put copies.
#[derive(Debug)]
pub struct Tap {
    /// Whose packets; everybody's if it is `None`.
    peer: Option<[u8; 32]>,
    empty: ArrayQueue<Box<Copied>>,
    full: ArrayQueue<Box<Copied>>,
    lost: AtomicU64,
}

#[derive(Debug)]
struct Copied {
    /// By the monotonic clock.
    at_ns: u64,
    bytes: usize,
    data: Box<[u8]>,
}

impl Tap {
    /// One with all its rooms, each of so many bytes, for one peer's packets or everybody's.
    #[must_use]
    pub fn new(peer: Option<[u8; 32]>, room_bytes: usize) -> Self {
        let tap = Self {
            peer,
            empty: ArrayQueue::new(ROOMS),
            full: ArrayQueue::new(ROOMS),
            lost: AtomicU64::new(0),
        };
        for _ in 0..ROOMS {
            let data = vec![0; room_bytes].into();
            let room = Copied {
                at_ns: 0,
                bytes: 0,
                data,
            };
            // There is room for all of them.
            let _ = tap.empty.push(Box::new(room));
        }
        tap
    }

    /// Copies a packet of this peer's, if it is looked for and there is room.
    pub(crate) fn copy(&self, peer: &[u8; 32], packet: &[u8], at_ns: u64) {
        if self.peer.is_some_and(|wanted| wanted != *peer) {
            return;
        }
        let Some(mut room) = self.empty.pop() else {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let Some(place) = room.data.get_mut(..packet.len()) else {
            self.lost.fetch_add(1, Ordering::Relaxed);
            let _ = self.empty.push(room);
            return;
        };
        place.copy_from_slice(packet);
        (room.bytes, room.at_ns) = (packet.len(), at_ns);
        // There are no more rooms than places.
        let _ = self.full.push(room);
    }

    /// Writes all that waits behind `out`, each packet after its record. `wall` is what the wall
    /// clock is ahead of the monotonic one.
    pub(crate) fn drain(&self, out: &mut Vec<u8>, wall: Duration) {
        // No more than there was at the first look, so that it ends.
        for _ in 0..self.full.len() {
            let Some(room) = self.full.pop() else {
                return;
            };
            let record = CaptureRecord::Packet {
                at: wall + Duration::from_nanos(room.at_ns),
                bytes: room.bytes as u32,
            };
            out.extend(record.to_bytes());
            out.extend(&room.data[..room.bytes]);
            let _ = self.empty.push(room);
        }
    }
}

/// The socket that captures are asked for at; it goes with this value.
pub(crate) struct CaptureSocket {
    path: PathBuf,
    listener: UnixListener,
    /// Held by the one that is under way.
    alone: Arc<Mutex<()>>,
}

impl CaptureSocket {
    pub(crate) fn listen(path: &Path) -> io::Result<Self> {
        Ok(Self {
            listener: listen_private(path)?,
            path: path.to_owned(),
            alone: Arc::default(),
        })
    }

    /// Answers for ever.
    pub(crate) async fn serve(&self, shared: &Arc<Shared>, room_bytes: usize) {
        loop {
            let Ok((connection, _)) = self.listener.accept().await else {
                sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let (shared, alone) = (Arc::clone(shared), Arc::clone(&self.alone));
            tokio::spawn(async move {
                let turn = alone.try_lock_owned().ok();
                // A connection that breaks is nobody's error but its own.
                let _ = answer(connection, &shared, turn, room_bytes).await;
            });
        }
    }
}

impl Drop for CaptureSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn answer(
    mut connection: UnixStream,
    shared: &Shared,
    turn: Option<OwnedMutexGuard<()>>,
    room_bytes: usize,
) -> io::Result<()> {
    let request = timeout(PATIENCE, request(&mut connection)).await??;
    let refused = match request {
        _ if turn.is_none() => "another capture is under way",
        None => "the request is none",
        Some(Some(peer)) if !shared.has_peer(&peer).await => "there is no peer with this key",
        Some(peer) => {
            let tap = Arc::new(Tap::new(peer, room_bytes));
            tracing::info!(one_peer = peer.is_some(), "inner packets are captured");
            shared.tap(Some(Arc::clone(&tap))).await;
            let handed_over = hand_over(&mut connection, &tap).await;
            shared.tap(None).await;
            tracing::info!("inner packets are captured no more");
            handed_over?;
            return end(&mut connection, &tap).await;
        }
    };
    let words = format!("{CAPTURE_REFUSED}{refused}\n");
    timeout(PATIENCE, connection.write_all(words.as_bytes())).await?
}

/// What is asked for: a peer's packets, or everybody's. `None` for anything else.
async fn request(connection: &mut UnixStream) -> io::Result<Option<Option<[u8; 32]>>> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') && line.len() < REQUEST_BYTES_MAX {
        line.push(connection.read_u8().await?);
    }
    Ok(wanted(&line))
}

fn wanted(line: &[u8]) -> Option<Option<[u8; 32]>> {
    let line = std::str::from_utf8(line).ok()?;
    if line == CAPTURE_ALL {
        return Some(None);
    }
    let key = line.strip_prefix(CAPTURE_PEER)?.strip_suffix('\n')?;
    let key = BASE64.decode(key.as_bytes()).ok()?.try_into().ok()?;
    Some(Some(key))
}

/// Hands copies over until the other side wants no more.
async fn hand_over(connection: &mut UnixStream, tap: &Tap) -> io::Result<()> {
    let wall = wall_ahead();
    let mut out = pcap_header().to_vec();
    loop {
        tap.drain(&mut out, wall);
        // Whole records, so that the end is found behind them.
        timeout(PATIENCE, connection.write_all(&out)).await??;
        let wait = if out.is_empty() {
            LOOK_PERIOD
        } else {
            Duration::ZERO
        };
        out.clear();
        // Whoever has enough closes his side, or is gone.
        if timeout(wait, connection.read_u8()).await.is_ok() {
            return Ok(());
        }
    }
}

/// Hands over what still waits, and says how many copies found no room.
async fn end(connection: &mut UnixStream, tap: &Tap) -> io::Result<()> {
    let mut out = Vec::new();
    tap.drain(&mut out, wall_ahead());
    let lost = tap.lost.load(Ordering::Relaxed);
    let lost = u32::try_from(lost).unwrap_or(u32::MAX);
    out.extend(CaptureRecord::End { lost }.to_bytes());
    timeout(PATIENCE, connection.write_all(&out)).await??;
    connection.shutdown().await
}

/// How much the wall clock is ahead of the one that packets are noted by.
fn wall_ahead() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let monotonic = Duration::from_nanos(monotonic_ns());
    now.unwrap_or_default().saturating_sub(monotonic)
}

impl Shared {
    async fn has_peer(&self, key: &[u8; 32]) -> bool {
        self.registry.lock().await.has_peer(key)
    }

    /// Has all workers copy packets there, or nowhere.
    async fn tap(&self, tap: Option<Arc<Tap>>) {
        let mut registry = self.registry.lock().await;
        for worker in self.workers.workers() {
            let command = Command::Tap(tap.clone());
            let take = |returned| self.take_back(&mut registry, returned);
            self.workers.send(worker, command, take).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_bounded_and_what_finds_no_room_is_counted() {
        let (one, other) = ([1; 32], [2; 32]);
        let tap = Tap::new(Some(one), 8);
        tap.copy(&other, b"not his", 1);
        tap.copy(&one, b"too long for it", 2);
        for _ in 0..ROOMS + 3 {
            tap.copy(&one, b"packet", 1_500_000);
        }
        assert_eq!(tap.lost.load(Ordering::Relaxed), 1 + 3);
        let mut out = Vec::new();
        tap.drain(&mut out, Duration::from_secs(7));
        let record = CaptureRecord::Packet {
            at: Duration::new(7, 1_500_000),
            bytes: 6,
        };
        let expected = [&record.to_bytes()[..], b"packet"].concat();
        assert_eq!(out, expected.repeat(ROOMS));
        // The rooms are free again.
        tap.copy(&one, b"more", 0);
        out.clear();
        tap.drain(&mut out, Duration::ZERO);
        assert_eq!(out[16..], *b"more");
        assert_eq!(tap.lost.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn requests_are_for_one_or_for_all() {
        assert_eq!(wanted(b"all\n"), Some(None));
        let peer = format!("peer={}\n", BASE64.encode(&[7; 32]));
        assert_eq!(wanted(peer.as_bytes()), Some(Some([7; 32])));
        for wrong in ["", "all", "peer=\n", "peer=AAAA\n", &peer[..peer.len() - 1]] {
            assert_eq!(wanted(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
