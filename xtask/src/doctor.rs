//! What the machine must have, what is missing, and the command that mends it.

use crate::elevate::{Privilege, privilege};
use crate::workspace::Workspace;
use crate::{ebpf, install, kernel, packages};
use anyhow::{Result, bail};
use serde::Serialize;
use std::io::{IsTerminal, Write};

/// What a requirement is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// Compiling the workspace.
    Build,
    /// The checks of `cargo xtask test`, beside compiling.
    Test,
    /// Tests that need root, the lab and the benchmarks.
    Lab,
    /// Building the BPF object anew; the sources come with one.
    Bpf,
}

/// One requirement and its state.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What is required.
    pub name: String,
    /// What needs it.
    pub group: Group,
    /// True if it is there.
    pub ok: bool,
    /// What was found, or what it is for.
    pub detail: String,
    /// What a person does about it, if it is missing.
    pub mend: Option<String>,
    /// What `--install` does about it.
    #[serde(skip)]
    pub install: Option<Installable>,
}

/// Something that we can install ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installable {
    /// A Debian package.
    Package(&'static str),
    /// cargo-deny.
    CargoDeny,
}

/// `cargo xtask doctor`.
pub fn run(workspace: &Workspace, install: bool, json: bool) -> Result<()> {
    let mut findings = examine(workspace);
    if install {
        install::install(workspace, &installable(&findings, |_| true))?;
        findings = examine(workspace);
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        print(&findings);
    }
    let missing = findings
        .iter()
        .filter(|finding| !finding.ok && finding.group != Group::Bpf)
        .count();
    if missing > 0 {
        bail!("{missing} of the requirements are missing; see above for what mends them");
    }
    Ok(())
}

/// Makes sure that the groups' requirements are there: installs what can be installed (after
/// asking on a terminal, unless `yes` or under CI) and stops at what cannot.
pub fn ensure(workspace: &Workspace, groups: &[Group], yes: bool) -> Result<()> {
    let wanted = |group: Group| groups.contains(&group);
    let mut findings = examine(workspace);
    let missing = installable(&findings, wanted);
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|thing| thing.name()).collect();
        println!("missing: {}", names.join(", "));
        if !yes && !under_ci() && std::io::stdin().is_terminal() && !agreed()? {
            bail!("nothing was installed; `cargo xtask doctor` lists what is missing");
        }
        install::install(workspace, &missing)?;
        findings = examine(workspace);
    }
    let problems: Vec<&Finding> = findings
        .iter()
        .filter(|finding| !finding.ok && wanted(finding.group))
        .collect();
    if problems.is_empty() {
        return Ok(());
    }
    for finding in &problems {
        eprintln!("{}", line(finding));
    }
    bail!("the machine lacks what is listed above");
}

fn installable(findings: &[Finding], wanted: impl Fn(Group) -> bool) -> Vec<Installable> {
    findings
        .iter()
        .filter(|finding| !finding.ok && wanted(finding.group))
        .filter_map(|finding| finding.install)
        .collect()
}

fn agreed() -> Result<bool> {
    print!("Install now? [Y/n] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "" | "y" | "Y" | "yes"))
}

fn under_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !value.is_empty() && value != "false")
}

fn examine(workspace: &Workspace) -> Vec<Finding> {
    let mut findings = kernel_features();
    findings.push(privileges());
    findings.extend(debian_packages());
    findings.extend(components(workspace));
    findings.push(cargo_deny(workspace));
    findings.push(bpf_object(workspace));
    findings
}

fn kernel_features() -> Vec<Finding> {
    let config = kernel::config();
    let release = kernel::release();
    kernel::FEATURES
        .iter()
        .map(|feature| {
            // What nothing tells is left to the first use, which names it.
            let present = feature.present(config.as_deref()).unwrap_or(true);
            Finding {
                name: format!("kernel: {}", feature.name),
                group: Group::Lab,
                ok: present,
                detail: format!("{}, Linux {release}", feature.option),
                mend: (!present).then(|| {
                    format!(
                        "boot a kernel with {}=y or =m (Debian's own has it)",
                        feature.option
                    )
                }),
                install: None,
            }
        })
        .collect()
}

fn privileges() -> Finding {
    let (ok, detail) = match privilege() {
        Privilege::Root => (true, "root"),
        Privilege::Sudo => (true, "sudo"),
        Privilege::SudoAsks => (true, "sudo, which will ask for a password"),
        Privilege::None => (false, "neither root nor sudo"),
    };
    Finding {
        name: "privileges".to_owned(),
        group: Group::Lab,
        ok,
        detail: detail.to_owned(),
        mend: (!ok).then(|| {
            "as root: apt-get install sudo && adduser YOU sudo; or run as root".to_owned()
        }),
        install: None,
    }
}

fn debian_packages() -> Vec<Finding> {
    let missing = packages::missing();
    packages::PACKAGES
        .iter()
        .map(|package| {
            let ok = !missing.contains(package.name);
            Finding {
                name: format!("package {}", package.name),
                group: package.group,
                ok,
                detail: package.purpose.to_owned(),
                mend: (!ok).then(|| {
                    format!(
                        "cargo xtask doctor --install (or: apt-get install {})",
                        package.name
                    )
                }),
                install: Some(Installable::Package(package.name)),
            }
        })
        .collect()
}

fn components(workspace: &Workspace) -> Vec<Finding> {
    ["fmt", "clippy"]
        .into_iter()
        .map(|component| {
            let output = workspace.cargo().args([component, "--version"]).output();
            let version = output
                .ok()
                .filter(|output| output.status.success())
                .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
            let package = if component == "fmt" {
                "rustfmt"
            } else {
                component
            };
            Finding {
                name: format!("cargo {component}"),
                group: Group::Test,
                ok: version.is_some(),
                mend: version
                    .is_none()
                    .then(|| format!("rustup component add {package}")),
                detail: version.unwrap_or_else(|| "not installed".to_owned()),
                install: None,
            }
        })
        .collect()
}

fn cargo_deny(workspace: &Workspace) -> Finding {
    let output = workspace.cargo().args(["deny", "--version"]).output();
    let version = output
        .ok()
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    Finding {
        name: "cargo-deny".to_owned(),
        group: Group::Test,
        ok: version.is_some(),
        mend: version
            .is_none()
            .then(|| format!("cargo {}", install::CARGO_DENY.join(" "))),
        detail: version.unwrap_or_else(|| "checks licences and sources".to_owned()),
        install: Some(Installable::CargoDeny),
    }
}

fn bpf_object(workspace: &Workspace) -> Finding {
    let state = ebpf::digest(workspace);
    Finding {
        name: "BPF object".to_owned(),
        group: Group::Build,
        ok: state.is_ok(),
        detail: match &state {
            Ok(()) => "is made from these sources".to_owned(),
            Err(error) => format!("{error:#}"),
        },
        mend: state.is_err().then(|| "cargo xtask ebpf".to_owned()),
        install: None,
    }
}

fn print(findings: &[Finding]) {
    for finding in findings {
        println!("{}", line(finding));
    }
}

fn line(finding: &Finding) -> String {
    let state = match (finding.ok, finding.group) {
        (true, _) => "ok     ",
        (false, Group::Bpf) => "absent ",
        (false, _) => "MISSING",
    };
    let mut text = format!("{state} {} — {}", finding.name, finding.detail);
    if finding.group == Group::Bpf && !finding.ok {
        text.push_str("; only for building the BPF object anew");
    }
    if let Some(mend) = &finding.mend {
        text.push_str("\n        mend: ");
        text.push_str(mend);
    }
    text
}

impl Installable {
    /// What to call it.
    pub fn name(self) -> &'static str {
        match self {
            Installable::Package(name) => name,
            Installable::CargoDeny => "cargo-deny",
        }
    }
}
