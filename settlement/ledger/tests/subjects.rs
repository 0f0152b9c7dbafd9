//! Where in a chain's state a subject stands, and where none can.
#![allow(clippy::unwrap_used)]

mod support;

use support::{World, address, rules};
use topnet_account::{ChannelId, Hash, StateSubject};
use topnet_ledger::state::{self, subject_key};

#[test]
fn what_a_chain_does_not_keep_has_no_key() {
    let world = World::new(&rules(), &[]);
    let main = world.main.ledger.description();
    let service = world.service.ledger.description();
    let (account, channel, id) = (address(1), ChannelId([2; 32]), Hash([3; 32]));
    let offer = StateSubject::Offer {
        provider: account,
        service: id,
    };
    let batch = state::outbox_entry_key(&main.hash(), 3);
    let cases = [
        (
            StateSubject::Account(account),
            Some(state::account_key(&account)),
            Some(state::account_key(&account)),
        ),
        (
            StateSubject::Channel(channel),
            Some(state::channel_key(&channel)),
            Some(state::channel_key(&channel)),
        ),
        (StateSubject::Batch(3), None, Some(batch)),
        (
            StateSubject::Service(id),
            Some(state::service_key(&id)),
            None,
        ),
        (offer, Some(state::offer_key(&account, &id)), None),
    ];
    for (subject, on_main, on_service) in cases {
        assert_eq!(subject_key(&subject, &main.role), on_main, "{subject:?}");
        assert_eq!(
            subject_key(&subject, &service.role),
            on_service,
            "{subject:?}"
        );
    }
}
