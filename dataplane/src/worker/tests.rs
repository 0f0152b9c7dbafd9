//! The worker between its queues, with nothing to receive.

use super::*;
use crate::accounting::OpenGate;
use crate::handshakes::NOTICES_MAX;
use crate::plane::PlaneConfig;
use crate::session::{Addresses, Payer, SessionPlan};
use crate::translation::Translation;
use etherparse::PacketBuilder;
use rustix::event::{EventfdFlags, eventfd};
use std::net::Ipv4Addr;
use topnet_account::ChannelId;
use topnet_config::InnerNetwork;
use topnet_nat::PoolPart;
use topnet_unit::Slot;

const INNER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);

/// Nothing comes. Notes the places of sessions whose timers are looked at.
#[derive(Default)]
struct Silence {
    looked: Vec<usize>,
}

impl Backend for Silence {
    const SPINS_MAX: u32 = 0;

    fn receive<G: Gate>(&mut self, _: &mut Plane<G>) -> io::Result<usize> {
        Ok(0)
    }

    fn tick<G: Gate>(&mut self, _: &mut Plane<G>, place: usize) {
        self.looked.push(place);
    }

    fn answer<G: Gate>(&mut self, _: &mut Plane<G>, _: Answer) -> bool {
        true
    }

    fn replace_forwarding<G: Gate>(
        &mut self,
        _: &mut Plane<G>,
        forwarding: Arc<Forwarding>,
    ) -> Arc<Forwarding> {
        forwarding
    }

    fn flush(&mut self) {}

    fn wait(&mut self, _: Duration) -> io::Result<()> {
        std::thread::yield_now();
        Ok(())
    }
}

fn plane() -> Plane<OpenGate> {
    let config = PlaneConfig {
        inner: None,
        inner_mtu: 1_420,
        sessions_max: 2 * NOTICES_MAX,
    };
    let identity = Arc::new(Identity::new([9; 32]));
    Plane::new(config, identity, OpenGate, Arc::default(), Instant::now())
}

fn screener_of(plane: &Plane<OpenGate>) -> ScreenerThread {
    let wake = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    plane.screener().start(vec![wake], &[]).unwrap()
}

/// Nobody would get a handshake any more, and nobody would be told.
#[test]
fn a_worker_does_not_outlive_its_screener() {
    let plane = plane();
    let screener = screener_of(&plane);
    screener.end_by_itself();
    let worker = Worker::new(Silence::default(), plane, Queues::default(), screener);
    assert!(worker.run().is_err());
}

#[test]
fn no_command_is_taken_that_the_screener_cannot_be_told_of() {
    let identity = Identity::new([9; 32]);
    let queues = Queues::default();
    for n in 0..=NOTICES_MAX as u32 {
        let plan = SessionPlan {
            index: SessionIndex(n),
            public_key: [n as u8; 32],
            payer: None,
            addresses: Addresses::Networks(Vec::new()),
            preshared_key: None,
            persistent_keepalive_s: 0,
            endpoint: None,
        };
        let session = Box::new(Session::new(&identity, plan));
        assert!(queues.commands.push(Command::Install(session)).is_ok());
    }
    // Somebody else's, so that nobody hears what this one tells.
    let screener = screener_of(&plane());
    let worker = Worker::new(Silence::default(), plane(), queues.clone(), screener);
    let worker = std::thread::spawn(move || worker.run());
    let deadline = Instant::now() + Duration::from_secs(10);
    while queues.commands.len() > 1 {
        assert!(Instant::now() < deadline, "{} wait", queues.commands.len());
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(queues.commands.len(), 1);
    queues.stop.store(true, Ordering::Relaxed);
    assert!(worker.join().unwrap().is_ok());
}

fn session(identity: &Identity, number: u8) -> Box<Session> {
    let payer = Payer {
        channel: ChannelId([number; 32]),
        slot: Slot {
            index: 1,
            generation: 1,
        },
    };
    let index = SessionIndex(number.into());
    let plan = SessionPlan::of_client(index, [number; 32], payer, INNER);
    Box::new(Session::new(identity, plan))
}

/// The next client has the number already when the worker looks.
#[test]
fn a_block_is_told_of_whoever_had_the_number_when_it_was_lent() {
    let section: topnet_config::Nat =
        serde_json::from_value(serde_json::json!({ "addresses": "198.51.100.0/30" })).unwrap();
    let mut translation = Translation::new(&section, 8, PoolPart::WHOLE, [1; 32]).unwrap();
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(INNER.octets(), [192, 0, 2, 1], 64).udp(1, 2);
    builder.write(&mut packet, b"x").unwrap();
    translation.out(0, 2, &mut packet).unwrap();
    let config = PlaneConfig {
        inner: Some(InnerNetwork::new(
            "10.78.0.0/24".parse().unwrap(),
            None,
            Ipv4Addr::new(10, 78, 0, 1),
        )),
        inner_mtu: 1420,
        sessions_max: 8,
    };
    let identity = Arc::new(Identity::new([9; 32]));
    let now = Instant::now();
    let mut plane = Plane::new(config, Arc::clone(&identity), OpenGate, Arc::default(), now)
        .with_translation(Some(translation));
    plane.install(session(&identity, 1));
    let screener = screener_of(&plane);
    let queues = Queues::default();
    for command in [
        Command::Remove(SessionIndex(1)),
        Command::Install(session(&identity, 2)),
    ] {
        assert!(queues.commands.push(command).is_ok());
    }
    let mut worker = Worker::new(Silence::default(), plane, queues.clone(), screener);
    worker.take_commands();
    worker.tick(now);
    let told: Vec<_> = std::iter::from_fn(|| queues.returned.pop())
        .map(|returned| match returned {
            Returned::Session(session) => ("session", Some(session.plan.public_key[0])),
            Returned::Forwarding(_) => ("forwarding", None),
            Returned::Reach(_) => ("reach", None),
            Returned::Tap(_) => ("tap", None),
            Returned::Sockets(_) => ("sockets", None),
            Returned::Block(event, holder) => {
                let whose = holder.map(|holder| holder.wireguard_public_key[0]);
                match event.kind {
                    BlockEventKind::Allocated => ("allocated", whose),
                    BlockEventKind::Released => ("released", whose),
                }
            }
        })
        .collect();
    let expected = [
        ("allocated", Some(1)),
        ("session", Some(1)),
        ("released", None),
    ];
    assert_eq!(told, expected);
}

/// A peer of the last run has no service until it is greeted.
#[test]
fn a_new_session_is_looked_at_at_once() {
    let (plane, queues) = (plane(), Queues::default());
    let screener = screener_of(&plane);
    let identity = Identity::new([9; 32]);
    let session = session(&identity, 1);
    let place = session.plan.index.place() as usize;
    assert!(queues.commands.push(Command::Install(session)).is_ok());
    let mut worker = Worker::new(Silence::default(), plane, queues, screener);
    worker.take_commands();
    assert_eq!(worker.io.looked, [place]);
}
