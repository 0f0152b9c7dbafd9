//! Writes a file that `wg-quick` reads, and we read back to the same values.

use std::fmt::{Display, Write};

use zeroize::Zeroizing;

use super::{CommandLine, Conf, ConfInterface, ConfPeer, Word};
use crate::request::{NETWORK_TEXT_BYTES, line, secret_text};

/// Room for a key, its ` = ` and the line's end.
const KEY_TEXT_BYTES: usize = 16;

impl Conf {
    /// The file's text.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        self.write(None)
    }

    /// The file's text with `placeholder` for the private key, which its owner has and writes
    /// there. Until then the file has no key that anybody could read.
    #[must_use]
    pub fn to_text_without_key(&self, placeholder: &Word) -> Zeroizing<String> {
        self.write(Some(placeholder))
    }

    fn write(&self, placeholder: Option<&Word>) -> Zeroizing<String> {
        let allowed_ips: usize = self.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
        let placeholder_bytes = placeholder.map_or(0, |word| word.as_str().len());
        let more_bytes = placeholder_bytes + self.interface.text_bytes_max();
        let mut text = secret_text(self.peers.len(), allowed_ips, more_bytes);
        self.interface.write(placeholder, &mut text);
        for peer in &self.peers {
            peer.write(&mut text);
        }
        text
    }
}

impl ConfInterface {
    /// Room for those values of which there may be any number, or whose length is anybody's.
    fn text_bytes_max(&self) -> usize {
        let commands = [&self.pre_up, &self.post_up, &self.pre_down, &self.post_down];
        let commands = commands.into_iter().flatten().map(CommandLine::as_str);
        let words = self.dns_search.iter().chain(&self.table).map(Word::as_str);
        let texts = commands
            .chain(words)
            .map(|text| text.len() + KEY_TEXT_BYTES);
        let addresses = self.addresses.len() + self.dns.len();
        addresses * NETWORK_TEXT_BYTES + texts.sum::<usize>()
    }

    fn write(&self, placeholder: Option<&Word>, text: &mut String) {
        line!(text, "[Interface]");
        match (placeholder, &self.private_key) {
            (Some(placeholder), _) => line!(text, "PrivateKey = {}", placeholder.as_str()),
            (None, Some(key)) => line!(text, "PrivateKey = {}", *key.to_base64()),
            (None, None) => {}
        }
        if let Some(port) = self.listen_port {
            line!(text, "ListenPort = {port}");
        }
        if let Some(fwmark) = self.fwmark {
            line!(text, "FwMark = {fwmark:#x}");
        }
        list("Address", &self.addresses, text);
        let servers = self.dns.iter().map(ToString::to_string);
        let searched = self.dns_search.iter().map(|word| word.as_str().to_owned());
        list("DNS", &servers.chain(searched).collect::<Vec<_>>(), text);
        if let Some(mtu) = self.mtu {
            line!(text, "MTU = {mtu}");
        }
        if let Some(table) = &self.table {
            line!(text, "Table = {}", table.as_str());
        }
        commands("PreUp", &self.pre_up, text);
        commands("PostUp", &self.post_up, text);
        commands("PreDown", &self.pre_down, text);
        commands("PostDown", &self.post_down, text);
        if self.save_config {
            line!(text, "SaveConfig = true");
        }
    }
}

impl ConfPeer {
    fn write(&self, text: &mut String) {
        line!(text, "\n[Peer]\nPublicKey = {}", self.public_key);
        if let Some(key) = &self.preshared_key {
            line!(text, "PresharedKey = {}", *key.to_base64());
        }
        list("AllowedIPs", &self.allowed_ips, text);
        if let Some(endpoint) = &self.endpoint {
            line!(text, "Endpoint = {endpoint}");
        }
        match self.persistent_keepalive_s {
            Some(0) => line!(text, "PersistentKeepalive = off"),
            Some(seconds) => line!(text, "PersistentKeepalive = {seconds}"),
            None => {}
        }
    }
}

/// One line of values, or none: an empty list is no value for `wg`.
fn list<V: Display>(key: &str, values: &[V], text: &mut String) {
    for (index, value) in values.iter().enumerate() {
        let before = if index == 0 { key } else { "," };
        let equals = if index == 0 { " =" } else { "" };
        // Writing to a string cannot fail.
        let _ = write!(text, "{before}{equals} {value}");
    }
    if !values.is_empty() {
        text.push('\n');
    }
}

fn commands(key: &str, commands: &[CommandLine], text: &mut String) {
    for command in commands {
        line!(text, "{key} = {}", command.as_str());
    }
}
