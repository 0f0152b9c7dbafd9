//! A tower and the node that it asks, as processes; and a node that is up to no good.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
};

use jsonrpsee::{
    RpcModule,
    core::{ClientError, client::ClientT as _, params::ArrayParams},
    http_client::HttpClient,
    server::{Server, ServerHandle},
    types::{ErrorObjectOwned, Params},
};
use serde_json::Value;
use tempfile::TempDir;
use topnet_account::{Address, ChannelId, Hash};
use topnet_api::{ChainName, ClaimReport, HeldClaim, HoldReport, StateSubject, TowerStatus};
use topnet_tower::rpc::{RemoteTower, TowerClient as _};

use super::support::{Provider, until};

/// An address on loopback that nobody listens at, and that nobody gets by chance until a process
/// listens there: below the ports that the kernel gives away, and each once.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Runs beside this one begin elsewhere.
    let first = 16_384 + (std::process::id() % 8_192) as u16;
    let addresses = std::iter::repeat_with(|| {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed);
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    });
    let mut free = addresses.filter(|address| TcpListener::bind(address).is_ok());
    free.next().unwrap()
}

pub fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// A process of the same build. `cargo test --workspace` builds them all.
fn start(name: &str, config: &Path) -> Child {
    let program = Path::new(env!("CARGO_BIN_EXE_topnet-settlement")).with_file_name(name);
    let mut command = Command::new(&program);
    command.arg("--config").arg(config).stdin(Stdio::null());
    let started = command.spawn();
    started.unwrap_or_else(|error| {
        panic!(
            "{}: {error}; run `cargo test --workspace`",
            program.display()
        )
    })
}

fn end(process: &mut Option<Child>) {
    if let Some(mut process) = process.take() {
        process.kill().unwrap();
        process.wait().unwrap();
    }
}

/// The control process, whose public RPC is a node's.
pub struct Node {
    config: std::path::PathBuf,
    pub address: SocketAddr,
    process: Option<Child>,
}

impl Node {
    /// Configures control beside settlement; metering and data plane are absent.
    pub fn of(provider: &Provider) -> Self {
        let (address, operator) = (free_address(), free_address());
        provider.configure(&format!(
            "[dataplane]\n\
             client_interface = \"absent0\"\n\
             uplink_interface = \"absent1\"\n\
             key_file = \"absent\"\n\
             inner_subnet = \"10.78.0.0/16\"\n\
             [metering]\n\
             key_file = \"absent\"\n\
             unit_price_ntop = 26000\n\
             [control]\n\
             operator_listen = \"{operator}\"\n\
             public_listen = \"{address}\"\n\
             [control.offer]\n\
             wireguard_endpoint = \"127.0.0.1:51820\"\n\
             payment_endpoint = \"127.0.0.1:7447\"\n"
        ));
        Self {
            config: provider.dir.path().join("topnet.toml"),
            address,
            process: None,
        }
    }

    pub async fn start(&mut self) {
        self.process = Some(start("topnet-control", &self.config));
        let client = HttpClient::builder().build(url(self.address)).unwrap();
        until("control", async || {
            let answer: Result<Value, _> = client.request("chains", ArrayParams::new()).await;
            answer.ok()
        })
        .await;
    }

    pub fn kill(&mut self) {
        end(&mut self.process);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A tower on another machine: nothing of the provider's is in its directory.
pub struct TowerProcess {
    dir: TempDir,
    pub address: SocketAddr,
    process: Option<Child>,
}

impl TowerProcess {
    pub fn new(provider: &Provider, address: SocketAddr, nodes: &[String], more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let payee: Address = provider.payee.address();
        let text = format!(
            "data_dir = \"data\"\n\
             [tower]\n\
             listen = \"{address}\"\n\
             rpc_urls = {nodes:?}\n\
             main_genesis = \"{}\"\n\
             payees = [\"{payee}\"]\n\
             {more}",
            provider.main.hash()
        );
        fs::write(dir.path().join("topnet.toml"), text).unwrap();
        Self {
            dir,
            address,
            process: None,
        }
    }

    pub async fn start(&mut self) {
        let config = self.dir.path().join("topnet.toml");
        self.process = Some(start("topnet-tower", &config));
        until("the tower", async || self.try_status().await).await;
    }

    /// SIGKILL, at once.
    pub fn kill(&mut self) {
        end(&mut self.process);
    }

    /// Killed, and its disk is gone.
    pub fn lose_disk(&mut self) {
        self.kill();
        fs::remove_dir_all(self.dir.path().join("data")).unwrap();
    }

    fn client(&self) -> HttpClient {
        HttpClient::builder().build(url(self.address)).unwrap()
    }

    async fn try_status(&self) -> Option<TowerStatus> {
        self.client().status().await.ok()
    }

    pub async fn status(&self) -> TowerStatus {
        self.client().status().await.unwrap()
    }

    pub async fn claims(&self) -> Vec<ClaimReport> {
        self.client().claims(None).await.unwrap()
    }

    /// What it holds of a channel.
    pub async fn claim(&self, channel: ChannelId) -> Option<ClaimReport> {
        let claims = self.claims().await;
        claims.into_iter().find(|claim| claim.channel == channel)
    }

    pub async fn hold(&self, claims: Vec<HeldClaim>) -> Result<HoldReport, String> {
        let tower = RemoteTower::new(&url(self.address)).unwrap();
        tower.hold(claims).await
    }

    /// Status and body of a request that is not put together by a client.
    pub async fn post(&self, body: Vec<u8>) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let head = format!(
            "POST / HTTP/1.1\r\nHost: tower\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // Whoever refuses by the length alone reads no further.
        let _ = stream.write_all(&body).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub async fn metrics(&self) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let head = "GET /metrics HTTP/1.1\r\nHost: tower\r\nConnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

impl Drop for TowerProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A node that passes on what it is asked, but not always what is so.
pub struct Liar {
    pub address: SocketAddr,
    upstream: HttpClient,
    handle: ServerHandle,
    lies: Arc<Lies>,
}

#[derive(Default)]
struct Lies {
    /// It keeps to itself what is submitted.
    withholds: AtomicBool,
    /// It changes what is proved, also of a dead service.
    forges: AtomicBool,
    /// It gives services another genesis.
    disguises: AtomicBool,
    /// What it shows of services on main, whatever has happened since.
    outdated: Mutex<Option<Value>>,
    /// Something was submitted.
    asked: AtomicBool,
}

impl Liar {
    /// Before the node at `upstream`.
    pub async fn start(upstream: SocketAddr) -> Self {
        let server = Server::builder().build("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let lies = Arc::<Lies>::default();
        let client = HttpClient::builder().build(url(upstream)).unwrap();
        let mut module = RpcModule::new((client.clone(), Arc::clone(&lies)));
        for method in ["genesis", "channel", "prove", "recovery", "submit"] {
            let answer =
                async move |params: Params<'static>, context: Arc<(HttpClient, Arc<Lies>)>, _| {
                    let (client, lies) = &*context;
                    answer(method, params, client, lies).await
                };
            module.register_async_method(method, answer).unwrap();
        }
        Self {
            address,
            upstream: client,
            handle: server.start(module),
            lies,
        }
    }

    /// From now on it says that it takes what is submitted, and drops it.
    pub fn withhold(&self, withholds: bool) {
        self.lies.withholds.store(withholds, Ordering::SeqCst);
    }

    /// From now on it shows something else than it was shown.
    pub fn forge(&self, forges: bool) {
        self.lies.forges.store(forges, Ordering::SeqCst);
    }

    /// From now on the services that it names are none of main's.
    pub fn disguise(&self, disguises: bool) {
        self.lies.disguises.store(disguises, Ordering::SeqCst);
    }

    /// From now on main's record of a service is what it is now.
    pub async fn stop_time(&self, service: Hash) {
        let mut asked = ArrayParams::new();
        asked.insert(ChainName::main()).unwrap();
        asked.insert(StateSubject::Service(service)).unwrap();
        let shown = self.upstream.request("prove", asked).await.unwrap();
        *self.lies.outdated.lock().unwrap() = Some(shown);
    }

    /// Time goes on.
    pub fn resume_time(&self) {
        *self.lies.outdated.lock().unwrap() = None;
    }

    /// True once something was submitted.
    pub fn was_asked(&self) -> bool {
        self.lies.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        // An error says that it has stopped already.
        let _ = self.handle.stop();
    }
}

async fn answer(
    method: &str,
    params: Params<'static>,
    client: &HttpClient,
    lies: &Lies,
) -> Result<Value, ErrorObjectOwned> {
    if method == "submit" {
        lies.asked.store(true, Ordering::SeqCst);
        if lies.withholds.load(Ordering::SeqCst) {
            return Ok(serde_json::json!({ "id": format!("0x{}", "11".repeat(32)) }));
        }
    }
    let params = params.parse::<Vec<Value>>()?;
    let outdated = lies.outdated.lock().unwrap().clone();
    if let Some(outdated) = outdated
        && method == "prove"
        && params[0] == "main"
    {
        return Ok(outdated);
    }
    let mut passed = ArrayParams::new();
    for param in params {
        passed.insert(param).unwrap();
    }
    let answer: Result<Value, ClientError> = client.request(method, passed).await;
    let mut answer = answer.map_err(|error| match error {
        ClientError::Call(error) => error,
        other => ErrorObjectOwned::owned(-32_603, other.to_string(), None::<()>),
    })?;
    let forges = lies.forges.load(Ordering::SeqCst);
    match method {
        "prove" if forges => answer["proof"] = forged(&answer["proof"]),
        "recovery" if forges => answer = forged(&answer),
        "genesis" if lies.disguises.load(Ordering::SeqCst) && answer["name"] != "main" => {
            answer["salt"] = format!("0x{}", "77".repeat(32)).into();
        }
        _ => {}
    }
    Ok(answer)
}

/// Another digit in the value's way up to the root.
fn forged(bytes: &Value) -> Value {
    let bytes = bytes.as_str().unwrap();
    let place = bytes.len() - 9;
    let digit = if &bytes[place..=place] == "0" {
        "1"
    } else {
        "0"
    };
    format!("{}{digit}{}", &bytes[..place], &bytes[place + 1..]).into()
}
