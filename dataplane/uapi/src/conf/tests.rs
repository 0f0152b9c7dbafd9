use super::*;

const KEY: &str = "TnPBXjHbX4VXuj234cL+nRjK+g6fCWDklnFFp+9x4w8=";

fn parse(text: &str) -> Result<Conf, ConfError> {
    Conf::parse(text.replace("KEY", KEY).as_bytes())
}

fn texts(commands: &[CommandLine]) -> Vec<&str> {
    commands.iter().map(CommandLine::as_str).collect()
}

#[test]
fn a_client_s_file_is_read_whole() {
    let conf = parse(
        "# my tunnel\n\
         [INTERFACE]\r\n\
         privatekey=KEY # mine\n\
         \tAddress = 10.7.0.2 / 24, fd00:7::2/64\n\
         address=10.8.0.2\n\
         DNS = 10.7.0.1, home.example  fd00:7::1\n\
         MTU = 1420\n\
         Table = off\n\
         FwMark = 0xCAFE\n\
         PostUp = iptables -A x -m comment --comment '# a = b'   \n\
         PostUp = echo 2\n\
         SaveConfig = TRUE\n\
         [Peer]\n\
         PublicKey = KEY\n\
         AllowedIPs = 0.0.0.0/0, ::/0\n\
         Endpoint = vpn.example : 51820\n\
         PersistentKeepalive = OFF\n",
    )
    .unwrap();
    let interface = &conf.interface;
    let addresses: Vec<_> = interface
        .addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(addresses, ["10.7.0.2/24", "fd00:7::2/64", "10.8.0.2/32"]);
    let dns: Vec<_> = interface.dns.iter().map(ToString::to_string).collect();
    assert_eq!(dns, ["10.7.0.1", "fd00:7::1"]);
    assert_eq!(interface.dns_search[0].as_str(), "home.example");
    assert_eq!(interface.mtu, Some(1420));
    assert_eq!(interface.table.as_ref().map(Word::as_str), Some("off"));
    assert_eq!(interface.fwmark, Some(0xcafe));
    let commands = ["iptables -A x -m comment --comment '# a = b'", "echo 2"];
    assert_eq!(texts(&interface.post_up), commands);
    assert!(interface.save_config && interface.private_key.is_some());
    let peer = &conf.peers[0];
    assert_eq!(peer.allowed_ips.len(), 2);
    assert_eq!(
        peer.endpoint.as_ref().unwrap().to_string(),
        "vpn.example:51820"
    );
    assert_eq!(peer.endpoint.as_ref().unwrap().socket_address(), None);
    assert_eq!(peer.persistent_keepalive_s, Some(0));
    assert_eq!(Conf::parse(conf.to_text().as_bytes()), Ok(conf));
}

#[test]
fn an_error_names_the_line_and_the_mend() {
    let cases = [
        ("ListenPort = 5\n", 1, "begin with [Interface]"),
        ("[Interfaces]\n", 1, "there are [Interface] and [Peer]"),
        (
            "[Interface]\nListenPort = 65536\n",
            2,
            "ListenPort cannot be `65536`: write 0 to 65535",
        ),
        ("[Interface]\nListenPort =\n", 2, "ListenPort has no value"),
        ("[Interface]\nListenPort\n", 2, "no `Key = value`"),
        ("[Interface]\nFwMark = 0xg\n", 2, "FwMark cannot be"),
        ("[Interface]\nFwMark = 0x\n", 2, "FwMark cannot be"),
        ("[Interface]\nFwMark = 0x+1\n", 2, "FwMark cannot be"),
        (
            "[Interface]\nAddress = 10.0.0.1/33\n",
            2,
            "Address cannot be `10.0.0.1/33`",
        ),
        ("[Interface]\nDNS = 10.0.0\n", 2, "DNS cannot be `10.0.0`"),
        ("[Interface]\nDNS = ,\n", 2, "DNS has no value"),
        ("[Interface]\nMTU = big\n", 2, "MTU cannot be"),
        ("[Interface]\nTable = a b\n", 2, "Table cannot be"),
        ("[Interface]\nSaveConfig = yes\n", 2, "true or false"),
        ("[Interface]\nPostUp = \n", 2, "PostUp has no value"),
        (
            "[Interface]\nEndpoint = a:1\n",
            2,
            "move the line to the other section",
        ),
        (
            "[Interface]\nJc = 4\n",
            2,
            "`Jc` is no key of [Interface]: correct it",
        ),
        (
            "[Interface]\nPrivateKey = KEYa\n",
            2,
            "PrivateKey is not a key",
        ),
        (
            "[Peer]\nAllowedIPs = ::/0\n\n[Peer]\nPublicKey = KEY\n",
            4,
            "no PublicKey",
        ),
        ("\n[Peer]\nAllowedIPs = ::/0\n", 2, "no PublicKey"),
        (
            "[Peer]\nAddress = 10.0.0.1\n",
            2,
            "move the line to the other section",
        ),
        (
            "[Peer]\nAllowedIPs = 10.0.0.1,\n",
            2,
            "AllowedIPs cannot be ``",
        ),
        (
            "[Peer]\nAllowedIPs = -10.0.0.1\n",
            2,
            "AllowedIPs cannot be `-10.0.0.1`",
        ),
        ("[Peer]\nEndpoint = vpn.example\n", 2, "Endpoint cannot be"),
        (
            "[Peer]\nEndpoint = vpn.example:0\n",
            2,
            "Endpoint cannot be",
        ),
        ("[Peer]\nEndpoint = [::1:9\n", 2, "Endpoint cannot be"),
        (
            "[Peer]\nPersistentKeepalive = 65536\n",
            2,
            "off, or seconds",
        ),
    ];
    for (text, line_number, what) in cases {
        let error = parse(text).unwrap_err();
        // A section without its key is known to be one when the next one begins, or at the end.
        assert_eq!(error.line_number, line_number, "{text}: {error}");
        assert!(error.to_string().contains(what), "{text}: {error}");
    }
    assert_eq!(
        Conf::parse(b"\xff").unwrap_err().problem,
        ConfProblem::NotText
    );
    let large = vec![b'\n'; CONF_BYTES_MAX + 1];
    assert_eq!(
        Conf::parse(&large).unwrap_err().problem,
        ConfProblem::TooLong
    );
}

#[test]
fn secrets_are_in_no_error() {
    let secret = "WAnazqbA4ljFRwR7/xBLb+R4ZHBBwghrE8fLIGucXWc";
    for text in [
        format!("[Interface]\nPrivateKey = {secret}\n"),
        format!("[Interface]\n{secret}\n"),
        format!("[Interface]\n{secret}=\n"),
        format!("[Peer]\nPresharedKey = {secret}\n"),
        format!("{secret}\n"),
    ] {
        let error = parse(&text).unwrap_err().to_string();
        assert!(!error.contains("WAnazq"), "{error}");
    }
}

#[test]
fn the_last_value_holds_and_lists_grow() {
    let conf = parse(
        "[Interface]\nListenPort=1\n[Peer]\nPublicKey=KEY\nAllowedIPs=10.0.0.1\n\
         AllowedIPs=10.0.0.2\nPersistentKeepalive=1\nPersistentKeepalive=2\n\
         [Interface]\nListenPort=2\n",
    )
    .unwrap();
    assert_eq!(conf.interface.listen_port, Some(2));
    assert_eq!(conf.peers[0].allowed_ips.len(), 2);
    assert_eq!(conf.peers[0].persistent_keepalive_s, Some(2));
}

#[test]
fn endpoints_are_names_or_addresses() {
    let cases = [
        ("vpn.example:51820", Some("vpn.example:51820")),
        ("192.0.2.1:1", Some("192.0.2.1:1")),
        ("[2001:db8::1]:1", Some("[2001:db8::1]:1")),
        ("2001:db8::1:51820", Some("[2001:db8::1]:51820")),
        ("[fe80::1%eth0]:1", Some("[fe80::1%eth0]:1")),
        ("[vpn.example]:1", Some("vpn.example:1")),
        (":1", None),
        ("[]:1", None),
        ("[::1]1", None),
        ("[::1]", None),
        ("a b:1", None),
        ("[fe80::1%]:1", None),
        ("a:+1", None),
    ];
    for (text, expected) in cases {
        let read = EndpointName::parse(text).map(|endpoint| endpoint.to_string());
        assert_eq!(read.as_deref(), expected, "{text}");
    }
    assert!(
        EndpointName::new("192.0.2.1", 9)
            .unwrap()
            .socket_address()
            .is_some()
    );
}

#[test]
fn a_file_for_a_client_has_a_place_for_its_key() {
    let mut conf = parse("[Interface]\nPrivateKey=KEY\nAddress=10.7.0.2\n").unwrap();
    let placeholder = Word::new("YOUR_PRIVATE_KEY").unwrap();
    let text = conf.to_text_without_key(&placeholder);
    assert!(text.starts_with("[Interface]\nPrivateKey = YOUR_PRIVATE_KEY\n"));
    assert!(!text.contains(KEY) && parse(&text).is_err());
    // Once its owner has written it there, it is the file that was meant.
    conf.interface.private_key = PrivateKey::new([9; 32]);
    let key = conf.interface.private_key.as_ref().unwrap().to_base64();
    assert_eq!(parse(&text.replace("YOUR_PRIVATE_KEY", &key)), Ok(conf));
}

#[test]
fn nothing_that_a_file_cannot_hold_gets_into_it() {
    for text in ["", "a b", "a\nb", "a#b", "a,b", "a=b", "a\0"] {
        assert_eq!(Word::new(text), None, "{text:?}");
    }
    for text in ["", "a\nPostUp = b", " a", "a\r", "a\0"] {
        assert_eq!(CommandLine::new(text), None, "{text:?}");
    }
    assert!(CommandLine::new("echo '# x = y'").is_some());
}

#[test]
fn the_longest_text_has_room() {
    let command = CommandLine::new("true").unwrap();
    let word = Word::new("w").unwrap();
    let host: EndpointName = EndpointName::new(&"h".repeat(254), u16::MAX).unwrap();
    let longest: InterfaceAddress = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"
        .parse()
        .unwrap();
    let peer = ConfPeer {
        preshared_key: PresharedKey::new([7; 32]),
        allowed_ips: vec![longest.into(); 9],
        endpoint: Some(host),
        persistent_keepalive_s: Some(u16::MAX),
        ..ConfPeer::new(PublicKey([7; 32]))
    };
    let interface = ConfInterface {
        private_key: PrivateKey::new([7; 32]),
        listen_port: Some(u16::MAX),
        fwmark: Some(u32::MAX),
        addresses: vec![longest; 99],
        dns: vec![longest.address; 99],
        dns_search: vec![word.clone(); 99],
        mtu: Some(u16::MAX),
        table: Some(word),
        pre_up: vec![command.clone(); 99],
        post_up: vec![command.clone(); 99],
        pre_down: vec![command.clone(); 99],
        post_down: vec![command; 99],
        save_config: true,
    };
    let conf = Conf {
        interface,
        peers: vec![peer; 9],
    };
    let room = 256 + 9 * 512 + 81 * 64 + 198 * 64 + 100 * 17 + 396 * 20;
    assert_eq!(conf.to_text().capacity(), room);
}
