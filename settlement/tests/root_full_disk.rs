//! A full disk ends settlement with an error that says so, and loses nothing. Needs root, for a
//! small file system.
#![allow(clippy::unwrap_used)]

mod support;

use std::{fs, time::Duration};

use support::{Provider, balance, facts::World, settle, soon, top, until};
use topnet_api::ChainName;
use topnet_ledger::transaction::Action;
use topnet_netns::root_tests;
use topnet_small_disk::SmallDisk;

const DISK_BYTES: u64 = 64 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_ends_settlement_with_words_and_loses_nothing() {
    if !root_tests() {
        return;
    }
    let provider = Provider::with(|_| {}, 3_600_000);
    let storage = provider.storage_dir();
    fs::create_dir_all(&storage).unwrap();
    let disk = SmallDisk::mount(&storage, DISK_BYTES, (0, 0)).unwrap();
    let (mut world, mut facts) = World::on(provider).await;
    let main = ChainName::main();
    for nonce in 2..5 {
        let client = world.provider.start().await;
        assert_eq!(world.facts(&client).await.as_ref(), Ok(&facts));
        let payee = world.provider.payee.address();
        let before = balance(&client, &main, payee).await;
        let balloon = disk.fill().unwrap();
        // It is given whatever the disk does with it.
        let transfer = Action::Transfer {
            to: payee,
            amount: top(1),
        };
        let transfer = world.provider.order(&world.provider.main, nonce, transfer);
        let _ = client
            .submit(soon(), main.clone(), transfer.to_bytes())
            .await;
        let words = until("the end", async || {
            tokio::time::sleep(Duration::from_millis(20)).await;
            world.provider.ended()
        })
        .await;
        assert_says_so(&words);
        // Nor does it start while there is no room.
        if let Err(words) = world.provider.try_start().await {
            assert_says_so(&words);
        }
        world.provider.kill();
        drop(balloon);

        let client = world.provider.start().await;
        settle(&client, &main, &transfer).await;
        let after = balance(&client, &main, payee).await;
        assert_eq!(after.checked_sub(before), Some(top(1)));
        facts = world.facts(&client).await.unwrap();
        world.provider.kill();
    }
}

fn assert_says_so(words: &str) {
    let error = words.find("Error: ").map(|at| &words[at..]);
    let error = error.unwrap_or_else(|| panic!("no error: {words}"));
    assert!(error.contains("free the disk"), "{error}");
    assert!(error.contains("data/settlement"), "{error}");
}
