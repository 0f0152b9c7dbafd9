//! `[metering.archive]`: where sealed segments of the service log are kept.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{Base, Problem, default, error::Problems};

/// Rights on a file that let others than its owner have it.
const OTHERS: u32 = 0o077;

/// A folder, or a bucket in its place. What opens the bucket is no part of the configuration: it
/// comes from `credentials_file`, else from the environment's `AWS_ACCESS_KEY_ID`,
/// `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Archive {
    /// The folder; `archive` in the service log's directory if left out. Empty where there is a
    /// bucket.
    pub dir: PathBuf,
    /// A bucket of S3, or of a store that speaks its protocol.
    pub bucket: Option<String>,
    /// What the names of this provider's objects in the bucket begin with.
    pub prefix: String,
    /// Where the store is; the region's S3 of Amazon if left out.
    pub endpoint: Option<String>,
    /// The region that requests are signed for.
    pub region: String,
    /// File with the bucket's credentials, as Amazon's own tools have them.
    pub credentials_file: Option<PathBuf>,
    /// Whether the endpoint may be one without TLS.
    pub allow_http: bool,
}

impl Default for Archive {
    fn default() -> Self {
        Self {
            dir: PathBuf::new(),
            bucket: None,
            prefix: String::new(),
            endpoint: None,
            region: default::region(),
            credentials_file: None,
            allow_http: false,
        }
    }
}

impl Archive {
    pub(crate) fn resolve(&mut self, base: &Base<'_>, service_log_dir: &Path) {
        if !self.dir.as_os_str().is_empty() {
            base.join(&mut self.dir);
        } else if self.bucket.is_none() {
            self.dir = service_log_dir.join("archive");
        }
        base.join_optional(&mut self.credentials_file);
    }

    pub(crate) fn check(&self, problems: &mut Problems<'_>) {
        let Some(bucket) = &self.bucket else {
            return self.check_folder(problems);
        };
        if !self.dir.as_os_str().is_empty() {
            problems.add(
                "archive.dir",
                "there is a bucket too, and segments have one place",
                "leave out dir or bucket",
            );
        }
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let named = (3..=63).contains(&bucket.len())
            && bucket
                .bytes()
                .all(|byte| plain(byte) || b"-.".contains(&byte));
        if !named {
            problems.add(
                "archive.bucket",
                format!("`{bucket}` is no bucket's name"),
                "write the name alone: 3 to 63 small letters, digits, dots and hyphens",
            );
        }
        let part = |part: &str| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            !part.is_empty() && !part.starts_with('.') && part.bytes().all(known)
        };
        if !self.prefix.is_empty() && !self.prefix.split('/').all(part) {
            problems.add(
                "archive.prefix",
                format!("`{}` cannot stand before objects' names", self.prefix),
                "write letters, digits, hyphens and dots, as in provider-1/log",
            );
        }
        if self.region.is_empty() {
            problems.add(
                "archive.region",
                "requests are signed for a region",
                "leave it out, or write what the store calls its own",
            );
        }
        self.check_endpoint(problems);
    }

    fn check_folder(&self, problems: &mut Problems<'_>) {
        let of_a_bucket = [
            ("archive.prefix", !self.prefix.is_empty()),
            ("archive.endpoint", self.endpoint.is_some()),
            ("archive.credentials_file", self.credentials_file.is_some()),
            ("archive.allow_http", self.allow_http),
        ];
        for (key, _) in of_a_bucket.into_iter().filter(|(_, given)| *given) {
            problems.add(
                key,
                "it is about a bucket, and there is none",
                "name the bucket too, or leave this out",
            );
        }
    }

    fn check_endpoint(&self, problems: &mut Problems<'_>) {
        let Some(endpoint) = &self.endpoint else {
            return;
        };
        let without_tls = endpoint.strip_prefix("http://");
        let host = without_tls.or_else(|| endpoint.strip_prefix("https://"));
        let host = host.map(|host| host.trim_end_matches('/'));
        match host {
            Some(host) if host.contains('@') => problems.add(
                "archive.endpoint",
                "it has credentials in it",
                "take them out and name a credentials_file",
            ),
            Some(host) if !host.is_empty() && !host.contains(['?', '#']) => {}
            _ => problems.add(
                "archive.endpoint",
                format!("`{endpoint}` is not an HTTP address"),
                "write it as https://s3.example.net",
            ),
        }
        if without_tls.is_some() && !self.allow_http {
            problems.add(
                "archive.endpoint",
                format!("`{endpoint}` has no TLS: whoever is on the way reads who used what"),
                "write https://, or set allow_http = true where the way is your own",
            );
        }
    }

    /// What this machine lacks.
    pub(crate) fn machine(&self) -> Option<Problem> {
        let path = self.credentials_file.as_deref()?;
        let (what, mend) = match fs::metadata(path) {
            Ok(found) if found.permissions().mode() & OTHERS == 0 => return None,
            Ok(_) => (
                format!("{} can be had by others than its owner", path.display()),
                "chmod it to 600, and give it to metering's user",
            ),
            Err(error) => (
                format!("{}: {error}", path.display()),
                "correct the path, or write the file: aws_access_key_id = …, and below it \
                 aws_secret_access_key = …",
            ),
        };
        Some(Problem {
            line: None,
            place: "metering.archive.credentials_file".to_owned(),
            what,
            mend: mend.to_owned(),
        })
    }
}
