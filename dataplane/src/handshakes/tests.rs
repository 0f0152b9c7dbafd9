//! The screener against clients in memory, without its thread but in the last two tests.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use rustix::event::{EventfdFlags, eventfd};

use super::forging::refit_first_mac;
use super::*;
use crate::drops::DropCounters;

const HERE: &str = "192.0.2.1:40000";
const ELSEWHERE: &str = "192.0.2.2:40000";
/// As many as are believed in a second.
const BELIEVED: usize = 1_000;
const INDEX: SessionIndex = SessionIndex(3);
const OWN: WorkerNumber = WorkerNumber(0);

/// A message as this worker received it.
fn received(worker: WorkerNumber, from: &str, message: &[u8]) -> Initiation {
    let remote: SocketAddr = from.parse().unwrap();
    let local = [10, 77, 1, 1].into();
    Initiation {
        worker,
        endpoint: Endpoint { remote, local },
        message: message.try_into().unwrap(),
    }
}

struct Bench {
    screening: Arc<Screening>,
    screener: Screener,
    drops: Arc<DropCounters>,
    identity: Arc<Identity>,
}

impl Bench {
    fn new() -> Self {
        let identity = Arc::new(Identity::new([9; 32]));
        let screening = Arc::<Screening>::default();
        let screener = Screener::new(Arc::clone(&screening), Arc::clone(&identity), 8);
        let drops = screener.drops();
        Self {
            screening,
            screener,
            drops,
            identity,
        }
    }

    /// A client that is a peer, and its key.
    fn peer(&self, secret: u8) -> (Tunn, [u8; 32]) {
        let (client, key) = client(&self.identity, secret);
        self.screening.tell(OWN, Notice::Installed(key, INDEX));
        (client, key)
    }

    fn submit(&self, from: &str, message: &[u8]) -> Result<(), DropReason> {
        self.screening.submit(received(OWN, from, message))
    }

    /// What comes of one message.
    fn screen(&mut self, from: &str, message: &[u8], now_ms: u64) -> Said {
        let before = dropped(&self.drops);
        self.submit(from, message).unwrap();
        let turn = self.screener.turn(now_ms);
        assert_eq!(turn.looked_at, 1);
        let said = match (
            self.screening.take_accepted(OWN),
            self.screening.take_cookie(OWN),
        ) {
            (Some(accepted), None) => Said::Accepted(accepted.index),
            (None, Some(reply)) => {
                assert_eq!(reply.endpoint.remote, from.parse().unwrap());
                Said::Cookie(reply.message.to_vec())
            }
            (None, None) => {
                let after = dropped(&self.drops);
                let new: Vec<_> = after
                    .into_iter()
                    .filter(|one| !before.contains(one))
                    .collect();
                let [(reason, _)] = new[..] else {
                    panic!("one reason: {new:?}");
                };
                Said::Dropped(reason)
            }
            both => panic!("{both:?}"),
        };
        assert_eq!(turn.answers > 0, !matches!(said, Said::Dropped(_)));
        said
    }

    /// Makes the second that `now_ms` is in a loud one.
    fn load(&mut self, now_ms: u64) {
        let (mut stranger, _) = client(&self.identity, 99);
        let message = initiation(&mut stranger);
        for n in 0..BELIEVED {
            let said = self.screen("198.51.100.1:1", &message, now_ms);
            assert_eq!(said, Said::Dropped(DropReason::PeerUnknown), "{n}");
        }
    }

    /// Looks at all that waits, so slowly that it is no load.
    fn work_off(&mut self) {
        let mut now_ms = 0;
        while self.screener.turn(now_ms).looked_at > 0 {
            now_ms += 1_000;
        }
    }

    /// Has `client` prove that it is at `from`, and returns an initiation that does.
    fn prove(&mut self, client: &mut Tunn, from: &str, now_ms: u64) -> Vec<u8> {
        let unproven = initiation(client);
        let Said::Cookie(reply) = self.screen(from, &unproven, now_ms) else {
            panic!("no cookie");
        };
        let mut buffer = [0; 2048];
        let taken = client.decapsulate(None, &reply, &mut buffer);
        assert!(matches!(taken, TunnResult::Done), "{taken:?}");
        initiation(client)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Said {
    Accepted(SessionIndex),
    Cookie(Vec<u8>),
    Dropped(DropReason),
}

fn client(gateway: &Identity, secret: u8) -> (Tunn, [u8; 32]) {
    let private = StaticSecret::from([secret; 32]);
    let key = PublicKey::from(&private).to_bytes();
    let client = Tunn::new(private, gateway.public, None, None, 1, None);
    (client, key)
}

fn initiation(client: &mut Tunn) -> Vec<u8> {
    // Their timestamps are to differ.
    std::thread::sleep(Duration::from_micros(1));
    match client.format_handshake_initiation(&mut [0; 2048], true) {
        TunnResult::WriteToNetwork(message) => message.to_vec(),
        other => panic!("{other:?}"),
    }
}

fn dropped(drops: &DropCounters) -> Vec<(DropReason, u64)> {
    let reasons = DropReason::ALL.iter();
    let counts = reasons.map(|reason| (*reason, drops.packets(*reason)));
    counts.filter(|(_, packets)| *packets > 0).collect()
}

fn event_counter() -> rustix::fd::OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_peers_initiation_is_accepted_once_and_a_strangers_never() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.peer(5);
    let (mut stranger, _) = client(&bench.identity, 6);
    let message = initiation(&mut peer);
    let dropped = |reason| Said::Dropped(reason);
    assert_eq!(bench.screen(HERE, &message, 0), Said::Accepted(INDEX));
    assert_eq!(
        bench.screen(HERE, &message, 1_000),
        dropped(DropReason::HandshakeInvalid),
        "somebody repeats it"
    );
    assert_eq!(
        bench.screen(HERE, &initiation(&mut stranger), 1_000),
        dropped(DropReason::PeerUnknown)
    );
    for (at, what) in [
        (120, "the first MAC"),
        (50, "the sender's key"),
        (100, "the time"),
    ] {
        let mut changed = initiation(&mut peer);
        changed[at] ^= 1;
        if at < 116 {
            // Whoever knows our key can make this one fit again.
            refit_first_mac(&bench.identity.public, &mut changed);
        }
        assert_eq!(
            bench.screen(HERE, &changed, 2_000),
            dropped(DropReason::HandshakeInvalid),
            "{what}"
        );
    }
    let last = initiation(&mut peer);
    assert_eq!(bench.screen(HERE, &last, 3_000), Said::Accepted(INDEX));
}

#[test]
fn a_peer_begins_no_more_than_twenty_handshakes_a_second() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.peer(5);
    let mut accepted = 0;
    for now_ms in 0..1_000 {
        match bench.screen(HERE, &initiation(&mut peer), now_ms) {
            Said::Accepted(_) => accepted += 1,
            said => assert_eq!(said, Said::Dropped(DropReason::HandshakeRate)),
        }
    }
    assert_eq!(accepted, 20);
}

#[test]
fn under_load_addresses_are_proved_and_then_limited() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.peer(5);
    bench.load(0);
    let proven = bench.prove(&mut peer, HERE, 1);
    assert!(
        matches!(bench.screen(ELSEWHERE, &proven, 2), Said::Cookie(_)),
        "what one address proves is nothing to another"
    );
    assert_eq!(bench.screen(HERE, &proven, 2), Said::Accepted(INDEX));

    // Somebody at another address proves it too and then does what he can. Nobody pays for it
    // but he, and the peer's own address was not worn out by all those who only named it.
    let (mut stranger, _) = client(&bench.identity, 6);
    let storm = bench.prove(&mut stranger, ELSEWHERE, 3);
    let said: Vec<_> = (0..50)
        .map(|_| bench.screen(ELSEWHERE, &storm, 4))
        .collect();
    let unknown = Said::Dropped(DropReason::PeerUnknown);
    let limited = Said::Dropped(DropReason::HandshakeRate);
    assert!(said[..5].iter().all(|said| *said == unknown), "{said:?}");
    assert!(said[5..].iter().all(|said| *said == limited), "{said:?}");
    let unproven = initiation(&mut stranger);
    let mut named = unproven.clone();
    named[132..].fill(0);
    for _ in 0..50 {
        assert!(matches!(bench.screen(HERE, &named, 5), Said::Cookie(_)));
    }
    let again = initiation(&mut peer);
    assert_eq!(bench.screen(HERE, &again, 60), Said::Accepted(INDEX));

    // The next second begins under load, and a quiet one ends it.
    named[132..].fill(0);
    assert!(matches!(
        bench.screen(ELSEWHERE, &named, 1_000),
        Said::Cookie(_)
    ));
    assert_eq!(bench.screen(ELSEWHERE, &named, 2_000), unknown);
}

#[test]
fn who_does_not_know_the_key_makes_no_load() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.peer(5);
    let mut junk = initiation(&mut peer);
    junk[120] ^= 1;
    let invalid = Said::Dropped(DropReason::HandshakeInvalid);
    for _ in 0..=BELIEVED {
        assert_eq!(bench.screen(HERE, &junk, 0), invalid);
    }
    let message = initiation(&mut peer);
    assert_eq!(bench.screen(HERE, &message, 0), Said::Accepted(INDEX));
}

#[test]
fn while_many_wait_no_address_is_believed() {
    let mut bench = Bench::new();
    let (mut stranger, _) = client(&bench.identity, 6);
    let message = initiation(&mut stranger);
    for _ in 0..2 * INITIATIONS_CROWD {
        bench.submit(HERE, &message).unwrap();
    }
    bench.work_off();
    let cookies = bench.screening.answers(OWN, Answer::Cookie);
    assert_eq!(cookies, INITIATIONS_CROWD);
    let unknown = INITIATIONS_CROWD as u64;
    assert_eq!(dropped(&bench.drops), [(DropReason::PeerUnknown, unknown)]);
}

#[test]
fn what_finds_a_full_queue_is_dropped_and_counted() {
    let mut bench = Bench::new();
    let (mut stranger, _) = client(&bench.identity, 6);
    let message = initiation(&mut stranger);
    for _ in 0..INITIATIONS_MAX {
        bench.submit(HERE, &message).unwrap();
    }
    assert_eq!(
        bench.submit(HERE, &message),
        Err(DropReason::HandshakeQueueFull)
    );
    // The worker does not take the cookies.
    bench.work_off();
    assert_eq!(bench.screening.answers(OWN, Answer::Cookie), COOKIES_MAX);
    let full = (INITIATIONS_MAX - INITIATIONS_CROWD - COOKIES_MAX) as u64;
    let expected = [
        (DropReason::HandshakeQueueFull, full),
        (DropReason::PeerUnknown, INITIATIONS_CROWD as u64),
    ];
    assert_eq!(dropped(&bench.drops), expected);
}

#[test]
fn the_screener_knows_whom_the_worker_has_a_session_for() {
    let mut bench = Bench::new();
    let (mut peer, key) = bench.peer(5);
    let unknown = Said::Dropped(DropReason::PeerUnknown);
    let first = initiation(&mut peer);
    assert_eq!(bench.screen(HERE, &first, 0), Said::Accepted(INDEX));
    bench.screening.tell(OWN, Notice::Removed(key, INDEX));
    assert_eq!(bench.screen(HERE, &initiation(&mut peer), 1_000), unknown);
    let other = SessionIndex(4);
    bench.screening.tell(OWN, Notice::Installed(key, other));
    bench.screening.tell(OWN, Notice::Removed(key, INDEX));
    assert_eq!(
        bench.screen(HERE, &initiation(&mut peer), 2_000),
        Said::Accepted(other),
        "a newer session is not removed with the older"
    );
}

/// A peer's session went from one worker to another and their notices come in any order, but each
/// one's in its own.
#[test]
fn a_peer_that_changes_workers_is_known_where_it_is() {
    let (one, other) = (WorkerNumber(0), WorkerNumber(1));
    for (before, now) in [(one, other), (other, one)] {
        let identity = Arc::new(Identity::new([9; 32]));
        let screening = Arc::new(Screening::new(2));
        let mut screener = Screener::new(Arc::clone(&screening), Arc::clone(&identity), 8);
        let (mut peer, key) = client(&identity, 5);
        let (had, has) = (SessionIndex::new(before, 7), SessionIndex::new(now, 7));
        screening.tell(now, Notice::Installed(key, has));
        screening.tell(before, Notice::Installed(key, had));
        screening.tell(before, Notice::Removed(key, had));
        let message = initiation(&mut peer);
        screening.submit(received(before, HERE, &message)).unwrap();
        assert_eq!(screener.turn(0).answers, 1);
        assert!(screening.take_accepted(before).is_none());
        assert_eq!(screening.take_accepted(now).unwrap().index, has);
        screening.tell(now, Notice::Removed(key, has));
        screener.turn(0);
        assert!(screener.knows_nobody());
    }
}

/// Whom the worker installed before it submitted what he sent is known, however busy the thread is.
#[test]
fn a_notice_is_heard_before_what_was_submitted_after_it() {
    const PEERS: u8 = 200;
    let bench = Bench::new();
    let peers: Vec<_> = (0..PEERS)
        .map(|secret| {
            let (mut peer, key) = client(&bench.identity, secret);
            (initiation(&mut peer), key)
        })
        .collect();
    let Bench {
        screening,
        screener,
        drops,
        ..
    } = bench;
    let _thread = screener.start(vec![event_counter()], &[]).unwrap();
    for (number, (message, key)) in peers.iter().enumerate() {
        screening.tell(OWN, Notice::Installed(*key, SessionIndex(number as u32)));
        screening.submit(received(OWN, HERE, message)).unwrap();
        // Not all at once: the thread is to be in the middle of a turn when most are installed.
        while screening.initiations.len() > 4 {
            std::thread::yield_now();
        }
    }
    eventually("all are looked at", || {
        let dropped: u64 = dropped(&drops).iter().map(|(_, packets)| packets).sum();
        screening.answers(OWN, Answer::Handshake) as u64 + dropped == u64::from(PEERS)
    });
    assert_eq!(dropped(&drops), []);
}

#[test]
fn another_key_of_the_interface_is_the_only_one_from_then_on() {
    let mut bench = Bench::new();
    let (mut before, _) = bench.peer(5);
    let first = initiation(&mut before);
    assert_eq!(bench.screen(HERE, &first, 0), Said::Accepted(INDEX));
    let identity = Arc::new(Identity::new([8; 32]));
    bench
        .screening
        .tell(OWN, Notice::Identity(Arc::clone(&identity)));
    let (mut after, _) = client(&identity, 5);
    assert_eq!(
        bench.screen(HERE, &initiation(&mut before), 1_000),
        Said::Dropped(DropReason::HandshakeInvalid)
    );
    let new = initiation(&mut after);
    assert_eq!(bench.screen(HERE, &new, 1_000), Said::Accepted(INDEX));
}

#[test]
fn the_thread_sleeps_wakes_the_worker_and_ends_with_its_handle() {
    let bench = Bench::new();
    let (mut peer, _) = bench.peer(5);
    let (mut stranger, _) = client(&bench.identity, 6);
    let Bench {
        screening,
        screener,
        drops,
        identity,
    } = bench;
    let wake = event_counter();
    let thread = screener
        .start(vec![wake.try_clone().unwrap()], &[])
        .unwrap();
    let submit = |message: Vec<u8>| screening.submit(received(OWN, HERE, &message)).unwrap();
    // It has nothing to do and sleeps, or will.
    std::thread::sleep(Duration::from_millis(20));
    submit(initiation(&mut stranger));
    eventually("the stranger is refused", || {
        drops.packets(DropReason::PeerUnknown) == 1
    });
    let mut counter = [0; 8];
    assert!(
        rustix::io::read(&wake, &mut counter).is_err(),
        "for nothing"
    );
    std::thread::sleep(Duration::from_millis(20));
    submit(initiation(&mut peer));
    eventually("the worker is woken", || {
        rustix::io::read(&wake, &mut counter).is_ok()
    });
    assert_eq!(screening.take_accepted(OWN).unwrap().index, INDEX);
    assert!(!thread.has_ended());
    submit(initiation(&mut stranger));
    drop(thread);
    assert_eq!(Arc::strong_count(&screening), 1);
    assert_eq!(Arc::strong_count(&identity), 1);
}

#[test]
fn a_thread_that_ends_by_itself_is_seen_to_have_ended() {
    let bench = Bench::new();
    let Bench {
        screening,
        screener,
        ..
    } = bench;
    let thread = screener.start(vec![event_counter()], &[]).unwrap();
    assert!(!thread.has_ended());
    thread.end_by_itself();
    eventually("it has ended", || thread.has_ended());
    drop(thread);
    assert_eq!(Arc::strong_count(&screening), 1);
}
