//! The lifecycle of a machine as a pure function: which phase follows from which event, and which events a phase
//! refuses. No clock, no I/O, no lock; the supervisor drives it and writes what comes out.
//!
//! ```text
//! created ──start──▶ starting ──ready──▶ running ◀──pause, resume──▶ paused
//!    stopped ─start─▶ │  │                 │                            │
//!    failed ──start─▶ │  └──stop──▶ stopping ◀──stop──┴────────stop─────┘
//!                     ▼                 ▼
//!          any live phase ──exited──▶ stopped | failed
//!          any live phase but stopping ──saved──▶ suspended ──start──▶ starting
//!          any live phase but stopping ──restart──▶ starting
//! ```

use kiln_core::machine::{EndCause, Phase};
use std::fmt;

/// Something that happened to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A user wants it to run.
    StartRequested,
    /// The machine monitor runs.
    VmmStarted,
    /// The guest is ready.
    GuestReady,
    /// The guest's processors stand.
    Paused,
    /// The guest's processors go on.
    Resumed,
    /// The machine monitor ended, and the restart policy wants the machine to run.
    RestartDue,
    /// Someone wants it to end.
    StopRequested,
    /// It could not be started.
    StartFailed {
        /// Why.
        message: String,
    },
    /// The machine monitor ended.
    VmmExited(EndCause),
    /// The supervisor is gone, and the machine monitor with it.
    SupervisorLost,
}

impl Event {
    /// Returns the name of the event, for messages.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::StartRequested => "start requested",
            Self::VmmStarted => "monitor started",
            Self::GuestReady => "guest ready",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::RestartDue => "restart due",
            Self::StopRequested => "stop requested",
            Self::StartFailed { .. } => "start failed",
            Self::VmmExited(_) => "monitor exited",
            Self::SupervisorLost => "supervisor lost",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an event does to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The phase before.
    pub from: Phase,
    /// The phase after; the same where the event changes none.
    pub to: Phase,
    /// Why the machine ended, where it did.
    pub end: Option<EndCause>,
}

impl Transition {
    /// Returns whether the phase changes.
    pub fn changes(&self) -> bool {
        self.from != self.to
    }
}

/// An event that cannot happen in a phase.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a machine that is {phase} cannot take the event `{event}`")]
pub struct Refused {
    /// The machine's phase.
    pub phase: Phase,
    /// The event.
    pub event: Event,
}

/// Returns what `event` does to a machine in `phase`.
///
/// # Errors
/// When the event cannot happen in that phase.
pub fn next(phase: Phase, event: &Event) -> Result<Transition, Refused> {
    let to = |to| Ok(Transition { from: phase, to, end: None });
    let end = |cause: EndCause| Ok(Transition { from: phase, to: phase_after(&cause), end: Some(cause) });
    match (phase, event) {
        (Phase::Created | Phase::Suspended | Phase::Stopped | Phase::Failed, Event::StartRequested) => {
            to(Phase::Starting)
        }
        (Phase::Starting | Phase::Stopping, Event::VmmStarted) => to(phase),
        (Phase::Starting, Event::GuestReady) => to(Phase::Running),
        // The guest may become ready while its end is on the way.
        (Phase::Stopping, Event::GuestReady) => to(Phase::Stopping),
        (Phase::Running, Event::Paused) => to(Phase::Paused),
        (Phase::Paused, Event::Resumed) => to(Phase::Running),
        (Phase::Starting | Phase::Running | Phase::Paused, Event::RestartDue) => to(Phase::Starting),
        (_, Event::StopRequested) if phase.is_live() => to(Phase::Stopping),
        (Phase::Starting | Phase::Stopping, Event::StartFailed { message }) => {
            end(EndCause::StartFailed { message: message.clone() })
        }
        // What somebody wants ended is not kept. One that was never resumed is suspended as before.
        (Phase::Stopping, Event::VmmExited(EndCause::Suspended)) => {
            Err(Refused { phase, event: event.clone() })
        }
        (_, Event::VmmExited(cause)) if phase.is_live() => end(cause.clone()),
        (_, Event::SupervisorLost) if phase.is_live() => end(EndCause::SupervisorLost),
        _ => Err(Refused { phase, event: event.clone() }),
    }
}

/// Returns the phase of a machine that ended for `cause`.
pub fn phase_after(cause: &EndCause) -> Phase {
    match cause {
        EndCause::GuestShutdown
        | EndCause::EntrypointExited { .. }
        | EndCause::Requested
        | EndCause::Expired
        | EndCause::ClientLost => Phase::Stopped,
        EndCause::Suspended => Phase::Suspended,
        _ => Phase::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PHASES: [Phase; 8] = [
        Phase::Created,
        Phase::Starting,
        Phase::Running,
        Phase::Paused,
        Phase::Stopping,
        Phase::Suspended,
        Phase::Stopped,
        Phase::Failed,
    ];

    fn cause() -> impl Strategy<Value = EndCause> {
        prop_oneof![
            Just(EndCause::GuestShutdown),
            any::<i32>().prop_map(|code| EndCause::EntrypointExited { code }),
            Just(EndCause::Requested),
            Just(EndCause::Suspended),
            Just(EndCause::GuestPanic { message: "x".to_owned() }),
            Just(EndCause::NeverReady { reason: "x".to_owned() }),
            any::<i32>().prop_map(|code| EndCause::VmmExited { code, message: String::new() }),
            any::<i32>().prop_map(|signal| EndCause::VmmKilled { signal }),
            Just(EndCause::ClientLost),
            Just(EndCause::Expired),
        ]
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::StartRequested),
            Just(Event::VmmStarted),
            Just(Event::GuestReady),
            Just(Event::StopRequested),
            Just(Event::Paused),
            Just(Event::Resumed),
            Just(Event::RestartDue),
            Just(Event::StartFailed { message: "x".to_owned() }),
            cause().prop_map(Event::VmmExited),
            Just(Event::SupervisorLost),
        ]
    }

    fn legal(from: Phase, to: Phase) -> bool {
        match (from.is_live(), to.is_live()) {
            (false, true) => to == Phase::Starting,
            (true, false) => match to {
                Phase::Suspended => from != Phase::Stopping,
                to => matches!(to, Phase::Stopped | Phase::Failed),
            },
            (false, false) => false,
            (true, true) => matches!(
                (from, to),
                (Phase::Starting, Phase::Starting | Phase::Running | Phase::Stopping)
                    | (Phase::Running, Phase::Starting | Phase::Paused | Phase::Stopping)
                    | (Phase::Paused, Phase::Starting | Phase::Running | Phase::Stopping)
                    | (Phase::Stopping, Phase::Stopping)
            ),
        }
    }

    #[test]
    fn every_live_phase_has_ends_and_every_other_can_be_started() {
        for phase in PHASES {
            let lost = next(phase, &Event::SupervisorLost);
            let stop = next(phase, &Event::StopRequested);
            let start = next(phase, &Event::StartRequested);
            if phase.is_live() {
                assert_eq!(lost.unwrap().to, Phase::Failed);
                assert_eq!(stop.unwrap().to, Phase::Stopping);
                assert!(start.is_err());
                let exit = next(phase, &Event::VmmExited(EndCause::Requested)).unwrap();
                assert_eq!((exit.to, exit.end), (Phase::Stopped, Some(EndCause::Requested)));
            } else {
                assert!(lost.is_err() && stop.is_err());
                assert_eq!(start.unwrap().to, Phase::Starting);
            }
        }
    }

    #[test]
    fn only_a_running_machine_is_paused_and_only_a_paused_one_resumed() {
        for phase in PHASES {
            let to = |event| next(phase, &event).ok().map(|step| step.to);
            assert_eq!(to(Event::Paused), (phase == Phase::Running).then_some(Phase::Paused), "{phase}");
            assert_eq!(to(Event::Resumed), (phase == Phase::Paused).then_some(Phase::Running), "{phase}");
            let restarts = phase.is_live() && phase != Phase::Stopping;
            assert_eq!(to(Event::RestartDue), restarts.then_some(Phase::Starting), "{phase}");
        }
    }

    #[test]
    fn a_machine_is_suspended_unless_its_end_is_wanted_and_goes_on_by_a_start() {
        for phase in PHASES {
            let to = next(phase, &Event::VmmExited(EndCause::Suspended)).ok().map(|step| step.to);
            let saved = phase.is_live() && phase != Phase::Stopping;
            assert_eq!(to, saved.then_some(Phase::Suspended), "{phase}");
        }
        assert!(!Phase::Suspended.is_live());
        assert_eq!(next(Phase::Suspended, &Event::StartRequested).unwrap().to, Phase::Starting);
    }

    #[test]
    fn a_refusal_names_phase_and_event() {
        let refused = next(Phase::Stopped, &Event::GuestReady).unwrap_err();
        assert_eq!(refused.to_string(), "a machine that is stopped cannot take the event `guest ready`");
    }

    proptest! {
        #[test]
        fn any_history_stays_legal(events in prop::collection::vec(event(), 0..200)) {
            let mut phase = Phase::Created;
            for event in events {
                match next(phase, &event) {
                    Ok(step) => {
                        prop_assert_eq!(step.from, phase);
                        prop_assert!(legal(step.from, step.to), "{} to {} by {}", step.from, step.to, event);
                        prop_assert_eq!(step.end.is_some(), phase.is_live() && !step.to.is_live());
                        prop_assert_ne!(step.to, Phase::Created);
                        phase = step.to;
                    }
                    Err(refused) => prop_assert_eq!(refused, Refused { phase, event }),
                }
            }
            if phase.is_live() {
                phase = next(phase, &Event::VmmExited(EndCause::GuestShutdown)).unwrap().to;
            }
            prop_assert_eq!(next(phase, &Event::StartRequested).unwrap().to, Phase::Starting);
        }
    }
}
