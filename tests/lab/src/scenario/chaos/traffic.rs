//! Files that go up and down, again and again.

use std::{fs, os::unix::fs::chown, path::PathBuf};

use anyhow::{Context, Result, ensure};

use crate::{
    files::{Digest, digest, write_random},
    origin::Origin,
    scenario::{TRANSFER_WAIT, lab::Lab},
    topology::ORIGIN,
    transfer::Transfer,
    users,
};

const DOWNLOAD_BYTES: u64 = 24 << 20;
const UPLOAD_BYTES: u64 = 6 << 20;
/// Slow enough that a hundred rounds need no wealth, fast enough that a second is several units.
const DOWNLOAD_BYTES_PER_S: u64 = 4 << 20;
const UPLOAD_BYTES_PER_S: u64 = 1 << 20;
const DOWNLOAD: &str = "chaos-down";
const UPLOAD: &str = "chaos-up";

/// Bytes of files that came through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) down: u64,
    pub(super) up: u64,
}

impl Moved {
    pub(super) fn is_beyond(self, before: Self, by: Self) -> bool {
        self.down >= before.down + by.down && self.up >= before.up + by.up
    }
}

/// A download and an upload at a time; the next begins when one is through.
#[derive(Debug)]
pub(super) struct Traffic {
    served: Digest,
    here: PathBuf,
    download: Option<Transfer>,
    sent: Digest,
    there: PathBuf,
    upload: Option<Transfer>,
    /// Files that are through, each way.
    through: [u64; 2],
}

impl Traffic {
    pub(super) fn start(lab: &Lab<'_>) -> Result<Self> {
        let there = lab.wallet.home.join(UPLOAD);
        let sent = write_random(&there, UPLOAD_BYTES)?;
        chown(&there, Some(users::CLIENT.uid), Some(users::CLIENT.gid))?;
        let mut traffic = Self {
            served: lab.origin.offer_random(DOWNLOAD, DOWNLOAD_BYTES)?,
            here: lab.wallet.home.join(DOWNLOAD),
            download: None,
            sent,
            there,
            upload: None,
            through: [0; 2],
        };
        lab.topology.limit_origin(DOWNLOAD_BYTES_PER_S)?;
        traffic.begin_download(lab)?;
        traffic.begin_upload(lab)?;
        Ok(traffic)
    }

    /// Bytes that have come through so far.
    pub(super) fn moved(&self, lab: &Lab<'_>) -> Moved {
        let arriving = self.download.as_ref().map_or(0, Transfer::bytes);
        Moved {
            down: self.through[0] * DOWNLOAD_BYTES + arriving,
            up: self.through[1] * UPLOAD_BYTES + lab.origin.arriving_bytes(),
        }
    }

    /// Checks what is through and begins the next.
    pub(super) fn poll(&mut self, lab: &Lab<'_>) -> Result<()> {
        if self.download.as_mut().is_some_and(has_ended) {
            self.end_download(lab)?;
            self.begin_download(lab)?;
        }
        if self.upload.as_mut().is_some_and(has_ended) {
            self.end_upload(lab)?;
            self.begin_upload(lab)?;
        }
        Ok(())
    }

    /// Lets both come through and gives the number of files.
    pub(super) fn finish(&mut self, lab: &Lab<'_>) -> Result<u64> {
        self.end_download(lab)?;
        self.end_upload(lab)?;
        Ok(self.through.iter().sum())
    }

    fn begin_download(&mut self, lab: &Lab<'_>) -> Result<()> {
        let url = Origin::download_url(ORIGIN.into(), DOWNLOAD);
        self.download = Some(lab.client().download(&url, &self.here)?);
        Ok(())
    }

    fn end_download(&mut self, lab: &Lab<'_>) -> Result<()> {
        let download = self.download.take().context("no download")?;
        download.finish(lab.options.interrupt, TRANSFER_WAIT, |_| ())?;
        ensure!(
            digest(&self.here)? == self.served,
            "a file came down changed"
        );
        fs::remove_file(&self.here)?;
        self.through[0] += 1;
        Ok(())
    }

    fn begin_upload(&mut self, lab: &Lab<'_>) -> Result<()> {
        let url = Origin::upload_url(ORIGIN.into(), UPLOAD);
        let rate = Some(UPLOAD_BYTES_PER_S);
        self.upload = Some(lab.client().upload(&self.there, &url, rate)?);
        Ok(())
    }

    fn end_upload(&mut self, lab: &Lab<'_>) -> Result<()> {
        let upload = self.upload.take().context("no upload")?;
        upload.finish(lab.options.interrupt, TRANSFER_WAIT, |_| ())?;
        ensure!(
            lab.origin.uploaded(UPLOAD)? == self.sent,
            "a file went up changed"
        );
        self.through[1] += 1;
        Ok(())
    }
}

/// One that cannot be looked at is looked at again when it is waited for.
fn has_ended(transfer: &mut Transfer) -> bool {
    transfer.ended().unwrap_or(true)
}
