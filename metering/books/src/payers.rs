//! What payers say to the books.

use topnet_account::{ChannelId, PublicKey};
use topnet_channel::{PayeeMessage, PayerMessage, Proved, RefusalCode, Taken, Unproved};
use tracing::debug;

use crate::{Books, ConnectionId, Greeting, LINK_COST, Output, REFUSAL_COST, account::Account};

impl Books {
    /// A payer says hello on a new link, on which it has proved `key`.
    pub fn handle_hello(
        &mut self,
        connection: ConnectionId,
        channel: ChannelId,
        key: PublicKey,
    ) -> Greeting {
        let now = self.clock.map(|clock| clock.now);
        let Some(account) = self.accounts.get_mut(&channel) else {
            return Greeting::Unknown;
        };
        if account.facts.signer != key {
            return Greeting::WrongKey;
        }
        if !account.patience.lose(LINK_COST, now) {
            return Greeting::TooOften;
        }
        if let Some(old) = account.connection.replace(connection) {
            self.connections.remove(&old);
            self.outputs.push_back(Output::End(old));
        }
        account.greet = true;
        account.urgent = true;
        self.connections.insert(connection, channel);
        self.touch(channel);
        Greeting::Welcome
    }

    /// A payer says something after its hello. What comes back is to be proved, away from here,
    /// and [`handle_proof`](Self::handle_proof) told; nothing else of the same link meanwhile.
    pub fn handle_payer(
        &mut self,
        connection: ConnectionId,
        message: &PayerMessage,
    ) -> Option<Unproved> {
        let (channel, account) = self.account_of(connection)?;
        match account.payee.handle_unproved(message) {
            Ok(Taken::Whole) => {
                if let PayerMessage::Token(token) = message {
                    account.payer_bytes = account.payer_bytes.max(token.own_bytes);
                    self.counters.tokens += 1;
                }
                self.note_payment(channel);
                None
            }
            Ok(Taken::Unproved(unproved)) => Some(*unproved),
            Err(code) => {
                self.refuse(connection, code);
                None
            }
        }
    }

    /// What the proof of a link's message has come to.
    pub fn handle_proof(&mut self, connection: ConnectionId, proof: Result<Proved, RefusalCode>) {
        let Some((channel, account)) = self.account_of(connection) else {
            return;
        };
        match proof.and_then(|proved| account.payee.handle_proved(&proved)) {
            Ok(()) => self.note_payment(channel),
            Err(code) => self.refuse(connection, code),
        }
    }

    fn account_of(&mut self, connection: ConnectionId) -> Option<(ChannelId, &mut Account)> {
        let channel = *self.connections.get(&connection)?;
        Some((channel, self.accounts.get_mut(&channel)?))
    }

    fn note_payment(&mut self, channel: ChannelId) {
        if let Some(account) = self.accounts.get_mut(&channel)
            && !account.payee.is_durable()
        {
            account.urgent = true;
            self.touch(channel);
        }
    }

    /// Says no, and after too many times no more: whoever is wrong so often costs others time.
    fn refuse(&mut self, connection: ConnectionId, code: RefusalCode) {
        self.counters.refusals += 1;
        let now = self.clock.map(|clock| clock.now);
        let Some((channel, account)) = self.account_of(connection) else {
            return;
        };
        account.refused = Some(code);
        let is_enough = !account.patience.lose(REFUSAL_COST, now);
        let refusal = PayeeMessage::Refused(code);
        self.outputs.push_back(Output::Reply(connection, refusal));
        if is_enough {
            // Not louder: whoever has a channel could fill the log with it. Refusals are counted.
            debug!(%channel, ?code, "a payer is refused again and again; its link ends");
            self.handle_disconnected(connection);
            self.outputs.push_back(Output::End(connection));
        }
    }

    /// A link is gone.
    pub fn handle_disconnected(&mut self, connection: ConnectionId) {
        let Some(channel) = self.connections.remove(&connection) else {
            return;
        };
        if let Some(account) = self.accounts.get_mut(&channel)
            && account.connection == Some(connection)
        {
            account.connection = None;
            account.told = None;
        }
        self.note_life(channel);
    }
}
