//! Downloads one after another, one of each peer at a time.

use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    files::{Digest, digest},
    origin::Origin,
    scenario::{TRANSFER_WAIT, lab::Lab},
    transfer::Transfer,
};

/// What is fetched again and again.
const FILE: &str = "soak";
pub(super) const FILE_BYTES: u64 = 8 << 20;

/// Downloads by several ways.
pub(super) struct Downloads {
    served: Digest,
    pullers: Vec<Puller>,
}

/// One who fetches the file, from the address that only this one's way leads to.
struct Puller {
    url: String,
    here: PathBuf,
    transfer: Option<Transfer>,
    began: Instant,
    through: u64,
}

impl Downloads {
    /// Begins one from each of these addresses.
    pub(super) fn start(lab: &Lab<'_>, origins: &[Ipv4Addr]) -> Result<Self> {
        let served = lab.origin.offer_random(FILE, FILE_BYTES)?;
        let pullers = origins.iter().map(|origin| Puller {
            url: Origin::download_url((*origin).into(), FILE),
            here: lab.wallet.home.join(format!("{FILE}-{origin}")),
            transfer: None,
            began: Instant::now(),
            through: 0,
        });
        let mut downloads = Self {
            served,
            pullers: pullers.collect(),
        };
        for puller in &mut downloads.pullers {
            puller.begin(lab)?;
        }
        Ok(downloads)
    }

    /// Checks what is through and begins the next.
    pub(super) fn poll(&mut self, lab: &Lab<'_>) -> Result<()> {
        for puller in &mut self.pullers {
            if puller.has_ended()? {
                puller.end(lab, &self.served)?;
                puller.begin(lab)?;
            }
        }
        Ok(())
    }

    /// Lets the last ones come through.
    pub(super) fn finish(&mut self, lab: &Lab<'_>) -> Result<()> {
        let mut pullers = self.pullers.iter_mut();
        pullers.try_for_each(|puller| puller.end(lab, &self.served))
    }

    /// Files that are through, of each.
    pub(super) fn through(&self) -> Vec<u64> {
        self.pullers.iter().map(|puller| puller.through).collect()
    }
}

impl Puller {
    fn begin(&mut self, lab: &Lab<'_>) -> Result<()> {
        self.transfer = Some(lab.client().download(&self.url, &self.here)?);
        self.began = Instant::now();
        Ok(())
    }

    fn has_ended(&mut self) -> Result<bool> {
        let transfer = self.transfer.as_mut().context("no download")?;
        let (began, url) = (self.began, &self.url);
        ensure!(
            began.elapsed() < TRANSFER_WAIT,
            "{url} came to {} bytes in {:?}",
            transfer.bytes(),
            began.elapsed()
        );
        transfer.ended()
    }

    fn end(&mut self, lab: &Lab<'_>, served: &Digest) -> Result<()> {
        let transfer = self.transfer.take().context("no download")?;
        let left = TRANSFER_WAIT.saturating_sub(self.began.elapsed());
        let wait = left.max(Duration::from_secs(1));
        let finished = transfer.finish(lab.options.interrupt, wait, |_| ());
        finished.with_context(|| self.url.clone())?;
        let here = digest(&self.here)?;
        ensure!(here == *served, "{} came down changed", self.url);
        fs::remove_file(&self.here)?;
        self.through += 1;
        Ok(())
    }
}
