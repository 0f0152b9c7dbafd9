//! Which channels are served: what the chain says of one, held against our terms.

use topnet_account::{Address, Amount};
use topnet_api::{ApiError, ChainName, ChannelState, ChannelView};

/// What a channel must be like.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The service, and its chain.
    pub service: ChainName,
    /// Whom it must pay.
    pub payee: Address,
    /// What a unit costs.
    pub unit_price: Amount,
    /// Units that must still be payable.
    pub headroom_units_min: u64,
    /// Blocks that a payer's close leaves us to claim.
    pub close_window_blocks_min: u64,
}

impl Terms {
    /// Says of a channel that cannot have a session why. `height` is its chain's.
    pub fn check(&self, channel: &ChannelView, height: u64) -> Result<(), ApiError> {
        let id = channel.id;
        let refuse = |code: &str, what: String, mend: &str| Err(ApiError::new(code, what, mend));
        if channel.chain != self.service {
            return refuse(
                "wrong_service",
                format!(
                    "channel {id} is on chain `{}`, the service is `{}`",
                    channel.chain, self.service
                ),
                "open a channel on the service's chain",
            );
        }
        if channel.payee != self.payee {
            return refuse(
                "wrong_payee",
                format!(
                    "channel {id} pays {}, not this provider ({})",
                    channel.payee, self.payee
                ),
                "open a channel to the payee that the offer names",
            );
        }
        match channel.state {
            ChannelState::Open => {}
            ChannelState::Closing { deadline } => {
                return refuse(
                    "channel_closing",
                    format!("channel {id} is closing, final at block {deadline}"),
                    "open another channel",
                );
            }
            ChannelState::Closed => {
                return refuse(
                    "channel_closed",
                    format!("channel {id} is closed"),
                    "open another channel",
                );
            }
        }
        if channel.expiry <= height {
            return refuse(
                "channel_expired",
                format!(
                    "channel {id} expired at block {}, the chain is at {height}",
                    channel.expiry
                ),
                "open another channel",
            );
        }
        if channel.close_window < self.close_window_blocks_min {
            return refuse(
                "close_window_short",
                format!(
                    "channel {id} has a close window of {} blocks, the offer asks for {}",
                    channel.close_window, self.close_window_blocks_min
                ),
                "open a channel with the offer's close window",
            );
        }
        let headroom = channel
            .allocation
            .checked_sub(channel.paid)
            .unwrap_or(Amount::ZERO);
        // A price that no amount can name is above any headroom.
        let needed = self
            .unit_price
            .checked_mul(self.headroom_units_min)
            .unwrap_or(Amount::MAX);
        if headroom < needed {
            return refuse(
                "headroom_short",
                format!("channel {id} has {headroom} left, a session needs {needed}"),
                "top the channel up",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use topnet_account::{ChannelId, PublicKey};

    use super::*;

    #[test]
    fn each_lack_has_its_own_answer() {
        let terms = Terms {
            service: ChainName::vpn(),
            payee: Address([1; 32]),
            unit_price: Amount::from_ntop(10),
            headroom_units_min: 5,
            close_window_blocks_min: 100,
        };
        let good = ChannelView {
            id: ChannelId([9; 32]),
            chain: ChainName::vpn(),
            payer: Address([2; 32]),
            payee: Address([1; 32]),
            signer: PublicKey([3; 32]),
            allocation: Amount::from_ntop(150),
            backed: Amount::from_ntop(150),
            paid: Amount::from_ntop(100),
            close_window: 100,
            expiry: 1_001,
            state: ChannelState::Open,
        };
        let cases = [
            (None, good.clone()),
            (
                Some("wrong_service"),
                ChannelView {
                    chain: ChainName::main(),
                    ..good.clone()
                },
            ),
            (
                Some("wrong_payee"),
                ChannelView {
                    payee: Address([2; 32]),
                    ..good.clone()
                },
            ),
            (
                Some("channel_closing"),
                ChannelView {
                    state: ChannelState::Closing { deadline: 2_000 },
                    ..good.clone()
                },
            ),
            (
                Some("channel_closed"),
                ChannelView {
                    state: ChannelState::Closed,
                    ..good.clone()
                },
            ),
            (
                Some("channel_expired"),
                ChannelView {
                    expiry: 1_000,
                    ..good.clone()
                },
            ),
            (
                Some("close_window_short"),
                ChannelView {
                    close_window: 99,
                    ..good.clone()
                },
            ),
            (
                Some("headroom_short"),
                ChannelView {
                    paid: Amount::from_ntop(101),
                    ..good.clone()
                },
            ),
        ];
        for (expected, channel) in cases {
            let code = terms.check(&channel, 1_000).err().map(|error| error.code);
            assert_eq!(code.as_deref(), expected);
        }
    }
}
