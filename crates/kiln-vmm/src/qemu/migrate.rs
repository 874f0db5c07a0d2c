//! The two halves of QEMU's migration, to and from a file: a stopped machine's state without its memory, which is in
//! a file of its own (`x-ignore-shared`), or the whole of a machine.

use crate::qmp::{Qmp, QmpError};
use crate::snapshot::StateScope;
use serde_json::{Value, json};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// The name under which QEMU is handed the state's file.
const STATE: &str = "state";
/// Time QEMU has to give a migration up.
const CANCEL_WITHIN: Duration = Duration::from_secs(5);

/// Time a guest may go on while it is written. What it still changes faster than it is written is written after a stop.
const LIVE_WITHIN: Duration = Duration::from_secs(10);
/// Bytes a second that are more than any file takes: QEMU's default is 128 MiB.
const BANDWIDTH_MAX: u64 = 10 << 30;
/// Milliseconds the guest may stand for the last part of what is written.
const DOWNTIME_MS_MAX: u32 = 30;

/// Time between two looks at a migration that is put away.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Looks at a migration that failed, each of which lets QEMU's main loop turn.
const FAILED_LOOKS: u32 = 20;

/// What became of a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Completed,
    /// With QEMU's words, where it has any.
    Failed(String),
    /// Given up after the deadline.
    Late {
        /// Whether QEMU has given it up too. Otherwise it may yet complete.
        settled: bool,
    },
}

/// Stops the guest and writes the state into `file`.
pub(super) fn save(qmp: &mut Qmp, file: BorrowedFd<'_>, deadline: Instant) -> Result<Outcome, QmpError> {
    let ready = match qmp.execute("stop", None, left(deadline)) {
        Ok(_) => hand_over(qmp, file, StateScope::Devices, deadline),
        Err(error) => Err(error),
    };
    if let Some(failed) = not_begun(ready)? {
        return Ok(failed);
    }
    begin(qmp, deadline, |_| Ok(()))
}

/// Writes memory and state into `file`, and returns when the guest stopped for it, if it ran. With `live` it goes on while
/// the most is written.
pub(super) fn save_whole(
    qmp: &mut Qmp,
    file: BorrowedFd<'_>,
    live: bool,
    deadline: Instant,
) -> Result<(Outcome, Option<Instant>), QmpError> {
    let ready = hand_over(qmp, file, StateScope::Machine, deadline).and_then(|()| {
        let parameters = json!({"max-bandwidth": BANDWIDTH_MAX, "downtime-limit": DOWNTIME_MS_MAX});
        qmp.execute("migrate-set-parameters", Some(parameters), left(deadline))?;
        run_state(qmp, deadline)
    });
    let is_running = matches!(ready.as_deref(), Ok("running"));
    if let Some(failed) = not_begun(ready.map(drop))? {
        return Ok((failed, None));
    }
    let mut stopped = None;
    if is_running && !live {
        let now = Instant::now();
        if let Some(failed) = not_begun(qmp.execute("stop", None, left(deadline)).map(drop))? {
            return Ok((failed, None));
        }
        stopped = Some(now);
    }
    let outcome = begin(qmp, deadline, |qmp| {
        if is_running && live {
            stopped = Some(await_stop(qmp, deadline)?);
        }
        Ok(())
    })?;
    if is_running && outcome != Outcome::Completed {
        // QEMU lets it run again by itself, where it has stopped it itself.
        let _ = qmp.execute("cont", None, CANCEL_WITHIN);
    }
    Ok((outcome, stopped))
}

/// Waits until the guest stands, for the migration or for its end, and has it stand when it took too long.
fn await_stop(qmp: &mut Qmp, deadline: Instant) -> Result<Instant, QmpError> {
    let live = deadline.min(Instant::now() + LIVE_WITHIN);
    loop {
        match qmp.await_event(&["STOP", "MIGRATION"], live)? {
            Some(event) if event.name == "STOP" => return Ok(Instant::now()),
            Some(event) => {
                if matches!(event.text("status"), Some("completed" | "failed" | "cancelled")) {
                    return Ok(Instant::now());
                }
            }
            None => {
                let now = Instant::now();
                qmp.execute("stop", None, left(deadline))?;
                return Ok(now);
            }
        }
    }
}

/// Returns what a migration that could not begin came to.
fn not_begun(ready: Result<(), QmpError>) -> Result<Option<Outcome>, QmpError> {
    match ready {
        Ok(()) => Ok(None),
        Err(QmpError::Refused { description, .. }) => Ok(Some(Outcome::Failed(description))),
        Err(QmpError::TimedOut { .. }) => Ok(Some(Outcome::Late { settled: true })),
        Err(error) => Err(error),
    }
}

/// Has what was prepared written; `meanwhile` runs when it has begun.
fn begin(
    qmp: &mut Qmp,
    deadline: Instant,
    meanwhile: impl FnOnce(&mut Qmp) -> Result<(), QmpError>,
) -> Result<Outcome, QmpError> {
    match qmp.execute("migrate", Some(json!({"uri": format!("fd:{STATE}")})), left(deadline)) {
        Ok(_) => {}
        Err(QmpError::Refused { description, .. }) => return Ok(Outcome::Failed(description)),
        Err(QmpError::TimedOut { .. }) => return give_up(qmp),
        Err(error) => return Err(error),
    }
    match meanwhile(qmp).and_then(|()| settled(qmp, deadline)) {
        Ok(Some(outcome)) => {
            clean_up(qmp, &outcome, deadline)?;
            Ok(outcome)
        }
        Ok(None) | Err(QmpError::TimedOut { .. }) => give_up(qmp),
        Err(error) => Err(error),
    }
}

/// Loads the state in `file` into a machine that waits for it.
pub(super) fn load(
    qmp: &mut Qmp,
    file: BorrowedFd<'_>,
    scope: StateScope,
    deadline: Instant,
) -> Result<Outcome, QmpError> {
    hand_over(qmp, file, scope, deadline)?;
    // QEMU would have the guest announce the captured machine's address, which is to be another's.
    qmp.execute("migrate-set-parameters", Some(json!({"announce-rounds": 0})), left(deadline))?;
    let mut arguments = json!({"uri": format!("fd:{STATE}"), "exit-on-error": false});
    loop {
        match qmp.execute("migrate-incoming", Some(arguments.clone()), left(deadline)) {
            Ok(_) => break,
            // An older QEMU does not know the argument and ends when it fails.
            Err(QmpError::Refused { description, .. })
                if description.contains("exit-on-error") && arguments.get("exit-on-error").is_some() =>
            {
                arguments = json!({"uri": format!("fd:{STATE}")});
            }
            Err(QmpError::Refused { description, .. }) => return Ok(Outcome::Failed(description)),
            Err(error) => return Err(error),
        }
    }
    Ok(settled(qmp, deadline)?.unwrap_or(Outcome::Late { settled: false }))
}

/// Returns the state QEMU says the machine is in, such as `paused`.
pub(super) fn run_state(qmp: &mut Qmp, deadline: Instant) -> Result<String, QmpError> {
    Ok(text(&qmp.execute("query-status", None, left(deadline))?, "status"))
}

fn hand_over(
    qmp: &mut Qmp,
    file: BorrowedFd<'_>,
    scope: StateScope,
    deadline: Instant,
) -> Result<(), QmpError> {
    let set = |capability: &str, state: bool| json!({"capability": capability, "state": state});
    let devices_only = scope == StateScope::Devices;
    let capabilities = json!({"capabilities": [set("x-ignore-shared", devices_only), set("events", true)]});
    qmp.execute("migrate-set-capabilities", Some(capabilities), left(deadline))?;
    qmp.execute_with_fd("getfd", Some(json!({"fdname": STATE})), file, left(deadline))?;
    Ok(())
}

/// Waits until QEMU is done; none when the deadline passes before that.
fn settled(qmp: &mut Qmp, deadline: Instant) -> Result<Option<Outcome>, QmpError> {
    loop {
        let answer = qmp.execute("query-migrate", None, left(deadline))?;
        match text(&answer, "status").as_str() {
            "completed" => return Ok(Some(Outcome::Completed)),
            "failed" => return Ok(Some(Outcome::Failed(text(&answer, "error-desc")))),
            "cancelled" => return Ok(Some(Outcome::Late { settled: true })),
            _ => {}
        }
        if qmp.await_event(&["MIGRATION"], deadline)?.is_none() {
            return Ok(None);
        }
    }
}

/// Waits until QEMU has put its thread for the migration away, which it says to be over before that: a command in between is
/// refused, and another migration can end it.
fn clean_up(qmp: &mut Qmp, outcome: &Outcome, deadline: Instant) -> Result<(), QmpError> {
    // What failed before the guest was stopped leaves nothing to look at.
    let looks = if *outcome == Outcome::Completed { 0 } else { FAILED_LOOKS };
    for look in 0.. {
        let is_over = run_state(qmp, deadline)? != "finish-migrate";
        if is_over && look >= looks || left(deadline).is_zero() {
            return Ok(());
        }
        qmp.await_event(&[], Instant::now() + LOOK_AGAIN)?;
    }
    Ok(())
}

fn give_up(qmp: &mut Qmp) -> Result<Outcome, QmpError> {
    let deadline = Instant::now() + CANCEL_WITHIN;
    let over = match qmp.execute("migrate_cancel", None, left(deadline)) {
        Ok(_) => settled(qmp, deadline),
        Err(error) => Err(error),
    };
    match over {
        Ok(Some(Outcome::Failed(_))) => Ok(Outcome::Late { settled: true }),
        Ok(Some(outcome)) => Ok(outcome),
        Ok(None) | Err(QmpError::TimedOut { .. } | QmpError::Refused { .. }) => {
            Ok(Outcome::Late { settled: false })
        }
        Err(error) => Err(error),
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

fn text(answer: &Value, key: &str) -> String {
    answer.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}
