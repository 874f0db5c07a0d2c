//! Contestants that do the same work in turn, and what it took them.

use crate::Outcome;
use std::time::Duration;

/// Rounds that are not counted.
const WARM: usize = 2;

type Work<'a> = Box<dyn FnMut() -> Outcome<Duration> + 'a>;

/// A comparison in the making.
pub(crate) struct Contest<'a> {
    title: String,
    rounds: usize,
    contestants: Vec<(&'static str, Work<'a>)>,
}

/// What the rounds took.
pub(crate) struct Results(Vec<(&'static str, Vec<Duration>)>);

impl<'a> Contest<'a> {
    pub(crate) fn new(title: impl Into<String>, rounds: usize) -> Self {
        Self { title: title.into(), rounds, contestants: Vec::new() }
    }

    /// Adds a contestant. Its work says what part of it counts.
    pub(crate) fn with(mut self, name: &'static str, work: impl FnMut() -> Outcome<Duration> + 'a) -> Self {
        self.contestants.push((name, Box::new(work)));
        self
    }

    /// Runs the rounds, each in the reverse order of the one before, and prints what each contestant took.
    pub(crate) fn hold(mut self) -> Outcome<Results> {
        for _ in 0..WARM {
            for (_, work) in &mut self.contestants {
                work()?;
            }
        }
        let mut samples = vec![Vec::with_capacity(self.rounds); self.contestants.len()];
        for round in 0..self.rounds {
            for at in 0..samples.len() {
                let at = if round % 2 == 0 { at } else { samples.len() - 1 - at };
                let taken = (self.contestants[at].1)()?;
                samples[at].push(taken);
            }
        }
        println!("\n{}, {} rounds; median, least, nine of ten within", self.title, self.rounds);
        let names = self.contestants.iter().map(|(name, _)| *name);
        let results: Vec<_> = names.zip(samples).collect();
        for (name, samples) in &results {
            let at = |share| show(quantile(samples, share));
            println!("  {name:<58} {:>12} {:>12} {:>12}", at(0.5), at(0.0), at(0.9));
        }
        Ok(Results(results))
    }
}

impl Results {
    /// Prints how many times longer one contestant took than another, and whether that is what is wanted: at least
    /// `wanted`, or with a negative number at most. The shortest times decide: other work on the host only lengthens.
    pub(crate) fn ratio(&self, long: &str, short: &str, wanted: Option<f64>) {
        let (long_times, short_times) = (self.of(long), self.of(short));
        let by =
            |share| quantile(long_times, share).as_secs_f64() / quantile(short_times, share).as_secs_f64();
        let (median, least) = (by(0.5), by(0.0));
        let verdict = match wanted {
            None => String::new(),
            Some(most) if most < 0.0 => format!("; wanted <= {}: {}", -most, told(least <= -most)),
            Some(at_least) => format!("; wanted >= {at_least}: {}", told(least >= at_least)),
        };
        println!("  {long} / {short}: {median:.2} by medians, {least:.2} by least{verdict}");
    }

    /// Prints every sample, in microseconds.
    pub(crate) fn raw(&self) {
        for (name, samples) in &self.0 {
            let micros: Vec<String> =
                samples.iter().map(|taken| format!("{:.1}", taken.as_secs_f64() * 1e6)).collect();
            println!("  raw {name}: {}", micros.join(" "));
        }
    }

    fn of(&self, name: &str) -> &[Duration] {
        self.0.iter().find(|(other, _)| *other == name).map_or(&[], |(_, samples)| samples)
    }
}

fn told(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

fn quantile(samples: &[Duration], share: f64) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().saturating_sub(1);
    if share == 0.5 && sorted.len().is_multiple_of(2) && last > 0 {
        return (sorted[last / 2] + sorted[last / 2 + 1]) / 2;
    }
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
}

/// Formats a time.
pub(crate) fn show(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds >= 0.1 => format!("{seconds:.2} s"),
        seconds if seconds >= 1e-3 => format!("{:.2} ms", seconds * 1e3),
        seconds => format!("{:.1} us", seconds * 1e6),
    }
}
