//! Has a tool that we did not write call the RPC: OpenRPC's own, `@open-rpc/test-coverage`.
//!
//! It comes from npm with all that it needs, in the versions and with the digests of
//! `control/tests/coverage/package-lock.json`, into the target directory. That takes a network, so
//! `cargo xtask test` does without.

use crate::packages::is_command;
use crate::workspace::Workspace;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::process::Command;

/// What npm reads.
const MANIFESTS: [&str; 2] = ["package.json", "package-lock.json"];

/// `cargo xtask openrpc`.
pub fn run(workspace: &Workspace) -> Result<()> {
    for command in ["node", "npm"] {
        ensure!(
            is_command(command),
            "there is no {command} here: apt-get install nodejs npm"
        );
    }
    let home = workspace.target.join("openrpc");
    fs::create_dir_all(&home)?;
    for file in MANIFESTS {
        let from = workspace.root.join("control/tests/coverage").join(file);
        fs::copy(&from, home.join(file))
            .with_context(|| format!("{} cannot be copied", from.display()))?;
    }
    let status = Command::new("npm")
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
        .current_dir(&home)
        .status()
        .context("cannot start npm")?;
    ensure!(
        status.success(),
        "npm could not install the tool; see above"
    );
    let status = workspace
        .cargo()
        .args([
            "test",
            "--quiet",
            "--workspace",
            "--test",
            "openrpc_tool",
            "--",
        ])
        .arg(home.join("node_modules/.bin/open-rpc-test-coverage"))
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "the documents are not true; see above");
    Ok(())
}
