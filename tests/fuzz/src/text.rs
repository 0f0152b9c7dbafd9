//! What people and other programs write: amounts, addresses, ids, phrases, configuration.

use std::{fmt::Display, path::Path, str::FromStr};

use topnet_account::{Address, Amount, ChannelId, Hash, PublicKey, Signature};
use topnet_config::Config;
use topnet_unit::BootId;
use topnet_wallet::Phrase;

/// What is read is shown so that it is read again.
pub(crate) fn text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    reads_back::<Address>(text);
    reads_back::<Amount>(text);
    reads_back::<BootId>(text);
    reads_back::<ChannelId>(text);
    reads_back::<Hash>(text);
    reads_back::<PublicKey>(text);
    reads_back::<Signature>(text);
    if let Ok(phrase) = Phrase::parse(text) {
        let shown = phrase.text();
        let again = Phrase::parse(&shown).ok();
        assert!(again.is_some_and(|again| again.text() == shown), "{text}");
    }
}

fn reads_back<T: FromStr + Display + PartialEq>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let shown = value.to_string();
        let again = shown.parse::<T>().ok();
        assert!(again == Some(value), "{text} → {shown}");
    }
}

/// A configuration file.
pub(crate) fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match Config::parse(text, Path::new("/etc/topnet/topnet.toml")) {
        Ok(config) => {
            let _ = (config.dataplane(), config.metering(), config.settlement());
            let _ = (config.control(), config.wallet());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
