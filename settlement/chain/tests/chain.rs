//! Chains as the rest of the process sees them: on disk, at their pace, through `kill -9`.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use support::{
    Add, Adder, GENESIS_SUM, INTERVAL, alone, decode, loopback, public_key, settle, sum, sum_key,
};
use topnet_account::{Hash, PublicKey};
use topnet_chain::{
    Chain, ChainConfig, ChainRuntime, EngineVerifier, Standing, StartError, Validator,
};
use topnet_ledger::machine::{Key, NONCES_AHEAD_MAX, Verifier as _};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn add(account: u8, nonce: u64, amount: u64) -> Add {
    Add {
        account,
        nonce,
        amount,
    }
}

/// Looks at a transaction after each block until it stands as wanted: which block tries it first
/// depends on the machine.
async fn until(chain: &Chain, id: &Hash, wanted: impl Fn(&Standing) -> bool) -> Standing {
    for _ in 0..100 {
        let standing = chain.standing(id);
        if wanted(&standing) {
            return standing;
        }
        chain.reached(chain.tip().height() + 1).await.unwrap();
    }
    chain.standing(id)
}

/// Whoever knows the validators can check what stands in the state, and nothing else passes.
async fn prove_values(chain: &Chain) {
    let key = sum_key(0);
    let proved = chain.prove_value(&key).await.unwrap().unwrap();
    let check = |genesis: Hash, validators: &[PublicKey], key: &Key, bytes: &[u8]| {
        EngineVerifier.prove_value(&genesis, validators, key, bytes)
    };
    let (genesis, ours) = (chain.genesis(), chain.validators());
    let (header, value) = check(genesis, ours, &key, &proved.bytes).unwrap();
    assert_eq!(header.height(), proved.height);
    assert_eq!(decode(Some(&value)), (GENESIS_SUM + 11, 2));
    let block = chain.block_at(proved.height).await.unwrap().unwrap();
    assert_eq!(header, block.header);

    assert_eq!(check(genesis, ours, &sum_key(1), &proved.bytes), None);
    assert_eq!(check(Hash([9; 32]), ours, &key, &proved.bytes), None);
    assert_eq!(check(genesis, &[public_key(9)], &key, &proved.bytes), None);
    for place in 0..proved.bytes.len() {
        let mut changed = proved.bytes.clone();
        changed[place] ^= 1;
        assert_eq!(
            check(genesis, ours, &key, &changed),
            None,
            "byte {place} of {}",
            changed.len()
        );
    }
    for length in [0, 1, proved.bytes.len() - 1] {
        assert_eq!(check(genesis, ours, &key, &proved.bytes[..length]), None);
    }
    assert_eq!(chain.prove_value(&sum_key(200)).await, Ok(None));
}

#[test]
fn a_transaction_becomes_final_and_anybody_can_check_that_it_did() {
    let storage = tempfile::tempdir().unwrap();
    let runtime = ChainRuntime::start(storage.path()).unwrap();
    block_on(async {
        let chain = runtime.launch(Adder, alone("main", 7)).await.unwrap();
        assert_eq!(sum(&chain, 0).await, (GENESIS_SUM, 0));

        // The second nonce comes first, and the first one lets both in.
        let (first, second) = (add(0, 0, 5), add(0, 1, 6));
        let second_id = chain.submit(second.bytes()).await.unwrap();
        assert_eq!(chain.submit(second.bytes()).await, Ok(second_id));
        let waiting = until(&chain, &second_id, |standing| {
            matches!(standing, Standing::Waiting(Some(_)))
        });
        let Standing::Waiting(Some(reason)) = waiting.await else {
            panic!()
        };
        assert_eq!(reason.code, "nonce_ahead");
        let first_id = chain.submit(first.bytes()).await.unwrap();
        settle(&chain, second).await;
        assert_eq!(sum(&chain, 0).await, (GENESIS_SUM + 11, 2));
        assert_eq!(chain.standing(&first_id), Standing::Unknown);
        // What the final state does not bear out may not even wait.
        let refused = [
            (vec![1], "malformed"),
            (add(0, 0, 99).bytes(), "nonce_behind"),
            (add(9, NONCES_AHEAD_MAX, 99).bytes(), "nonce_ahead"),
        ];
        for (bytes, code) in refused {
            assert_eq!(chain.submit(bytes).await.unwrap_err().code, code);
        }

        // What can never stand is dropped and the reason told.
        let never = chain.submit(add(0, 2, 0).bytes()).await.unwrap();
        let dropped = until(&chain, &never, |standing| {
            matches!(standing, Standing::Dropped(_))
        });
        let Standing::Dropped(reason) = dropped.await else {
            panic!()
        };
        assert_eq!(reason.code, "amount_zero");

        // Blocks form one chain, and their receipts are those of their transactions.
        let tip = chain.reached(10).await.unwrap();
        let mut parent = chain.block_at(0).await.unwrap().unwrap().hash;
        let mut receipts = Vec::new();
        for height in 1..=tip.height() {
            let block = chain.block_at(height).await.unwrap().unwrap();
            assert_eq!(block.header.height(), height);
            assert_eq!(block.header.parent(), parent);
            assert_eq!(block.header.hash(), block.hash);
            assert_eq!(block.transactions.len(), block.receipts.len());
            assert_eq!(block.block_events.is_empty(), height % 10 != 0);
            receipts.extend(block.receipts);
            parent = block.hash;
        }
        assert_eq!(receipts.len(), 2);
        assert_eq!(receipts[0].id, first_id);
        assert_eq!(receipts[1].events, 6u64.to_be_bytes());
        assert_eq!(chain.block_at(u64::MAX).await, Ok(None));

        prove_values(&chain).await;

        // Whoever knows the validators can check what is final.
        let proof = chain.proof_from(3).await.unwrap().unwrap();
        let block = chain.block_at(proof.height).await.unwrap().unwrap();
        let check = |chain: Hash, validators: &[PublicKey], bytes: &[u8]| {
            EngineVerifier.final_header(&chain, validators, bytes)
        };
        let ours = chain.validators();
        let proved = check(chain.genesis(), ours, &proof.bytes).unwrap();
        assert_eq!(proved.height, proof.height);
        assert_eq!(proved.state_root, block.header.state_root());
        assert_eq!(proved.outbox, block.header.outbox());
        assert_eq!(
            check(Hash([9; 32]), ours, &proof.bytes),
            None,
            "another chain"
        );
        assert_eq!(
            check(chain.genesis(), &[public_key(9)], &proof.bytes),
            None,
            "others"
        );
        let mut more = ours.to_vec();
        more.push(public_key(9));
        assert_eq!(
            check(chain.genesis(), &more, &proof.bytes),
            None,
            "one of two is no quorum"
        );
        for i in 0..proof.bytes.len() {
            let mut forged = proof.bytes.clone();
            forged[i] ^= 1;
            assert_eq!(check(chain.genesis(), ours, &forged), None, "byte {i}");
        }
        assert_eq!(
            check(chain.genesis(), ours, &[&proof.bytes[..], &[0]].concat()),
            None
        );
    });
    runtime.stop();
}

/// What another chain has accepted is proved although this one went on, and also when this one has
/// been halted since.
#[test]
fn a_past_state_is_made_anew_and_a_halted_chain_still_answers() {
    let storage = tempfile::tempdir().unwrap();
    let runtime = ChainRuntime::start(storage.path()).unwrap();
    let (early, root) = block_on(async {
        let chain = runtime.launch(Adder, alone("main", 7)).await.unwrap();
        settle(&chain, add(0, 0, 5)).await;
        let early = chain.tip();
        settle(&chain, add(0, 1, 6)).await;
        (early.height(), early.header.state_root())
    });
    runtime.stop();

    let runtime = ChainRuntime::start(storage.path()).unwrap();
    let tip = block_on(async {
        let halted = ChainConfig {
            halted: true,
            ..alone("main", 7)
        };
        let chain = runtime.launch(Adder, halted).await.unwrap();
        let tip = chain.tip().height();
        assert!(tip > early);
        assert_eq!(sum(&chain, 0).await, (GENESIS_SUM + 11, 2));

        let past = runtime.past_state(&chain, early);
        let proof = past.prove(&sum_key(0)).await.unwrap().unwrap();
        let value = EngineVerifier.state_value(&root, &sum_key(0), &proof);
        assert_eq!(decode(value.as_ref()), (GENESIS_SUM + 5, 1));
        assert_eq!(past.prove(&sum_key(9)).await, Ok(None));
        assert_eq!((past.height(), past.reached()), (early, early));

        let check =
            |root: &Hash, key: Key, proof: &[u8]| EngineVerifier.state_value(root, &key, proof);
        let later = chain.tip().header.state_root();
        assert_eq!(check(&later, sum_key(0), &proof), None);
        assert_eq!(check(&root, sum_key(1), &proof), None);
        for place in 0..proof.len() {
            let mut changed = proof.clone();
            changed[place] ^= 1;
            assert_eq!(check(&root, sum_key(0), &changed), None, "byte {place}");
        }

        tokio::time::sleep(10 * INTERVAL).await;
        assert_eq!(chain.tip().height(), tip);
        tip
    });
    runtime.stop();

    // Nothing of it has harmed the chain; the state that was made is found again.
    let runtime = ChainRuntime::start(storage.path()).unwrap();
    block_on(async {
        let chain = runtime.launch(Adder, alone("main", 7)).await.unwrap();
        chain.reached(tip + 3).await.unwrap();
        let past = runtime.past_state(&chain, early);
        assert!(past.prove(&sum_key(0)).await.unwrap().is_some());
    });
    runtime.stop();
}

#[test]
fn two_chains_keep_their_pace_side_by_side() {
    let storage = tempfile::tempdir().unwrap();
    let runtime = ChainRuntime::start(storage.path()).unwrap();
    block_on(async {
        let main = runtime.launch(Adder, alone("main", 1)).await.unwrap();
        let vpn = runtime.launch(Adder, alone("vpn", 2)).await.unwrap();
        settle(&main, add(1, 0, 1)).await;
        settle(&vpn, add(1, 0, 2)).await;
        assert_eq!((sum(&main, 1).await.0, sum(&vpn, 1).await.0), (1, 2));

        let began = Instant::now();
        let from = main.tip().height();
        main.reached(from + 10).await.unwrap();
        // Ten intervals; the first of them may have begun before.
        assert!(began.elapsed() >= 9 * INTERVAL, "{:?}", began.elapsed());
        for height in from + 1..from + 10 {
            let time_ms = |block: topnet_chain::FinalBlock| block.header.time_ms();
            let parent = time_ms(main.block_at(height - 1).await.unwrap().unwrap());
            let child = time_ms(main.block_at(height).await.unwrap().unwrap());
            assert!(child > parent, "height {height}");
        }
    });
    runtime.stop();
}

#[test]
fn what_cannot_start_says_why() {
    let storage = tempfile::tempdir().unwrap();
    let runtime = ChainRuntime::start(storage.path()).unwrap();
    let again = ChainRuntime::start(storage.path());
    assert!(matches!(again.err(), Some(StartError::StorageInUse(_))));
    type Change = fn(&mut ChainConfig);
    let changes: [(&str, Change); 5] = [
        ("its name", |config| config.name = "Main!".to_owned()),
        ("interval", |config| config.block_interval = Duration::ZERO),
        ("validators' keys", |config| config.validators.clear()),
        ("validators' keys", |config| {
            config.validators.push(config.validators[0])
        }),
        ("not among", |config| config.seed = [9; 32]),
    ];
    block_on(async {
        for (says, change) in changes {
            let mut config = alone("main", 1);
            change(&mut config);
            let error = runtime
                .launch(Adder, config)
                .await
                .err()
                .unwrap()
                .to_string();
            assert!(error.contains(says), "{error}");
        }
    });
    runtime.stop();
}

/// The node of [`a_killed_chain_loses_nothing_final`], in a process of its own.
#[test]
fn node_process() {
    let Ok(storage) = env::var("TOPNET_CHAIN_TEST_STORAGE") else {
        return;
    };
    let runtime = ChainRuntime::start(Path::new(&storage)).unwrap();
    block_on(async {
        let chain = runtime.launch(Adder, alone("main", 7)).await.unwrap();
        let (mut total, mut nonce) = sum(&chain, 1).await;
        println!("final {total} {nonce} {}", chain.tip().height());
        loop {
            settle(&chain, add(1, nonce, nonce + 1)).await;
            (total, nonce) = sum(&chain, 1).await;
            println!("final {total} {nonce} {}", chain.tip().height());
        }
    });
}

#[test]
fn a_killed_chain_loses_nothing_final() {
    let storage = tempfile::tempdir().unwrap();
    let (mut final_nonce, mut final_height) = (0, 0);
    for run in 0..4 {
        let mut node = Command::new(env::current_exe().unwrap())
            .args(["--exact", "node_process", "--nocapture"])
            .env("TOPNET_CHAIN_TEST_STORAGE", storage.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(node.stdout.take().unwrap()).lines();
        let mut heard = 0;
        for line in lines {
            let line = line.unwrap();
            let Some((_, numbers)) = line.split_once("final ") else {
                continue;
            };
            let numbers: Vec<u64> = numbers
                .split(' ')
                .map(|number| number.parse().unwrap())
                .collect();
            let [total, nonce, height] = numbers[..] else {
                panic!("{line}")
            };
            assert!(
                nonce >= final_nonce,
                "run {run}: {line}, after {final_nonce}"
            );
            assert!(
                height >= final_height,
                "run {run}: {line}, after {final_height}"
            );
            // Each nonce was applied once.
            assert_eq!(total, nonce * (nonce + 1) / 2, "run {run}: {line}");
            (final_nonce, final_height) = (nonce, height);
            heard += 1;
            if heard == 5 {
                break;
            }
        }
        assert_eq!(heard, 5, "run {run}: the node ended by itself");
        // At once, in the middle of whatever it does: SIGKILL.
        node.kill().unwrap();
        node.wait().unwrap();
    }
    assert!(final_nonce >= 12);
}

/// Names the file that a proof is written to, for
/// `settlement/light/tests/golden_proof.txt`.
const PROOF_FILE_VARIABLE: &str = "TOPNET_WRITE_PROOF";

/// A proof of four validators' chain, and what it takes to check it.
async fn proof_text(chain: &Chain) -> String {
    let key = sum_key(1);
    let proved = chain.prove_value(&key).await.unwrap().unwrap();
    let (genesis, validators) = (chain.genesis(), chain.validators());
    let (_, value) = EngineVerifier
        .prove_value(&genesis, validators, &key, &proved.bytes)
        .unwrap();
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let mut lines = vec![format!("chain {}", hex(genesis.as_ref()))];
    lines.extend(
        validators
            .iter()
            .map(|key| format!("validator {}", hex(&key.0))),
    );
    lines.push(format!("key {}", hex(&key.0)));
    lines.push(format!("value {}", hex(&value)));
    lines.push(format!("height {}", proved.height));
    lines.push(format!("proof {}", hex(&proved.bytes)));
    lines.join("\n") + "\n"
}

/// Ports that were free a moment ago.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: [TcpListener; N] =
        std::array::from_fn(|_| TcpListener::bind(loopback(0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

#[test]
fn four_validators_agree_go_on_without_one_and_take_it_back() {
    let ports = free_ports::<4>();
    let validators: Vec<Validator> = (0..4)
        .map(|i| Validator {
            key: public_key(i + 1),
            address: loopback(ports[usize::from(i)]),
        })
        .collect();
    let storage: [_; 4] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
    let config = |i: usize| ChainConfig {
        genesis: Hash([42; 32]),
        validators: validators.clone(),
        listen: validators[i].address,
        ..alone("main", i as u8 + 1)
    };
    block_on(async {
        let start = |i: usize| {
            let runtime = ChainRuntime::start(storage[i].path()).unwrap();
            let config = config(i);
            async move {
                let chain = runtime.launch(Adder, config).await.unwrap();
                (runtime, chain)
            }
        };
        let mut nodes: Vec<(ChainRuntime, Chain)> = Vec::new();
        for i in 0..4 {
            nodes.push(start(i).await);
        }
        // One node's mempool is enough: it proposes when its turn comes.
        settle(&nodes[2].1, add(1, 0, 7)).await;

        if let Some(file) = env::var_os(PROOF_FILE_VARIABLE) {
            fs::write(file, proof_text(&nodes[0].1).await).unwrap();
        }

        let (runtime, gone) = nodes.pop().unwrap();
        let left_at = gone.tip().height();
        runtime.stop();
        settle(&nodes[0].1, add(1, 1, 8)).await;
        let height = nodes[0].1.tip().height();

        nodes.push(start(3).await);
        let back = &nodes[3].1;
        assert!(back.tip().height() >= left_at);
        back.reached(height + 2).await.unwrap();
        assert_eq!(sum(back, 1).await, (15, 2));
        for height in 1..=height {
            let hashes: Vec<Hash> = {
                let mut hashes = Vec::new();
                for (_, chain) in &nodes {
                    chain.reached(height).await.unwrap();
                    hashes.push(chain.block_at(height).await.unwrap().unwrap().hash);
                }
                hashes
            };
            assert!(
                hashes.iter().all(|hash| *hash == hashes[0]),
                "height {height}"
            );
        }
        for (runtime, _) in nodes {
            runtime.stop();
        }
    });
}

/// What another version has stored would be taken for damaged, and cut off.
#[test]
fn storage_of_another_version_is_refused_and_left_alone() {
    let storage = tempfile::tempdir().unwrap();
    ChainRuntime::start(storage.path()).unwrap().stop();
    // A start that was killed while it noted the version.
    fs::rename(
        storage.path().join("format"),
        storage.path().join("format.new"),
    )
    .unwrap();
    ChainRuntime::start(storage.path()).unwrap().stop();
    fs::write(storage.path().join("format"), "topnet-chain 99\n").unwrap();
    let refused = ChainRuntime::start(storage.path()).err().unwrap();
    assert!(refused.to_string().contains("topnet-chain 99"), "{refused}");
    fs::remove_file(storage.path().join("format")).unwrap();
    fs::create_dir(storage.path().join("main-blocks")).unwrap();
    let refused = ChainRuntime::start(storage.path()).err().unwrap();
    assert!(matches!(refused, StartError::Format { .. }), "{refused}");
    assert!(storage.path().join("main-blocks").exists());
}
