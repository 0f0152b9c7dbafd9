//! The origin: nginx, which nobody here wrote, with a random file to fetch and a place to put
//! one.

use crate::files;
use crate::interrupt::Interrupt;
use crate::process::{Lifetime, Process, User, as_user};
use crate::run_dir::RunDir;
use crate::topology::{ORIGIN, Topology};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where nginx listens.
pub(crate) const PORT: u16 = 8080;
const READY_WAIT: Duration = Duration::from_secs(10);
/// Room for uploads, with some to spare.
const UPLOAD_MIB_MAX: u32 = 256;

/// nginx and its files.
#[derive(Debug)]
pub struct Origin {
    process: Process,
    files: PathBuf,
    /// Where nginx keeps what is being put.
    arriving: PathBuf,
}

impl Origin {
    /// Starts nginx in the origin's namespace.
    pub fn start(
        topology: &Topology,
        run_dir: &RunDir,
        user: User,
        lifetime: Lifetime,
        interrupt: &Interrupt,
    ) -> Result<Origin> {
        let home = run_dir.private("origin", user.uid, user.gid)?;
        let files = home.join("files");
        for directory in [files.clone(), files.join("upload"), home.join("temporary")] {
            fs::create_dir(&directory)?;
            chown(&directory, Some(user.uid), Some(user.gid))?;
        }
        let config = home.join("nginx.conf");
        fs::write(&config, config_text(&home))?;
        let nginx = Path::new("/usr/sbin/nginx");
        let mut command = as_user(user, lifetime, nginx);
        command.arg("-p").arg(&home).arg("-c").arg(&config);
        command.args(["-e", "stderr"]);
        let log = run_dir.log("nginx");
        let mut process = Process::start(&topology.origin, "nginx", command, &log)?;
        process.wait_ready(interrupt, READY_WAIT, || {
            let address = SocketAddr::from((ORIGIN, PORT));
            topology
                .origin
                .enter(|| TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok())
                .unwrap_or(false)
        })?;
        let arriving = home.join("temporary/client_body");
        Ok(Origin {
            process,
            files,
            arriving,
        })
    }

    /// Makes a random file to fetch and returns its SHA-256.
    pub fn offer_random(&self, name: &str, bytes: u64) -> Result<files::Digest> {
        files::write_random(&self.files.join(name), bytes)
            .with_context(|| format!("cannot make the origin's file {name}"))
    }

    /// Takes a file away again.
    pub fn withdraw(&self, name: &str) -> Result<()> {
        fs::remove_file(self.files.join(name))
            .with_context(|| format!("cannot remove the origin's file {name}"))
    }

    /// Bytes that have arrived of files that are being put.
    pub fn arriving_bytes(&self) -> u64 {
        let parts = fs::read_dir(&self.arriving).into_iter().flatten().flatten();
        let lengths = parts.filter_map(|part| Some(part.metadata().ok()?.len()));
        lengths.sum()
    }

    /// The SHA-256 and length of what was put.
    pub fn uploaded(&self, name: &str) -> Result<files::Digest> {
        files::digest(&self.files.join("upload").join(name))
            .with_context(|| format!("the upload {name} did not reach the origin"))
    }

    /// Where to fetch a file.
    pub fn download_url(address: IpAddr, name: &str) -> String {
        format!("http://{}/{name}", SocketAddr::new(address, PORT))
    }

    /// Where to put a file.
    pub fn upload_url(address: IpAddr, name: &str) -> String {
        format!("http://{}/upload/{name}", SocketAddr::new(address, PORT))
    }

    /// Who has fetched a file, as nginx logged it.
    pub fn clients_of(&self, name: &str) -> Result<BTreeSet<IpAddr>> {
        let log = self.files.with_file_name("access.log");
        let text =
            fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let request = format!("\"GET /{name} ");
        let lines = text.lines().filter(|line| line.contains(&request));
        lines
            .map(|line| {
                let address = line.split(' ').next().unwrap_or_default();
                address
                    .parse()
                    .with_context(|| format!("nginx logged: {line}"))
            })
            .collect()
    }

    /// The process, for whoever keeps or watches it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn config_text(home: &Path) -> String {
    let home = home.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("    {kind}_temp_path {home}/temporary/{kind};\n"))
        .collect();
    format!(
        "worker_processes 1;
daemon off;
pid {home}/nginx.pid;
error_log stderr notice;
events {{ worker_connections 64; }}
http {{
{temporary}    access_log {home}/access.log;
    client_max_body_size {UPLOAD_MIB_MAX}m;
    default_type application/octet-stream;
    server {{
        listen {PORT};
        listen [::]:{PORT} ipv6only=on;
        root {home}/files;
        location /upload/ {{
            dav_methods PUT;
        }}
    }}
}}
"
    )
}
