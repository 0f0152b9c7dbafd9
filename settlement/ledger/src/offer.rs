//! What providers offer, as it stands on main for everybody to find.

use topnet_account::{Amount, Hash, PublicKey};

use crate::codec::{CodecError, Reader, Writer};

/// Length of each text of an offer, at most.
pub const OFFER_TEXT_BYTES_MAX: usize = 256;

/// What a provider sells, at which price, and where to ask for it. A provider has one offer for
/// each service; the terms in full are the provider's own to tell, at `rpc_url`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Genesis of the service chain that channels are opened on.
    pub service: Hash,
    /// What one unit costs.
    pub unit_price: Amount,
    /// Channels that close faster are not served, in blocks.
    pub close_window_min: u32,
    /// The key that the payment endpoint proves to hold.
    pub payment_key: PublicKey,
    /// Host and UDP port of the payment endpoint.
    pub payment_address: String,
    /// Where the provider's RPC is.
    pub rpc_url: String,
    /// What the provider calls itself; may be empty.
    pub name: String,
    /// Where it is; may be empty.
    pub region: String,
}

impl Offer {
    /// True if somebody could take it: there are addresses, and no text has what a terminal or a
    /// page would not show, or show elsewhere.
    pub(crate) fn is_valid(&self) -> bool {
        let texts = [
            &self.payment_address,
            &self.rpc_url,
            &self.name,
            &self.region,
        ];
        let is_fit = |text: &String| {
            text.len() <= OFFER_TEXT_BYTES_MAX
                && !text.chars().any(|c| c.is_control() || is_unseen(c))
        };
        texts.into_iter().all(is_fit)
            && !self.payment_address.is_empty()
            && !self.rpc_url.is_empty()
            && !self.unit_price.is_zero()
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        writer
            .raw(self.service)
            .amount(self.unit_price)
            .u32(self.close_window_min)
            .raw(self.payment_key)
            .bytes(self.payment_address.as_bytes())
            .bytes(self.rpc_url.as_bytes())
            .bytes(self.name.as_bytes())
            .bytes(self.region.as_bytes());
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(Self {
            service: reader.hash("offer service")?,
            unit_price: reader.amount("offer unit_price")?,
            close_window_min: reader.u32("offer close_window_min")?,
            payment_key: reader.key("offer payment_key")?,
            payment_address: reader.text(OFFER_TEXT_BYTES_MAX, "offer payment_address")?,
            rpc_url: reader.text(OFFER_TEXT_BYTES_MAX, "offer rpc_url")?,
            name: reader.text(OFFER_TEXT_BYTES_MAX, "offer name")?,
            region: reader.text(OFFER_TEXT_BYTES_MAX, "offer region")?,
        })
    }
}

/// True for what a page shows nothing of, or turns the rest around for: Unicode 17's format
/// characters (general category Cf), its line and paragraph separators, and the letters and marks
/// that have no shape. A table of our own, because consensus must not change with a library.
fn is_unseen(character: char) -> bool {
    const UNSEEN: [(char, char); 26] = [
        // Soft hyphen; grapheme joiner.
        ('\u{ad}', '\u{ad}'),
        ('\u{34f}', '\u{34f}'),
        // Arabic and Syriac signs over numbers; letter mark.
        ('\u{600}', '\u{605}'),
        ('\u{61c}', '\u{61c}'),
        ('\u{6dd}', '\u{6dd}'),
        ('\u{70f}', '\u{70f}'),
        ('\u{890}', '\u{891}'),
        ('\u{8e2}', '\u{8e2}'),
        // Hangul and Khmer letters without a shape; Mongolian selectors and separator.
        ('\u{115f}', '\u{1160}'),
        ('\u{17b4}', '\u{17b5}'),
        ('\u{180b}', '\u{180f}'),
        // Zero width and direction marks; separators and embeddings; invisible operators and
        // isolates.
        ('\u{200b}', '\u{200f}'),
        ('\u{2028}', '\u{202e}'),
        ('\u{2060}', '\u{206f}'),
        // Hangul's filler, variation selectors.
        ('\u{3164}', '\u{3164}'),
        ('\u{fe00}', '\u{fe0f}'),
        // Byte order mark; half-width filler; annotations.
        ('\u{feff}', '\u{feff}'),
        ('\u{ffa0}', '\u{ffa0}'),
        ('\u{fff0}', '\u{fffb}'),
        // Kaithi, Egyptian, shorthand, musical.
        ('\u{110bd}', '\u{110bd}'),
        ('\u{110cd}', '\u{110cd}'),
        ('\u{13430}', '\u{1343f}'),
        ('\u{1bca0}', '\u{1bca3}'),
        ('\u{1d159}', '\u{1d159}'),
        ('\u{1d173}', '\u{1d17a}'),
        // Tags, selectors for variants, and what is reserved to be ignored.
        ('\u{e0000}', '\u{e0fff}'),
    ];
    UNSEEN
        .iter()
        .any(|(first, last)| (*first..=*last).contains(&character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_seen_is_told_from_what_is() {
        for unseen in [
            '\u{ad}',
            '\u{200b}',
            '\u{200d}',
            '\u{200f}',
            '\u{2028}',
            '\u{202a}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{2069}',
            '\u{206f}',
            '\u{feff}',
            '\u{fe0f}',
            '\u{3164}',
            '\u{e0001}',
            '\u{e007f}',
            '\u{e01ef}',
        ] {
            assert!(is_unseen(unseen), "{unseen:?}");
        }
        for seen in [
            ' ', '-', 'é', 'Ω', 'ж', 'ש', 'ع', '京', '‐', '‧', '\u{2070}', '😀',
        ] {
            assert!(!is_unseen(seen), "{seen:?}");
        }
    }
}
