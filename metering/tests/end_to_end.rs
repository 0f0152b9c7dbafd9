//! The metering process and a wallet over loopback: units counted in shared tables are paid
//! through QUIC, journalled and claimed, whoever is killed on the way.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::Write, net::UdpSocket, os::unix::net::UnixStream, sync::atomic::Ordering, time::Duration,
};

use support::{CHANNEL, UNIT_PRICE, World, claim, signer, until};
use topnet_account::Amount;
use topnet_api::{ChannelState, FinalClaim, SocketName};
use topnet_log::prove;
use topnet_unit::UNIT_BYTES;

const MIB: u64 = 1 << 20;
const WINDOW: u64 = 64;

/// Wants more, and waits for it.
async fn download(world: &World, bytes: u64) {
    let wanted = world.plane.wanted.fetch_add(bytes, Ordering::Relaxed) + bytes;
    until("the download", async || world.plane.forwarded() == wanted).await;
}

/// What must hold at the end, whatever happened on the way.
async fn reconcile(world: &World, last: &FinalClaim, released: u64) {
    let status = &last.status;
    let bytes = world.plane.forwarded();
    let owed = bytes.div_ceil(UNIT_BYTES);
    assert_eq!(status.metered_bytes, bytes, "counted to the byte");
    assert_eq!(status.usage_bytes, bytes);
    assert_eq!(status.owed_units, owed);
    assert_eq!(
        status.unpaid_bytes, 0,
        "nothing passed before it was paid for"
    );
    assert!(status.accepted_units >= owed);
    assert!(released >= status.accepted_units && released <= owed + WINDOW);
    let claim = claim(last.claim.as_ref().unwrap());
    assert_eq!(claim.voucher.voucher.channel, CHANNEL);
    assert!(claim.is_signed_by(&signer().public_key()));
    assert_eq!(
        claim.units(),
        Some(owed),
        "the claim is for exactly what is owed"
    );
    assert_eq!(
        claim.redeemable(),
        Some(Amount::from_ntop(owed * UNIT_PRICE))
    );
    assert_eq!(status.redeemable, Amount::from_ntop(owed * UNIT_PRICE));

    // Every unit has its line in the service log, and each line is proved against the claim,
    // wherever it is: while metering archives what is sealed, and after.
    proved(world, last, owed).await;
    let archived = world.archived().await;
    proved(world, last, owed).await;
    assert!(archived > 0 || owed < 16, "{owed} units, nothing archived");
}

async fn proved(world: &World, last: &FinalClaim, owed: u64) {
    let lines = world.archive().lines_of(&CHANNEL).await.unwrap();
    let root = last.claim.as_ref().unwrap().log_root;
    let mut units = 0;
    for (place, line) in lines.iter().enumerate() {
        assert_eq!(line.units_before, units);
        units = line.units;
        assert_eq!(prove(&lines, place).unwrap().root(), Some(root));
    }
    assert_eq!(units, owed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_units_are_paid_and_claimed_exactly() {
    let mut world = World::start(600).await;
    world.start_metering();
    world.plane.assign(1, 1);
    let _worker = world.plane.work();
    let wallet = world.start_wallet(WINDOW);
    download(&world, 150 * MIB + 1).await;
    let running = world.status().await;
    assert!(running.tokens > 0 && running.records > 0 && running.commits > 0);
    assert_eq!(running.connections, 1);
    // The least close window of all leaves a busy machine a quarter of a second.
    until("fresh headers", async || {
        world.status().await.frozen.is_none()
    })
    .await;
    // Settlement holds the claim for all of it, whatever happens here from now on.
    let owed = (150 * MIB + 1).div_ceil(UNIT_BYTES);
    until("the hand-over", async || {
        let held = world.chain.held.lock().unwrap();
        let units = held.get(&CHANNEL).and_then(|held| claim(held).units());
        units == Some(owed)
    })
    .await;
    let shown = world.wallet_status().unwrap();
    assert!(shown.accepted_units > 0 && shown.released_units >= shown.accepted_units);

    world.plane.retire();
    until("the acknowledgement", async || world.plane.is_unused()).await;
    let last = world.finish().await;
    let paid = wallet.ended().await;
    reconcile(&world, &last, paid.released_units).await;
    assert_eq!(paid.owed_units, last.status.owed_units);
    assert!(!paid.meter_above_own && !paid.meter_below_own);
    assert_eq!(
        world.finish().await.claim,
        last.claim,
        "repeating it gives the same answer"
    );
    assert_eq!(last.status.state, "finished");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_on_both_sides_cost_nobody_a_unit() {
    let mut world = World::start(600).await;
    world.start_metering();
    world.plane.assign(1, 1);
    let _worker = world.plane.work();
    let mut wallet = world.start_wallet(WINDOW);
    let wanted = 120 * MIB + 12_345;
    world.plane.wanted.store(wanted, Ordering::Relaxed);
    for round in 1..=6_u64 {
        let mark = wanted / 7 * round;
        until("the next kill", async || world.plane.forwarded() >= mark).await;
        match round % 3 {
            0 => {
                world.kill_metering();
                world.start_metering();
            }
            1 => {
                wallet.kill().await;
                wallet = world.start_wallet(WINDOW);
            }
            _ => {
                world.kill_metering();
                wallet.kill().await;
                wallet = world.start_wallet(WINDOW);
                world.start_metering();
            }
        }
    }
    until("the download", async || world.plane.forwarded() == wanted).await;
    let last = world.finish().await;
    let paid = wallet.ended().await;
    reconcile(&world, &last, paid.released_units).await;

    // What was finished stays so, also for the next run.
    world.kill_metering();
    world.start_metering();
    assert_eq!(world.finish().await.claim, last.claim);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_paying_is_stopped_within_the_window() {
    let mut world = World::start(600).await;
    world.start_metering();
    world.plane.assign(1, 1);
    let _worker = world.plane.work();
    let wallet = world.start_wallet(WINDOW);
    download(&world, 20 * MIB).await;
    wallet.kill().await;
    let before = world.plane.forwarded();
    world.plane.wanted.fetch_add(100 * MIB, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let stopped = world.plane.forwarded();
    assert!(
        stopped <= before + WINDOW * UNIT_BYTES,
        "{before} {stopped}"
    );
    let status = world.channel().await.unwrap();
    assert_eq!(
        stopped,
        status.accepted_units * UNIT_BYTES,
        "to the last paid byte"
    );
    assert_eq!(status.unpaid_bytes, 0);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.plane.forwarded(), stopped);

    let wallet = world.start_wallet(WINDOW);
    let wanted = world.plane.wanted.load(Ordering::Relaxed);
    until("the rest", async || world.plane.forwarded() == wanted).await;
    let last = world.finish().await;
    reconcile(&world, &last, wallet.ended().await.released_units).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_planes_death_loses_nothing_and_bills_nothing_twice() {
    let mut world = World::start(600).await;
    world.start_metering();
    world.plane.assign(1, 1);
    let _worker = world.plane.work();
    let wallet = world.start_wallet(WINDOW);
    download(&world, 30 * MIB + 7).await;
    for boot in 2..=3 {
        world.plane.reboot(boot);
        world.plane.assign(2, 1);
        download(&world, 10 * MIB + 7).await;
    }
    // A slot of the same run is left and taken again.
    world.plane.retire();
    until("the acknowledgement", async || world.plane.is_unused()).await;
    world.plane.assign(2, 2);
    download(&world, 10 * MIB).await;
    let last = world.finish().await;
    reconcile(&world, &last, wallet.ended().await.released_units).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credit_is_frozen_while_the_chains_are_not_heard_or_the_channel_closes() {
    // A quarter of the close window is a second.
    let mut world = World::start(40).await;
    world.start_metering();
    world.plane.assign(1, 1);
    let _worker = world.plane.work();
    let wallet = world.start_wallet(WINDOW);
    download(&world, 20 * MIB).await;

    world.chain.stalled.store(true, Ordering::Relaxed);
    until("the freeze", async || {
        world.channel().await.unwrap().state == "frozen"
    })
    .await;
    let stopped = world.plane.forwarded();
    let wanted = world.plane.wanted.fetch_add(5 * MIB, Ordering::Relaxed) + 5 * MIB;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.plane.forwarded(), stopped);
    world.chain.stalled.store(false, Ordering::Relaxed);
    until("the thaw", async || world.plane.forwarded() == wanted).await;

    *world.chain.state.lock().unwrap() = ChannelState::Closing { deadline: 99 };
    until("the freeze", async || {
        world.channel().await.unwrap().state == "frozen"
    })
    .await;
    let reason = world.channel().await.unwrap().reason.unwrap();
    assert!(reason.contains("closing"), "{reason}");
    let last = world.finish().await;
    reconcile(&world, &last, wallet.ended().await.released_units).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_at_the_doors_leaves_the_rest_alone() {
    let mut world = World::start(600).await;
    world.start_metering();
    world.plane.assign(1, 1);
    let _worker = world.plane.work();
    let wallet = world.start_wallet(WINDOW);
    download(&world, 5 * MIB).await;
    let noise = UdpSocket::bind("127.0.0.1:0").unwrap();
    for number in 0..5_000_u32 {
        let length = 1 + number as usize * 13 % 1400;
        let _ = noise.send_to(&vec![number as u8; length], world.payment);
    }
    let path = SocketName::Metering.below(&world.dir.path().join("run"));
    for garbage in [
        &b"\0\0\0\x05hello"[..],
        b"\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        UnixStream::connect(&path)
            .unwrap()
            .write_all(garbage)
            .unwrap();
    }
    // Strangers, unknown channels and other people's channels get no service.
    for seed in [50, 51] {
        let stranger = topnet_channel::SecretKey::from_seed([seed; 32]).unwrap();
        let link = topnet_link::connect(world.payment, world.identity(), &stranger)
            .await
            .unwrap();
        let (mut sender, mut receiver) = link.split();
        let hello = topnet_channel::PayerMessage::Hello {
            version: topnet_channel::PROTOCOL_VERSION,
            channel: if seed == 50 {
                CHANNEL
            } else {
                topnet_account::ChannelId([77; 32])
            },
        };
        sender.send(&hello.to_bytes()).await.unwrap();
        let answer = receiver.recv().await.unwrap().unwrap();
        assert_eq!(
            topnet_channel::PayeeMessage::from_bytes(&answer).unwrap(),
            topnet_channel::PayeeMessage::Refused(topnet_channel::RefusalCode::UnknownChannel)
        );
    }
    download(&world, 20 * MIB).await;
    let last = world.finish().await;
    reconcile(&world, &last, wallet.ended().await.released_units).await;
}
