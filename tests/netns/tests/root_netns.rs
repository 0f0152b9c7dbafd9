//! Namespaces on a real kernel. Each test makes names of its own, so that runs do not meet.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use topnet_netns::{Endpoint, Error, Namespace, Offload, Veth, root_tests, sweep};

fn name(purpose: &str) -> String {
    format!("topnet-test-{purpose}-{}", std::process::id())
}

fn command(line: &[&str]) -> Command {
    let mut command = Command::new(line[0]);
    command.args(&line[1..]);
    command
}

/// left 10.99.1.1 ↔ right 10.99.1.2.
fn pair(purpose: &str) -> (Namespace, Namespace) {
    let left = Namespace::create(&name(&format!("{purpose}-left"))).unwrap();
    let right = Namespace::create(&name(&format!("{purpose}-right"))).unwrap();
    let veth = Veth {
        queues: 2,
        mtu_bytes: 1400,
    };
    veth.connect(
        Endpoint {
            namespace: &left,
            interface: "link0",
            address: "10.99.1.1/24",
        },
        Endpoint {
            namespace: &right,
            interface: "link0",
            address: "10.99.1.2/24",
        },
    )
    .unwrap();
    (left, right)
}

#[test]
fn two_namespaces_reach_each_other_and_leave_nothing() {
    if !root_tests() {
        return;
    }
    let (left, right) = pair("reach");
    left.offload("link0", Offload::TxChecksum, false).unwrap();
    right.offload("link0", Offload::Gro, true).unwrap();

    let listener = right
        .enter(|| TcpListener::bind("10.99.1.2:9000").unwrap())
        .unwrap();
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    });
    left.enter(|| {
        let mut stream = TcpStream::connect("10.99.1.2:9000").unwrap();
        stream.write_all(b"bytes").unwrap();
    })
    .unwrap();
    assert_eq!(&echo.join().unwrap(), b"bytes");

    let queues = left
        .run(command(&["ip", "-d", "link", "show", "link0"]))
        .unwrap();
    let text = String::from_utf8(queues.stdout).unwrap();
    assert!(text.contains("numrxqueues 2"), "{text}");
    assert!(text.contains("mtu 1400"), "{text}");

    let paths = [left.path(), right.path()];
    drop((left, right));
    assert!(paths.iter().all(|path| !path.exists()));
}

#[test]
fn curl_downloads_through_a_routed_namespace() {
    if !root_tests() {
        return;
    }
    let (left, middle) = pair("route");
    let right = Namespace::create(&name("route-end")).unwrap();
    Veth::default()
        .connect(
            Endpoint {
                namespace: &middle,
                interface: "link1",
                address: "10.99.2.1/24",
            },
            Endpoint {
                namespace: &right,
                interface: "link0",
                address: "10.99.2.2/24",
            },
        )
        .unwrap();
    middle.sysctl("net.ipv4.ip_forward", "1").unwrap();
    assert_eq!(middle.read_sysctl("net.ipv4.ip_forward").unwrap(), "1");
    left.route("10.99.2.0/24", "10.99.1.2").unwrap();
    right.route("default", "10.99.2.1").unwrap();

    let listener = right
        .enter(|| TcpListener::bind("10.99.2.2:8000").unwrap())
        .unwrap();
    let serve = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nrouted")
            .unwrap();
    });
    let output = left
        .run(command(&[
            "curl",
            "-sS",
            "--max-time",
            "5",
            "http://10.99.2.2:8000/",
        ]))
        .unwrap();
    assert_eq!(output.stdout, b"routed");
    serve.join().unwrap();
}

#[test]
fn the_hosts_own_forwarding_stays_as_it_was() {
    if !root_tests() {
        return;
    }
    let host = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    let before = host();
    let namespace = Namespace::create(&name("sysctl")).unwrap();
    let opposite = if before.trim() == "1" { "0" } else { "1" };
    namespace.sysctl("net.ipv4.ip_forward", opposite).unwrap();
    assert_eq!(host(), before);
}

#[test]
fn removal_ends_what_still_runs_inside() {
    if !root_tests() {
        return;
    }
    let namespace = Namespace::create(&name("inside")).unwrap();
    let mut child = namespace.spawn(command(&["sleep", "600"])).unwrap();
    drop(namespace);
    assert!(!child.wait().unwrap().success());
}

#[test]
fn a_child_that_asks_for_it_dies_with_its_namespace_and_not_before() {
    if !root_tests() {
        return;
    }
    let namespace = Namespace::create(&name("pdeathsig")).unwrap();
    let mut child = namespace
        .spawn(command(&[
            "setpriv",
            "--reuid",
            "60001",
            "--regid",
            "60001",
            "--clear-groups",
            "--inh-caps=-all,+net_raw",
            "--ambient-caps=-all,+net_raw",
            "--bounding-set=-all,+net_raw",
            "--no-new-privs",
            "--pdeathsig",
            "KILL",
            "sleep",
            "600",
        ]))
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it ended too early");
    drop(namespace);
    let deadline = Instant::now() + Duration::from_secs(2);
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it outlived its namespace");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_leftover_is_swept_but_an_owned_namespace_is_not() {
    if !root_tests() {
        return;
    }
    let owned = Namespace::create(&name("owned")).unwrap();
    let mut left_behind = Namespace::create(&name("leftover")).unwrap();
    let path = left_behind.path();
    left_behind.keep();
    let mut stray = left_behind.spawn(command(&["sleep", "600"])).unwrap();
    drop(left_behind);
    assert!(path.exists());

    // A process that another test is just starting has everybody's locks until it is what it shall be.
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut removed = sweep().unwrap();
    while !removed.contains(&name("leftover")) {
        assert!(Instant::now() < deadline, "{removed:?}");
        std::thread::sleep(Duration::from_millis(10));
        removed = sweep().unwrap();
    }
    assert!(!path.exists());
    assert!(!stray.wait().unwrap().success());
    assert!(owned.path().exists());

    let again = Namespace::create(owned.name());
    assert!(matches!(again, Err(Error::Busy(_))), "{again:?}");
}

#[test]
fn a_missing_program_and_a_failing_one_are_told_apart() {
    if !root_tests() {
        return;
    }
    let namespace = Namespace::create(&name("errors")).unwrap();
    let missing = namespace.run(command(&["topnet-no-such-program"]));
    assert!(matches!(missing, Err(Error::Start { .. })), "{missing:?}");
    let failing = namespace.offload("nosuch0", Offload::Gro, true);
    let text = failing.unwrap_err().to_string();
    assert!(text.contains("ethtool -K nosuch0 gro on"), "{text}");
}

#[test]
fn a_namespaces_file_answers_for_the_path() {
    if !root_tests() {
        return;
    }
    let namespace = Namespace::create(&name("path")).unwrap();
    assert!(Path::new("/run/netns").join(namespace.name()).exists());
    let mut child = namespace
        .spawn({
            let mut command = command(&["ip", "-o", "link"]);
            command.stdout(Stdio::piped());
            command
        })
        .unwrap();
    let mut text = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(text.lines().count(), 1, "only loopback: {text}");
}
