//! A gateway in namespaces: client and origin on either side, wireguard-go as the client, the
//! data plane's own binary between them under a user of its own, and this test in the place
//! of control and metering.
#![allow(dead_code, reason = "each test file uses its own part")]

mod steps;

#[allow(unused_imports, reason = "each test file uses its own part")]
pub use steps::*;

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use topnet_account::ChannelId;
use topnet_api::{
    Assignment, DataplaneClient, DataplaneStatus, DesiredSession, DesiredSessions, InstallReport,
    SocketName, connect,
};
use topnet_netns::{Endpoint, Namespace, Offload, Veth, with_tunnel_driver};
use topnet_unit::{Attachment, CreditGrant, Slot};

/// A user that owns nothing.
const USER: u32 = 64_001;
const CAPABILITIES: &str = "+net_admin,+net_raw,+bpf,+ipc_lock,+sys_nice";
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
pub const ORIGIN: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 2);
pub const CLIENT_INNER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0, 1);
pub const ORIGIN6: Ipv6Addr = Ipv6Addr::new(0xfd77, 2, 0, 0, 0, 0, 0, 2);
pub const CLIENT_INNER6: Ipv6Addr = Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 2);
/// How often the client is started before a test gives up.
const STARTS_MAX: u32 = 3;
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The three namespaces and their links.
pub struct Topology {
    pub client: Namespace,
    pub provider: Namespace,
    pub origin: Namespace,
}

impl Topology {
    pub fn new(test: &str) -> Self {
        Self::with_queues(test, 1)
    }

    /// One whose links have so many queues.
    pub fn with_queues(test: &str, queues: u32) -> Self {
        let namespace = |role: &str| Namespace::create(&format!("topnet-{test}-{role}")).unwrap();
        let [client, provider, origin] = ["client", "provider", "origin"].map(namespace);
        let end = |namespace, interface, address| Endpoint {
            namespace,
            interface,
            address,
        };
        let veth = Veth {
            queues,
            ..Veth::default()
        };
        veth.connect(
            end(&client, "eth0", "10.77.1.2/24"),
            end(&provider, "clients", "10.77.1.1/24"),
        )
        .unwrap();
        veth.connect(
            end(&provider, "uplink", "10.77.2.1/24"),
            end(&origin, "eth0", "10.77.2.2/24"),
        )
        .unwrap();
        for (namespace, interface) in [
            (&client, "eth0"),
            (&provider, "clients"),
            (&provider, "uplink"),
            (&origin, "eth0"),
        ] {
            namespace
                .offload(interface, Offload::TxChecksum, false)
                .unwrap();
        }
        origin.route("10.78.0.0/16", "10.77.2.1").unwrap();
        // wireguard-go's socket has room for about 90 packets, and what it loses was sent and
        // billed: senders keep less than that in flight.
        origin
            .sysctl("net.ipv4.tcp_wmem", "4096 16384 65536")
            .unwrap();
        Self {
            client,
            provider,
            origin,
        }
    }

    /// Gives the links IPv6 too.
    pub fn add_ipv6(&self) {
        let links = [
            (&self.client, "eth0", "fd77:1::2/64"),
            (&self.provider, "clients", "fd77:1::1/64"),
            (&self.provider, "uplink", "fd77:2::1/64"),
            (&self.origin, "eth0", "fd77:2::2/64"),
        ];
        for namespace in [&self.client, &self.provider, &self.origin] {
            for what in ["all", "default"] {
                namespace
                    .sysctl(&format!("net.ipv6.conf.{what}.disable_ipv6"), "0")
                    .unwrap();
            }
        }
        for (namespace, interface, address) in links {
            ip(
                namespace,
                &format!("address add {address} dev {interface} nodad"),
            );
        }
        ip(&self.origin, "route add fd78::/64 via fd77:2::1");
    }

    /// Gives the links IPv6 too, and lets the provider's kernel route.
    pub fn route_in_kernel(&self) {
        self.add_ipv6();
        for key in [
            "net.ipv4.conf.uplink.forwarding",
            "net.ipv6.conf.all.forwarding",
        ] {
            self.provider.sysctl(key, "1").unwrap();
        }
    }
}

/// A directory that the data plane's user may use, with its configuration.
pub struct Home {
    pub dir: TempDir,
    binary: PathBuf,
}

impl Home {
    pub fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // The build's directory may be closed to other users.
        let binary = dir.path().join("topnet-dataplane");
        fs::copy(env!("CARGO_BIN_EXE_topnet-dataplane"), &binary).unwrap();
        let runtime = dir.path().join("run");
        fs::create_dir(&runtime).unwrap();
        chown(&runtime, Some(USER), Some(USER)).unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        chown(&data, Some(USER), Some(USER)).unwrap();
        let key = dir.path().join("gateway.key");
        fs::write(&key, run(Command::new("wg").arg("genkey"))).unwrap();
        chown(&key, Some(USER), Some(USER)).unwrap();
        Self { dir, binary }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn runtime_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// Writes the configuration with `more` in its section. The tests' world is private: clients may
    /// reach it, and where nothing is, unless `more` says what they may.
    pub fn configure(&self, clients: &str, uplink: &str, more: &str) {
        let reach = match more.contains("reach") {
            true => "",
            false => {
                "[dataplane.reach]\nprivate = [\"10.77.2.0/24\", \"10.99.0.0/16\", \
                 \"fd77:2::/64\", \"fd66::/64\", \"fd99::/16\"]"
            }
        };
        let text = format!(
            "runtime_dir = \"{}\"\ndata_dir = \"{}\"\n[dataplane]\nclient_interface = \"{clients}\"\n\
             uplink_interface = \"{uplink}\"\nkey_file = \"{}\"\ninner_subnet = \"10.78.0.0/16\"\n\
             slots_max = 64\nsessions_max = 64\n{more}\n{reach}\n",
            self.runtime_dir().display(),
            self.path("data").display(),
            self.path("gateway.key").display(),
        );
        fs::write(self.path("topnet.toml"), text).unwrap();
    }

    pub fn command(&self, capabilities: &str) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args([format!("--reuid={USER}"), format!("--regid={USER}")])
            .args(["--clear-groups", "--pdeathsig=KILL", "--no-new-privs"])
            .args([
                format!("--inh-caps={capabilities}"),
                format!("--ambient-caps={capabilities}"),
            ])
            .arg(&self.binary)
            .arg("--config")
            .arg(self.path("topnet.toml"));
        with_tunnel_driver(self.dir.path(), command).unwrap()
    }

    /// Runs the data plane, which is expected to refuse, and returns what it said.
    pub fn refusal(&self, namespace: &Namespace, capabilities: &str) -> String {
        let mut command = self.command(capabilities);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let child = namespace.spawn(command).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "it started: {said}");
        said
    }
}

/// A running data plane.
pub struct Gateway {
    pub topology: Topology,
    pub home: Home,
    pub process: Child,
    runtime: tokio::runtime::Runtime,
    revision: u64,
}

impl Gateway {
    pub fn start(test: &str) -> Self {
        Self::start_with(test, "")
    }

    pub fn start_with(test: &str, more: &str) -> Self {
        Self::start_in(Topology::new(test), more)
    }

    /// A gateway whose packets frames carry, IPv6 among them.
    pub fn start_with_ipv6(test: &str) -> Self {
        let topology = Topology::new(test);
        topology.add_ipv6();
        Self::start_in(topology, "inner_subnet6 = \"fd78::/64\"")
    }

    /// A gateway whose packets the kernel's sockets carry, IPv6 among them.
    pub fn start_on_kernel(test: &str) -> Self {
        let topology = Topology::new(test);
        topology.route_in_kernel();
        Self::start_in(topology, "io = \"kernel\"\ninner_subnet6 = \"fd78::/64\"")
    }

    pub fn start_in(topology: Topology, more: &str) -> Self {
        let home = Home::new();
        home.configure("clients", "uplink", more);
        let process = topology.provider.spawn(home.command(CAPABILITIES)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let mut gateway = Self {
            topology,
            home,
            process,
            runtime,
            revision: 0,
        };
        gateway.wait_until_up();
        gateway
    }

    pub fn restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.start_again();
    }

    /// An orderly end and a new start.
    pub fn restart_in_order(&mut self) {
        self.terminate();
        self.start_again();
    }

    /// A new start after an end.
    pub fn start_again(&mut self) {
        self.process = self
            .topology
            .provider
            .spawn(self.home.command(CAPABILITIES))
            .unwrap();
        self.wait_until_up();
    }

    /// Ends it as systemd would.
    pub fn terminate(&mut self) {
        let pid = self.process.id().to_string();
        run(Command::new("kill").args(["-TERM", &pid]));
        eventually("it ended", || self.process.try_wait().unwrap().is_some());
        assert!(self.process.wait().unwrap().success());
    }

    fn wait_until_up(&mut self) {
        let tables = SocketName::Tables.below(&self.home.runtime_dir());
        eventually("the data plane is up", || {
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none(), "the data plane ended: {ended:?}");
            UnixStream::connect(&tables).is_ok()
        });
    }

    fn api<T>(&self, call: impl AsyncFnOnce(DataplaneClient) -> T) -> T {
        let path = SocketName::Dataplane.below(&self.home.runtime_dir());
        self.runtime.block_on(async {
            let transport = connect(&path).await.unwrap();
            let client = DataplaneClient::new(tarpc::client::Config::default(), transport).spawn();
            call(client).await
        })
    }

    pub fn status(&self) -> DataplaneStatus {
        self.api(async |api| api.status(tarpc::context::current()).await.unwrap())
    }

    pub fn drops(&self, reason: &str) -> u64 {
        let status = self.status();
        status
            .drops
            .iter()
            .find(|count| count.reason == reason)
            .unwrap()
            .packets
    }

    pub fn assignments(&self) -> Vec<Assignment> {
        self.api(async |api| api.assignments(tarpc::context::current()).await.unwrap())
            .slots
    }

    pub fn acknowledge(&self, slot: Slot) -> Result<(), String> {
        let boot = self.status().boot;
        self.api(async |api| {
            let context = tarpc::context::current();
            api.acknowledge(context, boot, slot.index, slot.generation)
                .await
                .unwrap()
        })
        .map_err(|error| error.code)
    }

    pub fn install(&mut self, sessions: &[DesiredSession]) -> InstallReport {
        self.revision += 1;
        let desired = DesiredSessions {
            revision: self.revision,
            sessions: sessions.to_vec(),
        };
        self.api(async |api| {
            api.install(tarpc::context::current(), desired)
                .await
                .unwrap()
        })
        .unwrap()
    }

    /// What metering is given.
    pub fn attach(&self) -> Attachment {
        let path = SocketName::Tables.below(&self.home.runtime_dir());
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Attachment::receive(&socket).unwrap()
    }

    /// Installs one session for `client` and returns its slot.
    pub fn admit(&mut self, client: &WireGuard) -> Slot {
        let report = self.install(&[client.session()]);
        assert_eq!(report.refused, []);
        let installed = &report.installed[0];
        Slot {
            index: installed.slot,
            generation: installed.generation,
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An unmodified WireGuard client.
pub struct WireGuard {
    process: Child,
    pub interface: String,
    pub public_key: [u8; 32],
}

impl WireGuard {
    /// Starts wireguard-go in the client's namespace and points it at the gateway.
    pub fn start(gateway: &Gateway, interface: &str) -> Self {
        Self::start_towards(gateway, interface, GATEWAY.into())
    }

    /// Starts it with IPv6 addresses too, against a gateway at `endpoint`.
    pub fn start_dual(gateway: &Gateway, interface: &str, endpoint: IpAddr) -> Self {
        let client = Self::start_towards(gateway, interface, endpoint);
        let namespace = &gateway.topology.client;
        client.allow(gateway, "10.77.2.0/24,fd77:2::/64");
        ip(
            namespace,
            &format!("address add {CLIENT_INNER6}/128 dev {interface} nodad"),
        );
        ip(namespace, &format!("route add fd77:2::/64 dev {interface}"));
        client
    }

    fn start_towards(gateway: &Gateway, interface: &str, endpoint: IpAddr) -> Self {
        let client = Self::start_silent(gateway, interface);
        let namespace = &gateway.topology.client;
        client.point_at(gateway, endpoint, 0);
        ip(
            namespace,
            &format!("address add {CLIENT_INNER}/32 dev {interface}"),
        );
        ip(
            namespace,
            &format!("route add 10.77.2.0/24 dev {interface}"),
        );
        client
    }

    /// Says where the gateway is, and how often to send it a keepalive.
    pub fn point_at(&self, gateway: &Gateway, endpoint: IpAddr, keepalive_s: u16) {
        let server = base64(&gateway.status().wireguard_public_key);
        let endpoint = SocketAddr::new(endpoint, 51_820).to_string();
        let mut set = Command::new("wg");
        set.args(["set", &self.interface, "peer", &server])
            .args(["endpoint", &endpoint, "allowed-ips", "10.77.2.0/24"])
            .args(["persistent-keepalive", &keepalive_s.to_string()]);
        gateway.topology.client.run(set).unwrap();
    }

    /// Starts it without addresses and routes; it does not know where the gateway is.
    pub fn start_silent(gateway: &Gateway, interface: &str) -> Self {
        let namespace = &gateway.topology.client;
        let spawn = || {
            let mut command = Command::new("wireguard-go");
            command
                .args(["-f", interface])
                .env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1")
                .env("LOG_LEVEL", "error")
                .stdout(Stdio::null());
            namespace.spawn(command).unwrap()
        };
        let mut process = spawn();
        let mut starts_left = STARTS_MAX - 1;
        let private = run(Command::new("wg").arg("genkey"));
        let key_file = gateway.home.path("client.key");
        fs::write(&key_file, &private).unwrap();
        let public = key_bytes(&pipe("wg", &["pubkey"], &private));
        eventually("wireguard-go is up", || {
            // It was seen to end at once beside heavy builds. What it says is on standard error;
            // its start is not what is tested.
            if let Some(ended) = process.try_wait().unwrap() {
                assert!(starts_left > 0, "wireguard-go ended: {ended:?}");
                starts_left -= 1;
                process = spawn();
            }
            let mut set = Command::new("wg");
            set.args(["set", interface, "private-key"]).arg(&key_file);
            namespace.run(set).is_ok()
        });
        ip(namespace, &format!("link set {interface} mtu 1420 up"));
        Self {
            process,
            interface: interface.to_owned(),
            public_key: public,
        }
    }

    /// Has it send what is for these networks to the gateway, and no more.
    pub fn allow(&self, gateway: &Gateway, networks: &str) {
        let server = base64(&gateway.status().wireguard_public_key);
        let mut set = Command::new("wg");
        set.args(["set", &self.interface, "peer", &server, "allowed-ips"]);
        set.arg(networks);
        gateway.topology.client.run(set).unwrap();
    }

    pub fn session(&self) -> DesiredSession {
        DesiredSession {
            channel: ChannelId([1; 32]),
            wireguard_public_key: self.public_key,
            inner_address: CLIENT_INNER,
        }
    }

    /// Bytes that the TUN interface sent and received.
    pub fn interface_bytes(&self, namespace: &Namespace) -> (u64, u64) {
        let mut command = Command::new("ip");
        command.args(["-s", "-j", "link", "show", "dev", &self.interface]);
        let output = namespace.run(command).unwrap().stdout;
        let links: serde_json::Value = serde_json::from_slice(&output).unwrap();
        let bytes = |side: &str| links[0]["stats64"][side]["bytes"].as_u64().unwrap();
        (bytes("tx"), bytes("rx"))
    }
}

impl Drop for WireGuard {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // Killed, it leaves its socket, which no namespace hides.
        let socket = format!("/var/run/wireguard/{}.sock", self.interface);
        let _ = fs::remove_file(socket);
    }
}

/// A UDP socket of the client whose packets go through the tunnel, and an echo at the origin.
pub struct Echo {
    pub socket: UdpSocket,
}

impl Echo {
    pub fn new(topology: &Topology) -> Self {
        Self::between(topology, CLIENT_INNER.into(), ORIGIN.into())
    }

    pub fn new6(topology: &Topology) -> Self {
        Self::between(topology, CLIENT_INNER6.into(), ORIGIN6.into())
    }

    pub fn between(topology: &Topology, client: IpAddr, origin: IpAddr) -> Self {
        Self::server(topology, origin, 7);
        Self::client(topology, client, (origin, 7).into())
    }

    /// The echo's own socket, until the process ends.
    pub fn server(topology: &Topology, origin: IpAddr, port: u16) {
        let server = topology
            .origin
            .enter(|| UdpSocket::bind((origin, port)).unwrap())
            .unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            // Ends with the process: the namespace's removal does not close the socket.
            while let Ok((bytes, from)) = server.recv_from(&mut buffer) {
                let _ = server.send_to(&buffer[..bytes], from);
            }
        });
    }

    /// A socket of the client towards one.
    pub fn client(topology: &Topology, client: IpAddr, server: SocketAddr) -> Self {
        let socket = topology
            .client
            .enter(|| UdpSocket::bind((client, 0)).unwrap())
            .unwrap();
        socket.connect(server).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        Self { socket }
    }

    /// Takes echoes that came too late for whoever waited for them.
    pub fn drain(&self) {
        while self.socket.recv(&mut [0; 2048]).is_ok() {}
    }

    /// Sends until nothing comes back.
    pub fn round_trips(&self, payload_bytes: usize) {
        let mut trips = 0;
        while self.round_trip(payload_bytes) {
            trips += 1;
            assert!(trips < 100, "it does not stop");
        }
    }

    /// Sends a datagram and waits for its echo.
    pub fn round_trip(&self, payload_bytes: usize) -> bool {
        let sent = vec![0x5a; payload_bytes];
        self.socket.send(&sent).unwrap();
        let mut received = [0; 2048];
        matches!(self.socket.recv(&mut received), Ok(bytes) if received[..bytes] == sent)
    }
}

/// A TCP connection from the client through the tunnel to the origin: both ends.
pub fn tcp(topology: &Topology) -> (TcpStream, TcpStream) {
    tcp_to(topology, ORIGIN.into())
}

pub fn tcp_to(topology: &Topology, origin: IpAddr) -> (TcpStream, TcpStream) {
    let address = SocketAddr::new(origin, 8080);
    let listener = topology
        .origin
        .enter(|| TcpListener::bind(address).unwrap())
        .unwrap();
    let near = topology
        .client
        .enter(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap())
        .unwrap();
    let (far, _) = listener.accept().unwrap();
    (near, far)
}

/// Sends `content` from one end to the other, and checks what arrives.
pub fn transfer(from: &mut TcpStream, to: &mut TcpStream, content: &[u8]) {
    let mut received = vec![0; content.len()];
    from.set_write_timeout(Some(PATIENCE)).unwrap();
    to.set_read_timeout(Some(PATIENCE)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| from.write_all(content).unwrap());
        to.read_exact(&mut received).unwrap();
    });
    assert!(received == content, "what was sent is not what arrived");
}

/// Credit up to a limit.
pub fn up_to(limit_bytes: u64) -> CreditGrant {
    CreditGrant {
        limit_bytes,
        record_at_bytes: u64::MAX,
    }
}

/// Credit without end.
pub fn unlimited() -> CreditGrant {
    up_to(u64::MAX / 2)
}

/// Waits until `holds`, or fails.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(
            Instant::now() < deadline,
            "still not true after {PATIENCE:?}: {what}"
        );
        sleep(Duration::from_millis(20));
    }
}

pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Runs an `ip` command in a namespace.
pub fn ip(namespace: &Namespace, arguments: &str) -> String {
    let mut command = Command::new("ip");
    command.args(arguments.split(' '));
    String::from_utf8(namespace.run(command).unwrap().stdout).unwrap()
}

pub fn pipe(program: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout)
        .unwrap()
        .trim()
        .to_owned()
}

pub fn base64(bytes: &[u8]) -> String {
    data_encoding::BASE64.encode(bytes)
}

fn key_bytes(text: &str) -> [u8; 32] {
    data_encoding::BASE64
        .decode(text.as_bytes())
        .unwrap()
        .try_into()
        .unwrap()
}

/// True if an interface has an XDP program.
pub fn has_xdp(namespace: &Namespace, interface: &str) -> bool {
    ip(namespace, &format!("link show dev {interface}")).contains("xdp")
}

pub fn exists(path: &Path) -> bool {
    path.exists()
}
