//! A disk that is full stops credit and loses nothing. Needs root, for a small file system.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
mod support;

use std::{fs, sync::atomic::Ordering, time::Duration};

use support::{CHANNEL, World, claim, until};
use topnet_log::prove;
use topnet_netns::root_tests;
use topnet_small_disk::SmallDisk;
use topnet_unit::UNIT_BYTES;

const MIB: u64 = 1 << 20;
const WINDOW: u64 = 64;
const DISK_BYTES: u64 = 32 * MIB;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_credit_and_loses_nothing() {
    if !root_tests() {
        return;
    }
    let mut world = World::start(600).await;
    let journal_dir = world.dir.path().join("data/metering");
    fs::create_dir_all(&journal_dir).unwrap();
    let disk = SmallDisk::mount(&journal_dir, DISK_BYTES, (0, 0)).unwrap();
    world.start_metering();
    world.plane.assign(1, 1);
    let _worker = world.plane.work();
    let wallet = world.start_wallet(WINDOW);
    let wanted = 400 * MIB + 1;
    world.plane.wanted.store(wanted, Ordering::Relaxed);
    for round in 1..=3 {
        let mark = round * 20 * MIB;
        until("the next filling", async || world.plane.forwarded() >= mark).await;
        let balloon = disk.fill().unwrap();
        until("the fault", async || {
            world.status().await.journal_fault.is_some()
        })
        .await;
        // Whatever is on its way uses up the credit that was given before.
        let mut before = world.plane.forwarded();
        until("the standstill", async || {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = world.plane.forwarded();
            std::mem::replace(&mut before, now) == now
        })
        .await;
        assert!(before < wanted);
        let status = world.status().await;
        assert!(status.frozen.unwrap().contains("journal"));
        assert_eq!(status.unpaid_bytes_now, 0);
        drop(balloon);
        until("credit", async || world.plane.forwarded() > before).await;
        assert_eq!(world.status().await.journal_fault, None);
    }
    world
        .plane
        .wanted
        .store(world.plane.forwarded(), Ordering::Relaxed);
    world.plane.retire();
    until("the acknowledgement", async || world.plane.is_unused()).await;
    let last = world.finish().await;
    let paid = wallet.ended().await;
    let (bytes, status) = (world.plane.forwarded(), &last.status);
    let owed = bytes.div_ceil(UNIT_BYTES);
    assert_eq!((status.metered_bytes, status.owed_units), (bytes, owed));
    assert_eq!(status.unpaid_bytes, 0);
    assert_eq!(claim(last.claim.as_ref().unwrap()).units(), Some(owed));
    assert!(paid.released_units >= status.accepted_units);

    // The archive is on the same disk: what it could not take it has by now.
    assert!(world.archived().await > 0);
    let lines = world.archive().lines_of(&CHANNEL).await.unwrap();
    assert_eq!(lines.last().map(|line| line.units), Some(owed));
    let root = last.claim.as_ref().unwrap().log_root;
    for place in 0..lines.len() {
        assert_eq!(prove(&lines, place).unwrap().root(), Some(root));
    }
}
