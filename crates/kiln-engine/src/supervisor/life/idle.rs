//! When a machine has been idle for long enough: pure, with the time and what was seen given.

use std::time::{Duration, Instant};

/// The share of one processor, in percent, up to which a machine monitor's work counts as none. An idle guest that is
/// emulated takes one or two.
const IDLE_PERCENT: u32 = 5;
/// What the kernel's clock may add to a share.
const CLOCK_STEPS: Duration = Duration::from_millis(20);
/// Longest time between two looks.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(5);
/// Shortest time between two looks.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(250);
/// Looks in the time after which a machine is suspended.
const LOOKS: u32 = 4;

/// What a machine does, as far as its supervisor sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::supervisor) struct Activity {
    /// Whether somebody is connected to its agent or to a published port.
    pub(in crate::supervisor) in_use: bool,
    /// How often its agent was asked for.
    pub(in crate::supervisor) sessions: u64,
    /// What its monitor has had of the processors.
    pub(in crate::supervisor) processor: Duration,
}

/// Watches whether a machine is idle.
#[derive(Debug)]
pub(super) struct Idle {
    after: Duration,
    /// When it last did something.
    since: Instant,
    looked: Option<(Instant, Activity)>,
    next: Instant,
}

impl Idle {
    /// Begins to watch a machine that is to be suspended `after` so much time.
    pub(super) fn new(after: Duration, now: Instant) -> Self {
        Self { after, since: now, looked: None, next: now }
    }

    /// Returns when to look.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Takes what was seen, or that it cannot be known; returns whether the machine has been idle long enough.
    pub(super) fn look(&mut self, now: Instant, seen: Option<&Activity>) -> bool {
        let step = (self.after / LOOKS).clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX);
        self.next = now + step;
        let idle = match (seen, &self.looked) {
            (Some(seen), Some((at, before))) => {
                let budget = now.saturating_duration_since(*at) * IDLE_PERCENT / 100 + CLOCK_STEPS;
                !seen.in_use
                    && seen.sessions == before.sessions
                    && seen.processor.saturating_sub(before.processor) <= budget
            }
            _ => false,
        };
        self.looked = seen.map(|seen| (now, *seen));
        if !idle {
            self.since = now;
        }
        now.saturating_duration_since(self.since) >= self.after
    }

    /// Counts the time from now.
    pub(super) fn worked(&mut self, now: Instant) {
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every second at a machine that may idle for four; returns in which second it was idle long enough.
    fn due(each: impl Fn(u32) -> Option<Activity>) -> Option<u32> {
        let zero = Instant::now();
        let mut idle = Idle::new(Duration::from_secs(4), zero);
        (0..30).find(|second| {
            let now = zero + Duration::from_secs((*second).into());
            assert!(idle.next() <= now);
            idle.look(now, each(*second).as_ref())
        })
    }

    fn seen(in_use: bool, sessions: u64, percent: u32, second: u32) -> Option<Activity> {
        Some(Activity { in_use, sessions, processor: Duration::from_millis(10) * percent * second })
    }

    #[test]
    fn a_guest_that_ticks_is_idle_and_one_that_works_is_not() {
        assert_eq!(due(|second| seen(false, 0, 2, second)), Some(4));
        assert_eq!(due(|second| seen(false, 0, 7, second)), Some(4));
        assert_eq!(due(|second| seen(false, 0, 8, second)), None);
    }

    #[test]
    fn whoever_is_connected_or_was_in_between_is_work() {
        assert_eq!(due(|second| seen(second < 10, 0, 1, second)), Some(13));
        assert_eq!(due(|second| seen(false, u64::from(second >= 3), 1, second)), Some(7));
    }

    #[test]
    fn what_is_not_known_is_work() {
        assert_eq!(due(|second| if second == 3 { None } else { seen(false, 0, 1, second) }), Some(8));
        assert_eq!(due(|_| None), None);
    }

    #[test]
    fn a_machine_is_looked_at_four_times_at_most_every_five_seconds_and_at_least_every_quarter() {
        let zero = Instant::now();
        for (after_ms, step_ms) in [(100, 250), (2000, 500), (20_000, 5000), (3_600_000, 5000)] {
            let mut idle = Idle::new(Duration::from_millis(after_ms), zero);
            idle.look(zero, None);
            assert_eq!(idle.next() - zero, Duration::from_millis(step_ms));
        }
    }
}
