//! A small datagram every 10 ms through the tunnel and back: how long nothing comes back is how
//! long a call would be silent. TCP's own pauses do not hide it, and do not lengthen it.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use topnet_netns::Namespace;

use crate::topology::{ORIGIN, Topology};

/// How often a datagram leaves.
const PERIOD: Duration = Duration::from_millis(10);
/// What carries calls has packets of about this length.
const DATAGRAM_BYTES: usize = 160;

/// Sends and listens until it is stopped or dropped.
#[derive(Debug)]
pub struct Probe {
    stop: Arc<AtomicBool>,
    returned: Arc<AtomicU64>,
    echo: Option<JoinHandle<()>>,
    sender: Option<JoinHandle<Returns>>,
}

/// What came back.
#[derive(Clone, Copy, Debug)]
pub struct Returns {
    /// Datagrams that were sent.
    pub sent: u64,
    /// Those that came back.
    pub returned: u64,
    /// The longest that nothing came back after something had.
    pub silence_max: Duration,
    last: Option<Instant>,
}

impl Returns {
    const fn new() -> Self {
        Self {
            sent: 0,
            returned: 0,
            silence_max: Duration::ZERO,
            last: None,
        }
    }

    fn note(&mut self, now: Instant) {
        self.returned += 1;
        self.look(now);
        self.last = Some(now);
    }

    /// A silence that is not over counts as far as it goes.
    fn look(&mut self, now: Instant) {
        if let Some(last) = self.last {
            self.silence_max = self.silence_max.max(now.saturating_duration_since(last));
        }
    }
}

impl Probe {
    /// Starts it between the client, whose tunnel leads to the origin, and the origin.
    pub fn start(topology: &Topology) -> Result<Probe> {
        let socket = |namespace: &Namespace, address: SocketAddr| -> Result<UdpSocket> {
            let socket = namespace.enter(|| UdpSocket::bind(address))??;
            socket.set_read_timeout(Some(PERIOD))?;
            Ok(socket)
        };
        let there = socket(&topology.origin, (ORIGIN, 0).into())?;
        let here = socket(&topology.client, ([0, 0, 0, 0], 0).into())?;
        here.connect(there.local_addr()?)?;
        Ok(Self::between(here, there))
    }

    fn between(here: UdpSocket, there: UdpSocket) -> Probe {
        let (stop, returned) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (asked, told) = (Arc::clone(&stop), Arc::clone(&stop));
        let counted = Arc::clone(&returned);
        Probe {
            stop,
            returned,
            echo: Some(std::thread::spawn(move || echo(&there, &asked))),
            sender: Some(std::thread::spawn(move || send(&here, &told, &counted))),
        }
    }

    /// Datagrams that came back so far. Until there are some, no silence is measured.
    pub fn returned(&self) -> u64 {
        self.returned.load(Ordering::Relaxed)
    }

    /// Ends it and says what came back.
    pub fn stop(mut self) -> Result<Returns> {
        let returns = self.end();
        returns.ok_or_else(|| anyhow!("the probe panicked"))
    }

    fn end(&mut self) -> Option<Returns> {
        self.stop.store(true, Ordering::Relaxed);
        let returns = self.sender.take().and_then(|sender| sender.join().ok());
        if let Some(echo) = self.echo.take() {
            let _ = echo.join();
        }
        returns
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.end();
    }
}

/// Sends each datagram back until it is told to stop; the socket has a timeout.
pub(crate) fn echo(socket: &UdpSocket, stop: &AtomicBool) {
    let mut datagram = [0; DATAGRAM_BYTES];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((bytes, from)) = socket.recv_from(&mut datagram) {
            // What does not get away is lost, as on the way.
            let _ = socket.send_to(&datagram[..bytes], from);
        }
    }
}

fn send(socket: &UdpSocket, stop: &AtomicBool, returned: &AtomicU64) -> Returns {
    let mut returns = Returns::new();
    let mut next = Instant::now();
    let mut datagram = [0; DATAGRAM_BYTES];
    while !stop.load(Ordering::Relaxed) {
        // An error tells of an earlier datagram that somebody refused: it is lost too.
        if socket.send(&[0; DATAGRAM_BYTES]).is_ok() {
            returns.sent += 1;
        }
        next += PERIOD;
        loop {
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            // Zero would be no limit at all; the kernel rounds up to its own clock.
            let _ = socket.set_read_timeout(Some(left.max(Duration::from_micros(100))));
            match socket.recv(&mut datagram) {
                Ok(_) => {
                    returns.note(Instant::now());
                    returned.store(returns.returned, Ordering::Relaxed);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
    returns.look(Instant::now());
    returns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_while_it_runs_whether_anything_comes_back() {
        let socket = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(PERIOD)).unwrap();
            socket
        };
        let (here, there, deaf) = (socket(), socket(), socket());
        here.connect(there.local_addr().unwrap()).unwrap();
        let probe = Probe::between(here, there);
        let deadline = Instant::now() + Duration::from_secs(10);
        while probe.returned() < 3 {
            assert!(Instant::now() < deadline, "nothing comes back");
            std::thread::sleep(PERIOD);
        }
        assert!(probe.stop().unwrap().returned >= 3);

        let lonely = socket();
        lonely.connect(deaf.local_addr().unwrap()).unwrap();
        let probe = Probe::between(lonely, socket());
        std::thread::sleep(10 * PERIOD);
        assert_eq!(probe.returned(), 0);
        let returns = probe.stop().unwrap();
        assert_eq!((returns.returned, returns.silence_max), (0, Duration::ZERO));
    }

    #[test]
    fn the_longest_silence_is_between_two_returns_or_still_lasts() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut returns = Returns::new();
        for at in [1_000, 1_010, 1_310, 1_320] {
            returns.note(start + ms(at));
        }
        assert_eq!(returns.silence_max, ms(300), "the first wait is no silence");
        returns.look(start + ms(1_800));
        assert_eq!((returns.silence_max, returns.returned), (ms(480), 4));
    }
}
