//! A small name server: it knows a few names, and remembers who asked for what.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};
use topnet_netns::Namespace;

const PORT: u16 = 53;
/// How long the end may take to be seen.
const LOOK: Duration = Duration::from_millis(100);
/// RFC 1035, section 2.3.4.
const MESSAGE_BYTES_MAX: usize = 512;
const HEADER_BYTES: usize = 12;
const LABEL_BYTES_MAX: usize = 63;
/// A response with authority, recursion desired and available.
const ANSWER: u16 = 0x8580;
const NO_SUCH_NAME: u16 = 3;
const TYPE_A: u16 = 1;

/// A running server. Ended when dropped.
#[derive(Debug)]
pub struct NameServer {
    asked: Arc<Mutex<BTreeSet<(IpAddr, String)>>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// Starts one in `namespace`, at `address`, that knows `name` and nothing else.
    pub fn start(
        namespace: &Namespace,
        address: Ipv4Addr,
        name: &'static str,
        has: Ipv4Addr,
    ) -> Result<Self> {
        let at = SocketAddr::from((address, PORT));
        let socket = namespace
            .enter(|| {
                let socket = UdpSocket::bind(at)?;
                socket.set_read_timeout(Some(LOOK))?;
                Ok::<_, std::io::Error>(socket)
            })?
            .with_context(|| format!("no name server can be at {at}"))?;
        let asked = Arc::new(Mutex::new(BTreeSet::new()));
        let ends = Arc::new(AtomicBool::new(false));
        let (seen, end) = (Arc::clone(&asked), Arc::clone(&ends));
        let serve = move || {
            let mut message = [0; MESSAGE_BYTES_MAX];
            while !end.load(Ordering::Relaxed) {
                let (length, from) = match socket.recv_from(&mut message) {
                    Ok(received) => received,
                    // An error is the echo of an answer that found nobody, or the time to look.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                    Err(_) => continue,
                };
                let Some(question) = Question::read(&message[..length]) else {
                    continue;
                };
                seen.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert((from.ip(), question.name.clone()));
                let has = (question.name == name).then_some(has);
                // Whoever is gone asks again.
                let _ = socket.send_to(&question.answer(has), from);
            }
        };
        let thread = std::thread::Builder::new()
            .name("name-server".to_owned())
            .spawn(serve)?;
        Ok(Self {
            asked,
            ends,
            thread: Some(thread),
        })
    }

    /// Who has asked for a name.
    pub fn askers(&self, name: &str) -> BTreeSet<IpAddr> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let of_name = asked.iter().filter(|(_, asked)| asked == name);
        of_name.map(|(from, _)| *from).collect()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it has been shown.
            let _ = thread.join();
        }
    }
}

/// A question, as RFC 1035 has it in section 4.
struct Question<'a> {
    id: [u8; 2],
    /// Name, type and class, as they came.
    bytes: &'a [u8],
    name: String,
    wants_address: bool,
}

impl<'a> Question<'a> {
    fn read(message: &'a [u8]) -> Option<Self> {
        let id = [*message.first()?, *message.get(1)?];
        let mut rest = message.get(HEADER_BYTES..)?;
        let all = rest;
        let mut labels = Vec::new();
        loop {
            let (&length, after) = rest.split_first()?;
            let length = usize::from(length);
            rest = after;
            if length == 0 {
                break;
            }
            if length > LABEL_BYTES_MAX {
                return None;
            }
            labels.push(String::from_utf8_lossy(rest.get(..length)?).to_lowercase());
            rest = &rest[length..];
        }
        let kind = u16::from_be_bytes([*rest.first()?, *rest.get(1)?]);
        let length = all.len() - rest.len() + 4;
        Some(Self {
            id,
            bytes: all.get(..length)?,
            name: labels.join("."),
            wants_address: kind == TYPE_A,
        })
    }

    /// The answer where the name `has` this address, or is not known.
    fn answer(&self, has: Option<Ipv4Addr>) -> Vec<u8> {
        let flags = match has {
            Some(_) => ANSWER,
            None => ANSWER | NO_SUCH_NAME,
        };
        // The only address of a name is its IPv4 address.
        let address = has.filter(|_| self.wants_address);
        let mut answer = self.id.to_vec();
        for field in [flags, 1, u16::from(address.is_some()), 0, 0] {
            answer.extend(field.to_be_bytes());
        }
        answer.extend(self.bytes);
        if let Some(address) = address {
            // The question's name; type A, class IN, good for 0 s, 4 bytes.
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
            answer.extend(address.octets());
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_and_answered() {
        let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend(b"\x06Behind\x03lab\0\0\x01\0\x01");
        let question = Question::read(&message).unwrap();
        assert_eq!(question.name, "behind.lab");
        let answer = question.answer(Some(Ipv4Addr::new(10, 77, 2, 2)));
        assert_eq!(answer[..4], [0xab, 0xcd, 0x85, 0x80]);
        assert_eq!(answer[6..8], [0, 1]);
        assert!(answer.ends_with(&[0, 4, 10, 77, 2, 2]));
        let unknown = question.answer(None);
        assert_eq!(unknown[2..8], [0x85, 0x83, 0, 1, 0, 0]);
        for end in 0..message.len() {
            assert!(Question::read(&message[..end]).is_none(), "{end}");
        }
    }
}
