//! Downloads and uploads, paid by the unit, up to the main chain.

use std::{fs, os::unix::fs::chown, path::PathBuf};

use anyhow::Result;

use crate::{
    files::{Digest, digest, write_random},
    origin::Origin,
    report::{Report, Transferred},
    topology::ORIGIN,
    transfer::Transfer,
    users,
};

use super::{
    TRANSFER_WAIT,
    lab::{Lab, Opened},
};

pub(super) const DOWNLOAD_BYTES: u64 = 64 << 20;
const UPLOAD_BYTES: u64 = 16 << 20;

/// A download that has begun.
#[derive(Debug)]
pub(super) struct Download {
    served: Digest,
    here: PathBuf,
    pub(super) transfer: Transfer,
}

impl Download {
    /// A download that was begun elsewhere.
    pub(super) const fn of(served: Digest, here: PathBuf, transfer: Transfer) -> Self {
        Self {
            served,
            here,
            transfer,
        }
    }

    /// Bytes that have arrived.
    pub(super) fn bytes(&self) -> u64 {
        self.transfer.bytes()
    }
}

/// Units that the channel can pay for: the transfers and as much again.
pub(super) const ALLOCATION_UNITS: u64 = 512;

impl Lab<'_> {
    pub(super) fn paid_download(&mut self, report: &mut Report) -> Result<Opened> {
        let channel = self.begin(ALLOCATION_UNITS, report)?;
        let download = self.begin_download(DOWNLOAD_BYTES)?;
        self.finish_download(download, report)?;
        self.upload(report)?;
        self.close_and_reconcile(&channel, report)?;
        Ok(channel)
    }

    /// Starts to fetch a new file.
    pub(super) fn begin_download(&self, bytes: u64) -> Result<Download> {
        let served = self.origin.offer_random("download", bytes)?;
        let here = self.wallet.home.join("download");
        let url = Origin::download_url(ORIGIN.into(), "download");
        let transfer = self.client().download(&url, &here)?;
        Ok(Download {
            served,
            here,
            transfer,
        })
    }

    pub(super) fn finish_download(&self, download: Download, report: &mut Report) -> Result<()> {
        let Download {
            served,
            here,
            transfer,
        } = download;
        let say = |bytes: u64| {
            self.say(&format!(
                "downloading: {} of {} MiB",
                bytes >> 20,
                served.bytes >> 20
            ))
        };
        transfer.finish(self.options.interrupt, TRANSFER_WAIT, say)?;
        report.files.push(Transferred {
            bytes: served.bytes,
            sha256_origin: served.sha256,
            sha256_client: digest(&here)?.sha256,
        });
        // Another download may have the same names.
        fs::remove_file(&here)?;
        self.origin.withdraw("download")
    }

    pub(super) fn upload(&self, report: &mut Report) -> Result<()> {
        self.say("uploading 16 MiB");
        let there = self.wallet.home.join("upload");
        let sent = write_random(&there, UPLOAD_BYTES)?;
        chown(&there, Some(users::CLIENT.uid), Some(users::CLIENT.gid))?;
        let url = Origin::upload_url(ORIGIN.into(), "upload");
        let upload = self.client().upload(&there, &url, None)?;
        upload.finish(self.options.interrupt, TRANSFER_WAIT, |_| ())?;
        report.files.push(Transferred {
            bytes: sent.bytes,
            sha256_origin: self.origin.uploaded("upload")?.sha256,
            sha256_client: sent.sha256,
        });
        Ok(())
    }
}
