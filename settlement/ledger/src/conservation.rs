//! Where all the money is, and the proof that none is made or lost.
//!
//! Every chain keeps running [`Totals`]. After each transaction, and after what a block does by
//! itself, the ledger works out from the records that were written how much each place gained
//! or lost, adds that to the totals, and refuses the step unless the equation of the totals
//! still holds. [`audit`] does the same from nothing, over a whole state.

use topnet_account::Amount;

use crate::{
    codec::CodecError,
    machine::Key,
    state::{self, Account, Channel, PublishedOffer, Record, Service},
};

/// Where a chain's money is. Sums are wider than amounts, because money that goes round is
/// counted every time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Totals {
    /// Of the main chain.
    Main(MainTotals),
    /// Of a service chain.
    Service(ServiceTotals),
}

/// Main: `balances + services + allocations + offers + burned = supply`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MainTotals {
    /// All money there ever was.
    pub supply: u128,
    /// On accounts.
    pub balances: u128,
    /// Locked for services: escrow, deposits, and payouts that wait.
    pub services: u128,
    /// In channels of dead services, with their closing fees.
    pub allocations: u128,
    /// Locked with offers.
    pub offers: u128,
    /// Gone, here and on services.
    pub burned: u128,
}

/// Service: `balances + allocations + burn = credited − batched`. What waits to be batched is
/// still on its account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceTotals {
    /// Ever credited from main.
    pub credited: u128,
    /// Ever sent to main, burn included.
    pub batched: u128,
    /// On accounts.
    pub balances: u128,
    /// In channels, with their closing fees.
    pub allocations: u128,
    /// Burned and not yet reported in a batch.
    pub burn: u128,
}

impl Totals {
    /// True if every nTOP is accounted for.
    pub fn hold(&self) -> bool {
        match self {
            Self::Main(totals) => totals.hold(),
            Self::Service(totals) => totals.hold(),
        }
    }

    /// Takes note of money that places gained or lost; `None` if a place would have less than
    /// nothing, or more than can be named.
    pub(crate) fn moved(self, moved: &Moved) -> Option<Self> {
        Some(match self {
            Self::Main(totals) => Self::Main(MainTotals {
                balances: totals.balances.checked_add_signed(moved.accounts)?,
                services: totals.services.checked_add_signed(moved.services)?,
                allocations: totals.allocations.checked_add_signed(moved.channels)?,
                offers: totals.offers.checked_add_signed(moved.offers)?,
                ..totals
            }),
            Self::Service(totals) if moved.services == 0 && moved.offers == 0 => {
                Self::Service(ServiceTotals {
                    balances: totals.balances.checked_add_signed(moved.accounts)?,
                    allocations: totals.allocations.checked_add_signed(moved.channels)?,
                    ..totals
                })
            }
            _ => return None,
        })
    }
}

impl MainTotals {
    fn hold(&self) -> bool {
        let parts = [
            self.balances,
            self.services,
            self.allocations,
            self.offers,
            self.burned,
        ];
        sum(&parts) == Some(self.supply)
    }
}

impl ServiceTotals {
    fn hold(&self) -> bool {
        let here = sum(&[self.balances, self.allocations, self.burn]);
        here.is_some() && here == self.credited.checked_sub(self.batched)
    }
}

/// True if a service has credited no more than main has funded, and main accepted no more than
/// the service has batched. Holds at any two moments of which the service's is seen first for
/// `credited` and last for `batched`.
pub fn holds_between(on_main: &Service, on_service: &ServiceTotals) -> bool {
    on_service.credited <= on_main.funded && on_main.accepted <= on_service.batched
}

/// Money that places gained (or lost, if negative).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    accounts: i128,
    channels: i128,
    services: i128,
    offers: i128,
}

impl Moved {
    /// Takes note of a record that was replaced. Records without money change nothing.
    pub(crate) fn note(
        &mut self,
        key: &Key,
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<(), CodecError> {
        let place = match key.0.first() {
            Some(b'a') => &mut self.accounts,
            Some(b'c') => &mut self.channels,
            Some(b's') => &mut self.services,
            Some(b'f') => &mut self.offers,
            _ => return Ok(()),
        };
        // A record holds less than 2^65 nTOP, and a step writes far fewer than 2^60 records.
        *place += held(key, new)?.cast_signed() - held(key, old)?.cast_signed();
        Ok(())
    }
}

/// The money that the record under `key` holds.
fn held(key: &Key, value: Option<&[u8]>) -> Result<u128, CodecError> {
    let Some(value) = value else {
        return Ok(0);
    };
    let amount = |amount: Amount| u128::from(amount.ntop());
    Ok(match key.0.first() {
        Some(b'a') => amount(Account::from_bytes(value)?.balance),
        Some(b'c') => Channel::from_bytes(value)?.held(),
        Some(b's') => Service::from_bytes(value)?.held(),
        Some(b'f') => amount(PublishedOffer::from_bytes(value)?.deposit),
        _ => 0,
    })
}

/// Why a state fails its audit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// A value is damaged.
    #[error("the value under key {key:?} does not decode: {error}; rebuild the state")]
    Damaged {
        /// Where.
        key: Key,
        /// How.
        error: CodecError,
    },
    /// There are no totals.
    #[error("the state has no totals: it is not a ledger's state")]
    NoTotals,
    /// Money was made or lost.
    #[error(
        "the records hold other sums than the totals say: counted {counted:?}, noted {noted:?}"
    )]
    Differ {
        /// The totals with the sums that were counted.
        counted: Box<Totals>,
        /// The totals as the state has them.
        noted: Box<Totals>,
    },
    /// The totals contradict themselves.
    #[error("the totals do not add up: {0:?}")]
    Unbalanced(Totals),
}

/// Counts all the money in a whole state and compares it with the totals.
pub fn audit<'a>(
    state: impl IntoIterator<Item = (&'a Key, &'a [u8])>,
) -> Result<Totals, AuditError> {
    let (mut accounts, mut channels, mut services, mut offers) = (0, 0, 0, 0);
    let mut noted = None;
    for (key, value) in state {
        let damaged = |error| AuditError::Damaged {
            key: key.clone(),
            error,
        };
        if *key == state::totals_key() {
            noted = Some(Totals::from_bytes(value).map_err(damaged)?);
            continue;
        }
        let amount = held(key, Some(value)).map_err(damaged)?;
        match key.0.first() {
            Some(b'a') => accounts += amount,
            Some(b'c') => channels += amount,
            Some(b's') => services += amount,
            Some(b'f') => offers += amount,
            _ => {}
        }
    }
    let noted = noted.ok_or(AuditError::NoTotals)?;
    let counted = match noted {
        Totals::Main(totals) => Totals::Main(MainTotals {
            balances: accounts,
            services,
            allocations: channels,
            offers,
            ..totals
        }),
        Totals::Service(totals) => Totals::Service(ServiceTotals {
            balances: accounts,
            allocations: channels,
            ..totals
        }),
    };
    if counted != noted {
        return Err(AuditError::Differ {
            counted: Box::new(counted),
            noted: Box::new(noted),
        });
    }
    if !noted.hold() {
        return Err(AuditError::Unbalanced(noted));
    }
    Ok(noted)
}

fn sum(parts: &[u128]) -> Option<u128> {
    parts
        .iter()
        .try_fold(0_u128, |sum, part| sum.checked_add(*part))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use topnet_account::{Address, Hash};

    use super::*;
    use crate::{
        genesis::Counterpart,
        state::{account_key, heads_key, totals_key},
    };

    #[test]
    fn an_audit_finds_what_is_wrong() {
        let account = |ntop| Account {
            balance: Amount::from_ntop(ntop),
            ..Account::default()
        };
        let totals = |balances, burned| {
            Totals::Main(MainTotals {
                supply: 10,
                balances,
                services: 0,
                allocations: 0,
                offers: 0,
                burned,
            })
        };
        let sound = BTreeMap::from([
            (account_key(&Address([1; 32])), account(3).to_bytes()),
            (account_key(&Address([2; 32])), account(5).to_bytes()),
            (heads_key(), vec![0, 0]),
            (totals_key(), totals(8, 2).to_bytes()),
        ]);
        let check = |key: &Key, value: Option<Vec<u8>>| {
            let mut state = sound.clone();
            match value {
                Some(value) => state.insert(key.clone(), value),
                None => state.remove(key),
            };
            audit(state.iter().map(|(key, value)| (key, value.as_slice())))
        };
        let key = account_key(&Address([1; 32]));
        assert_eq!(check(&heads_key(), None), Ok(totals(8, 2)));
        assert_eq!(check(&totals_key(), None), Err(AuditError::NoTotals));
        let (counted, noted) = (Box::new(totals(9, 2)), Box::new(totals(8, 2)));
        let richer = Some(account(4).to_bytes());
        assert_eq!(
            check(&key, richer),
            Err(AuditError::Differ { counted, noted })
        );
        let unbalanced = totals(8, 1);
        assert_eq!(
            check(&totals_key(), Some(unbalanced.to_bytes())),
            Err(AuditError::Unbalanced(unbalanced))
        );
        assert!(matches!(
            check(&key, Some(vec![1])),
            Err(AuditError::Damaged { .. })
        ));
    }

    #[test]
    fn a_service_never_has_more_than_main_gave() {
        let on_main = Service {
            escrow: Amount::from_ntop(6),
            funded: 10,
            accepted: 4,
            ..Service::registered(
                &Counterpart {
                    name: "vpn".to_owned(),
                    genesis: Hash::ZERO,
                    validators: Vec::new(),
                },
                &Hash::ZERO,
                0,
            )
        };
        for (credited, batched, holds) in
            [(10, 4, true), (0, 4, true), (11, 4, false), (10, 3, false)]
        {
            let on_service = ServiceTotals {
                credited,
                batched,
                ..ServiceTotals::default()
            };
            assert_eq!(holds_between(&on_main, &on_service), holds);
        }
    }
}
