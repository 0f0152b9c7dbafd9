//! Downloads and uploads, paid by the unit, up to the main chain.

use std::os::unix::fs::chown;

use anyhow::Result;

use crate::{
    files::{digest, write_random},
    origin::Origin,
    report::{Report, Transferred},
    users,
};

use super::{Scenario, TRANSFER_WAIT, lab::Lab};

pub(super) const DOWNLOAD_BYTES: u64 = 64 << 20;
const UPLOAD_BYTES: u64 = 16 << 20;

impl Lab<'_> {
    pub(super) fn play(&mut self, scenario: Scenario) -> Result<(Report, String)> {
        let mut report = Report::default();
        let before = (
            self.main_balance(&self.wallet.address)?,
            self.main_balance(&self.provider.payee)?,
        );
        let boot = self.boot()?;
        let channel = self.open_channel(&mut report)?;
        self.say("starting a session, the wallet and wireguard-go");
        self.connect(&channel)?;

        let served = self.origin.offer_random("download", DOWNLOAD_BYTES)?;
        let here = self.wallet.home.join("download");
        let client = self.client();
        let download = client.download(&Origin::download_url("download"), &here)?;
        let download = match scenario {
            Scenario::PaidDownload => download,
            Scenario::UnpaidStops => self.stop_and_return(download, &channel, &mut report)?,
        };
        let say = |bytes: u64| {
            self.say(&format!(
                "downloading: {} of {} MiB",
                bytes >> 20,
                served.bytes >> 20
            ))
        };
        download.finish(self.options.interrupt, TRANSFER_WAIT, say)?;
        report.files.push(Transferred {
            bytes: served.bytes,
            sha256_origin: served.sha256,
            sha256_client: digest(&here)?.sha256,
        });

        self.say("uploading 16 MiB");
        let there = self.wallet.home.join("upload");
        let sent = write_random(&there, UPLOAD_BYTES)?;
        chown(&there, Some(users::CLIENT.uid), Some(users::CLIENT.gid))?;
        let upload = self
            .client()
            .upload(&there, &Origin::upload_url("upload"))?;
        upload.finish(self.options.interrupt, TRANSFER_WAIT, |_| ())?;
        report.files.push(Transferred {
            bytes: sent.bytes,
            sha256_origin: self.origin.uploaded("upload")?.sha256,
            sha256_client: sent.sha256,
        });

        self.provider.check()?;
        self.count(&channel, &mut report)?;
        self.settle(&channel, before, &mut report)?;
        report.boots = 1 + u64::from(self.boot()? != boot);
        Ok((report, channel))
    }
}
