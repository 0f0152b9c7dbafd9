use super::*;

const EXAMPLE: &str = include_str!("../example.toml");

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("/etc/topnet/topnet.toml"))
}

#[test]
fn example_parses_and_paths_start_at_its_directory() {
    let config = parse(EXAMPLE).unwrap();
    let wallet = config.wallet().unwrap();
    let key_file = wallet.key_file.as_deref();
    assert_eq!(key_file, Some(Path::new("/etc/topnet/keys/wallet.key")));
    assert_eq!(wallet.state_dir, Path::new("/var/lib/topnet/wallet"));
    let tower = config.tower().unwrap();
    assert_eq!(tower.storage_dir, Path::new("/var/lib/topnet/tower"));
    let settlement = config.settlement().unwrap();
    assert_eq!(
        settlement.storage_dir,
        Path::new("/var/lib/topnet/settlement")
    );
    assert_eq!(
        config.dataplane().unwrap().gateway_address().to_string(),
        "10.78.0.1"
    );
}

/// The comments in the example promise these defaults.
#[test]
fn commented_keys_of_the_example_are_its_defaults() {
    let spelled_out = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(key) if key.contains(" = ") => key,
            _ => line,
        })
        .map(|line| line.replace("DATA_DIR", "/var/lib/topnet"))
        .collect::<Vec<_>>()
        .join("\n");
    let optional = [
        "hourly_spend_ntop_max = ",
        "hourly_volume_bytes_max = ",
        "rate_bytes_per_s_max = ",
        "inner_subnet6 = ",
        "gateway_address = ",
        "bucket = ",
        "endpoint = ",
        "credentials_file = ",
        "rpc_url = \"https://vpn.example\"",
        "cpus = ",
        "up_bits_per_s = ",
        "down_bits_per_s = ",
        "unpaid_bits_per_s = ",
    ];
    let spelled_out = spelled_out
        .lines()
        .filter(|line| !optional.iter().any(|key| line.starts_with(key)))
        .filter(|line| !line.starts_with("passphrase_file = "))
        .collect::<Vec<_>>()
        .join("\n");
    let left_out = EXAMPLE.replace("\npassphrase_file = \"keys/passphrase\"", "");
    let (spelled_out, left_out) = (parse(&spelled_out).unwrap(), parse(&left_out).unwrap());
    assert_eq!(format!("{spelled_out:#?}"), format!("{left_out:#?}"));
}

/// Each slip is answered with its line, its key and a mend.
#[test]
fn slips_are_named_with_line_and_mend() {
    // (what stands in the example, what is written instead, line's text, expected words)
    let cases = [
        (
            "unit_price_ntop = 26000",
            "unit_pricentop = 26000",
            "unknown key `unit_pricentop`; did you mean `unit_price_ntop`?",
        ),
        (
            "[metering]",
            "[meterin]",
            "unknown key `meterin`; did you mean `metering`?",
        ),
        (
            "region = \"DE\"",
            "colour = \"red\"",
            "unknown key `colour`; remove it; known here: name, region,",
        ),
        (
            "unit_price_ntop = 26000",
            "unit_price_ntop = \"much\"",
            "metering.unit_price_ntop: invalid type",
        ),
        (
            "unit_price_ntop = 26000",
            "unit_price_ntop = -1",
            "metering.unit_price_ntop: ",
        ),
        (
            "unit_price_ntop = 26000",
            "unit_price_ntop = 0",
            "metering.unit_price_ntop: a unit that costs nothing",
        ),
        (
            "unit_price_ntop = 26000",
            "unit_price_ntop = ",
            "correct the value",
        ),
        (
            "inner_subnet = \"10.78.0.0/16\"",
            "inner_subnet = \"10.78.0.1/16\"",
            "the network is 10.78.0.0/16",
        ),
        (
            "inner_subnet = \"10.78.0.0/16\"",
            "inner_subnet = \"10.78.0.0/31\"",
            "no room for the gateway",
        ),
        (
            "# gateway_address = \"10.78.0.1\"",
            "gateway_address = \"10.79.0.1\"",
            "not a host of 10.78.0.0/16",
        ),
        (
            "client_interface = \"eth0\"",
            "client_interface = \"an interface too long\"",
            "cannot be an interface's name",
        ),
        (
            "# operator_listen = \"127.0.0.1:8546\"",
            "operator_listen = \"0.0.0.0:8546\"",
            "control.operator_listen: 0.0.0.0:8546 is not a loopback address",
        ),
        (
            "# public_listen = \"0.0.0.0:8545\"",
            "public_listen = \"0.0.0.0:8546\"",
            "both listeners have the same port",
        ),
        (
            "wireguard_endpoint = \"203.0.113.1:51820\"",
            "wireguard_endpoint = \"0.0.0.0:51820\"",
            "control.offer.wireguard_endpoint: nobody can reach",
        ),
        (
            "wireguard_endpoint = \"203.0.113.1:51820\"",
            "wireguard_endpoint = \"example\"",
            "invalid socket address",
        ),
        (
            "rpc_url = \"http://203.0.113.1:8545\"",
            "rpc_url = \"203.0.113.1:8545\"",
            "wallet.rpc_url: ",
        ),
        (
            "service_genesis_file = \"genesis/vpn.json\"",
            "service_genesis_file = \"genesis/main.json\"",
            "both chains have the same genesis",
        ),
        (
            "session_key_file = \"keys/session.key\"",
            "session_key_file = \"keys/wallet.key\"",
            "it is the account's own key_file",
        ),
        (
            "# rate_bytes_per_s_max = 12500000",
            "rate_bytes_per_s_max = 0",
            "wallet.rate_bytes_per_s_max: nothing could be paid; leave it out",
        ),
        (
            "rpc_urls = [\"http://203.0.113.1:8545\"]",
            "rpc_urls = [\"203.0.113.1:8545\"]",
            "tower.rpc_urls: `203.0.113.1:8545` is not an HTTP address",
        ),
        (
            "rpc_urls = [\"http://203.0.113.1:8545\"]",
            "rpc_urls = []",
            "tower.rpc_urls: there is no node to ask",
        ),
        (
            "payees = [\"top1",
            "payees = [] # [\"top1",
            "tower.payees: it holds claims for 1 to 64 payees",
        ),
        (
            "payees = [\"top1y",
            "payees = [\"top1z",
            "expected top1… with a valid checksum",
        ),
        (
            "# towers = []",
            "towers = [\"http://192.0.2.7:8547\", \"http://192.0.2.7:8547\"] # []",
            "settlement.towers: `http://192.0.2.7:8547` stands there twice; name it once",
        ),
        ("# io = \"auto\"", "io = \"fast\"", "unknown variant `fast`"),
        (
            "# service_log_segment_lines = ",
            "service_log_segment_lines = 0 # ",
            "metering.service_log_segment_lines: 0 is out of range",
        ),
        (
            "# bucket = \"topnet-log\"",
            "bucket = \"s3://topnet-log\"",
            "metering.archive.bucket: `s3://topnet-log` is no bucket's name; write the name alone",
        ),
        (
            "# allow_http = false",
            "allow_http = true",
            "metering.archive.allow_http: it is about a bucket, and there is none",
        ),
        (
            "# region = \"us-east-1\"",
            "secret_access_key = \"x\"",
            "unknown key `secret_access_key`",
        ),
        (
            "addresses = \"198.51.100.0/28\"",
            "addresses = \"198.51.0.0/16\"",
            "dataplane.nat.addresses: it is 198.51.0.0/16, which is no prefix of at most 1024 addresses;",
        ),
        (
            "addresses = \"198.51.100.0/28\"",
            "addresses = \"10.78.3.0/28\"",
            "10.78.3.0/28 and inner_subnet 10.78.0.0/16 overlap; choose addresses",
        ),
        (
            "# block_ports = 512 ",
            "block_ports = 500 ",
            "nat.block_ports: it is 500, which is no size of a block; choose a multiple of 64 up to 64512",
        ),
        (
            "# blocks_per_client_max = 8",
            "blocks_per_client_max = 1025",
            "nat.blocks_per_client_max: it is 1025, which is out of range; choose 1 to 1024",
        ),
        (
            "# flows_max = 4194304 ",
            "flows_max = 131071 ",
            "nat.flows_max: 131071 leaves none that each of 65536 clients can be sure of; \
             choose at least 131072, or a smaller sessions_max",
        ),
        (
            "# flows_max = 4194304 ",
            "flows_max = 268435457 ",
            "nat.flows_max: it is 268435457, which is out of range; choose 1 to 268435456",
        ),
        (
            "# flows_per_client_max = 16384",
            "flows_per_client_max = 4194305",
            "nat.flows_per_client_max: 4194305 for one client is more than 4194304 for all",
        ),
        (
            "# mappings_max = 2097152",
            "mappings_max = 7 #",
            "nat.mappings_max: 7 leaves none",
        ),
        (
            "# mappings_per_client_max = 8192",
            "mappings_per_client_max = 0",
            "nat.mappings_per_client_max: it is 0, which is out of range; choose 1 to",
        ),
        (
            "runtime_dir = \"/run/topnet\"",
            &format!("runtime_dir = \"/{}\"", "d".repeat(100)),
            "choose a shorter directory",
        ),
    ];
    for (right, wrong, expected) in cases {
        assert!(EXAMPLE.contains(right), "{right}");
        let text = EXAMPLE.replacen(right, wrong, 1);
        let line = text.lines().position(|line| line.contains(wrong)).unwrap() + 1;
        let error = parse(&text).expect_err(wrong);
        let words = error.to_string();
        assert!(words.contains(expected), "{wrong}: {words}");
        assert_eq!(error.problems()[0].line, Some(line), "{wrong}: {words}");
        assert!(
            words.starts_with("/etc/topnet/topnet.toml cannot be used:"),
            "{words}"
        );
    }
}

/// What is wrong with a bucket.
#[test]
fn slips_about_a_bucket_are_named() {
    let cases = [
        ("", None),
        ("prefix = \"provider-1/log\"", None),
        ("endpoint = \"https://s3.example.net\"", None),
        (
            "endpoint = \"http://10.0.0.1:9000\"\nallow_http = true",
            None,
        ),
        (
            "endpoint = \"http://10.0.0.1:9000\"",
            Some("archive.endpoint: `http://10.0.0.1:9000` has no TLS"),
        ),
        (
            "endpoint = \"s3.example.net\"",
            Some("archive.endpoint: `s3.example.net` is not an HTTP address"),
        ),
        (
            "endpoint = \"https://key:secret@s3.example.net\"",
            Some("archive.endpoint: it has credentials in it"),
        ),
        (
            "dir = \"elsewhere\"",
            Some("archive.dir: there is a bucket too"),
        ),
        (
            "prefix = \"../log\"",
            Some("archive.prefix: `../log` cannot"),
        ),
        ("prefix = \"log/\"", Some("archive.prefix: `log/` cannot")),
        ("region = \"\"", Some("archive.region: requests are signed")),
    ];
    for (keys, expected) in cases {
        let section = format!("[metering.archive]\nbucket = \"topnet-log\"\n{keys}");
        let parsed = parse(&EXAMPLE.replace("[metering.archive]", &section));
        match expected {
            None => {
                let config = parsed.expect(keys);
                let archive = &config.metering().unwrap().archive;
                assert_eq!(archive.bucket.as_deref(), Some("topnet-log"));
                assert_eq!(archive.dir, Path::new(""));
            }
            Some(expected) => {
                let words = parsed.expect_err(keys).to_string();
                assert!(words.contains(expected), "{keys}: {words}");
            }
        }
    }
}

#[test]
fn a_bucket_s_credentials_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let path = std::env::temp_dir().join(format!("topnet-credentials-{}", std::process::id()));
    let text = EXAMPLE.replace(
        "# bucket = \"topnet-log\"",
        &format!(
            "bucket = \"topnet-log\"\ncredentials_file = \"{}\"",
            path.display()
        ),
    );
    let config = parse(&text).unwrap();
    let found = || {
        let mut problems = config.check_machine().into_iter();
        let found = problems.find(|found| found.place == "metering.archive.credentials_file");
        found.map(|found| found.what)
    };
    assert!(found().unwrap().contains("No such file"));
    std::fs::write(&path, "").unwrap();
    let mode = |mode| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o640);
    assert!(found().unwrap().contains("others than its owner"));
    mode(0o600);
    assert_eq!(found(), None);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn what_peers_reach_is_private_and_resolvers_are_within_reach() {
    let with = |reach: &str, dns: &str| {
        let text = EXAMPLE
            .replace("# private = []", reach)
            .replace("# dns = []", dns);
        match parse(&text) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    };
    let private = r#"private = ["10.20.0.0/16", "fd20::/32"]"#;
    let peers = r#"peers = ["10.78.0.0/16", "192.168.9.0/24"]"#;
    let many: Vec<_> = (0..65).map(|n| format!("\"10.20.{n}.0/24\"")).collect();
    let many = format!("private = [{}]", many.join(", "));
    for (reach, dns, expected) in [
        (private, "", ""),
        ("private = [\"10.78.1.0/24\"]", "", "lies in the tunnel"),
        (
            "unmetered_private = [\"10.78.1.0/24\"]",
            "",
            "lies in the tunnel",
        ),
        ("private = [\"9.9.9.0/24\"]", "", "9.9.9.0/24 is public"),
        (
            "private = [\"10.20.0.1/16\"]",
            "",
            "the network is 10.20.0.0/16",
        ),
        (&many, "", "65 networks are too many"),
        (private, "dns = [\"9.9.9.9\", \"10.20.0.53\"]", ""),
        (
            peers,
            "dns = [\"10.78.0.1\"]",
            "control.offer.dns: 10.78.0.1 is the gateway's own",
        ),
        (peers, "dns = [\"10.78.255.53\", \"192.168.9.53\"]", ""),
        (
            peers,
            "dns = [\"10.78.0.9\"]",
            "10.78.0.9 is lent to any client",
        ),
        (
            private,
            "dns = [\"10.78.255.53\"]",
            "10.78.255.53 is a peer's address",
        ),
        (
            "peers = [\"10.78.255.0/24\"]",
            "dns = [\"10.78.255.53\"]",
            "and the clients' in dataplane.reach.peers",
        ),
        (
            private,
            "dns = [\"10.21.0.53\"]",
            "control.offer.dns: 10.21.0.53 is private",
        ),
    ] {
        let said = with(reach, dns);
        let held = match expected {
            "" => said.is_empty(),
            words => said.contains(words),
        };
        assert!(held, "{reach} {dns}: {said}");
    }
}

#[test]
fn all_wrong_values_are_named_at_once() {
    let text = EXAMPLE
        .replace("unit_price_ntop = 26000", "unit_price_ntop = 0")
        .replace("# public_listen = \"0.0.0.0:8545\"", "connections_max = 0");
    let error = parse(&text).unwrap_err();
    let places: Vec<_> = error
        .problems()
        .iter()
        .map(|problem| problem.place.as_str())
        .collect();
    assert_eq!(
        places,
        ["metering.unit_price_ntop", "control.connections_max"]
    );
}

#[test]
fn workers_have_bounds_and_each_a_part_of_the_pool() {
    let named = |workers: &str| {
        let text = EXAMPLE.replace("# workers = 1 ", workers);
        let words = |problem: &Problem| format!("{}: {}", problem.place, problem.what);
        parse(&text).map_or_else(
            |error| error.problems().iter().map(words).collect(),
            |_| Vec::new(),
        )
    };
    assert_eq!(named("workers = 16 "), [""; 0]);
    assert_eq!(named("workers = 2\ncpus = [0, 1] "), [""; 0]);
    let out_of_range = |workers: &str| [format!("dataplane.workers: {workers} is out of range")];
    assert_eq!(named("workers = 0 "), out_of_range("0"));
    assert_eq!(named("workers = 17 "), out_of_range("17"));
    assert_eq!(
        named("workers = 2\ncpus = [1] "),
        ["dataplane.cpus: 1 CPUs are named for 2 workers"]
    );
    assert_eq!(
        named("workers = 2\ncpus = [1, 1] "),
        ["dataplane.cpus: CPU 1 is named twice"]
    );
    assert_eq!(named("nice = -20\n# "), [""; 0]);
    for nice in ["-21", "20"] {
        assert_eq!(
            named(&format!("nice = {nice}\n# ")),
            [format!("dataplane.nice: {nice} is out of range")]
        );
    }
    let few = EXAMPLE
        .replace("# workers = 1 ", "workers = 3 ")
        .replace("# block_ports = 512 ", "block_ports = 32000 ");
    let error = parse(&few).unwrap_err().to_string();
    assert!(error.contains("dataplane.nat.block_ports"), "{error}");
}

#[test]
fn missing_section_key_and_file_are_named() {
    let client = "[wallet]\nrpc_url = \"http://127.0.0.1:8545\"\nkey_file = \"w\"\nunit_price_ntop_max = 1\n";
    let config = parse(client).unwrap();
    let words = config.metering().unwrap_err().to_string();
    assert!(
        words.contains("metering: the section is missing; add [metering]"),
        "{words}"
    );

    let words = parse("[wallet]\nkey_file = \"w\"\n")
        .unwrap_err()
        .to_string();
    assert!(
        words.contains("line 1: wallet: missing key `rpc_url`; add the key"),
        "{words}"
    );

    let words = Config::load(Path::new("/nonexistent/topnet.toml"))
        .unwrap_err()
        .to_string();
    assert!(
        words.contains("/nonexistent/topnet.toml") && words.contains("topnet init"),
        "{words}"
    );
}

#[test]
fn a_wallet_has_one_key_file_or_two_but_not_none() {
    let with = |keys: &str| {
        let text = format!(
            "[wallet]\nrpc_url = \"http://127.0.0.1:8545\"\nunit_price_ntop_max = 1\n{keys}"
        );
        parse(&text)
    };
    let files = |keys: &str| with(keys).unwrap().wallet().unwrap().files().len();
    assert_eq!(files("key_file = \"w\""), 1);
    assert_eq!(files("session_key_file = \"s\""), 1);
    assert_eq!(files("key_file = \"w\"\nsession_key_file = \"s\""), 2);
    let words = with("").unwrap_err().to_string();
    assert!(
        words.contains("wallet.key_file: there is no key"),
        "{words}"
    );
}

#[test]
fn machine_check_names_missing_files_and_interfaces() {
    let text = EXAMPLE.replace("eth0", "no-such-link");
    let problems = parse(&text).unwrap().check_machine();
    let find = |place: &str| problems.iter().find(|problem| problem.place == place);
    assert!(
        find("dataplane.client_interface")
            .unwrap()
            .what
            .contains("no-such-link")
    );
    assert!(
        find("settlement.payee_key_file")
            .unwrap()
            .what
            .contains("/etc/topnet/keys/payee.key")
    );
}
