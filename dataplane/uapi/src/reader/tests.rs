use super::*;
use crate::request::NO_KEY_HEX;

const KEY: &str = "4e73c15e31db5f8557ba3db7e1c2fe9d18cafa0e9f0960e4967145a7ef71e30f";

fn small() -> Limits {
    Limits {
        lines_max: 10,
        line_bytes_max: 100,
        peers_max: 2,
        allowed_ips_max: 4,
    }
}

fn read_all(bytes: &[u8], piece_bytes: usize) -> Vec<Result<Request, Refusal>> {
    let mut reader = RequestReader::new(small());
    let mut all = Vec::new();
    for mut piece in bytes.chunks(piece_bytes) {
        while let Some(read) = reader.read(&mut piece) {
            all.push(read);
        }
        assert!(piece.is_empty(), "what arrived is consumed");
    }
    all
}

/// The answer to `set=1`, these lines and the empty one, and why.
fn refusal(lines: &str) -> (usize, i32, String) {
    let lines = lines.replace("KEY", KEY);
    match Request::parse(format!("set=1\n{lines}\n").as_bytes(), &small()) {
        Err(refusal) => (
            refusal.line_number,
            refusal.problem.errno().number(),
            refusal.problem.to_string(),
        ),
        Ok(request) => panic!("{lines}: {request:?}"),
    }
}

#[test]
fn a_refusal_says_which_line_and_why() {
    // Asked of wireguard-go 0.0.20220316 too, which answers the same numbers.
    let cases = [
        ("foo=bar\n", 2, 22, "`foo` is no key"),
        ("foo\n", 2, 71, "3 bytes without a `=`"),
        (
            "public_key=KEY\nlisten_port=5\n",
            3,
            22,
            "belongs to the interface",
        ),
        (
            "listen_port=70000\n",
            2,
            22,
            "listen_port cannot be `70000`: write 0 to 65535",
        ),
        ("listen_port=+7\n", 2, 22, "listen_port cannot be `+7`"),
        ("public_key=KEY\nprotocol_version=2\n", 3, 22, "write 1"),
        (
            "public_key=KEY\nallowed_ip=1.2.3.4\n",
            3,
            22,
            "allowed_ip cannot be `1.2.3.4`",
        ),
        ("replace_peers=false\n", 2, 22, "leave the line out"),
        ("private_key=\n", 2, 22, "private_key is not a key"),
        (
            "public_key=KEY\nremove=true\nfoo=1\n",
            4,
            22,
            "`foo` is no key",
        ),
        // These it was not asked.
        (
            "allowed_ip=10.0.0.0/8\n",
            2,
            22,
            "write it after a public_key",
        ),
        ("fwmark=0x20\n", 2, 22, "fwmark cannot be"),
        ("fwmark=4294967296\n", 2, 22, "fwmark cannot be"),
        ("public_key=KEY0\n", 2, 22, "public_key is not a key"),
        (
            "public_key=KEY\nendpoint=vpn.example:9\n",
            3,
            22,
            "endpoint cannot be",
        ),
        (
            "public_key=KEY\nallowed_ip=--10.0.0.0/8\n",
            3,
            22,
            "allowed_ip cannot be",
        ),
        (
            "public_key=KEY\npersistent_keepalive_interval=off\n",
            3,
            22,
            "seconds",
        ),
        (
            "public_key=KEY\npublic_key=KEY\npublic_key=KEY\n",
            4,
            7,
            "more than 2 peers",
        ),
        ("listen_port=5\r\n", 2, 22, "listen_port cannot be `5\\r`"),
    ];
    for (lines, line_number, errno, text) in cases {
        let (at, number, problem) = refusal(lines);
        assert_eq!((at, number), (line_number, errno), "{lines}: {problem}");
        assert!(problem.contains(text), "{lines}: {problem}");
    }
}

#[test]
fn secrets_are_in_no_refusal() {
    let secret = "5809dacea6c0e258c547047bff104b6fe478647041c2086b13c7cb206b9c5d6g";
    for lines in [
        format!("private_key={secret}\n"),
        format!("public_key=KEY\npreshared_key={secret}\n"),
        format!("{secret}\n"),
        format!("{secret}=\n"),
    ] {
        let (_, _, problem) = refusal(&lines);
        assert!(!problem.contains("5809da"), "{problem}");
    }
    for begin in ["", "private_key="] {
        let refusal = Request::parse(format!("{begin}{secret}\n\n").as_bytes(), &small());
        let problem = refusal.unwrap_err().to_string();
        assert!(!problem.contains("5809da"), "{problem}");
    }
}

#[test]
fn zeros_clear_and_flags_hold_for_their_section() {
    let text = format!(
        "set=1\nprivate_key={NO_KEY_HEX}\npublic_key={KEY}\nallowed_ip=10.0.0.0/8\n\
         preshared_key={NO_KEY_HEX}\nreplace_allowed_ips=true\nallowed_ip=-10.1.2.3/16\n\n"
    );
    let Ok(Request::Set(set)) = Request::parse(text.as_bytes(), &small()) else {
        panic!("{text}");
    };
    assert_eq!(set.private_key, KeyUpdate::Clear);
    assert_eq!(set.peers[0].preshared_key, KeyUpdate::Clear);
    let network = "10.1.0.0/16".parse().unwrap();
    assert!(set.peers[0].replace_allowed_ips);
    assert_eq!(set.peers[0].allowed_ips, [AllowedIpChange::Remove(network)]);
}

#[test]
fn a_connection_goes_on_after_a_refusal() {
    let bytes =
        b"get=1\n\nset=1\nfoo=1\nbar\nlisten_port=5\n\nget=1\nx\n\nset=1\nlisten_port=5\n\n";
    for piece_bytes in 1..=bytes.len() {
        let all = read_all(bytes, piece_bytes);
        assert_eq!(all.len(), 4);
        assert_eq!(all[0], Ok(Request::Get));
        let first = all[1].as_ref().unwrap_err();
        assert_eq!((first.line_number, first.closes), (2, false));
        assert_eq!(first.answer(), "errno=-22\n\n");
        let get = all[2].as_ref().unwrap_err();
        assert_eq!(get.problem, Problem::GetWithLines);
        let listen_port = Some(5);
        let set = Set {
            listen_port,
            ..Set::default()
        };
        assert_eq!(all[3], Ok(Request::Set(set)));
    }
}

#[test]
fn a_connection_ends_where_no_request_can_be_found() {
    for bytes in [
        "bad=1\n\nget=1\n\n",
        "\nget=1\n\n",
        "set=1\r\n\r\nget=1\n\n",
    ] {
        let all = read_all(bytes.as_bytes(), 3);
        assert_eq!(all.len(), 1, "{bytes}");
        assert!(all[0].as_ref().unwrap_err().closes, "{bytes}");
    }
}

#[test]
fn an_endless_request_is_refused_and_not_kept() {
    // Many lines, one long line, and a long line after another problem.
    let many = "listen_port=5\n".repeat(100);
    let long = "x".repeat(10_000);
    let cases = [
        (format!("set=1\n{many}"), 11, true),
        (format!("set=1\n{long}"), 2, true),
        (format!("set=1\nfoo=1\n{long}"), 2, true),
        (format!("set=1\n{}\n\n", &long[..150]), 2, false),
    ];
    for (text, line_number, closes) in cases {
        let all = read_all(text.as_bytes(), 7);
        assert_eq!(all.len(), 1);
        let refusal = all[0].as_ref().unwrap_err();
        assert_eq!((refusal.line_number, refusal.closes), (line_number, closes));
    }
}

#[test]
fn a_request_cut_off_is_none() {
    let mut reader = RequestReader::new(small());
    assert!(reader.is_between_requests());
    for mut piece in [&b"se"[..], b"t=1", b"\n", b"listen_port=5\n"] {
        assert_eq!(reader.read(&mut piece), None);
        assert!(!reader.is_between_requests());
    }
    assert!(matches!(reader.read(&mut &b"\n"[..]), Some(Ok(_))));
    assert!(reader.is_between_requests());
    let cut_off = Request::parse(b"set=1\nlisten_port=5\n", &small());
    assert_eq!(cut_off.unwrap_err().problem, Problem::Unfinished);
}
