//! A WireGuard interface for `wg-quick`: `WG_QUICK_USERSPACE_IMPLEMENTATION=topnet-wireguard`.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use clap::Parser;
use topnet_config::log_to_stderr;
use topnet_dataplane::accounting::OpenGate;
use topnet_dataplane::wireguard::socket::WIREGUARD_DIR;
use topnet_dataplane::wireguard::standalone::run_interface;

/// What the process in the background says when `wg` can find the interface.
const READY: &str = "ready";

/// Makes a WireGuard interface in user space, which `wg` and `wg-quick` configure.
///
/// Returns when the interface is there; it lives until it is removed (`ip link delete`) or the
/// process in the background is ended.
#[derive(Parser)]
#[command(name = "topnet-wireguard", version)]
struct Arguments {
    /// Stay in the foreground, and log there.
    #[arg(short, long)]
    foreground: bool,
    /// Where the process in the background logs, or TOPNET_WIREGUARD_LOG; nowhere if neither says.
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Where the interface can be found, instead of where `wg` looks.
    #[arg(long, value_name = "DIRECTORY", default_value = WIREGUARD_DIR)]
    socket_dir: PathBuf,
    /// Stay in the foreground until standard input ends: whoever holds it is gone then.
    #[arg(long)]
    until_stdin_ends: bool,
    /// Tell standard output when the interface is there, and leave the terminal.
    #[arg(long, hide = true)]
    background: bool,
    /// The interface's name.
    interface: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let stays = arguments.foreground || arguments.until_stdin_ends || arguments.background;
    let result = if stays {
        run(&arguments)
    } else {
        start_in_background(&arguments)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("topnet-wireguard: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let log = open_log(&log_path(arguments))?;
    if arguments.background {
        // The terminal's signals are not for us any more.
        rustix::process::setsid().context("cannot leave the terminal")?;
        std::env::set_current_dir("/")?;
    }
    log_to_stderr("info,boringtun=off");
    let ready = || {
        if arguments.background
            && let Err(error) = detach(&log)
        {
            tracing::warn!(%error, "cannot leave the terminal");
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let directory = &arguments.socket_dir;
    let until_stdin_ends = arguments.until_stdin_ends;
    runtime.block_on(async {
        tokio::select! {
            ended = run_interface(&arguments.interface, directory, OpenGate, ready) => Ok(ended?),
            () = stdin_ends(), if until_stdin_ends => Ok(()),
        }
    })
}

/// Ready when nobody holds the other end of standard input any more.
async fn stdin_ends() {
    let (tell, told) = tokio::sync::oneshot::channel();
    // A thread of its own: it ends with the process, which does not wait for it.
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        let _ = tell.send(());
    });
    let _ = told.await;
}

/// Starts this program again, and waits until the interface is there or cannot be.
fn start_in_background(arguments: &Arguments) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(program);
    if let Some(path) = &arguments.log_file {
        command.arg("--log-file").arg(std::path::absolute(path)?);
    }
    let mut child = command
        .arg("--socket-dir")
        .arg(std::path::absolute(&arguments.socket_dir)?)
        .args(["--background", &arguments.interface])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start in the background")?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut said)?;
    }
    if said.trim() == READY {
        return Ok(());
    }
    let ended = child.wait()?;
    bail!("the interface does not stand ({ended})");
}

/// Says that the interface is there. From here on nobody reads what is written to the terminal.
fn detach(log: &File) -> io::Result<()> {
    println!("{READY}");
    io::stdout().flush()?;
    rustix::stdio::dup2_stdout(log)?;
    rustix::stdio::dup2_stderr(log)?;
    Ok(())
}

/// `wg-quick` gives no words to its implementation, so the environment may name the log.
fn log_path(arguments: &Arguments) -> PathBuf {
    let variable = || std::env::var_os("TOPNET_WIREGUARD_LOG").map(PathBuf::from);
    let path = arguments.log_file.clone().or_else(variable);
    path.unwrap_or_else(|| PathBuf::from("/dev/null"))
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.with_context(|| format!("cannot write the log {}", path.display()))
}
