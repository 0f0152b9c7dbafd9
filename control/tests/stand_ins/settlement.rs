//! In the place of settlement.

use tarpc::context::Context;
use topnet_account::{Address, Amount, ChannelId, Hash};
use topnet_api::{
    AccountView, ApiError, BatchView, BlockHeader, BlockRef, BlockSummary, BlockView, ChainName,
    ChainParameters, ChainTip, ChannelState, ChannelView, ClaimBytes, ClaimReport, ClaimStage,
    CloseProgress, DayEarnings, ExecutedTransaction, HandoverStatus, HeldClaim, HexBytes,
    HistoryEntry, HistoryPlace, HostedService, HostedState, MarketOffer, NewOffer, NewService,
    PaidClaim, RecoverySubject, ServiceView, Settlement, StateProof, StateSubject,
    SubmittedTransaction, TransactionStatus,
};

use super::{BLOCKS_PAGE, PAGE, World, payee, unknown};

impl Settlement for World {
    async fn chains(self, _: Context) -> Vec<ChainParameters> {
        let parameters = |chain| ChainParameters {
            chain,
            genesis: Hash([3; 32]),
            block_interval_ms: 100,
            epoch_blocks: 10,
            closing_fee: Amount::from_ntop(30_000),
            close_window_min: 600,
            allocation_min: Amount::from_ntop(1),
        };
        vec![parameters(ChainName::main()), parameters(ChainName::vpn())]
    }

    async fn tip(self, _: Context, chain: ChainName) -> Result<ChainTip, ApiError> {
        let block = self.tip_block(chain);
        Ok(ChainTip {
            block,
            state_root: Hash([4; 32]),
            time_ms: 1_000,
        })
    }

    async fn submit(
        self,
        _: Context,
        _: ChainName,
        transaction: Vec<u8>,
    ) -> Result<SubmittedTransaction, ApiError> {
        self.chain().submitted.push(transaction);
        Ok(SubmittedTransaction { id: Hash([7; 32]) })
    }

    async fn transaction(
        self,
        _: Context,
        chain: ChainName,
        id: Hash,
    ) -> Result<TransactionStatus, ApiError> {
        let block = Some(self.tip_block(chain));
        Ok(TransactionStatus {
            id,
            block,
            events: vec!["transferred".to_owned()],
        })
    }

    async fn account(
        self,
        _: Context,
        _: ChainName,
        address: Address,
    ) -> Result<AccountView, ApiError> {
        Ok(AccountView {
            address,
            balance: Amount::MAX,
            nonce: 3,
        })
    }

    async fn channel(self, _: Context, id: ChannelId) -> Result<ChannelView, ApiError> {
        self.chain()
            .channels
            .get(&id)
            .cloned()
            .ok_or_else(|| unknown(id))
    }

    async fn channels(
        self,
        _: Context,
        party: Address,
        after: Option<ChannelId>,
    ) -> Result<Vec<ChannelView>, ApiError> {
        let chain = self.chain();
        let of_party = chain
            .channels
            .values()
            .filter(|c| c.payer == party || c.payee == party)
            .filter(|c| after.is_none_or(|after| c.id > after));
        Ok(of_party.take(PAGE).cloned().collect())
    }

    async fn closing(
        self,
        _: Context,
        payee: Address,
        after: Option<ChannelId>,
    ) -> Result<Vec<ChannelView>, ApiError> {
        let chain = self.chain();
        let closing = chain
            .channels
            .values()
            .filter(|c| c.payee == payee && matches!(c.state, ChannelState::Closing { .. }))
            .filter(|c| after.is_none_or(|after| c.id > after));
        Ok(closing.take(PAGE).cloned().collect())
    }

    async fn service(self, _: Context, chain: ChainName) -> Result<ServiceView, ApiError> {
        Ok(ServiceView {
            batches: self.chain().accepted_batches,
            ..service_view(chain)
        })
    }

    async fn block(self, _: Context, chain: ChainName, height: u64) -> Result<BlockView, ApiError> {
        let block = BlockRef {
            height,
            ..self.tip_block(chain)
        };
        Ok(BlockView {
            header: header(block),
            transactions: vec![ExecutedTransaction {
                id: Hash([7; 32]),
                events: vec!["transferred".to_owned()],
            }],
            events: Vec::new(),
        })
    }

    async fn blocks(
        self,
        _: Context,
        chain: ChainName,
        from: Option<u64>,
        to: Option<u64>,
    ) -> Result<Vec<BlockSummary>, ApiError> {
        let tip = self.tip_block(chain);
        let to = to.unwrap_or(tip.height);
        let summary = |height| BlockSummary {
            header: header(BlockRef {
                height,
                ..tip.clone()
            }),
            transaction_count: 1,
        };
        let from = from.map(|from| if self.repeats() { 1 } else { from });
        let heights = from.unwrap_or(to)..=to;
        Ok(heights.take(BLOCKS_PAGE).map(summary).collect())
    }

    async fn history(
        self,
        _: Context,
        _: ChainName,
        _: Address,
        before: Option<HistoryPlace>,
    ) -> Result<Vec<HistoryEntry>, ApiError> {
        let entry = |height, transaction| HistoryEntry {
            place: HistoryPlace { height, index: 2 },
            time_ms: 1_000,
            transaction,
            events: vec!["transferred".to_owned()],
        };
        let entries = [entry(5, Some(Hash([7; 32]))), entry(4, None)];
        let before = before.filter(|_| !self.repeats());
        let wanted = |entry: &HistoryEntry| before.is_none_or(|before| entry.place < before);
        Ok(entries.into_iter().filter(wanted).collect())
    }

    async fn batches(
        self,
        _: Context,
        chain: ChainName,
        from: u64,
    ) -> Result<Vec<BatchView>, ApiError> {
        let accepted = self.chain().accepted_batches;
        let from = if self.repeats() { 0 } else { from };
        let batch = |number| BatchView {
            number,
            service_block: self.tip_block(chain.clone()),
            payouts: 1,
            total: Amount::from_ntop(9),
            burn: Amount::from_ntop(1),
            main_block: (number < accepted).then(|| self.tip_block(ChainName::main())),
        };
        // One more was cut than main has accepted.
        Ok((from..=accepted).map(batch).collect())
    }

    async fn tip_above(
        self,
        _: Context,
        chain: ChainName,
        height: u64,
    ) -> Result<ChainTip, ApiError> {
        let block = BlockRef {
            height: height + 1,
            ..self.tip_block(chain)
        };
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        Ok(ChainTip {
            block,
            state_root: Hash([4; 32]),
            time_ms: 1_000,
        })
    }

    async fn paid_claims(
        self,
        _: Context,
        _: ChannelId,
        height: u64,
    ) -> Result<Vec<PaidClaim>, ApiError> {
        let block = self.tip_block(ChainName::vpn());
        let claim = PaidClaim {
            transaction: Hash([7; 32]),
            units: 3,
            payout: Amount::from_ntop(9),
            fee: Amount::from_ntop(1),
            paid: Amount::from_ntop(9),
            log_root: Hash::ZERO,
            block,
        };
        let found = claim.block.height >= height;
        Ok(found.then_some(claim).into_iter().collect())
    }

    async fn earnings(
        self,
        _: Context,
        _: Address,
        from_ms: u64,
    ) -> Result<Vec<DayEarnings>, ApiError> {
        let day = DayEarnings {
            day_ms: 86_400_000,
            chain: ChainName::vpn(),
            claims: 1,
            units: 3,
            payout: Amount::from_ntop(9),
            fees: Amount::from_ntop(1),
        };
        Ok((day.day_ms >= from_ms).then_some(day).into_iter().collect())
    }

    async fn prove(
        self,
        _: Context,
        chain: ChainName,
        subject: StateSubject,
    ) -> Result<StateProof, ApiError> {
        Ok(StateProof {
            chain,
            genesis: Hash([3; 32]),
            height: 7,
            subject,
            proof: HexBytes(vec![1, 2]),
        })
    }

    async fn genesis(self, _: Context, chain: ChainName) -> Result<String, ApiError> {
        Ok(format!(r#"{{"name":"{chain}"}}"#))
    }

    async fn hold(self, _: Context, claims: Vec<HeldClaim>) -> Result<u64, ApiError> {
        Ok(claims.len() as u64)
    }

    async fn claims(
        self,
        _: Context,
        after: Option<ChannelId>,
    ) -> Result<Vec<ClaimReport>, ApiError> {
        let report = |view: &ChannelView| ClaimReport {
            channel: view.id,
            stage: ClaimStage::Accepted,
            redeemable: Amount::from_ntop(9),
            paid: view.paid,
            due_ms: Some(1),
            deadline: None,
            transaction: None,
            service_block: None,
            main_block: None,
            alarm: Some("nobody has closed it".to_owned()),
        };
        let chain = self.chain();
        let channels = chain.channels.values();
        let behind = channels.filter(|c| after.is_none_or(|after| c.id > after));
        Ok(behind.take(PAGE).map(report).collect())
    }

    async fn services(self, _: Context) -> Result<Vec<HostedService>, ApiError> {
        let chain = ChainName::vpn();
        let on_main = Some(service_view(chain.clone()));
        Ok(vec![HostedService {
            chain,
            genesis: Hash([6; 32]),
            state: HostedState::Running,
            height: Some(7),
            on_main,
            problem: None,
        }])
    }

    async fn create_service(self, _: Context, _: NewService) -> Result<(), ApiError> {
        Ok(())
    }

    async fn stop_service(self, _: Context, _: ChainName) -> Result<(), ApiError> {
        Ok(())
    }

    async fn start_service(self, _: Context, _: ChainName) -> Result<(), ApiError> {
        Ok(())
    }

    async fn market(
        self,
        _: Context,
        _: ChainName,
        after: Option<Address>,
    ) -> Result<Vec<MarketOffer>, ApiError> {
        let block = self.tip_block(ChainName::main());
        let terms = self.chain().offer.clone();
        let offer = terms.map(|terms| MarketOffer {
            provider: payee(),
            service: Hash([6; 32]),
            terms,
            deposit: Amount::from_ntop(5),
            block,
            time_ms: 1_000,
        });
        let after = after.filter(|_| !self.repeats());
        let offer = offer.filter(|offer| after.is_none_or(|after| offer.provider > after));
        Ok(offer.into_iter().collect())
    }

    async fn publish_offer(
        self,
        _: Context,
        offer: NewOffer,
    ) -> Result<Option<SubmittedTransaction>, ApiError> {
        let before = self.chain().offer.replace(offer.terms.clone());
        let changes = before.as_ref() != Some(&offer.terms);
        Ok(changes.then_some(SubmittedTransaction { id: Hash([7; 32]) }))
    }

    async fn retract_offer(
        self,
        _: Context,
        _: ChainName,
    ) -> Result<Option<SubmittedTransaction>, ApiError> {
        let before = self.chain().offer.take();
        Ok(before.map(|_| SubmittedTransaction { id: Hash([7; 32]) }))
    }

    async fn recovery(
        self,
        _: Context,
        _: ChainName,
        _: RecoverySubject,
    ) -> Result<Vec<u8>, ApiError> {
        Ok(vec![1, 3, 5])
    }

    async fn towers(self, _: Context) -> Vec<HandoverStatus> {
        vec![HandoverStatus {
            url: "http://192.0.2.7:8547".to_owned(),
            unconfirmed: 1,
            confirmed_ms: Some(1_000),
            problem: Some("it is away".to_owned()),
        }]
    }

    async fn payee(self, _: Context) -> Address {
        payee()
    }

    async fn close(
        self,
        _: Context,
        id: ChannelId,
        claim: Option<ClaimBytes>,
    ) -> Result<CloseProgress, ApiError> {
        let (service, main) = (
            self.tip_block(ChainName::vpn()),
            self.tip_block(ChainName::main()),
        );
        let mut chain = self.chain();
        chain.closes.push((id, claim));
        if chain.closed_by_others {
            return Err(ApiError::new(
                "channel_closed",
                "closed already",
                "look at it",
            ));
        }
        let settles = chain.settles;
        if settles && let Some(channel) = chain.channels.get_mut(&id) {
            channel.state = ChannelState::Closed;
        }
        Ok(CloseProgress {
            channel: id,
            transaction: Hash([7; 32]),
            service_block: settles.then_some(service),
            main_block: settles.then_some(main),
            redeemed: settles.then_some(Amount::from_ntop(100)),
            payee_fees: settles.then_some(Amount::from_ntop(1)),
            refund: None,
        })
    }
}

fn header(block: BlockRef) -> BlockHeader {
    BlockHeader {
        block,
        parent: Hash([5; 32]),
        time_ms: 1_000,
        proposer: payee(),
        body_root: Hash::ZERO,
        receipts_root: Hash::ZERO,
        state_root: Hash([4; 32]),
        outbox: Hash::ZERO,
    }
}

fn service_view(chain: ChainName) -> ServiceView {
    ServiceView {
        chain,
        genesis: Hash([6; 32]),
        escrow: Amount::from_ntop(5),
        batches: 2,
        waiting: Amount::from_ntop(0),
        owner: None,
        deposit: Amount::from_ntop(0),
        accepted_height: 20,
        dead_from: 700,
        dead: false,
        recovering: false,
    }
}
