//! WireGuard's own tools against the gateway: the real `wg` configures the operator's peers, and
//! nothing else.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Output};

use support::{
    CLIENT_INNER, Echo, Gateway, ORIGIN, Topology, WireGuard, base64, eventually, ip, unlimited,
};
use topnet_netns::root_tests;

const OWN_INNER: Ipv4Addr = Ipv4Addr::new(10, 78, 255, 2);
const PRESHARED: &str = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=";

/// The gateway's interface, where `wg` finds it.
struct Tools {
    interface: String,
    link: PathBuf,
}

impl Tools {
    /// A gateway that has such an interface, and the way there. It runs as a user that may not
    /// write where `wg` looks.
    fn start(test: &str, more: &str) -> (Gateway, Self) {
        let interface = format!("tn{test}");
        let topology = Topology::new(test);
        topology.route_in_kernel();
        let more = format!(
            "tunnel_interface = \"{interface}\"\n{more}\n[dataplane.unmetered]\n\
             subnet = \"10.78.255.0/24\"\nsocket_dir = \"run\""
        );
        let gateway = Gateway::start_in(topology, &more);
        fs::create_dir_all("/run/wireguard").unwrap();
        let link = PathBuf::from(format!("/run/wireguard/{interface}.sock"));
        let socket = gateway.home.runtime_dir().join(format!("{interface}.sock"));
        symlink(socket, &link).unwrap();
        (gateway, Self { interface, link })
    }

    /// `IF` as a word of its own is the interface; a key may well contain it.
    fn wg(&self, arguments: &str) -> Output {
        let words = arguments.split(' ');
        Command::new("wg")
            .args(words.map(|word| if word == "IF" { &self.interface } else { word }))
            .output()
            .unwrap()
    }

    fn said(&self, arguments: &str) -> String {
        let output = self.wg(arguments);
        assert!(output.status.success(), "{arguments}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn refused(&self, arguments: &str) {
        let output = self.wg(arguments);
        assert!(!output.status.success(), "{arguments}: {output:?}");
    }
}

impl Drop for Tools {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.link);
    }
}

/// Moves the client's address to where the operator's own peers have theirs.
fn move_into_unmetered(gateway: &Gateway, client: &WireGuard) {
    let (namespace, interface) = (&gateway.topology.client, &client.interface);
    for arguments in [
        format!("address add {OWN_INNER}/32 dev {interface}"),
        format!("address del {CLIENT_INNER}/32 dev {interface}"),
        format!("route replace 10.77.2.0/24 dev {interface}"),
    ] {
        ip(namespace, &arguments);
    }
}

fn peers_work_unmetered(test: &str, more: &str) {
    let (mut gateway, tools) = Tools::start(test, more);
    let client = WireGuard::start(&gateway, &format!("tc{test}"));
    move_into_unmetered(&gateway, &client);
    let metering = gateway.attach();
    let key = base64(&client.public_key);
    let echo = Echo::between(&gateway.topology, OWN_INNER.into(), ORIGIN.into());
    assert!(!echo.round_trip(100), "nobody knows the peer yet");

    let psk = gateway.home.path("psk");
    fs::write(&psk, PRESHARED).unwrap();
    let add = format!(
        "set IF peer {key} preshared-key {} allowed-ips {OWN_INNER}/32",
        psk.display()
    );
    tools.said(&add);
    let server = base64(&gateway.status().wireguard_public_key);
    let mut set = Command::new("wg");
    set.args(["set", &client.interface, "peer", &server, "preshared-key"]);
    set.arg(&psk);
    gateway.topology.client.run(set).unwrap();
    eventually("the peer has service that nobody pays for", || {
        echo.round_trip(1000)
    });
    echo.drain();
    assert!(gateway.assignments().is_empty());
    assert!((0..64).all(|slot| metering.usage.totals(slot).bytes == 0));

    // What `wg` shows is how it is.
    assert_eq!(tools.said("show IF public-key").trim(), server);
    assert_eq!(tools.said("show IF listen-port").trim(), "51820");
    assert_eq!(
        tools.said("show IF allowed-ips").trim(),
        format!("{key}\t{OWN_INNER}/32")
    );
    let transfer = tools.said("show IF transfer");
    let bytes: Vec<u64> = transfer
        .split('\t')
        .skip(1)
        .map(|n| n.trim().parse().unwrap())
        .collect();
    assert!(bytes.iter().all(|bytes| *bytes >= 1028), "{transfer}");
    assert!(tools.said("show IF endpoints").contains("10.77.1.2:"));
    let handshake: u64 = tools
        .said("show IF latest-handshakes")
        .split('\t')
        .nth(1)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs();
    assert!(now - handshake < 60, "{handshake} {now}");

    // Exporters for dashboards read this.
    let dump = tools.said("show IF dump");
    assert_eq!(dump.lines().count(), 2, "{dump}");
    assert_eq!(
        dump.lines().nth(1).unwrap().split('\t').count(),
        8,
        "{dump}"
    );

    // The same again changes nothing: not a packet is lost.
    let conf = gateway.home.path("same.conf");
    fs::write(&conf, tools.said("showconf IF")).unwrap();
    tools.said(&format!("syncconf IF {}", conf.display()));
    assert!(echo.round_trip(100));

    // What is not the tools' to do.
    let other = gateway.home.path("other.key");
    fs::write(&other, "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=").unwrap();
    for refused in [
        format!("set IF private-key {}", other.display()),
        "set IF listen-port 51821".to_owned(),
        "set IF fwmark 7".to_owned(),
        format!("set IF peer {key} allowed-ips {CLIENT_INNER}/32"),
        format!("set IF peer {key} allowed-ips 0.0.0.0/0"),
    ] {
        tools.refused(&refused);
    }
    assert!(echo.round_trip(100), "a refused request changes nothing");

    let endpoints = gateway.home.runtime_dir().join("endpoints");
    eventually("it is noted where the peer is", || {
        fs::read_to_string(&endpoints).is_ok_and(|text| text.contains(&key))
    });
    gateway.restart();
    eventually("the peer is kept over a restart, and greeted", || {
        echo.round_trip(100)
    });
    echo.drain();
    let kept = fs::read_to_string(gateway.home.path("data/dataplane/unmetered.conf")).unwrap();
    assert!(
        kept.contains(&key) && kept.contains(PRESHARED) && !kept.contains("PrivateKey"),
        "{kept}"
    );

    // No client's packets come from there, and it is no client's address.
    let installed = gateway.install(&[client.session()]);
    assert_eq!(installed.refused[0].1.code, "peer_unmetered");

    tools.said(&format!("set IF peer {key} remove"));
    echo.drain();
    assert!(!echo.round_trip(100), "it is gone");
}

#[test]
fn wg_configures_unmetered_peers_over_frames() {
    if root_tests() {
        peers_work_unmetered("toolsf", "io = \"af-xdp-copy\"");
    }
}

#[test]
fn wg_configures_unmetered_peers_over_the_kernel() {
    if root_tests() {
        peers_work_unmetered("toolsk", "io = \"kernel\"");
    }
}

#[test]
fn paying_clients_are_shown_and_left_alone() {
    if !root_tests() {
        return;
    }
    let (mut gateway, tools) = Tools::start("toolsp", "io = \"kernel\"");
    let client = WireGuard::start(&gateway, "tctoolsp");
    let slot = gateway.admit(&client);
    let metering = gateway.attach();
    metering.credit.grant(slot, unlimited());
    let echo = Echo::new(&gateway.topology);
    eventually("the client has service", || echo.round_trip(100));
    let key = base64(&client.public_key);
    assert_eq!(tools.said("show IF peers").trim(), key);
    assert!(
        tools
            .said("show IF allowed-ips")
            .contains(&format!("{CLIENT_INNER}/32"))
    );
    tools.refused(&format!("set IF peer {key} persistent-keepalive 5"));
    let before = metering.usage.totals(slot.index).bytes;
    tools.said(&format!("set IF peer {key} remove"));
    let empty = gateway.home.path("empty.conf");
    fs::write(&empty, "").unwrap();
    tools.said(&format!("setconf IF {}", empty.display()));
    assert!(echo.round_trip(100), "who pays stays");
    assert!(
        metering.usage.totals(slot.index).bytes > before,
        "and goes on paying"
    );
    // What is shown and loaded again gives nobody free service, now or when it is paid no more.
    let shown = gateway.home.path("shown.conf");
    fs::write(&shown, tools.said("showconf IF")).unwrap();
    tools.refused(&format!("setconf IF {}", shown.display()));
    gateway.install(&[]);
    tools.refused(&format!("setconf IF {}", shown.display()));
    echo.drain();
    assert!(!echo.round_trip(100));
}
