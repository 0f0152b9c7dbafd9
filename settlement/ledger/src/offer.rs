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
    /// page would not show.
    pub(crate) fn is_valid(&self) -> bool {
        let texts = [
            &self.payment_address,
            &self.rpc_url,
            &self.name,
            &self.region,
        ];
        let is_fit = |text: &String| {
            text.len() <= OFFER_TEXT_BYTES_MAX && !text.chars().any(char::is_control)
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
