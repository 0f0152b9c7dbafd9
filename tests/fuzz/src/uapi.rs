//! What WireGuard's tools and their users write: requests, answers and `wg0.conf`.

use topnet_uapi::{
    AllowedIpChange, AnswerReader, Conf, Device, DeviceStatus, EndpointName, Limits, PeerStatus,
    PrivateKey, PublicKey, Refusal, Request, RequestReader, Set, Traffic,
};

/// So little that an input can have more.
const SMALL: Limits = Limits {
    lines_max: 64,
    line_bytes_max: 128,
    peers_max: 4,
    allowed_ips_max: 6,
};

/// Longer than any line that an error has to say, secrets and endless lines included.
const MESSAGE_BYTES_MAX: usize = 1000;

/// The first byte says in what pieces the rest arrives, as a request, an answer and a file.
pub(crate) fn uapi(bytes: &[u8]) {
    let Some((piece_bytes, text)) = bytes.split_first() else {
        return;
    };
    let piece_bytes = usize::from(*piece_bytes).max(1);
    requests(text, piece_bytes);
    answers(text, piece_bytes);
    conf(text);
}

fn requests(text: &[u8], piece_bytes: usize) {
    let all = read_requests(text, piece_bytes);
    assert_eq!(read_requests(text, text.len().max(1)), all);
    let whole = Request::parse(text, &SMALL);
    if let Some(first) = all.first() {
        assert_eq!(whole, *first);
    } else {
        assert!(whole.is_err_and(|refusal| refusal.closes));
    }
    let mut device = Device::new(SMALL, public_key);
    for read in all {
        match read {
            Ok(request) => {
                writes_and_reads_back(&request);
                if let Request::Set(set) = &request {
                    assert!(set.peers.len() <= SMALL.peers_max);
                    apply(&mut device, set);
                }
            }
            Err(refusal) => assert!(refusal.to_string().len() < MESSAGE_BYTES_MAX),
        }
    }
}

fn read_requests(text: &[u8], piece_bytes: usize) -> Vec<Result<Request, Refusal>> {
    let mut reader = RequestReader::new(SMALL);
    let mut all = Vec::new();
    for mut piece in text.chunks(piece_bytes) {
        while let Some(read) = reader.read(&mut piece) {
            all.push(read);
        }
        assert!(piece.is_empty(), "what was read is gone");
    }
    all
}

fn writes_and_reads_back(request: &Request) {
    let text = request.to_text();
    let again = Request::parse(text.as_bytes(), &Limits::default());
    assert!(again.as_ref() == Ok(request), "{request:?} → {again:?}");
}

fn answers(text: &[u8], piece_bytes: usize) {
    let whole = DeviceStatus::parse(text, &SMALL);
    let mut reader = AnswerReader::new(SMALL);
    let mut pieces = text.chunks(piece_bytes);
    if let Some(first) = pieces.find_map(|mut piece| reader.read(&mut piece)) {
        assert_eq!(first, whole);
    }
    match whole {
        Ok(device) => {
            assert!(device.peers.len() <= SMALL.peers_max);
            status_reads_back(&device);
        }
        Err(error) => assert!(error.to_string().len() < MESSAGE_BYTES_MAX),
    }
}

fn status_reads_back(device: &DeviceStatus) {
    let again = DeviceStatus::parse(device.to_text().as_bytes(), &Limits::default());
    assert!(again.as_ref() == Ok(device), "{device:?} → {again:?}");
}

fn conf(text: &[u8]) {
    match Conf::parse(text) {
        Ok(conf) => {
            let again = Conf::parse(conf.to_text().as_bytes());
            assert!(again.as_ref() == Ok(&conf), "{conf:?} → {again:?}");
            let set = conf.to_set(EndpointName::socket_address);
            apply(&mut Device::new(SMALL, public_key), &set);
            writes_and_reads_back(&Request::Set(set));
        }
        Err(error) => assert!(error.to_string().len() < MESSAGE_BYTES_MAX),
    }
}

/// A request is applied as a whole or not at all; the device is within its limits, no network is
/// two peers', and what it says of itself is read back.
fn apply(device: &mut Device, set: &Set) {
    let status = |device: &Device| device.status(|_| Traffic::default());
    let before = status(device);
    let outcome = device.apply(set);
    let after = status(device);
    assert!(outcome.is_ok() || before == after, "refused and applied");
    // It is nothing new then.
    assert!(outcome != Ok(Vec::new()) || before == after);
    assert!(after.peers.len() <= SMALL.peers_max);
    let networks = after.peers.iter().map(|peer| peer.allowed_ips.len());
    assert!(networks.sum::<usize>() <= SMALL.allowed_ips_max);
    for peer in &after.peers {
        assert!(device.public_key() != Some(&peer.public_key));
        for network in &peer.allowed_ips {
            assert_eq!(device.owner(network), Some(&peer.public_key));
        }
    }
    for line in set.peers.iter().flat_map(|peer| &peer.allowed_ips) {
        let (AllowedIpChange::Add(network) | AllowedIpChange::Remove(network)) = line;
        let has_it = |peer: &&PeerStatus| peer.allowed_ips.contains(network);
        let owner = after.peers.iter().find(has_it);
        assert_eq!(device.owner(network), owner.map(|peer| &peer.public_key));
    }
    status_reads_back(&after);
}

/// Which one belongs to a private key is somebody else's cryptography.
fn public_key(private_key: &PrivateKey) -> PublicKey {
    PublicKey(*private_key.as_bytes())
}
