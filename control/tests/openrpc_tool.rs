//! OpenRPC's own test tool calls the listeners as their documents say, with parameters that it makes
//! up out of the schemas and with those of our examples, and holds the answers against the schemas.
//!
//! The argument is the tool, as `cargo xtask openrpc` installs it.
#![allow(clippy::unwrap_used)]

mod stand_ins;

use std::{collections::BTreeSet, net::SocketAddr, path::Path, process::ExitCode};

use jsonrpsee::{core::client::ClientT, http_client::HttpClient, rpc_params};
use serde_json::{Value, json};
use stand_ins::{
    Setup,
    calls::{Call, calls},
};
use tokio::process::Command;

/// What made-up parameters may be refused with: there is no such channel, and no such checksum.
const REFUSED: [i64; 2] = [-32_000, -32_602];

#[tokio::main]
async fn main() -> ExitCode {
    let Some(tool) = std::env::args().nth(1) else {
        eprintln!("which tool? `cargo xtask openrpc` knows");
        return ExitCode::FAILURE;
    };
    let setup = Setup::start().await;
    let calls = calls(&setup);
    let public = document(&setup.public(), setup.listeners().public_address).await;
    let operator = document(&setup.operator(), setup.listeners().operator_address).await;
    let examples = with_examples(operator.clone(), &calls);
    let mut failures = 0;
    for (name, document, made_up) in [
        ("public methods, made-up parameters", public, true),
        ("all methods, made-up parameters", operator, true),
        ("all methods, our parameters", examples, false),
    ] {
        let file = setup.dir.path().join("openrpc.json");
        std::fs::write(&file, document.to_string()).unwrap();
        let called = run(Path::new(&tool), &file, &document).await;
        let answered = called.iter().filter(|call| call["valid"] == true).count();
        println!(
            "{name}: {} calls, {answered} answered as described",
            called.len()
        );
        for call in called.iter().filter(|call| call["valid"] != true) {
            let code = call["error"]["code"].as_i64();
            if !made_up || !code.is_some_and(|code| REFUSED.contains(&code)) {
                println!("{}", serde_json::to_string_pretty(call).unwrap());
                failures += 1;
            }
        }
    }
    match failures {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// A listener's document as the tool reads it: it knows OpenRPC up to 1.2.6, whose words ours are.
async fn document(client: &HttpClient, address: SocketAddr) -> Value {
    let document = client.request("rpc.discover", rpc_params![]).await;
    let mut document: Value = document.unwrap();
    document["openrpc"] = json!("1.2.6");
    document["servers"] = json!([{ "name": "here", "url": format!("http://{address}") }]);
    document
}

/// The tool calls a method with its examples if it has some. It wants the very result that they
/// name, or one that the schema takes; null is none of ours.
fn with_examples(mut document: Value, calls: &[Call]) -> Value {
    for method in document["methods"].as_array_mut().unwrap() {
        let of_method = calls.iter().filter(|(name, _)| method["name"] == *name);
        let examples = of_method.map(|(name, values)| {
            let parameters = method["params"].as_array().unwrap().iter();
            let params: Vec<Value> = parameters
                .zip(values)
                .map(|(parameter, value)| json!({ "name": parameter["name"], "value": value }))
                .collect();
            let result = json!({ "name": "none", "value": null });
            json!({ "name": name, "params": params, "result": result })
        });
        method["examples"] = examples.collect();
    }
    document
}

/// What the tool called, each with what it thinks of the answer. It speaks HTTP, so it is told to
/// leave out what needs a WebSocket.
async fn run(tool: &Path, file: &Path, document: &Value) -> Vec<Value> {
    let methods = document["methods"].as_array().unwrap();
    let subscriptions = methods.iter().filter_map(|method| {
        let ends = method["x-subscription"]["unsubscribe"].as_str()?;
        Some([method["name"].as_str()?, ends])
    });
    let skipped: Vec<&str> = subscriptions.flatten().collect();
    let output = Command::new("node")
        .arg(tool)
        .args(["--transport=http", "--reporters=json"])
        .arg(format!("--skip={}", skipped.join(",")))
        .arg("--schema")
        .arg(file)
        .output()
        .await
        .unwrap();
    let called: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
        let errors = String::from_utf8_lossy(&output.stderr);
        panic!("the tool gives no report: {errors}")
    });
    let names = methods
        .iter()
        .map(|method| method["name"].as_str().unwrap());
    let expected: BTreeSet<&str> = names.filter(|name| !skipped.contains(name)).collect();
    let tried = called
        .iter()
        .map(|call| call["methodName"].as_str().unwrap());
    assert_eq!(tried.collect::<BTreeSet<_>>(), expected);
    called
}
