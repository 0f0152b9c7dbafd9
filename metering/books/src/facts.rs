//! What metering writes down of a channel beside the payee's own record: what its chain fixed
//! for good, and the extremes that were measured.

use topnet_account::{Address, Amount, PublicKey};
use topnet_api::{ChainName, ChannelView};

const VERSION: u8 = 1;

/// What the provider serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The service, and the chain that its channels are on.
    pub service: ChainName,
    /// Whom a channel must pay; `None` until settlement has said.
    pub payee: Option<Address>,
    /// Channels that close faster are not served.
    pub close_window_blocks_min: u64,
    /// Units of one channel that are written off at most.
    pub write_off_units_max: u64,
}

/// What is known of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Who signs its vouchers, and so who may connect to pay.
    pub signer: PublicKey,
    /// The most that can be redeemed.
    pub allocation: Amount,
    /// Blocks between a payer's close and finalisation.
    pub close_window_blocks: u64,
    /// The furthest that paid units were ahead of owed ones.
    pub window_units_max: u64,
    /// The most bytes that were ever forwarded beyond what was paid for.
    pub unpaid_bytes_max: u64,
}

impl Facts {
    /// Length of [`to_bytes`](Self::to_bytes).
    pub const BYTES: usize = 1 + PublicKey::SIZE + 4 * size_of::<u64>();

    /// What the chain says of a channel, if it is one that we serve.
    pub fn of(view: &ChannelView, served: &Served) -> Option<Self> {
        let ours = view.chain == served.service
            && Some(view.payee) == served.payee
            && view.close_window >= served.close_window_blocks_min;
        ours.then_some(Self {
            signer: view.signer,
            allocation: view.allocation,
            close_window_blocks: view.close_window,
            window_units_max: 0,
            unpaid_bytes_max: 0,
        })
    }

    /// As they are journalled: version, signer, then little-endian words.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let words = [
            self.allocation.ntop(),
            self.close_window_blocks,
            self.window_units_max,
            self.unpaid_bytes_max,
        ];
        let mut bytes = [0; Self::BYTES];
        bytes[0] = VERSION;
        bytes[1..][..PublicKey::SIZE].copy_from_slice(self.signer.as_bytes());
        let places = bytes[1 + PublicKey::SIZE..].chunks_exact_mut(8);
        for (place, word) in places.zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads [`to_bytes`](Self::to_bytes).
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (&[VERSION], rest) = bytes.split_first_chunk()? else {
            return None;
        };
        let (signer, rest) = rest.split_first_chunk::<{ PublicKey::SIZE }>()?;
        let (words, []) = rest.as_chunks::<8>() else {
            return None;
        };
        let [
            allocation,
            close_window_blocks,
            window_units_max,
            unpaid_bytes_max,
        ] = words
            .try_into()
            .ok()
            .map(|words: &[[u8; 8]; 4]| words.map(u64::from_le_bytes))?;
        Some(Self {
            signer: PublicKey(*signer),
            allocation: Amount::from_ntop(allocation),
            close_window_blocks,
            window_units_max,
            unpaid_bytes_max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Journals hold these bytes: they change only with the version.
    #[test]
    fn golden_facts() {
        let facts = Facts {
            signer: PublicKey([7; 32]),
            allocation: Amount::from_ntop(1),
            close_window_blocks: 2,
            window_units_max: 3,
            unpaid_bytes_max: 4,
        };
        let bytes = facts.to_bytes();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let signer = "07".repeat(32);
        assert_eq!(
            hex,
            format!("01{signer}0100000000000000020000000000000003000000000000000400000000000000")
        );
        assert_eq!(Facts::from_bytes(&bytes), Some(facts));
        assert_eq!(Facts::from_bytes(&bytes[..64]), None);
        assert_eq!(Facts::from_bytes(&[&bytes[..], &[0]].concat()), None);
        let mut newer = bytes;
        newer[0] = 2;
        assert_eq!(Facts::from_bytes(&newer), None);
    }
}
