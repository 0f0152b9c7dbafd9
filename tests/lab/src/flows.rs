//! New flows all the time, each by a port of its own: short connections and datagrams that are
//! answered once. What is between client and origin has to forget them again, in as many ways as
//! flows end: closed by both ends, reset, or just silent.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use topnet_netns::Namespace;

use crate::{
    origin::{self, Origin},
    probe,
    topology::{ORIGIN, Topology},
};

/// Between two connections.
const CONNECTION_PERIOD: Duration = Duration::from_millis(250);
/// Between two datagrams.
const DATAGRAM_PERIOD: Duration = Duration::from_millis(125);
/// How long an answer may take. Longer than a lost packet's repetition.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// A datagram is not repeated.
const DATAGRAM_WAIT: Duration = Duration::from_secs(1);
/// Flows to it are forgotten sooner than others (RFC 4787 REQ-5 a).
const DNS_PORT: u16 = 53;
const OTHER_PORT: u16 = 5300;
/// What is fetched over a connection.
const FILE: &str = "short";
const FILE_BYTES: u64 = 4096;

/// Opens flows until it is stopped or dropped.
#[derive(Debug)]
pub struct Flows {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    threads: Vec<JoinHandle<()>>,
}

/// Flows so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Opened {
    /// Connections.
    pub connections: u64,
    /// Those over which the file came.
    pub connections_answered: u64,
    /// Ports that sent a datagram.
    pub datagrams: u64,
    /// Those that were answered.
    pub datagrams_answered: u64,
}

#[derive(Debug, Default)]
struct Counts {
    connections: Count,
    datagrams: Count,
}

#[derive(Debug, Default)]
struct Count {
    opened: AtomicU64,
    answered: AtomicU64,
}

impl Count {
    fn note(&self, answered: bool) {
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.answered
            .fetch_add(u64::from(answered), Ordering::Relaxed);
    }

    fn read(&self) -> (u64, u64) {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        (of(&self.opened), of(&self.answered))
    }
}

impl Opened {
    /// An error if more than one in ten came to nothing: some is lost on any path, no more.
    pub fn check(&self) -> Result<()> {
        for (opened, answered) in [
            (self.connections, self.connections_answered),
            (self.datagrams, self.datagrams_answered),
        ] {
            ensure!(
                opened > 0 && answered >= opened - opened / 10,
                "of the flows only so many were answered: {self:?}"
            );
        }
        Ok(())
    }
}

impl Flows {
    /// Opens flows from the client, whose tunnel leads to the origin.
    pub fn start(topology: &Topology, origin: &Origin) -> Result<Self> {
        origin.offer_random(FILE, FILE_BYTES)?;
        let (stop, counts) = (Arc::<AtomicBool>::default(), Arc::<Counts>::default());
        let mut flows = Self {
            stop: Arc::clone(&stop),
            counts: Arc::clone(&counts),
            threads: Vec::new(),
        };
        for port in [DNS_PORT, OTHER_PORT] {
            let socket = topology.origin.enter(|| UdpSocket::bind((ORIGIN, port)))?;
            let socket = socket.with_context(|| format!("port {port} of the origin"))?;
            socket.set_read_timeout(Some(DATAGRAM_PERIOD))?;
            let stop = Arc::clone(&stop);
            flows
                .threads
                .push(thread::spawn(move || probe::echo(&socket, &stop)));
        }
        let told = (Arc::clone(&stop), Arc::clone(&counts));
        let connect = move |number: u64| told.1.connections.note(connection(number).is_ok());
        let connecting = every(CONNECTION_PERIOD, told.0, connect, &topology.client)?;
        let send = move |number: u64| counts.datagrams.note(datagram(number).is_ok());
        let sending = every(DATAGRAM_PERIOD, stop, send, &topology.client)?;
        flows.threads.extend([connecting, sending]);
        Ok(flows)
    }

    /// How many there were so far.
    pub fn opened(&self) -> Opened {
        let (connections, connections_answered) = self.counts.connections.read();
        let (datagrams, datagrams_answered) = self.counts.datagrams.read();
        Opened {
            connections,
            connections_answered,
            datagrams,
            datagrams_answered,
        }
    }

    /// Opens no more of them and says how many there were.
    pub fn stop(mut self) -> Opened {
        self.end();
        self.opened()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // What it had to say is counted.
            let _ = thread.join();
        }
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        self.end();
    }
}

/// Does something again and again, told how often it was done, on a thread of that namespace.
fn every(
    period: Duration,
    stop: Arc<AtomicBool>,
    work: impl Fn(u64) + Send + 'static,
    namespace: &Namespace,
) -> Result<JoinHandle<()>> {
    let repeat = move || {
        let mut number = 0;
        while !stop.load(Ordering::Relaxed) {
            work(number);
            number += 1;
            thread::sleep(period);
        }
    };
    // A thread begins in the namespace of the one that makes it, and stays there.
    Ok(namespace.enter(|| thread::spawn(repeat))?)
}

/// Fetches the file; every other connection is reset before the client has read it.
fn connection(number: u64) -> Result<()> {
    let address = SocketAddr::from((ORIGIN, origin::PORT));
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_WAIT)?;
    stream.set_read_timeout(Some(ANSWER_WAIT))?;
    write!(stream, "GET /{FILE} HTTP/1.0\r\n\r\n")?;
    if number.is_multiple_of(2) {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        ensure!(answer.len() as u64 > FILE_BYTES, "the file was cut short");
    } else {
        // A socket that is closed with unread bytes sends a reset (RFC 1122, 4.2.2.13).
        ensure!(stream.peek(&mut [0])? == 1, "nothing came");
    }
    Ok(())
}

/// Sends a datagram from a new port, by turns to the two kinds of services.
fn datagram(number: u64) -> Result<()> {
    let port = [DNS_PORT, OTHER_PORT][(number % 2) as usize];
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((ORIGIN, port))?;
    socket.set_read_timeout(Some(DATAGRAM_WAIT))?;
    let sent = number.to_be_bytes();
    socket.send(&sent)?;
    let mut answer = [0; 16];
    let length = socket.recv(&mut answer)?;
    ensure!(answer[..length] == sent, "another datagram came back");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_ten_may_be_lost_and_no_more() {
        let opened = |answered| Opened {
            connections: 20,
            connections_answered: 20,
            datagrams: 100,
            datagrams_answered: answered,
        };
        assert!(opened(90).check().is_ok());
        assert!(opened(89).check().is_err());
        assert!(Opened::default().check().is_err());
    }
}
