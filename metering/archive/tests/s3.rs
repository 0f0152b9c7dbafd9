//! The archive in a bucket: a server that speaks S3's protocol over HTTP and checks every
//! signature.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
};
use topnet_account::ChannelId;
use topnet_archive::{Archive, ArchiveError, State, waiting};
use topnet_config::Archive as Config;
use topnet_log::{Line, Segments, numbers};
use topnet_unit::{BootId, Slot};

const CHANNEL: ChannelId = ChannelId([1; 32]);
const BUCKET: &str = "topnet-log";
const KEY_ID: &str = "provider";
const SECRET: &str = "a secret";
const LINES_MAX: u64 = 400;

/// A store, and a log whose archive it is.
struct World {
    dir: tempfile::TempDir,
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl World {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("server").join(BUCKET)).unwrap();
        let (address, server) = serve(dir.path().join("server"), "127.0.0.1:0").await;
        let world = Self {
            dir,
            address,
            server,
        };
        world.credentials(SECRET);
        let mut segments = Segments::open(&world.log(), None, LINES_MAX).unwrap();
        segments.append(&lines(1000)).unwrap();
        segments.sync().unwrap();
        world
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn credentials(&self, secret: &str) {
        let path = self.dir.path().join("credentials");
        let text =
            format!("[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {secret}\n");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn config(&self) -> Config {
        Config {
            bucket: Some(BUCKET.to_owned()),
            prefix: "provider-1/log".to_owned(),
            endpoint: Some(format!("http://{}", self.address)),
            credentials_file: Some(self.dir.path().join("credentials")),
            allow_http: true,
            ..Config::default()
        }
    }

    fn open(&self) -> Result<Archive, ArchiveError> {
        Archive::open(&self.log(), &self.config())
    }

    async fn take(&self, number: u64) -> Result<(), ArchiveError> {
        self.open()?.take(number).await.map(drop)
    }

    /// The objects' files behind the server.
    fn objects(&self) -> PathBuf {
        let bucket = self.dir.path().join("server").join(BUCKET);
        bucket.join("provider-1/log/objects")
    }
}

async fn serve(root: PathBuf, at: &str) -> (SocketAddr, JoinHandle<()>) {
    let mut service = S3ServiceBuilder::new(FileSystem::new(root).unwrap());
    service.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
    let service = service.build();
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let service = service.clone();
            connections.spawn(async move {
                let server = Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (address, server)
}

fn lines(count: u64) -> Vec<Line> {
    let line = |units| Line {
        channel: CHANNEL,
        units_before: units - 1,
        units,
        channel_bytes: units * 1000,
        time_ms: 1_700_000_000_000 + units,
        boot: BootId([3; 16]),
        slot: Slot {
            index: 4,
            generation: 5,
        },
    };
    (1..=count).map(line).collect()
}

fn only_file(dir: &Path) -> PathBuf {
    let mut files = fs::read_dir(dir).unwrap();
    files.next().unwrap().unwrap().path()
}

#[tokio::test]
async fn segments_live_in_a_bucket_and_are_read_verified_and_forgotten_there() {
    let world = World::start().await;
    let archive = world.open().unwrap();
    assert_eq!(
        archive.name(),
        format!("http://{}/topnet-log/provider-1/log", world.address)
    );
    for number in waiting(&world.log(), 3).unwrap() {
        archive.take(number).await.unwrap();
    }
    assert_eq!(numbers(&world.log()).unwrap(), [3]);
    assert_eq!(archive.lines_of(&CHANNEL).await.unwrap(), lines(1000));
    let states: Vec<_> = archive.segments().await.unwrap();
    let states: Vec<_> = states.iter().map(|segment| segment.state).collect();
    assert_eq!(states, [State::Archived, State::Archived, State::Open]);
    let verdict = archive.verify().await.unwrap();
    assert_eq!((verdict.segments, verdict.lines), (3, 1000));
    assert_eq!(verdict.findings, []);

    // Somebody with the store alone, and its credentials.
    let elsewhere = world.dir.path().join("elsewhere");
    let alone = Archive::open_to_read(&elsewhere, &world.config()).unwrap();
    assert_eq!(alone.lines_of(&CHANNEL).await.unwrap(), lines(800));
    assert_eq!(alone.restore().await.unwrap().entries, 2);
    assert_eq!(alone.verify().await.unwrap().findings, []);

    let later = std::time::SystemTime::now();
    assert_eq!(archive.forget_before(later).await.unwrap(), 2);
    assert_eq!(
        archive.lines_of(&CHANNEL).await.unwrap(),
        lines(1000)[800..]
    );
    assert_eq!(fs::read_dir(world.objects()).unwrap().count(), 0);
    world.server.abort();
}

#[tokio::test]
async fn what_a_bucket_s_owner_changes_is_never_read_as_a_line() {
    let world = World::start().await;
    world.take(1).await.unwrap();
    let object = only_file(&world.objects());
    let whole = fs::read(&object).unwrap();
    let archive = world.open().unwrap();
    for at in [0, 100, whole.len() / 2, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&object, &damaged).unwrap();
        let error = archive.lines_of(&CHANNEL).await.unwrap_err();
        assert_eq!(error.code(), "object_damaged", "{error}");
        let findings = archive.verify().await.unwrap().findings;
        assert_eq!(
            (findings[0].number, findings[0].code),
            (1, "object_damaged")
        );
    }
    fs::remove_file(&object).unwrap();
    let error = archive.lines_of(&CHANNEL).await.unwrap_err();
    assert_eq!(error.code(), "object_missing", "{error}");
    fs::write(&object, &whole).unwrap();
    assert_eq!(archive.lines_of(&CHANNEL).await.unwrap(), lines(1000));
    world.server.abort();
}

#[tokio::test]
async fn a_store_that_refuses_or_is_away_is_named_and_nothing_is_lost() {
    let world = World::start().await;
    world.credentials("another secret");
    let error = world.take(1).await.unwrap_err();
    assert_eq!(error.code(), "archive_unreachable", "{error}");
    assert!(error.what().contains("SignatureDoesNotMatch"), "{error}");
    assert!(error.mend().contains("credentials"), "{error}");
    assert!(!error.to_string().contains("another secret"), "{error}");

    let path = world.dir.path().join("credentials");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let error = world.open().unwrap_err();
    assert_eq!(error.code(), "archive_credentials");
    assert!(error.what().contains("chmod"), "{error}");
    fs::write(&path, "aws_access_key_id = provider\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let words = world.open().unwrap_err().to_string();
    assert!(
        words.contains("aws_secret_access_key is missing"),
        "{words}"
    );
    world.credentials(SECRET);

    // TLS unless it is said otherwise.
    let mut config = world.config();
    config.allow_http = false;
    let refused = match Archive::open(&world.log(), &config) {
        Ok(archive) => archive.take(1).await.map(drop),
        Err(error) => Err(error),
    };
    assert_eq!(refused.unwrap_err().code(), "archive_unreachable");
    config.endpoint = Some(format!("https://{}", world.address));
    let archive = Archive::open(&world.log(), &config).unwrap();
    let error = archive.take(1).await.unwrap_err();
    // The server answers a greeting of TLS in plain HTTP.
    assert_eq!(error.code(), "archive_unreachable");
    assert!(error.what().contains("corrupt message"), "{error}");
    config = world.config();
    config.bucket = Some("no-such-bucket".to_owned());
    let archive = Archive::open(&world.log(), &config).unwrap();
    let error = archive.lines_of(&CHANNEL).await.unwrap_err();
    assert_eq!(error.code(), "archive_unreachable", "{error}");
    assert!(error.what().contains("no-such-bucket"), "{error}");

    world.server.abort();
    let error = world.take(1).await.unwrap_err();
    assert_eq!(error.code(), "archive_unreachable", "{error}");
    assert!(error.what().contains(&world.address.to_string()), "{error}");
    assert_eq!(numbers(&world.log()).unwrap(), [1, 2, 3]);

    let root = world.dir.path().join("server");
    let (_, server) = serve(root, &world.address.to_string()).await;
    world.take(1).await.unwrap();
    let archive = world.open().unwrap();
    assert_eq!(archive.lines_of(&CHANNEL).await.unwrap(), lines(1000));
    server.abort();
}
