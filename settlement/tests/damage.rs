//! Damaged storage: settlement says where and what to do, or knows everything as before. It is
//! never wrong.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use support::facts::{Facts, World};

/// Until the index has read what the chains have.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
/// What an error may tell an operator to do.
const MENDS: [&str; 3] = ["restore", "move the directory away", "run the version"];

#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip,
    Cut,
    Zero,
    Lose,
}

impl Damage {
    const ALL: [Self; 4] = [Self::Flip, Self::Cut, Self::Zero, Self::Lose];

    fn apply(self, file: &Path) {
        let mut bytes = fs::read(file).unwrap();
        let middle = bytes.len() / 2;
        match self {
            Self::Flip => bytes[middle] ^= 0x10,
            Self::Cut => bytes.truncate(middle),
            Self::Zero => bytes[middle..].fill(0),
            Self::Lose => return fs::remove_file(file).unwrap(),
        }
        fs::write(file, bytes).unwrap();
    }
}

/// All files that hold something, below the directory, in order.
fn files(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if fs::metadata(&path).unwrap().len() > 0 {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// True if it knows everything, false if it has refused to start or to go on, with a mend.
async fn knows_all(world: &mut World, facts: &Facts) -> bool {
    let client = match world.provider.try_start().await {
        Ok(client) => client,
        Err(words) => {
            assert_mend(&words);
            return false;
        }
    };
    // Claims are brought again by whoever has them.
    let brought = world.bring_again(&client).await;
    let began = Instant::now();
    loop {
        if let Some(words) = world.provider.ended() {
            assert_mend(&words);
            return false;
        }
        let now = world.facts(&client).await;
        if now.as_ref() == Ok(facts) {
            assert_eq!(brought, Ok(()));
            return true;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "{now:#?}\ninstead of\n{facts:#?}\n{}",
            world.provider.words()
        );
        tokio::time::sleep(PAUSE).await;
    }
}

fn assert_mend(words: &str) {
    let error = words.lines().rfind(|line| line.starts_with("Error: "));
    let error = error.unwrap_or_else(|| panic!("no error: {words}"));
    let after = &words[words.find(error).unwrap()..];
    let says = MENDS.iter().any(|mend| after.contains(mend));
    assert!(says && error.contains("settlement/"), "{after}");
}

/// The engine keeps many files of one kind, and two copies of what it writes in place; and what
/// a service chain has of it is like main's.
fn is_like_another(name: &Path) -> bool {
    let name = name.to_string_lossy();
    let of_votes = name.contains("-simplex/") && !name.ends_with("01");
    // "right" in hexadecimal; the other is "left".
    let is_copy = name.ends_with("7269676874");
    let of_service = name.starts_with("chains/vpn/vpn-") && !name.contains("-value/");
    of_votes || is_copy || of_service
}

/// One damage to each file, another one to the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_damage_to_any_file_makes_a_wrong_state() {
    let (mut world, facts) = World::new().await;
    let storage = world.provider.storage_dir();
    let copy = world.provider.dir.path().join("copy");
    world.provider.copy_storage(&copy);
    let mut refused = 0;
    let mut names = files(&copy);
    names.retain(|file| !is_like_another(file.strip_prefix(&copy).unwrap()));
    for (place, file) in names.iter().enumerate() {
        let name = file.strip_prefix(&copy).unwrap();
        let damage = Damage::ALL[place % Damage::ALL.len()];
        println!("{damage:?} {}", name.display());
        world.provider.restore_storage(&copy);
        damage.apply(&storage.join(name));
        refused += usize::from(!knows_all(&mut world, &facts).await);
        world.provider.kill();
    }
    assert!(refused > 0, "no damage was noticed");
    world.provider.restore_storage(&copy);
    assert!(knows_all(&mut world, &facts).await);
}

/// The blocks are there and say that something was done; what it was is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_is_not_made_anew_without_the_receipts() {
    let (mut world, facts) = World::new().await;
    let storage = world.provider.storage_dir();
    fs::remove_dir_all(storage.join("index")).unwrap();
    assert!(knows_all(&mut world, &facts).await);
    world.provider.kill();

    fs::remove_dir_all(storage.join("index")).unwrap();
    // The engine itself notices all but the loss of everything at once.
    for part in ["key", "value", "metadata"] {
        let receipts = storage.join(format!("chains/vpn/vpn-receipts-{part}"));
        fs::remove_dir_all(receipts).unwrap();
    }
    assert!(!knows_all(&mut world, &facts).await);
    let words = world.provider.words();
    assert!(words.contains("receipts of block"), "{words}");
}
