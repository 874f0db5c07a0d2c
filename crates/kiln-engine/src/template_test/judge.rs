//! What was seen in several clones, put together to one result. Nothing is looked at here.

use kiln_core::template_test::CheckStatus;
use kiln_core::text::{clip, count};

/// The most names of clones that a detail lists.
const NAMED_MAX: usize = 4;

/// What was seen of one thing in one clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// It is this, in a form that may be shown.
    Value(String),
    /// There is no such thing.
    Absent,
    /// It could not be looked at, and why.
    Unknown(String),
}

/// What a clone without the thing means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absent {
    /// It should have it.
    Fails,
    /// A template without it is fine.
    NotApplicable,
}

/// A status with its detail.
pub(super) type Judged = (CheckStatus, String);

/// Judges a thing that must differ in all clones; each is there by name.
pub(super) fn distinct(seen: &[(&str, Seen)], absent: Absent) -> Judged {
    if let Some((value, names)) = first_shared(seen) {
        let same = format!("{} have the same: {}", listed(&names), clip(value));
        return (CheckStatus::Failed, same);
    }
    let without = names_of(seen, |seen| *seen == Seen::Absent);
    let all_are = without.len() == seen.len();
    if !without.is_empty() && (absent == Absent::Fails || !all_are) {
        let have = if without.len() == 1 { "has" } else { "have" };
        return (CheckStatus::Failed, format!("{} {have} none", listed(&without)));
    }
    if let Some(why) = first_unknown(seen) {
        return (CheckStatus::NotChecked, why);
    }
    if seen.len() < 2 {
        return (CheckStatus::NotChecked, "there are no two clones to compare".to_owned());
    }
    if all_are {
        return (CheckStatus::NotApplicable, "the guest has none".to_owned());
    }
    (CheckStatus::Passed, format!("different in {}", count(seen.len(), "clone")))
}

/// Judges something that is right or wrong in each clone by itself.
pub(super) fn each(seen: &[(&str, Result<String, Wrong>)]) -> Judged {
    let wrong = seen.iter().find_map(|(name, seen)| match seen {
        Err(Wrong::Failed(why)) => Some(format!("{name}: {why}")),
        _ => None,
    });
    if let Some(wrong) = wrong {
        return (CheckStatus::Failed, wrong);
    }
    let unknown = seen.iter().find_map(|(name, seen)| match seen {
        Err(Wrong::NotChecked(why)) => Some(format!("{name}: {why}")),
        _ => None,
    });
    match (unknown, seen.first()) {
        (Some(why), _) => (CheckStatus::NotChecked, why),
        (None, None) => (CheckStatus::NotChecked, "there is no clone".to_owned()),
        (None, Some((_, Ok(detail)))) => (CheckStatus::Passed, detail.clone()),
        (None, Some((_, Err(_)))) => (CheckStatus::NotChecked, String::new()),
    }
}

/// Why a thing is not right in one clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wrong {
    /// It is wrong.
    Failed(String),
    /// It could not be looked at.
    NotChecked(String),
}

/// Puts the results of several things together: the worst counts, and what was not there counts only alone. Each result
/// has the name of its thing.
pub(super) fn worst(judged: Vec<(String, Judged)>) -> Judged {
    let rank = |status: CheckStatus| match status {
        CheckStatus::NotApplicable => 0,
        CheckStatus::Passed => 1,
        CheckStatus::NotChecked => 2,
        CheckStatus::Failed => 3,
    };
    let Some(status) = judged.iter().map(|(_, (status, _))| *status).max_by_key(|status| rank(*status))
    else {
        return (CheckStatus::NotApplicable, "the guest has none".to_owned());
    };
    let of = judged.into_iter().filter(|(_, (other, _))| *other == status);
    if status == CheckStatus::NotApplicable {
        return (status, "the guest has none".to_owned());
    }
    let mut words: Vec<String> = Vec::new();
    let mut last = String::new();
    for (name, (_, detail)) in of {
        // The same of several things is said once.
        match words.last_mut() {
            Some(said) if detail == last => *said = said.replacen(": ", &format!(", {name}: "), 1),
            _ => words.push(format!("{name}: {detail}")),
        }
        last = detail;
    }
    (status, words.join("; "))
}

fn first_shared<'a>(seen: &'a [(&'a str, Seen)]) -> Option<(&'a str, Vec<&'a str>)> {
    seen.iter().find_map(|(_, one)| {
        let Seen::Value(value) = one else { return None };
        let names = names_of(seen, |other| other == one);
        (names.len() > 1).then_some((value.as_str(), names))
    })
}

fn first_unknown(seen: &[(&str, Seen)]) -> Option<String> {
    seen.iter().find_map(|(name, seen)| match seen {
        Seen::Unknown(why) => Some(format!("{name}: {why}")),
        _ => None,
    })
}

fn names_of<'a>(seen: &[(&'a str, Seen)], wanted: impl Fn(&Seen) -> bool) -> Vec<&'a str> {
    seen.iter().filter(|(_, seen)| wanted(seen)).map(|(name, _)| *name).collect()
}

fn listed(names: &[&str]) -> String {
    let shown = names.iter().take(NAMED_MAX).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// How far a guest's clock is from the host's, in milliseconds: at least and at most, later is more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offset {
    pub(super) least: i64,
    pub(super) most: i64,
}

impl Offset {
    /// Any at all.
    pub(super) const ANY: Self = Self { least: i64::MIN, most: i64::MAX };

    /// Returns what is known when a file that was written between two times of the host, in milliseconds since 1970, has a
    /// time of the guest in whole seconds. A kernel's file times are late by up to `late` milliseconds.
    pub(super) fn of_file(begun_ms: i64, mtime_s: i64, ended_ms: i64, late: i64) -> Self {
        let first = mtime_s.saturating_mul(1000);
        let last = first.saturating_add(999).saturating_add(late);
        Self { least: first.saturating_sub(ended_ms), most: last.saturating_sub(begun_ms) }
    }

    /// Returns what is known when both are.
    pub(super) fn and(self, other: Self) -> Self {
        Self { least: self.least.max(other.least), most: self.most.min(other.most) }
    }

    /// Returns whether it is within a limit to either side; none where that is not known.
    pub(super) fn is_within(self, limit: i64) -> Option<bool> {
        if self.least >= -limit && self.most <= limit {
            Some(true)
        } else if self.least > limit || self.most < -limit {
            Some(false)
        } else {
            None
        }
    }

    /// Returns the most it can be to either side.
    pub(super) fn furthest(self) -> u64 {
        self.least.unsigned_abs().max(self.most.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CheckStatus::{Failed, NotApplicable, NotChecked, Passed};

    fn value(text: &str) -> Seen {
        Seen::Value(text.to_owned())
    }

    fn told(seen: &[(&str, Seen)], absent: Absent) -> (CheckStatus, String) {
        distinct(seen, absent)
    }

    #[test]
    fn what_two_clones_share_fails_and_names_them() {
        let seen = [("a", value("x")), ("b", value("y")), ("c", value("x"))];
        assert_eq!(told(&seen, Absent::Fails), (Failed, "a, c have the same: x".to_owned()));
        assert_eq!(told(&seen[..2], Absent::Fails), (Passed, "different in 2 clones".to_owned()));
        let many: Vec<(&str, Seen)> = ["a", "b", "c", "d", "e", "f"].map(|name| (name, value("x"))).into();
        assert_eq!(told(&many, Absent::Fails).1, "a, b, c, d and 2 more have the same: x");
    }

    #[test]
    fn what_is_missing_or_unknown_never_passes() {
        let none = [("a", Seen::Absent), ("b", Seen::Absent)];
        assert_eq!(told(&none, Absent::Fails), (Failed, "a, b have none".to_owned()));
        assert_eq!(told(&none, Absent::NotApplicable).0, NotApplicable);
        let some = [("a", Seen::Absent), ("b", value("x"))];
        assert_eq!(told(&some, Absent::NotApplicable), (Failed, "a has none".to_owned()));
        let dark = [("a", value("x")), ("b", Seen::Unknown("no device".to_owned()))];
        assert_eq!(told(&dark, Absent::Fails), (NotChecked, "b: no device".to_owned()));
        let worse = [dark.as_slice(), &[("c", value("x"))]].concat();
        assert_eq!(told(&worse, Absent::Fails).0, Failed);
        assert_eq!(told(&some[1..], Absent::Fails).0, NotChecked);
        assert_eq!(told(&[], Absent::NotApplicable).0, NotChecked);
    }

    #[test]
    fn what_each_clone_has_to_have_fails_with_the_first_that_has_not() {
        let ok = || Ok("fine".to_owned());
        let bad = || Err(Wrong::Failed("late".to_owned()));
        let dark = || Err(Wrong::NotChecked("no sh".to_owned()));
        assert_eq!(each(&[("a", ok()), ("b", ok())]), (Passed, "fine".to_owned()));
        assert_eq!(each(&[("a", dark()), ("b", bad())]), (Failed, "b: late".to_owned()));
        assert_eq!(each(&[("a", ok()), ("b", dark())]), (NotChecked, "b: no sh".to_owned()));
        assert_eq!(each(&[]).0, NotChecked);
    }

    #[test]
    fn the_worst_of_several_things_counts() {
        let one = |name: &str, status, detail: &str| (name.to_owned(), (status, detail.to_owned()));
        assert_eq!(worst(Vec::new()).0, NotApplicable);
        let none = one("rsa", NotApplicable, "");
        assert_eq!(worst(vec![none.clone()]).0, NotApplicable);
        let good = one("ed25519", Passed, "different");
        let both = vec![none.clone(), good.clone(), one("ecdsa", Passed, "different")];
        assert_eq!(worst(both), (Passed, "ed25519, ecdsa: different".to_owned()));
        let dark = one("dsa", NotChecked, "a link");
        assert_eq!(worst(vec![good.clone(), dark.clone()]), (NotChecked, "dsa: a link".to_owned()));
        let bad = one("eth0", Failed, "same");
        assert_eq!(worst(vec![bad, dark, good, none]), (Failed, "eth0: same".to_owned()));
    }

    #[test]
    fn a_files_time_bounds_the_clock() {
        // Written at 10.300 s of the host, which took 50 ms; the guest's clock said 10 s and something.
        let right = Offset::of_file(10_300, 10, 10_350, 10);
        assert_eq!(right, Offset { least: -350, most: 709 });
        assert_eq!(right.is_within(1000), Some(true));
        assert_eq!(right.furthest(), 709);
        let slow = Offset::of_file(10_300, 5, 10_350, 10);
        assert_eq!(slow.is_within(1000), Some(false));
        // One look near a full second tells too little, a second one is enough.
        let edge = Offset::of_file(10_000, 10, 10_040, 10);
        assert_eq!(edge.is_within(1000), None);
        assert_eq!(edge.and(Offset::of_file(10_400, 10, 10_440, 10)).is_within(1000), Some(true));
        assert_eq!(Offset::ANY.is_within(1000), None);
    }
}
