//! Starts that must be refused with a mend, deaths that must leave nothing behind, and slots
//! that must not be reused too early.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::Command;

use support::{
    Echo, Gateway, Home, PATIENCE, Topology, WireGuard, eventually, has_xdp, ip, unlimited, up_to,
};
use topnet_api::{SlotState, SocketName};
use topnet_netns::{Namespace, root_tests};

const CAPABILITIES: &str = "+net_admin,+net_raw,+bpf,+ipc_lock";

#[test]
fn what_cannot_work_is_refused_with_the_mend() {
    if !root_tests() {
        return;
    }
    let topology = Topology::new("refuse");
    let provider = &topology.provider;
    let home = Home::new();
    let cases: [(&str, &str, &str, &str, &[&str]); 5] = [
        (
            "no interface",
            "nowhere0",
            "uplink",
            CAPABILITIES,
            &["nowhere0", "client_interface", "ip link"],
        ),
        (
            "no native XDP",
            "lo",
            "uplink",
            CAPABILITIES,
            &["lo", "native", "af-xdp-generic"],
        ),
        ("no capabilities", "clients", "uplink", "-all", &["CAP_"]),
        (
            "no BPF",
            "clients",
            "uplink",
            "+net_admin,+net_raw,+ipc_lock",
            &["XDP program", "CAP_BPF"],
        ),
        (
            "no raw sockets",
            "clients",
            "uplink",
            "+net_admin,+bpf,+ipc_lock",
            &["CAP_NET_RAW"],
        ),
    ];
    for (what, clients, uplink, capabilities, words) in cases {
        home.configure(clients, uplink, "");
        let said = home.refusal(provider, capabilities);
        for word in words {
            assert!(said.contains(word), "{what}: {said}");
        }
    }
    home.configure("clients", "uplink", "");
    ip(provider, "link set dev clients mtu 1400");
    let said = home.refusal(provider, CAPABILITIES);
    assert!(
        said.contains("clients") && said.contains("mtu 1480"),
        "{said}"
    );
    ip(provider, "link set dev clients mtu 1500");
    let taken = provider
        .enter(|| UdpSocket::bind("10.77.1.1:51820").unwrap())
        .unwrap();
    let said = home.refusal(provider, CAPABILITIES);
    assert!(
        said.contains("51820") && said.contains("wireguard_port"),
        "{said}"
    );
    drop(taken);
    std::fs::write(home.path("gateway.key"), "short").unwrap();
    let said = home.refusal(provider, CAPABILITIES);
    assert!(
        said.contains("gateway.key") && said.contains("wg genkey"),
        "{said}"
    );
    assert!(!has_xdp(provider, "clients") && !has_xdp(provider, "uplink"));
}

/// Beside what polls the interfaces a worker would have half of its CPU.
#[test]
fn workers_go_before_other_programs() {
    if !root_tests() {
        return;
    }
    for (gateway, expected) in [
        (Gateway::start("nice"), -10),
        (Gateway::start_with("nicer", "nice = -7"), -7),
    ] {
        let threads = format!("/proc/{}/task", gateway.process.id());
        let nice = std::fs::read_dir(threads).unwrap().find_map(|thread| {
            let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
            // Behind the name the state is the third field of proc(5), and this the 19th.
            let (_, fields) = stat.split_once("(worker-0) ")?;
            fields.split(' ').nth(16).map(|nice| nice.parse().unwrap())
        });
        assert_eq!(nice, Some(expected));
    }
}

#[test]
fn a_killed_data_plane_leaves_the_interfaces_as_they_were() {
    if !root_tests() {
        return;
    }
    let mut gateway = Gateway::start("kill");
    let provider =
        |gateway: &Gateway, interface: &str| has_xdp(&gateway.topology.provider, interface);
    assert!(provider(&gateway, "clients") && provider(&gateway, "uplink"));
    let client = WireGuard::start(&gateway, "tnkill");
    let slot = gateway.admit(&client);
    let metering = gateway.attach();
    metering.credit.grant(slot, unlimited());
    let echo = Echo::new(&gateway.topology);
    eventually("the tunnel is up", || echo.round_trip(100));
    let boot = gateway.status().boot;
    let noted = gateway.home.runtime_dir().join("endpoints");
    eventually("the client's place is noted", || noted.exists());
    // SIGKILL, and at once a new start: the queues' old memory is still being taken apart.
    gateway.restart();
    assert_ne!(gateway.status().boot, boot);
    assert!(
        !echo.round_trip(100),
        "nothing is forwarded before it is installed and paid for"
    );
    let totals = metering.usage.totals(slot.index);
    assert!(totals.bytes > 0, "the dead run's totals stay readable");
    let slot = gateway.admit(&client);
    let metering = gateway.attach();
    metering.credit.grant(slot, unlimited());
    eventually("the tunnel is back", || echo.round_trip(100));

    gateway.process.kill().unwrap();
    gateway.process.wait().unwrap();
    eventually("the kernel detached the program", || {
        !provider(&gateway, "clients") && !provider(&gateway, "uplink")
    });
    let usage = metering.usage.totals(slot.index);
    assert!(!echo.round_trip(100), "nothing is forwarded uncounted");
    assert_eq!(metering.usage.totals(slot.index), usage);
}

#[test]
fn a_terminated_data_plane_cleans_up() {
    if !root_tests() {
        return;
    }
    let mut gateway = Gateway::start("term");
    let pid = gateway.process.id().to_string();
    support::run(Command::new("kill").args(["-TERM", &pid]));
    eventually("it ended", || gateway.process.try_wait().unwrap().is_some());
    assert!(gateway.process.wait().unwrap().success());
    let provider = &gateway.topology.provider;
    assert!(!has_xdp(provider, "clients") && !has_xdp(provider, "uplink"));
    for socket in [SocketName::Dataplane, SocketName::Tables] {
        assert!(!socket.below(&gateway.home.runtime_dir()).exists());
    }
}

#[test]
fn metering_may_die_and_come_back() {
    if !root_tests() {
        return;
    }
    let mut gateway = Gateway::start("meter");
    let client = WireGuard::start(&gateway, "tnmeter");
    let slot = gateway.admit(&client);
    let first = gateway.attach();
    first.credit.grant(slot, unlimited());
    let echo = Echo::new(&gateway.topology);
    eventually("the tunnel is up", || echo.round_trip(100));
    let used = first.usage.totals(slot.index).bytes;
    let limit_bytes = used + 10_000;
    first.credit.grant(slot, up_to(limit_bytes));
    drop(first);
    echo.round_trips(1000);
    let second = gateway.attach();
    let used = second.usage.totals(slot.index).bytes;
    assert!(
        used <= limit_bytes && limit_bytes - used < 1028,
        "it ran to its limit and stopped"
    );
    second.credit.grant(slot, unlimited());
    assert!(echo.round_trip(1000));
}

#[test]
fn a_slot_rests_until_its_generation_is_acknowledged() {
    if !root_tests() {
        return;
    }
    let mut gateway = Gateway::start("slots");
    let client = WireGuard::start(&gateway, "tnslots");
    let slot = gateway.admit(&client);
    let metering = gateway.attach();
    metering.credit.grant(slot, unlimited());
    let echo = Echo::new(&gateway.topology);
    eventually("the tunnel is up", || echo.round_trip(100));
    assert_eq!(
        gateway.acknowledge(slot),
        Err("not_acknowledged".to_owned())
    );

    gateway.install(&[]);
    eventually("the slot is retired", || {
        gateway.assignments()[0].state == SlotState::Retired
    });
    let totals = metering.usage.totals(slot.index);
    assert!(!echo.round_trip(100));
    assert_eq!(
        metering.usage.totals(slot.index),
        totals,
        "retired totals are final"
    );
    let again = gateway.admit(&client);
    assert_ne!(again.index, slot.index);
    metering.credit.close(slot);
    assert_eq!(gateway.acknowledge(slot), Ok(()));
    assert_eq!(gateway.assignments().len(), 1);
    metering.credit.grant(again, unlimited());
    eventually("the session is back", || echo.round_trip(100));
}

#[test]
fn garbage_on_the_sockets_disturbs_nobody() {
    if !root_tests() {
        return;
    }
    let gateway = Gateway::start("junk");
    for socket in [SocketName::Dataplane, SocketName::Tables] {
        let path = socket.below(&gateway.home.runtime_dir());
        for junk in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0xff; 4096],
            &[0, 0, 0, 4, b'n', b'u', b'l', b'l'],
        ] {
            let mut stream = UnixStream::connect(&path).unwrap();
            // The other side may hang up before it has read everything.
            let _ = stream.write_all(junk);
        }
    }
    assert_eq!(gateway.status().sessions, []);
    drop(gateway.attach());
}

#[test]
fn the_gateways_own_ports_stay_with_the_kernel() {
    if !root_tests() {
        return;
    }
    let gateway = Gateway::start("ports");
    let provider = &gateway.topology.provider;
    let tcp = provider
        .enter(|| TcpListener::bind("10.77.1.1:8545").unwrap())
        .unwrap();
    let udp = provider
        .enter(|| UdpSocket::bind("10.77.1.1:7447").unwrap())
        .unwrap();
    udp.set_read_timeout(Some(PATIENCE)).unwrap();
    let client: &Namespace = &gateway.topology.client;
    let near = client
        .enter(|| TcpStream::connect_timeout(&"10.77.1.1:8545".parse().unwrap(), PATIENCE).unwrap())
        .unwrap();
    drop((tcp.accept().unwrap(), near));
    let sender = client
        .enter(|| UdpSocket::bind("10.77.1.2:0").unwrap())
        .unwrap();
    sender.send_to(b"paid", "10.77.1.1:7447").unwrap();
    let mut buffer = [0; 16];
    assert_eq!(udp.recv(&mut buffer).unwrap(), 4);
}

#[test]
fn a_vanished_interface_ends_the_process_with_its_name() {
    if !root_tests() {
        return;
    }
    let mut gateway = Gateway::start("gone");
    ip(&gateway.topology.provider, "link del uplink");
    eventually("it ended", || gateway.process.try_wait().unwrap().is_some());
    assert!(!gateway.process.wait().unwrap().success());
}
