//! The lab's parts by themselves, without the product: wireguard-go at both ends and the
//! kernel's own forwarding between them.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::Duration;
use topnet_lab::files;
use topnet_lab::interrupt::Interrupt;
use topnet_lab::origin::Origin;
use topnet_lab::process::{Lifetime, User};
use topnet_lab::run_dir::RunDir;
use topnet_lab::topology::{ORIGIN, PROVIDER, Topology};
use topnet_lab::transfer::Client;
use topnet_lab::tunnel::{Interface, KeyPair, Tunnel};
use topnet_netns::root_tests;

const WIREGUARD_PORT: u16 = 51820;
const LIMIT: Duration = Duration::from_secs(60);

const fn user(uid: u32) -> User {
    User {
        uid,
        gid: uid,
        capabilities: &[],
    }
}

/// What `wg setconf` reads.
fn wg_config(path: &Path, own: &KeyPair, interface: &str, peer: &KeyPair, about_peer: &str) {
    let private = fs::read_to_string(&own.private_file).unwrap();
    let text = format!(
        "[Interface]\nPrivateKey = {}\n{interface}\n[Peer]\nPublicKey = {}\n{about_peer}\n",
        private.trim(),
        peer.public
    );
    fs::write(path, text).unwrap();
}

#[test]
fn files_come_through_a_tunnel_unchanged_and_nothing_stays() {
    if !root_tests() {
        return;
    }
    let interrupt = Interrupt::default();
    let id = std::process::id();
    let run_dir = RunDir::create().unwrap();
    let topology = Topology::create(&format!("topnet-plain-{id}-"), 1).unwrap();
    let paths = [
        run_dir.path().to_owned(),
        topology.client.path(),
        topology.provider.path(),
        topology.origin.path(),
    ];
    let nginx = user(1_900_000_101);
    let origin = Origin::start(&topology, &run_dir, nginx, Lifetime::Run, &interrupt).unwrap();

    let [client_keys, gateway_keys] = ["client.key", "gateway.key"]
        .map(|name| KeyPair::generate(&topology.client, &interrupt, &run_dir.join(name)).unwrap());
    let gateway_config = run_dir.join("gateway.conf");
    wg_config(
        &gateway_config,
        &gateway_keys,
        &format!("ListenPort = {WIREGUARD_PORT}"),
        &client_keys,
        "AllowedIPs = 10.78.0.2/32",
    );
    let client_config = run_dir.join("client.conf");
    wg_config(
        &client_config,
        &client_keys,
        "",
        &gateway_keys,
        &format!("Endpoint = {PROVIDER}:{WIREGUARD_PORT}\nAllowedIPs = {ORIGIN}/32"),
    );

    let [gateway_name, client_name] = ["g", "c"].map(|end| format!("tn{end}{id}"));
    let interface = |name, last| Interface {
        name,
        address: std::net::Ipv4Addr::new(10, 78, 0, last),
        mtu_bytes: 1420,
    };
    topology
        .provider
        .sysctl("net.ipv4.ip_forward", "1")
        .unwrap();
    let gateway = Tunnel::start(
        &topology.provider,
        &run_dir,
        interface(&gateway_name, 1),
        &gateway_config,
        &interrupt,
    )
    .unwrap();
    gateway
        .route(&topology.provider, "10.78.0.0/16", &interrupt)
        .unwrap();
    let tunnel = Tunnel::start(
        &topology.client,
        &run_dir,
        interface(&client_name, 2),
        &client_config,
        &interrupt,
    )
    .unwrap();
    tunnel
        .route(&topology.client, &format!("{ORIGIN}/32"), &interrupt)
        .unwrap();

    let person = user(1_900_000_102);
    let home = run_dir.private("client", person.uid, person.gid).unwrap();
    let client = Client {
        namespace: &topology.client,
        run_dir: &run_dir,
        user: person,
    };
    let offered = origin.offer_random("file", 8 << 20).unwrap();
    let fetched = home.join("file");
    client
        .download(&Origin::download_url(ORIGIN.into(), "file"), &fetched)
        .unwrap()
        .finish(&interrupt, LIMIT, |_| ())
        .unwrap();
    assert_eq!(files::digest(&fetched).unwrap(), offered);

    let to_send = home.join("send");
    let sent = files::write_random(&to_send, 2 << 20).unwrap();
    std::os::unix::fs::chown(&to_send, Some(person.uid), None).unwrap();
    client
        .upload(&to_send, &Origin::upload_url(ORIGIN.into(), "sent"), None)
        .unwrap()
        .finish(&interrupt, LIMIT, |_| ())
        .unwrap();
    assert_eq!(origin.uploaded("sent").unwrap(), sent);

    let (received, transmitted) = tunnel.interface_bytes(&topology.client).unwrap();
    let inner = received + transmitted;
    let outer = tunnel.transfer_bytes(&topology.client, &interrupt).unwrap();
    let payload = offered.bytes + sent.bytes;
    assert!(inner > payload, "{inner} inner bytes for {payload}");
    assert!(outer > inner, "{outer} outer bytes for {inner} inner ones");

    let missing = client
        .download(
            &Origin::download_url(ORIGIN.into(), "nothing"),
            &home.join("nothing"),
        )
        .unwrap()
        .finish(&interrupt, LIMIT, |_| ());
    let words = format!("{:#}", missing.unwrap_err());
    assert!(words.contains("404"), "{words}");

    drop((tunnel, gateway, origin, topology, run_dir));
    for path in paths {
        assert!(!path.exists(), "{} is still there", path.display());
    }
}

#[test]
fn the_origin_is_out_of_reach_without_the_tunnel() {
    if !root_tests() {
        return;
    }
    let interrupt = Interrupt::default();
    let run_dir = RunDir::create().unwrap();
    let topology = Topology::create(&format!("topnet-alone-{}-", std::process::id()), 1).unwrap();
    let nginx = user(1_900_000_101);
    let _origin = Origin::start(&topology, &run_dir, nginx, Lifetime::Run, &interrupt).unwrap();
    let client = Client {
        namespace: &topology.client,
        run_dir: &run_dir,
        user: user(1_900_000_102),
    };
    let reached = client
        .download(
            &Origin::download_url(ORIGIN.into(), ""),
            Path::new("/dev/null"),
        )
        .unwrap()
        .finish(&interrupt, Duration::from_secs(10), |_| ());
    assert!(reached.is_err());
}
