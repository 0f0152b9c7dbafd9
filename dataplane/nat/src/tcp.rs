//! Which TCP packet leads a flow where, and which timeout holds then (RFC 5382, RFC 7857 and the
//! machine of RFC 6146, section 3.5.2).
//!
//! A flow without a SYN is not begun: the external port would be another than the one that the
//! remote knows, so nothing but a reset could come of it, while each such packet would cost a
//! port. Whoever wants flows to outlive a restart keeps a snapshot.
//!
//! Sequence numbers are not followed. So nothing that the outside says ends a flow by itself: a
//! reset from there only starts the transitory timeout, and the subscriber's next packet calls
//! it off.

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The subscriber sent a SYN.
    OpenedOut,
    /// The remote sent a SYN that the filter let in.
    OpenedIn,
    /// Both have sent a SYN.
    Answered,
    /// Packets after the SYNs.
    Established,
    /// The subscriber will send no more.
    FinOut,
    /// The remote will send no more.
    FinIn,
    /// Neither will.
    Closed,
    /// Reset by one of them.
    Reset,
}

impl State {
    pub(crate) const ALL: [Self; 8] = [
        Self::OpenedOut,
        Self::OpenedIn,
        Self::Answered,
        Self::Established,
        Self::FinOut,
        Self::FinIn,
        Self::Closed,
        Self::Reset,
    ];
}

/// What a packet says. One with several flags says the strongest: RST, SYN, FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Syn,
    /// A SYN that acknowledges another: it begins nothing.
    SynAck,
    Fin,
    Reset,
    Data,
}

impl Signal {
    /// From the header's byte of flags. A SYN that is a FIN too is nobody's honest packet.
    #[inline(always)]
    pub(crate) const fn from_flags(flags: u8) -> Option<Self> {
        const FIN: u8 = 1;
        const SYN: u8 = 2;
        const RST: u8 = 4;
        const ACK: u8 = 16;
        match flags & (FIN | SYN | RST) {
            0 => Some(Self::Data),
            FIN => Some(Self::Fin),
            SYN if flags & ACK == 0 => Some(Self::Syn),
            SYN => Some(Self::SynAck),
            RST => Some(Self::Reset),
            _ if flags & SYN == 0 => Some(Self::Reset),
            _ => None,
        }
    }
}

/// Whose packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The subscriber's.
    Out,
    /// The remote's.
    In,
}

/// The timeout that starts with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// None: what ran goes on.
    Keep,
    Transitory,
    Established,
    Reset,
}

/// Where a packet leads.
pub(crate) type Step = (State, Timer);

/// The step from `state` with a packet of `direction` that says `signal`.
#[inline(always)]
pub(crate) const fn step(state: State, direction: Direction, signal: Signal) -> Step {
    STEPS[state as usize][direction as usize][signal as usize]
}

const STEPS: [[[Step; 5]; 2]; 8] = {
    use State::*;
    use Timer::{Established as E, Keep as K, Reset as R, Transitory as T};
    // The states whose names are events or timers too.
    const EST: State = State::Established;
    const RST: State = State::Reset;
    #[rustfmt::skip]
    let steps = [
        // after              SYN             SYN ACK         FIN             RST       data
        //
        // OpenedOut. Data from the remote may be its word on an older connection: it passes, so
        // that the subscriber can reset that one, and opens nothing.
        [/* out */ [(OpenedOut, T), (OpenedOut, K), (OpenedOut, K), (RST, R), (OpenedOut, K)],
         /* in  */ [(Answered, T),  (Answered, T),  (OpenedOut, K), (RST, R), (OpenedOut, K)]],
        // OpenedIn. A subscriber that answers with data says that the connection was open all
        // along, and whoever sent the SYN is not in it. The remote cannot prolong this state.
        [/* out */ [(Answered, T),  (Answered, T),  (FinOut, E),    (RST, R), (EST, E)],
         /* in  */ [(OpenedIn, K),  (OpenedIn, K),  (OpenedIn, K),  (RST, K), (OpenedIn, K)]],
        // Answered. Also after a simultaneous open, whose second SYNs change nothing.
        [/* out */ [(Answered, T),  (Answered, T),  (FinOut, E),    (RST, R), (EST, E)],
         /* in  */ [(Answered, K),  (Answered, K),  (FinIn, E),     (RST, T), (EST, E)]],
        // Established. A SYN is of a subscriber that forgot: the remote will contradict it.
        [/* out */ [(EST, K),       (EST, K),       (FinOut, E),    (RST, R), (EST, E)],
         /* in  */ [(EST, K),       (EST, K),       (FinIn, E),     (RST, T), (EST, E)]],
        // FinOut. The remote may go on sending for as long as it likes; a new SYN begins anew.
        [/* out */ [(OpenedOut, T), (FinOut, K),    (FinOut, K),    (RST, R), (FinOut, E)],
         /* in  */ [(FinOut, K),    (FinOut, K),    (Closed, T),    (RST, T), (FinOut, E)]],
        // FinIn.
        [/* out */ [(OpenedOut, T), (FinIn, K),     (Closed, T),    (RST, R), (FinIn, E)],
         /* in  */ [(FinIn, K),     (FinIn, K),     (FinIn, K),     (RST, T), (FinIn, E)]],
        // Closed. The last acknowledgements pass and prolong nothing.
        [/* out */ [(OpenedOut, T), (Closed, K),    (Closed, K),    (RST, R), (Closed, K)],
         /* in  */ [(OpenedIn, K),  (Closed, K),    (Closed, K),    (RST, K), (Closed, K)]],
        // Reset. Only the subscriber's word revives; what the remote still had on the way passes.
        [/* out */ [(OpenedOut, T), (RST, K),       (FinOut, E),    (RST, R), (EST, E)],
         /* in  */ [(OpenedIn, K),  (RST, K),       (RST, K),       (RST, K), (RST, K)]],
    ];
    steps
};

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{In, Out};
    use Signal::{Data, Fin, Syn, SynAck};

    #[test]
    fn states_are_numbered_as_they_stand_in_the_table() {
        for (index, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, index);
        }
    }

    #[test]
    fn connections_go_their_way() {
        const RST: Signal = Signal::Reset;
        type Packets = &'static [(Direction, Signal)];
        let cases: &[(&str, Packets, Step)] = &[
            (
                "opened by the subscriber",
                &[(In, SynAck), (Out, Data)],
                (State::Established, Timer::Established),
            ),
            (
                "opened at once by both",
                &[(In, Syn), (Out, SynAck), (In, SynAck), (Out, Data)],
                (State::Established, Timer::Established),
            ),
            (
                "half open",
                &[(In, Syn)],
                (State::Answered, Timer::Transitory),
            ),
            (
                "half closed",
                &[(In, Syn), (Out, Data), (Out, Fin), (In, Data)],
                (State::FinOut, Timer::Established),
            ),
            (
                "closed by both",
                &[(In, Syn), (Out, Data), (In, Fin), (Out, Fin)],
                (State::Closed, Timer::Transitory),
            ),
            (
                "reset from inside",
                &[(In, Syn), (Out, Data), (Out, RST)],
                (State::Reset, Timer::Reset),
            ),
            (
                "reset from outside, by whom one cannot know",
                &[(In, Syn), (Out, Data), (In, RST)],
                (State::Reset, Timer::Transitory),
            ),
            (
                "a forged reset called off",
                &[(In, Syn), (Out, Data), (In, RST), (Out, Data)],
                (State::Established, Timer::Established),
            ),
            (
                "a forged reset and SYN called off",
                &[(In, Syn), (Out, Data), (In, RST), (In, Syn), (Out, Data)],
                (State::Established, Timer::Established),
            ),
            ("refused", &[(In, RST)], (State::Reset, Timer::Reset)),
            (
                "begun again after the end",
                &[(In, Syn), (Out, Data), (In, Fin), (Out, Fin), (Out, Syn)],
                (State::OpenedOut, Timer::Transitory),
            ),
            (
                "data without an answer",
                &[(Out, Data)],
                (State::OpenedOut, Timer::Keep),
            ),
        ];
        for (what, packets, expected) in cases {
            let start = (State::OpenedOut, Timer::Transitory);
            let end = packets
                .iter()
                .fold(start, |(state, _), (direction, signal)| {
                    step(state, *direction, *signal)
                });
            assert_eq!(end, *expected, "{what}");
        }
    }

    /// Or else a remote, or whoever forges its packets, could hold a port for ever.
    #[test]
    fn the_remote_alone_neither_opens_nor_prolongs_what_is_not_open() {
        for state in [State::OpenedIn, State::Closed, State::Reset] {
            for signal in [Syn, SynAck, Fin, Signal::Reset, Data] {
                let (next, timer) = step(state, In, signal);
                let stays_shut = [State::OpenedIn, State::Closed, State::Reset].contains(&next);
                assert!(stays_shut, "{state:?} {signal:?}");
                assert_eq!(timer, Timer::Keep, "{state:?} {signal:?}");
            }
        }
    }

    #[test]
    fn flags_say_the_strongest() {
        let cases = [
            (0x10, Some(Data)),
            (0x02, Some(Syn)),
            (0x12, Some(SynAck)),
            (0x11, Some(Fin)),
            (0x14, Some(Signal::Reset)),
            (0x15, Some(Signal::Reset)),
            (0x03, None),
            (0x06, None),
            (0x00, Some(Data)),
        ];
        for (flags, expected) in cases {
            assert_eq!(Signal::from_flags(flags), expected, "{flags:#x}");
        }
    }
}
