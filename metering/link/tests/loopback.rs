//! Two keys, one loopback: who may speak to whom, and what garbage does.
#![allow(clippy::unwrap_used)]

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};
use topnet_channel::SecretKey;
use topnet_link::{Connection, Dialer, FRAME_BYTES_MAX, Limits, LinkError, Listener, connect};

const PATIENCE: Duration = Duration::from_secs(10);

fn key(byte: u8) -> SecretKey {
    SecretKey::from_seed([byte; 32]).unwrap()
}

fn listener(connections_max: usize) -> (Listener, SocketAddr) {
    let known = key(2).public_key();
    let limits = Limits {
        connections_max,
        known: Arc::new(move |key| *key == known),
    };
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into(), &key(1), limits).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn accept(listener: &mut Listener) -> Connection {
    timeout(PATIENCE, listener.accept()).await.unwrap().unwrap()
}

/// A link from `payer` with one frame exchanged each way.
async fn link(listener: &mut Listener, address: SocketAddr, payer: &SecretKey) -> [Connection; 2] {
    let mut near = connect(address, key(1).public_key(), payer).await.unwrap();
    near.sender.send(b"hello").await.unwrap();
    let mut far = accept(listener).await;
    assert_eq!(far.receiver.recv().await.unwrap().unwrap(), b"hello");
    far.sender.send(b"welcome").await.unwrap();
    assert_eq!(near.receiver.recv().await.unwrap().unwrap(), b"welcome");
    [near, far]
}

#[tokio::test]
async fn each_end_sees_the_other_ends_key() {
    let (mut listener, address) = listener(8);
    let [near, mut far] = link(&mut listener, address, &key(2)).await;
    assert_eq!(near.peer, key(1).public_key());
    assert_eq!(far.peer, key(2).public_key());
    near.sender.finish().await;
    assert_eq!(far.receiver.recv().await.unwrap(), None);
}

#[tokio::test]
async fn an_unexpected_key_is_not_spoken_to() {
    let (mut listener, address) = listener(8);
    let refused = connect(address, key(9).public_key(), &key(2))
        .await
        .unwrap_err();
    let LinkError::WrongKey {
        expected, found, ..
    } = refused
    else {
        panic!("{refused}")
    };
    assert_eq!(
        (expected, found),
        (key(9).public_key(), key(1).public_key())
    );
    link(&mut listener, address, &key(2)).await;
}

#[tokio::test]
async fn frames_of_every_length_arrive_and_longer_ones_do_not_leave() {
    let (mut listener, address) = listener(8);
    let [mut near, mut far] = link(&mut listener, address, &key(2)).await;
    for length in [0, 1, 2, 255, 256, FRAME_BYTES_MAX] {
        near.sender.send(&vec![7; length]).await.unwrap();
        assert_eq!(far.receiver.recv().await.unwrap().unwrap(), vec![7; length]);
    }
    let refused = near.sender.send(&[0; FRAME_BYTES_MAX + 1]).await;
    assert!(matches!(refused, Err(LinkError::FrameTooLong(_))));
}

#[tokio::test]
async fn a_cancelled_receive_loses_nothing() {
    let (mut listener, address) = listener(8);
    let [mut near, mut far] = link(&mut listener, address, &key(2)).await;
    for number in 0..200_u8 {
        assert!(timeout(Duration::ZERO, far.receiver.recv()).await.is_err());
        near.sender.send(&[number; 300]).await.unwrap();
        let frame = timeout(PATIENCE, far.receiver.recv())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(frame.unwrap(), [number; 300]);
    }
}

/// A crash sends nothing: neither does a runtime that ends with all its tasks.
#[tokio::test]
async fn a_listener_that_comes_back_ends_the_links_of_its_last_run() {
    let crashing = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (mut first, address) = {
        let _inside = crashing.enter();
        listener(8)
    };
    let [mut near, far] = link(&mut first, address, &key(2)).await;
    // Elsewhere, because it waits until the tasks are gone.
    std::thread::spawn(move || drop(crashing)).join().unwrap();
    drop((first, far));
    let limits = Limits {
        connections_max: 8,
        known: Arc::new(|_| true),
    };
    let mut again = Listener::bind(address, &key(1), limits).unwrap();
    near.sender.send(b"hello?").await.unwrap();
    let ended = timeout(PATIENCE, near.receiver.recv()).await;
    assert!(matches!(ended, Ok(Err(LinkError::Lost(_)))), "{ended:?}");
    link(&mut again, address, &key(2)).await;
}

#[tokio::test]
async fn garbage_on_the_port_leaves_others_alone() {
    let (mut listener, address) = listener(8);
    let [mut near, mut far] = link(&mut listener, address, &key(2)).await;
    let noise = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for number in 0..2_000_u32 {
        let mut packet = [(number % 251) as u8; 1300];
        packet[..4].copy_from_slice(&number.wrapping_mul(2_654_435_761).to_le_bytes());
        let length = 1 + number as usize * 7 % 1300;
        let _ = noise.send_to(&packet[..length], address);
    }
    near.sender.send(b"still here").await.unwrap();
    assert_eq!(far.receiver.recv().await.unwrap().unwrap(), b"still here");
    link(&mut listener, address, &key(3)).await;
}

#[tokio::test]
async fn in_a_crowd_known_keys_come_in_and_strangers_do_not() {
    let (mut listener, address) = listener(4);
    let mut links = Vec::new();
    for stranger in [10, 11] {
        links.push(link(&mut listener, address, &key(stranger)).await);
    }
    let stranger = connect(address, key(1).public_key(), &key(12)).await;
    if let Ok(mut stranger) = stranger {
        let _ = stranger.sender.send(b"hello").await;
        assert!(stranger.receiver.recv().await.is_err());
    }
    links.push(link(&mut listener, address, &key(2)).await);
}

#[tokio::test]
async fn links_from_one_port_have_each_its_key_and_outlive_the_dialer() {
    let (mut listener, address) = listener(8);
    let dialer = Dialer::new(address).unwrap();
    let (mut near, mut far) = (Vec::new(), Vec::new());
    for number in [20, 21] {
        let mut link = dialer
            .connect(key(1).public_key(), &key(number))
            .await
            .unwrap();
        link.sender.send(b"hello").await.unwrap();
        let mut other = accept(&mut listener).await;
        assert_eq!(other.receiver.recv().await.unwrap().unwrap(), b"hello");
        assert_eq!(other.peer, key(number).public_key());
        near.push(link);
        far.push(other);
    }
    drop(dialer);
    assert_eq!(far[0].remote.port(), far[1].remote.port());
    far[0].sender.send(b"welcome").await.unwrap();
    let frame = near[0].receiver.recv().await.unwrap().unwrap();
    assert_eq!(frame, b"welcome");
    let (sent, received) = (near[0].traffic.sent(), near[0].traffic.received());
    assert!(sent.datagrams > 0 && sent.bytes > 1_200 && received.bytes > 1_200);
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let limits = Limits {
        connections_max: 1,
        known: Arc::new(|_| true),
    };
    let error = Listener::bind(address, &key(1), limits)
        .unwrap_err()
        .to_string();
    assert!(error.contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn nobody_there_is_an_error_in_time() {
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = silent.local_addr().unwrap();
    let error = timeout(PATIENCE, connect(address, key(1).public_key(), &key(2)))
        .await
        .unwrap();
    assert!(matches!(error, Err(LinkError::Connect { .. })));
}

/// What is between a payer and the listener.
#[derive(Default)]
struct Nat {
    /// It is to take another port towards the listener.
    moves: Notify,
    /// Retry packets (RFC 9000, 17.2.5) that came by.
    retries: AtomicUsize,
}

/// Passes datagrams on.
async fn nat(front: tokio::net::UdpSocket, listener: SocketAddr, nat: Arc<Nat>) {
    let fresh = async || tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (mut back, mut payer) = (fresh().await, None);
    let (mut up, mut down) = ([0; 2048], [0; 2048]);
    loop {
        tokio::select! {
            received = front.recv_from(&mut up) => {
                let (length, from) = received.unwrap();
                payer = Some(from);
                back.send_to(&up[..length], listener).await.unwrap();
            }
            received = back.recv_from(&mut down) => {
                let (length, _) = received.unwrap();
                nat.retries.fetch_add((down[0] >> 4 == 0xf).into(), Ordering::Relaxed);
                front.send_to(&down[..length], payer.unwrap()).await.unwrap();
            }
            () = nat.moves.notified() => back = fresh().await,
        }
    }
}

#[tokio::test]
async fn a_link_survives_that_its_payers_address_changes() {
    let (mut listener, address) = listener(8);
    let front = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let through = front.local_addr().unwrap();
    let between = Arc::new(Nat::default());
    let nat = tokio::spawn(nat(front, address, Arc::clone(&between)));
    let [mut near, mut far] = link(&mut listener, through, &key(2)).await;
    for number in 0..6_u8 {
        between.moves.notify_one();
        tokio::task::yield_now().await;
        near.sender.send(&[number]).await.unwrap();
        let heard = timeout(PATIENCE, far.receiver.recv()).await.unwrap();
        assert_eq!(heard.unwrap().unwrap(), [number]);
        far.sender.send(&[number, number]).await.unwrap();
        let heard = timeout(PATIENCE, near.receiver.recv()).await.unwrap();
        assert_eq!(heard.unwrap().unwrap(), [number, number]);
    }
    nat.abort();
}

#[tokio::test]
async fn while_many_handshakes_are_under_way_addresses_answer_first() {
    let (mut listener, address) = listener(1_000);
    let front = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let through = front.local_addr().unwrap();
    let between = Arc::new(Nat::default());
    let nat = tokio::spawn(nat(front, address, Arc::clone(&between)));
    link(&mut listener, through, &key(3)).await;
    assert_eq!(between.retries.load(Ordering::Relaxed), 0, "nobody is here");

    // The listener waits for the first frame of each.
    let dialer = Dialer::new(address).unwrap();
    let mut silent = Vec::new();
    for number in 0..64 {
        let key = key(100 + number);
        silent.push(dialer.connect(self::key(1).public_key(), &key).await);
    }
    assert!(silent.iter().all(Result::is_ok));
    link(&mut listener, through, &key(4)).await;
    assert_eq!(between.retries.load(Ordering::Relaxed), 1);
    nat.abort();
}
