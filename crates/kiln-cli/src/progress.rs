//! Progress on standard error: bars on a terminal, lines elsewhere, JSON for programs, or nothing.

use crate::output;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use kiln_engine::{Progress, Reporter};
use serde_json::json;
use std::sync::Mutex;
use std::time::Duration;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// Bars on a terminal, lines elsewhere.
    Auto,
    /// A line for each step.
    Plain,
    /// A JSON object for each event.
    Json,
    /// Nothing.
    None,
}

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shows {
    All(ProgressMode),
    /// Only what makes a run slower than was to be expected, in plain lines: standard error is the guest's.
    Surprises,
}

/// Shows progress in the chosen mode.
#[derive(Debug)]
pub(crate) struct Shown {
    shows: Shows,
    bar: Mutex<Option<ProgressBar>>,
}

impl Shown {
    /// Decides how to show progress.
    pub(crate) fn new(mode: ProgressMode, quiet: bool) -> Self {
        let mode = match mode {
            _ if quiet => ProgressMode::None,
            ProgressMode::Auto if output::stderr_is_terminal() => ProgressMode::Auto,
            ProgressMode::Auto => ProgressMode::Plain,
            mode => mode,
        };
        Self { shows: Shows::All(mode), bar: Mutex::new(None) }
    }

    /// Decides how to show progress of a machine that has the terminal.
    pub(crate) fn of_foreground(mode: ProgressMode) -> Self {
        match mode {
            ProgressMode::Auto => Self { shows: Shows::Surprises, bar: Mutex::new(None) },
            mode => Self::new(mode, false),
        }
    }

    fn bar(&self, event: Progress) {
        let mut bar = self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let done = |bar: &mut Option<ProgressBar>| {
            if let Some(bar) = bar.take() {
                bar.finish_and_clear();
            }
        };
        match event {
            Progress::Started { step } => {
                done(&mut bar);
                let fresh = ProgressBar::new_spinner().with_message(step);
                if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}") {
                    fresh.set_style(style);
                }
                fresh.enable_steady_tick(Duration::from_millis(120));
                *bar = Some(fresh);
            }
            Progress::Said { line } => {
                if let Some(bar) = bar.as_ref() {
                    let step = bar.message();
                    let step = step.split(" · ").next().unwrap_or_default().to_owned();
                    bar.set_message(format!("{step} · {}", kiln_core::text::clip(line.trim())));
                }
            }
            Progress::Bytes { have, total } => {
                if let Some(bar) = bar.as_ref() {
                    transfer(bar, have, total);
                }
            }
            Progress::Done { .. } => {
                done(&mut bar);
                drop(bar);
                plain(event);
            }
            Progress::Note { .. } | Progress::Boots { .. } | Progress::Waiting { .. } => match bar.as_ref() {
                Some(bar) => bar.suspend(|| plain(event)),
                None => plain(event),
            },
            _ => {}
        }
    }
}

/// Shows how much of a file is there, how fast it comes, and how long the rest takes.
fn transfer(bar: &ProgressBar, have: u64, total: Option<u64>) {
    let template = match total {
        Some(_) => "{spinner} {msg} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
        None => "{spinner} {msg} {bytes}, {bytes_per_sec}",
    };
    // The first of them tells how much was there before, which did not come at this rate.
    if bar.length() != total || bar.position() == 0 {
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.set_position(have);
        bar.reset_eta();
    }
    bar.set_position(have);
}

fn plain(event: Progress) {
    match event {
        Progress::Done { step, elapsed_ms, result } => {
            let result = if result.is_empty() { String::new() } else { format!(": {result}") };
            output::tell(&format!("{:>8}  {step}{result}", output::span(elapsed_ms)));
        }
        Progress::Note { text } => output::tell(&format!("    note  {text}")),
        Progress::Boots { reason } => output::tell(&format!("    note  {}", boots(&reason))),
        Progress::Waiting { holder } => output::tell(&format!(" waiting  for {holder}")),
        _ => {}
    }
}

fn boots(reason: &str) -> String {
    format!("it boots, not restored: {reason}")
}

fn as_json(event: Progress) {
    let value = match event {
        Progress::Started { step } => json!({"event": "started", "step": step}),
        Progress::Said { line } => json!({"event": "said", "line": line}),
        Progress::Bytes { have, total } => json!({"event": "bytes", "have": have, "total": total}),
        Progress::Done { step, elapsed_ms, result } => {
            json!({"event": "done", "step": step, "elapsed_ms": elapsed_ms, "result": result})
        }
        Progress::Note { text } => json!({"event": "note", "text": text}),
        Progress::Boots { reason } => json!({"event": "note", "text": boots(&reason)}),
        Progress::Waiting { holder } => json!({"event": "waiting", "holder": holder}),
        _ => return,
    };
    output::tell(&value.to_string());
}

impl Reporter for Shown {
    fn progress(&self, event: Progress) {
        match self.shows {
            Shows::All(ProgressMode::Auto) => self.bar(event),
            Shows::All(ProgressMode::Plain) => plain(event),
            Shows::All(ProgressMode::Json) => as_json(event),
            Shows::Surprises if matches!(event, Progress::Boots { .. }) => plain(event),
            Shows::All(ProgressMode::None) | Shows::Surprises => {}
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let mut bar = self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(bar) = bar.take() {
            bar.finish_and_clear();
        }
    }
}
