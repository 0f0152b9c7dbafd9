//! The generator: datagrams of one length, at a rate or as fast as one CPU sends.
//!
//! The kernel is given a train of datagrams at once and cuts it (`UDP_SEGMENT`): before it leaves
//! the interface where that has no offloads, so that each crosses the link by itself, and
//! afterwards where it has. Sent one by one they would cost more than they cost the gateway.
//! With several sockets the trains leave by each in turn.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use rustix::thread::set_current_timer_slack;
use topnet_lab::interrupt::Interrupt;

/// Bytes that one call can hand over.
const TRAIN_BYTES_MAX: usize = 65_507;
/// Datagrams of a train, at most; kernels before 6.9 cut no more.
const TRAIN_MAX: usize = 64;
/// Trains a second at which rates are paced, if they are high enough.
const TRAINS_PER_S: f64 = 5_000.0;
/// How often a signal is looked for.
const LOOK: Duration = Duration::from_millis(25);

/// How fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// Datagrams a second.
    Rate(f64),
    /// As fast as it goes.
    Unlimited,
}

/// What was sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sent {
    /// Datagrams.
    pub datagrams: u64,
    /// In how long.
    pub elapsed: Duration,
}

impl Sent {
    /// Datagrams a second.
    pub fn rate(&self) -> f64 {
        self.datagrams as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// A generator on its sockets.
pub struct Load<'a> {
    sockets: Vec<&'a UdpSocket>,
    datagram_bytes: usize,
    train_max: usize,
}

impl<'a> Load<'a> {
    /// On connected sockets, in trains as long as they can be.
    pub fn new(
        sockets: impl IntoIterator<Item = &'a UdpSocket>,
        datagram_bytes: usize,
    ) -> Result<Load<'a>> {
        let sockets: Vec<_> = sockets.into_iter().collect();
        ensure!(!sockets.is_empty(), "the generator has no socket");
        for socket in &sockets {
            setsockopt(socket, UdpGsoSegment, &i32::try_from(datagram_bytes)?)
                .context("the generator cannot send many datagrams at once")?;
        }
        Ok(Load {
            sockets,
            datagram_bytes,
            train_max: TRAIN_MAX.min(TRAIN_BYTES_MAX / datagram_bytes),
        })
    }

    /// With trains of so many datagrams at most.
    #[must_use]
    pub fn with_trains_of(mut self, datagrams: usize) -> Load<'a> {
        self.train_max = self.train_max.min(datagrams).max(1);
        self
    }

    /// Whose socket sends a datagram: its place among the sockets.
    pub fn sender(&self, pace: Pace, datagram: usize) -> usize {
        datagram / train_length(pace, self.train_max) % self.sockets.len()
    }

    /// Sends the same datagrams again and again for so long.
    pub fn repeat(&self, pace: Pace, time: Duration, interrupt: &Interrupt) -> Result<Sent> {
        let train = vec![0x5a; self.train_max * self.datagram_bytes];
        self.send(pace, interrupt, time, |_, datagrams| {
            &train[..datagrams * self.datagram_bytes]
        })
    }

    /// Sends these datagrams, which lie one after the other, once.
    pub fn once(&self, pace: Pace, datagrams: &[u8], interrupt: &Interrupt) -> Result<Sent> {
        self.send(pace, interrupt, Duration::MAX, |from, count| {
            let from = from as usize * self.datagram_bytes;
            let to = (from + count * self.datagram_bytes).min(datagrams.len());
            &datagrams[from.min(to)..to]
        })
    }

    /// Sends what `train` gives for a first datagram's number and a count, until it gives nothing
    /// or the time is over.
    fn send<'b>(
        &self,
        pace: Pace,
        interrupt: &Interrupt,
        time: Duration,
        train: impl Fn(u64, usize) -> &'b [u8],
    ) -> Result<Sent> {
        // A sleep ends when it should, not when it suits.
        set_current_timer_slack(NonZeroU64::new(1))?;
        let length = train_length(pace, self.train_max);
        let began = Instant::now();
        let (mut sent, mut next_look) = (0, LOOK);
        loop {
            let elapsed = began.elapsed();
            let datagrams = train(sent, length);
            if elapsed >= time || datagrams.is_empty() {
                let datagrams = sent;
                return Ok(Sent { datagrams, elapsed });
            }
            if elapsed >= next_look {
                interrupt.check()?;
                next_look = elapsed + LOOK;
            }
            if let Some(early) = due(pace, sent).checked_sub(elapsed)
                && !early.is_zero()
            {
                std::thread::sleep(early.min(LOOK));
                continue;
            }
            let socket = self.sockets[self.sender(pace, sent as usize)];
            match socket.send(datagrams) {
                Ok(_) => sent += (datagrams.len() / self.datagram_bytes) as u64,
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    return Err(error).context(
                        "the generator cannot send (where the interface makes no checksums, the \
                         kernel cuts datagrams from 6.11 on)",
                    );
                }
            }
        }
    }
}

/// When, from the start, the datagram after `sent` others is due.
fn due(pace: Pace, sent: u64) -> Duration {
    match pace {
        Pace::Unlimited => Duration::ZERO,
        Pace::Rate(rate) => Duration::from_secs_f64(sent as f64 / rate),
    }
}

/// Short trains at low rates, so that they do not come in rare heaps.
fn train_length(pace: Pace, train_max: usize) -> usize {
    match pace {
        Pace::Unlimited => train_max,
        Pace::Rate(rate) => ((rate / TRAINS_PER_S) as usize).clamp(1, train_max),
    }
}

/// A signal, or somebody's ICMP message about an earlier datagram.
fn is_passing(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Interrupted | ErrorKind::ConnectionRefused
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trains_are_short_at_low_rates_and_datagrams_due_by_the_rate() {
        for (pace, length) in [
            (Pace::Rate(1_000.0), 1),
            (Pace::Rate(50_000.0), 10),
            (Pace::Rate(1e6), 45),
            (Pace::Unlimited, 45),
        ] {
            assert_eq!(train_length(pace, 45), length, "{pace:?}");
        }
        assert_eq!(due(Pace::Rate(1_000.0), 500), Duration::from_millis(500));
        assert_eq!(due(Pace::Unlimited, 500), Duration::ZERO);
    }

    #[test]
    fn all_datagrams_arrive_once_in_their_order() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(receiver.local_addr().unwrap()).unwrap();
        let datagrams: Vec<u8> = (0..70_u8).flat_map(|number| [number; 1000]).collect();
        let load = Load::new([&socket], 1000).unwrap();
        let interrupt = Interrupt::default();
        let sent = load.once(Pace::Rate(1e5), &datagrams, &interrupt).unwrap();
        assert_eq!(sent.datagrams, 70);
        for number in 0..70 {
            let mut received = [0; 2000];
            assert_eq!(receiver.recv(&mut received).unwrap(), 1000);
            assert_eq!(received[0], number);
        }
    }

    #[test]
    fn several_sockets_send_a_train_each_in_turn() {
        let pairs: Vec<_> = (0..3)
            .map(|_| {
                let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                socket.connect(receiver.local_addr().unwrap()).unwrap();
                (receiver, socket)
            })
            .collect();
        let datagrams: Vec<u8> = (0..20_u8).flat_map(|number| [number; 100]).collect();
        let load = Load::new(pairs.iter().map(|(_, socket)| socket), 100).unwrap();
        let load = load.with_trains_of(8);
        let (pace, interrupt) = (Pace::Unlimited, Interrupt::default());
        assert_eq!(
            load.once(pace, &datagrams, &interrupt).unwrap().datagrams,
            20
        );
        for number in 0..20 {
            let (receiver, _) = &pairs[load.sender(pace, number)];
            let mut received = [0; 200];
            assert_eq!(receiver.recv(&mut received).unwrap(), 100);
            assert_eq!(usize::from(received[0]), number);
            assert_eq!(load.sender(pace, number), number / 8);
        }
    }
}
