//! Which service chains are to run here, on disk. A chain's genesis cannot be made anew, so it is
//! synced before anything is done about it.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use topnet_ledger::Genesis;

/// A service chain that is to run here, or was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServiceRecord {
    /// What the chain starts from.
    pub genesis: Genesis,
    /// The operator has stopped it.
    pub stopped: bool,
    /// This process is to see that main knows it.
    pub register: bool,
}

/// The list of services cannot be kept or read.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}; let this user write to storage_dir, or restore the file")]
pub struct ServicesError {
    path: PathBuf,
    problem: String,
}

/// The list: one file for each service.
#[derive(Clone, Debug)]
pub(crate) struct Services {
    directory: PathBuf,
}

impl Services {
    pub(crate) fn open(directory: &Path) -> Result<Self, ServicesError> {
        fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    /// All of them.
    pub(crate) fn all(&self) -> Result<Vec<ServiceRecord>, ServicesError> {
        let directory = &self.directory;
        let entries = fs::read_dir(directory).map_err(|error| failed(directory, error))?;
        let mut services = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| failed(directory, error))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = fs::read_to_string(&path).map_err(|error| failed(&path, error))?;
            let record: ServiceRecord =
                serde_json::from_str(&text).map_err(|error| failed(&path, error))?;
            services.push(record);
        }
        Ok(services)
    }

    /// Keeps a service; it is on disk as a whole when this returns.
    pub(crate) fn keep(&self, record: &ServiceRecord) -> Result<(), ServicesError> {
        // A genesis that was checked has a name that is good for a file's.
        let path = self.directory.join(format!("{}.json", record.genesis.name));
        let draft = path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&draft)?;
            file.write_all(&serde_json::to_vec_pretty(record)?)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            fs::File::open(&self.directory)?.sync_all()
        };
        write().map_err(|error| failed(&path, error))
    }
}

fn failed(path: &Path, problem: impl ToString) -> ServicesError {
    ServicesError {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}
