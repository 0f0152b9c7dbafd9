//! `wg-quick` with this project's interface in place of wireguard-go's, against wireguard-go and
//! against itself.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::{Topology, eventually, ip, pipe, run};
use tempfile::TempDir;
use topnet_netns::{Namespace, root_tests};

const OURS: &str = env!("CARGO_BIN_EXE_topnet-wireguard");
const PORT: u16 = 51_900;
const SERVER: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1)),
];
const CLIENT: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 99, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 2)),
];

/// A key pair as `wg` makes it.
struct Keys {
    private: String,
    public: String,
}

impl Keys {
    fn new() -> Self {
        let private = run(Command::new("wg").arg("genkey"));
        let public = pipe("wg", &["pubkey"], &private).trim().to_owned();
        Self {
            private: private.trim().to_owned(),
            public,
        }
    }
}

/// What `wg-quick` made, which is taken away even if a test fails.
struct Quick<'a> {
    namespace: &'a Namespace,
    interface: String,
    conf: PathBuf,
    path: String,
}

impl<'a> Quick<'a> {
    /// `wg-quick` in a namespace, on a kernel that has no WireGuard of its own.
    fn new(namespace: &'a Namespace, dir: &Path, interface: &str, conf: &str) -> Self {
        let shims = dir.join("bin");
        fs::create_dir_all(&shims).unwrap();
        let shim = "#!/bin/sh\ncase \"$*\" in *\"type wireguard\"*) exit 2;; esac\n\
                    PATH=${PATH#*:} exec ip \"$@\"\n";
        fs::write(shims.join("ip"), shim).unwrap();
        fs::set_permissions(shims.join("ip"), fs::Permissions::from_mode(0o755)).unwrap();
        let file = dir.join(format!("{interface}.conf"));
        fs::write(&file, conf).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let path = std::env::var("PATH").unwrap();
        Self {
            namespace,
            interface: interface.to_owned(),
            conf: file,
            path: format!("{}:{path}", shims.display()),
        }
    }

    fn quick(&self, what: &str) -> String {
        let mut command = Command::new("wg-quick");
        command
            .arg(what)
            .arg(&self.conf)
            .env("PATH", &self.path)
            .env("WG_QUICK_USERSPACE_IMPLEMENTATION", OURS);
        let output = self.namespace.run(command).unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// `IF` as a word of its own is the interface; a key may well contain it.
    fn wg(&self, arguments: &str) -> String {
        let words = arguments.split(' ');
        let words = words.map(|word| if word == "IF" { &self.interface } else { word });
        run(Command::new("wg").args(words))
    }

    fn socket(&self) -> PathBuf {
        format!("/run/wireguard/{}.sock", self.interface).into()
    }
}

impl Drop for Quick<'_> {
    fn drop(&mut self) {
        // The process ends with its device.
        let mut delete = Command::new("ip");
        delete.args(["link", "delete", &self.interface]);
        let _ = self.namespace.run(delete);
    }
}

/// A server that was configured by hand.
struct Server {
    process: Child,
    interface: String,
}

impl Server {
    fn start(
        namespace: &Namespace,
        dir: &Path,
        program: &str,
        interface: &str,
        keys: &Keys,
    ) -> Self {
        let mut command = Command::new(program);
        command
            .args(["-f", interface])
            .env("LOG_LEVEL", "error")
            .env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1")
            .stdout(Stdio::null());
        let process = namespace.spawn(command).unwrap();
        let key = dir.join("server.key");
        fs::write(&key, &keys.private).unwrap();
        let mut server = Self {
            process,
            interface: interface.to_owned(),
        };
        let port = PORT.to_string();
        eventually("the server is there", || {
            assert!(
                server.process.try_wait().unwrap().is_none(),
                "{program} ended"
            );
            let mut set = Command::new("wg");
            set.args(["set", interface, "listen-port", &port, "private-key"]);
            set.arg(&key);
            namespace.run(set).is_ok()
        });
        for address in ["10.99.0.1/24", "fd99::1/64 nodad"] {
            ip(namespace, &format!("address add {address} dev {interface}"));
        }
        ip(namespace, &format!("link set {interface} mtu 1380 up"));
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(format!("/run/wireguard/{}.sock", self.interface));
    }
}

/// Datagrams from the client to an echo at the server, inside the tunnel.
struct Echoes {
    sockets: Vec<UdpSocket>,
}

impl Echoes {
    fn new(topology: &Topology) -> Self {
        let pairs = SERVER.iter().zip(CLIENT).map(|(server, client)| {
            let echo = topology
                .provider
                .enter(|| UdpSocket::bind((*server, 7)).unwrap())
                .unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 2048];
                while let Ok((bytes, from)) = echo.recv_from(&mut buffer) {
                    let _ = echo.send_to(&buffer[..bytes], from);
                }
            });
            let socket = topology
                .client
                .enter(|| UdpSocket::bind((client, 0)).unwrap())
                .unwrap();
            socket.connect((*server, 7)).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_millis(500)))
                .unwrap();
            socket
        });
        Self {
            sockets: pairs.collect(),
        }
    }

    /// True if a datagram of each version comes back. One may be lost where sockets change.
    fn pass(&self) -> bool {
        let comes_back = |socket: &UdpSocket| {
            let mut buffer = [0; 2048];
            while socket.set_nonblocking(true).is_ok() && socket.recv(&mut buffer).is_ok() {}
            socket.set_nonblocking(false).unwrap();
            let _ = socket.send(&[7; 1200]);
            matches!(socket.recv(&mut buffer), Ok(1200))
        };
        let tries = |socket: &UdpSocket| (0..3).any(|_| comes_back(socket));
        self.sockets.iter().all(tries)
    }
}

fn lives_like_any_interface(test: &str, server_program: &str) {
    let topology = Topology::new(test);
    topology.route_in_kernel();
    let dir = TempDir::new().unwrap();
    let (ours, theirs) = (Keys::new(), Keys::new());
    let psk = run(Command::new("wg").arg("genpsk"));
    let server = Server::start(
        &topology.provider,
        dir.path(),
        server_program,
        &format!("ts{test}"),
        &theirs,
    );
    let psk_file = dir.path().join("psk");
    fs::write(&psk_file, &psk).unwrap();
    let peer = |key: &str, networks: &str| {
        let mut set = Command::new("wg");
        set.args([
            "set",
            &server.interface,
            "peer",
            key,
            "allowed-ips",
            networks,
        ]);
        set.arg("preshared-key").arg(&psk_file);
        topology.provider.run(set).unwrap();
    };
    peer(&ours.public, "10.99.0.2/32,fd99::2/128");

    let up = dir.path().join("up");
    let conf = format!(
        "[Interface]\nPrivateKey = {}\nAddress = 10.99.0.2/24, fd99::2/64\nMTU = 1380\n\
         PostUp = touch {}\n[Peer]\nPublicKey = {}\nPresharedKey = {}\nEndpoint = 10.77.1.1:{PORT}\n\
         AllowedIPs = 10.99.0.0/24, fd99::/64, 192.168.77.0/24\nPersistentKeepalive = 1\n",
        ours.private,
        up.display(),
        theirs.public,
        psk.trim(),
    );
    let interface = format!("tq{test}");
    let quick = Quick::new(&topology.client, dir.path(), &interface, &conf);
    quick.quick("up");
    assert!(up.exists() && quick.socket().exists());
    eventually("it greets its peer of its own accord", || {
        !quick
            .wg("show IF latest-handshakes")
            .trim()
            .ends_with("\t0")
    });
    // wg-quick waits for nothing, and IPv6 addresses take their time.
    let echoes = Echoes::new(&topology);
    eventually("both versions of IP pass", || echoes.pass());

    // What `wg-quick` did is what `wg` and `ip` show.
    assert_eq!(quick.wg("show IF public-key").trim(), ours.public);
    assert_eq!(
        quick
            .wg("show IF persistent-keepalive")
            .split('\t')
            .nth(1)
            .unwrap()
            .trim(),
        "1"
    );
    assert!(ip(&topology.client, &format!("link show {interface}")).contains("mtu 1380"));
    assert!(ip(&topology.client, "route").contains(&format!("192.168.77.0/24 dev {interface}")));

    // The same file again: `wg syncconf` as its manual has it.
    let stripped = dir.path().join("stripped.conf");
    fs::write(&stripped, quick.quick("strip")).unwrap();
    quick.wg(&format!("syncconf IF {}", stripped.display()));
    assert!(echoes.pass());

    // Another port: the server follows.
    quick.wg("set IF listen-port 51999");
    assert_eq!(quick.wg("show IF listen-port").trim(), "51999");
    assert!(echoes.pass());
    let taken = Command::new("wg")
        .args(["set", &interface, "listen-port", "0"])
        .status()
        .unwrap();
    assert!(taken.success());
    let hold = topology
        .client
        .enter(|| UdpSocket::bind("0.0.0.0:51998").unwrap())
        .unwrap();
    let refused = Command::new("wg")
        .args(["set", &interface, "listen-port", "51998"])
        .output()
        .unwrap();
    assert!(!refused.status.success(), "the port is somebody's");
    drop(hold);
    assert!(echoes.pass(), "what was refused changed nothing");

    // A mark on its own packets is what routing rules see.
    ip(&topology.client, "rule add fwmark 7 blackhole");
    assert!(echoes.pass());
    quick.wg("set IF fwmark 7");
    assert!(!echoes.pass());
    quick.wg("set IF fwmark 0");
    assert!(echoes.pass());

    // A network that becomes another peer's is that peer's at once, and back.
    let other = Keys::new();
    quick.wg(&format!(
        "set IF peer {} allowed-ips 10.99.0.0/24",
        other.public
    ));
    assert!(!echoes.pass());
    quick.wg(&format!("set IF peer {} remove", other.public));
    quick.wg(&format!(
        "set IF peer {} allowed-ips 10.99.0.0/24,fd99::/64",
        theirs.public
    ));
    assert!(echoes.pass());

    // Down and up again is no end.
    ip(&topology.client, &format!("link set {interface} down"));
    ip(&topology.client, &format!("link set {interface} up"));
    ip(
        &topology.client,
        &format!("address replace fd99::2/64 dev {interface} nodad"),
    );
    eventually("it comes up again", || echoes.pass());

    // Another key of its own: the server must be told, and then all goes on.
    let newer = Keys::new();
    let key = dir.path().join("newer.key");
    fs::write(&key, &newer.private).unwrap();
    quick.wg(&format!("set IF private-key {}", key.display()));
    let mut forget = Command::new("wg");
    forget.args(["set", &server.interface, "peer", &ours.public, "remove"]);
    topology.provider.run(forget).unwrap();
    peer(&newer.public, "10.99.0.2/32,fd99::2/128");
    eventually("the new key is known", || echoes.pass());

    quick.quick("down");
    eventually("nothing is left", || !quick.socket().exists());
    let links = ip(&topology.client, "link");
    assert!(!links.contains(&interface), "{links}");
}

#[test]
fn wg_quick_runs_it_towards_wireguard_go() {
    if root_tests() {
        lives_like_any_interface("wqgo", "wireguard-go");
    }
}

#[test]
fn wg_quick_runs_it_towards_itself() {
    if root_tests() {
        lives_like_any_interface("wqown", OURS);
    }
}

#[test]
fn what_cannot_be_an_interface_is_said() {
    if !root_tests() {
        return;
    }
    let namespace = Namespace::create("topnet-wqbad-client").unwrap();
    ip(&namespace, "tuntap add mode tun tqtaken");
    for (name, why) in [
        ("tqtaken", "choose another name"),
        ("much-too-long-a-name", "cannot make"),
    ] {
        let mut command = Command::new(OURS);
        command
            .arg(name)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let output = namespace
            .spawn(command)
            .unwrap()
            .wait_with_output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && said.contains(why),
            "{name}: {said}"
        );
    }
}
