//! Opens the store that the configuration names.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use object_store::{
    ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, Checksum},
    local::LocalFileSystem,
    memory::InMemory,
    prefix::PrefixStore,
};
use topnet_config::Archive as Config;
use zeroize::Zeroizing;

use crate::ArchiveError;

pub(crate) const OBJECTS: &str = "objects";
pub(crate) const SEGMENTS: &str = "segments";

/// A request is repeated this often at once; whoever asks has patience of its own.
const RETRIES_MAX: usize = 2;
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A whole segment goes in one request: it must have this long over a slow line.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(600);
/// A credentials file that is longer is none.
const CREDENTIALS_BYTES_MAX: u64 = 64 << 10;

/// An open store, and what people call it.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) name: String,
    /// Where it is, if it is a folder.
    pub(crate) folder: Option<PathBuf>,
}

/// Opens the store to write into, and makes its folder if it is one.
pub(crate) fn open(config: &Config) -> Result<Opened, ArchiveError> {
    if config.bucket.is_some() {
        return bucket(config);
    }
    let dir = &config.dir;
    make_folder(dir)
        .and_then(|()| sweep(&dir.join(OBJECTS)))
        .and_then(|()| sweep(&dir.join(SEGMENTS)))
        .map_err(|source| ArchiveError::Store {
            what: "make",
            place: dir.display().to_string(),
            source: object_store::Error::Generic {
                store: "folder",
                source: source.into(),
            },
        })?;
    folder(dir)
}

/// Opens the store to read. It makes nothing: whoever reads may be another user than metering.
pub(crate) fn open_to_read(config: &Config) -> Result<Opened, ArchiveError> {
    if config.bucket.is_some() {
        return bucket(config);
    }
    match fs::metadata(&config.dir) {
        // Nothing was archived yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Opened {
            store: Arc::new(InMemory::new()),
            name: config.dir.display().to_string(),
            folder: None,
        }),
        _ => folder(&config.dir),
    }
}

/// Returns when a folder's removals are durable; the library syncs only what it writes.
pub(crate) fn sync_removals(folder: &Path) -> Result<(), ArchiveError> {
    for dir in [OBJECTS, SEGMENTS].map(|name| folder.join(name)) {
        match File::open(&dir).and_then(|dir| dir.sync_all()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ArchiveError::Store {
                    what: "sync",
                    place: dir.display().to_string(),
                    source: object_store::Error::Generic {
                        store: "folder",
                        source: error.into(),
                    },
                });
            }
            _ => {}
        }
    }
    Ok(())
}

fn folder(dir: &Path) -> Result<Opened, ArchiveError> {
    let name = dir.display().to_string();
    let store = LocalFileSystem::new_with_prefix(dir).map_err(|source| ArchiveError::Store {
        what: "open",
        place: name.clone(),
        source,
    })?;
    Ok(Opened {
        // Without it nothing would be durable when a put returns.
        store: Arc::new(store.with_fsync(true)),
        name,
        folder: Some(dir.to_owned()),
    })
}

/// Makes a folder that is there after a power loss too: the library syncs directories from the
/// first on that it makes itself.
fn make_folder(dir: &Path) -> io::Result<()> {
    let is_missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
    let missing: Vec<_> = dir.ancestors().take_while(is_missing).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let parents = missing.into_iter().filter_map(Path::parent);
    for parent in parents {
        let here = parent.as_os_str().is_empty();
        File::open(if here { Path::new(".") } else { parent })?.sync_all()?;
    }
    Ok(())
}

/// Removes what a kill left of writes that never ended; the library writes beside the object's
/// place, as `NAME#1`, and renames.
fn sweep(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().contains('#') {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn bucket(config: &Config) -> Result<Opened, ArchiveError> {
    // The client takes the process's provider of TLS; there is none if nobody named one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let bucket = config.bucket.as_deref().unwrap_or_default();
    let prefix = config.prefix.as_str();
    let endpoint = config.endpoint.as_deref();
    let endpoint = endpoint.map(|endpoint| endpoint.trim_end_matches('/'));
    let name = match endpoint {
        Some(endpoint) => format!("{endpoint}/{bucket}/{prefix}"),
        None => format!("s3://{bucket}/{prefix}"),
    };
    let name = name.trim_end_matches('/').to_owned();
    let credentials = Credentials::find(config.credentials_file.as_deref())?;
    let client = ClientOptions::new()
        .with_allow_http(config.allow_http)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout(REQUEST_TIMEOUT);
    let retry = RetryConfig {
        max_retries: RETRIES_MAX,
        retry_timeout: RETRY_TIMEOUT,
        ..RetryConfig::default()
    };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(&config.region)
        .with_access_key_id(credentials.key_id.as_str())
        .with_secret_access_key(credentials.secret.as_str())
        .with_client_options(client)
        .with_retry(retry)
        // So that the store refuses what the way there has damaged.
        .with_checksum_algorithm(Checksum::SHA256);
    if let Some(token) = &credentials.token {
        builder = builder.with_token(token.as_str());
    }
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    let store = builder.build().map_err(|source| ArchiveError::Store {
        what: "open",
        place: name.clone(),
        source,
    })?;
    let store: Arc<dyn ObjectStore> = match prefix {
        "" => Arc::new(store),
        prefix => Arc::new(PrefixStore::new(store, prefix)),
    };
    Ok(Opened {
        store,
        name,
        folder: None,
    })
}

/// What opens a bucket.
struct Credentials {
    key_id: Zeroizing<String>,
    secret: Zeroizing<String>,
    token: Option<Zeroizing<String>>,
}

impl Credentials {
    fn find(file: Option<&Path>) -> Result<Self, ArchiveError> {
        let (place, found) = match file {
            Some(file) => (file.display().to_string(), Self::from_file(file)),
            None => (
                "the environment".to_owned(),
                Self::from_names(|name| {
                    let value = std::env::var(name.to_ascii_uppercase()).ok();
                    value.map(Zeroizing::new)
                }),
            ),
        };
        found.map_err(|reason| ArchiveError::Credentials { place, reason })
    }

    /// The form that Amazon's own tools read: `name = value`, with sections that are skipped.
    fn from_file(file: &Path) -> Result<Self, String> {
        let found = fs::metadata(file).map_err(|error| error.to_string())?;
        if found.permissions().mode() & 0o077 != 0 {
            return Err("others than its owner can have it; chmod it to 600".to_owned());
        }
        if found.len() > CREDENTIALS_BYTES_MAX {
            return Err("it is too long to be credentials".to_owned());
        }
        let text = Zeroizing::new(fs::read_to_string(file).map_err(|error| error.to_string())?);
        Self::from_names(|name| {
            let pairs = text.lines().filter_map(|line| line.split_once('='));
            let mut values = pairs.filter(|(found, _)| found.trim().eq_ignore_ascii_case(name));
            values
                .next()
                .map(|(_, value)| Zeroizing::new(value.trim().to_owned()))
        })
    }

    fn from_names(value: impl Fn(&str) -> Option<Zeroizing<String>>) -> Result<Self, String> {
        let needed = |name: &str| {
            let found = value(name).filter(|found| !found.is_empty());
            found.ok_or_else(|| format!("{name} is missing"))
        };
        Ok(Self {
            key_id: needed("aws_access_key_id")?,
            secret: needed("aws_secret_access_key")?,
            token: value("aws_session_token").filter(|found| !found.is_empty()),
        })
    }
}
