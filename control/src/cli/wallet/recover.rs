//! `topnet wallet recover`: brings home what the wallet has in a dead service.

use topnet_account::{Amount, Hash};
use topnet_api::{ChainName, ChannelState, RecoverySubject};
use topnet_ledger::{Transaction, transaction::Body};
use topnet_wallet::chain::RpcError;

use super::{OpenWallet, Patience, report::TransactionReport};
use crate::cli::{error::CliError, output::Output};

/// What is not there any more, or never was.
const NOTHING: [&str; 2] = ["recovered", "nothing_to_recover"];

pub(super) async fn recover(
    wallet: &OpenWallet,
    service: ChainName,
    patience: Patience,
    output: Output,
) -> Result<(), CliError> {
    let account = wallet.keys.account()?;
    let known = wallet.rpc.service(&service).await?;
    let mut done = Vec::new();
    if known.dead && !known.recovering {
        let begin = RecoverySubject::Begin;
        done.extend(bring(wallet, &service, begin, patience, output).await?);
    }
    if known.dead {
        let own = RecoverySubject::Account(account);
        done.extend(bring(wallet, &service, own, patience, output).await?);
    }
    for channel in wallet.rpc.channels(account).await? {
        if channel.chain == service && known.dead && channel.payer == account {
            let subject = RecoverySubject::Channel(channel.id);
            done.extend(bring(wallet, &service, subject, patience, output).await?);
        }
    }
    // What went on on main and may end there now.
    let main = wallet.rpc.chain(&ChainName::main()).await?;
    for channel in wallet.rpc.channels(account).await? {
        let ChannelState::Closing { deadline } = channel.state else {
            continue;
        };
        if channel.chain != main.parameters.chain {
            continue;
        }
        if main.height < deadline {
            output.progress(&format!(
                "channel {} returns the rest of {} after block {deadline} of main; ask again then",
                channel.id,
                rest(channel.allocation, channel.paid)
            ));
            continue;
        }
        let finalise = Transaction {
            chain: main.parameters.genesis,
            body: Body::Finalise(channel.id),
        };
        let id = wallet.rpc.submit(&main.parameters.chain, &finalise).await?;
        done.push(finish(wallet, id.id, patience, output).await?);
    }
    if done.is_empty() && !known.dead {
        return Err(CliError::new(
            "service_alive",
            format!("main does not hold service `{service}` dead, and nothing of it is on main"),
            "use its chain: close the channel, withdraw the balance",
        ));
    }
    output.print(done.as_slice());
    Ok(())
}

/// Submits one recovery, if there is something to recover.
async fn bring(
    wallet: &OpenWallet,
    service: &ChainName,
    subject: RecoverySubject,
    patience: Patience,
    output: Output,
) -> Result<Option<TransactionReport>, CliError> {
    let main = ChainName::main();
    let submitted = match wallet.rpc.recovery(service, &subject).await {
        Ok(transaction) => wallet.rpc.submit_bytes(&main, transaction).await,
        Err(error) => Err(error),
    };
    match submitted {
        Ok(submitted) => Ok(Some(finish(wallet, submitted.id, patience, output).await?)),
        Err(RpcError::Refused(error)) if NOTHING.contains(&&*error.code) => Ok(None),
        // Somebody else was faster.
        Err(RpcError::Refused(error)) if error.code == "recovery_begun" => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn finish(
    wallet: &OpenWallet,
    id: Hash,
    patience: Patience,
    output: Output,
) -> Result<TransactionReport, CliError> {
    let main = ChainName::main();
    let status = wallet.wait(&main, id, patience, output).await?;
    Ok(TransactionReport::new(main, id, status))
}

fn rest(allocation: Amount, paid: Amount) -> Amount {
    allocation.checked_sub(paid).unwrap_or(Amount::ZERO)
}
