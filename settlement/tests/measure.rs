#![allow(clippy::unwrap_used, dead_code)]
mod support;
use std::time::{Duration, Instant};
use support::*;
use topnet_api::ChainName;
use topnet_ledger::transaction::Action;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn measure() {
    let mut provider = Provider::new();
    let client = provider.start().await;
    let main = ChainName::main();
    let pid: String = {
        let out = std::process::Command::new("pgrep")
            .args(["-n", "-f", provider.dir.path().to_str().unwrap()])
            .output()
            .unwrap();
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    };
    let cpu = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let f: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
    };
    let rss = || {
        std::fs::read_to_string(format!("/proc/{pid}/status"))
            .unwrap()
            .lines()
            .find(|l| l.starts_with("VmRSS"))
            .unwrap()
            .to_owned()
    };
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (c0, h0, t0) = (
        cpu(),
        client
            .tip(soon(), main.clone())
            .await
            .unwrap()
            .unwrap()
            .block
            .height,
        Instant::now(),
    );
    tokio::time::sleep(Duration::from_secs(30)).await;
    let threads = || {
        let mut t: Vec<(String, f64, f64)> = Vec::new();
        for e in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let p = e.unwrap().path();
            let stat = std::fs::read_to_string(p.join("stat")).unwrap_or_default();
            if stat.is_empty() {
                continue;
            }
            let name = stat
                .split('(')
                .nth(1)
                .unwrap()
                .split(')')
                .next()
                .unwrap()
                .to_owned();
            let f: Vec<&str> = stat
                .rsplit(')')
                .next()
                .unwrap()
                .split_whitespace()
                .collect();
            t.push((
                name,
                f[11].parse::<f64>().unwrap() / 100.0,
                f[12].parse::<f64>().unwrap() / 100.0,
            ));
        }
        t.sort_by(|a, b| (b.1 + b.2).total_cmp(&(a.1 + a.2)));
        t
    };
    for (name, user, sys) in threads().into_iter().take(12) {
        println!("{name}: user {user} sys {sys}");
    }
    println!(
        "{}",
        std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap()
    );
    let (c1, h1, t) = (
        cpu(),
        client
            .tip(soon(), main.clone())
            .await
            .unwrap()
            .unwrap()
            .block
            .height,
        t0.elapsed().as_secs_f64(),
    );
    println!(
        "idle: {:.2} % CPU, {:.2} blocks/s/chain, {}",
        100.0 * (c1 - c0) / t,
        (h1 - h0) as f64 / t,
        rss()
    );
    let mut ms = Vec::new();
    for nonce in 0..100 {
        let tx = provider.order(
            &provider.main,
            nonce,
            Action::Transfer {
                to: provider.payee.address(),
                amount: top(1),
            },
        );
        let began = Instant::now();
        client
            .submit(soon(), main.clone(), tx.to_bytes())
            .await
            .unwrap()
            .unwrap();
        loop {
            let s = client
                .transaction(soon(), main.clone(), tx.id())
                .await
                .unwrap()
                .unwrap();
            if s.block.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        ms.push(began.elapsed().as_secs_f64() * 1000.0);
        tokio::time::sleep(Duration::from_millis(37)).await;
    }
    ms.sort_by(f64::total_cmp);
    println!(
        "submit to final ms: p50 {:.1} p90 {:.1} p99 {:.1} max {:.1}",
        ms[50], ms[90], ms[98], ms[99]
    );
    provider.kill();
    let began = Instant::now();
    let client = provider.start().await;
    let up = began.elapsed();
    let h = client
        .tip(soon(), main.clone())
        .await
        .unwrap()
        .unwrap()
        .block
        .height;
    loop {
        if client
            .tip(soon(), main.clone())
            .await
            .unwrap()
            .unwrap()
            .block
            .height
            > h
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    println!(
        "restart after kill: answers in {up:?}, next block in {:?}",
        began.elapsed()
    );
}
