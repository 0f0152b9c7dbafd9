//! A client's machine as programs see it: an `/etc` and a `/run` of its own, and openresolv, which
//! nobody here wrote, where the lab was given it.
//!
//! Both directories are mounted for each process that is to see them, in a mount namespace of its
//! own. What one leaves there, the next finds; the machine's own have nothing to do with it.

use crate::process::User;
use crate::run_dir::RunDir;
use anyhow::{Context, Result};
use std::env;
use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tells where openresolv is unpacked.
const OPENRESOLV_ENV: &str = "TOPNET_OPENRESOLV";
/// What openresolv has built in, and what of it is elsewhere here.
const LIBRARY: &str = "/lib/resolvconf";
const PROGRAM: &str = "/sbin/resolvconf";
/// No service of the machine's is restarted for the lab's names.
const RESOLVCONF_CONF: &str = "resolv_conf=/etc/resolv.conf\nlibc_restart=true\n";

/// What every program may find on its path.
const PROGRAMS: &[&str] = &["ip", "sh", "mount", "unshare", "setpriv", "getent"];
/// Ends whoever runs it, before or after the command whose turn it is, as `kill -9` does.
const ENDING: &str = r#"#!/bin/sh
turn=$(($(cat /run/turn 2>/dev/null || echo 0) + 1))
echo "$turn" >/run/turn
PATH=${PATH#*:}
[ "$turn $WHEN" = "$TURN before" ] && kill -KILL "$PPID" && exit 1
"${0##*/}" "$@"
status=$?
[ "$turn $WHEN" = "$TURN after" ] && kill -KILL "$PPID"
exit "$status"
"#;

/// Stands in for systemd-resolved's command, where no systemd is: it only remembers its words.
const RESOLVECTL: &str = "#!/bin/sh\necho \"$*\" >>/run/resolvectl\n";

/// What a program finds on its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tools {
    /// Nobody who keeps name servers.
    Bare,
    /// openresolv, and what it is made of.
    Openresolv,
    /// What stands in for `resolvectl`.
    Resolvectl,
    /// The same as with openresolv; but who changes the system's routes or name servers is killed at
    /// this command.
    Killing(Turn),
}

/// A command among those that a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Which: 1 for the first.
    pub number: u32,
    /// When it has ended, or before it begins.
    pub is_after: bool,
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    home: PathBuf,
    has_openresolv: bool,
}

impl Machine {
    /// Makes one whose `/etc` and `/run` are `owner`'s, as if that were root: it has no right to
    /// the other machine's.
    pub fn create(run_dir: &RunDir, owner: User) -> Result<Self> {
        let home = run_dir.private("machine", owner.uid, owner.gid)?;
        let machine = Self {
            has_openresolv: env::var_os(OPENRESOLV_ENV).is_some(),
            home,
        };
        machine
            .fill(owner)
            .with_context(|| format!("cannot fill {}", machine.home.display()))?;
        Ok(machine)
    }

    fn fill(&self, owner: User) -> Result<()> {
        for name in ["etc", "run", "bin", "sbin", "lib", "killing", "resolved"] {
            fs::create_dir(self.home.join(name))?;
        }
        let path = env::var_os("PATH").unwrap_or_default();
        for name in PROGRAMS {
            let program = env::split_paths(&path)
                .map(|directory| directory.join(name))
                .find(|file| file.is_file())
                .with_context(|| format!("there is no `{name}`"))?;
            symlink(program, self.home.join("bin").join(name))?;
        }
        for name in ["ip", "resolvconf"] {
            executable(&self.home.join("killing").join(name), ENDING)?;
        }
        executable(&self.home.join("resolved/resolvectl"), RESOLVECTL)?;
        let etc = self.home.join("etc");
        fs::write(etc.join("hosts"), "127.0.0.1 localhost\n")?;
        fs::write(etc.join("nsswitch.conf"), "hosts: files dns\n")?;
        fs::write(etc.join("resolvconf.conf"), RESOLVCONF_CONF)?;
        fs::write(etc.join("resolv.conf"), "")?;
        let loader = Path::new("/etc/ld.so.cache");
        if loader.exists() {
            fs::copy(loader, etc.join("ld.so.cache"))?;
        }
        if let Some(unpacked) = env::var_os(OPENRESOLV_ENV).map(PathBuf::from) {
            for (from, to) in [
                (PROGRAM, "sbin/resolvconf"),
                ("/lib/resolvconf/libc", "lib/libc"),
            ] {
                let from = unpacked.join(from.trim_start_matches('/'));
                let text = fs::read_to_string(&from)
                    .with_context(|| format!("cannot read {}", from.display()))?;
                // As its own configure would have it.
                let here = |name: &str| self.home.join(name).display().to_string();
                let text = text.replace(LIBRARY, &here("lib"));
                let text = text.replace(PROGRAM, &here("sbin/resolvconf"));
                executable(&self.home.join(to), &text)?;
            }
        }
        for name in ["etc", "etc/resolv.conf", "run"] {
            chown(self.home.join(name), Some(owner.uid), Some(owner.gid))?;
        }
        Ok(())
    }

    /// True if there is openresolv.
    pub const fn has_openresolv(&self) -> bool {
        self.has_openresolv
    }

    /// What is to be asked for names, before anybody is told of others.
    pub fn set_name_server(&self, address: Ipv4Addr) -> Result<()> {
        let text = format!("# By hand.\nnameserver {address}\n");
        Ok(fs::write(self.home.join("etc/resolv.conf"), text)?)
    }

    /// Has resolvconf take what it is told and write nothing, or write it.
    pub fn let_resolvconf_write(&self, writes: bool) -> Result<()> {
        let idle = if writes { "" } else { "resolvconf=NO\n" };
        let text = format!("{RESOLVCONF_CONF}{idle}");
        Ok(fs::write(self.home.join("etc/resolvconf.conf"), text)?)
    }

    /// Lets programs tell resolvconf anything, or not, as where they are not root's.
    pub fn let_tell_resolvconf(&self, may: bool) -> Result<()> {
        let mode = if may { 0o755 } else { 0o555 };
        let place = self.home.join("run/resolvconf");
        Ok(fs::set_permissions(place, Permissions::from_mode(mode))?)
    }

    /// Says whom programs ask for names.
    pub fn resolv_conf(&self) -> Result<String> {
        Ok(fs::read_to_string(self.home.join("etc/resolv.conf"))?)
    }

    /// What `resolvectl` was told, a line each time.
    pub fn resolvectl_words(&self) -> Result<String> {
        Ok(fs::read_to_string(self.home.join("run/resolvectl"))?)
    }

    /// Has commands counted from the first again.
    pub fn begin_turns(&self) {
        // There may be none yet.
        let _ = fs::remove_file(self.home.join("run/turn"));
    }

    /// `command` on this machine. What it was told about its standard streams is to be told to the
    /// result.
    pub fn inside(&self, command: &Command, tools: Tools) -> Command {
        let mut wrapped = Command::new("unshare");
        let script = "mount --bind \"$0/etc\" /etc && mount --bind \"$0/run\" /run && exec \"$@\"";
        wrapped
            .args(["--mount", "sh", "-c", script])
            .arg(&self.home);
        let there = |name: &str| self.home.join(name).display().to_string();
        let all = format!("{}:{}:/usr/bin:/bin", there("sbin"), there("bin"));
        let path = match tools {
            Tools::Bare => there("bin"),
            Tools::Openresolv => all,
            Tools::Resolvectl => format!("{}:{}", there("resolved"), there("bin")),
            Tools::Killing(turn) => {
                let when = if turn.is_after { "after" } else { "before" };
                wrapped.env("TURN", turn.number.to_string());
                wrapped.env("WHEN", when);
                format!("{}:{all}", there("killing"))
            }
        };
        wrapped.env("PATH", path);
        wrapped.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        wrapped
    }
}

fn executable(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text)?;
    Ok(fs::set_permissions(file, Permissions::from_mode(0o755))?)
}
