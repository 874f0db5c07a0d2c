//! The two halves of QEMU's migration, to and from a file: a stopped machine's state without its memory, which is in
//! a file of its own (`x-ignore-shared`).

use crate::qmp::{Qmp, QmpError};
use serde_json::{Value, json};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// The name under which QEMU is handed the state's file.
const STATE: &str = "state";
/// Time QEMU has to give a migration up.
const CANCEL_WITHIN: Duration = Duration::from_secs(5);

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
        Ok(_) => hand_over(qmp, file, deadline),
        Err(error) => Err(error),
    };
    match ready {
        Ok(()) => {}
        Err(QmpError::Refused { description, .. }) => return Ok(Outcome::Failed(description)),
        Err(QmpError::TimedOut { .. }) => return Ok(Outcome::Late { settled: true }),
        Err(error) => return Err(error),
    }
    match qmp.execute("migrate", Some(json!({"uri": format!("fd:{STATE}")})), left(deadline)) {
        Ok(_) => {}
        Err(QmpError::Refused { description, .. }) => return Ok(Outcome::Failed(description)),
        Err(QmpError::TimedOut { .. }) => return give_up(qmp),
        Err(error) => return Err(error),
    }
    match settled(qmp, deadline) {
        Ok(Some(outcome)) => Ok(outcome),
        Ok(None) | Err(QmpError::TimedOut { .. }) => give_up(qmp),
        Err(error) => Err(error),
    }
}

/// Loads the state in `file` into a machine that waits for it.
pub(super) fn load(qmp: &mut Qmp, file: BorrowedFd<'_>, deadline: Instant) -> Result<Outcome, QmpError> {
    hand_over(qmp, file, deadline)?;
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

fn hand_over(qmp: &mut Qmp, file: BorrowedFd<'_>, deadline: Instant) -> Result<(), QmpError> {
    let on = |capability: &str| json!({"capability": capability, "state": true});
    let capabilities = json!({"capabilities": [on("x-ignore-shared"), on("events")]});
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
        if !qmp.await_event("MIGRATION", deadline)? {
            return Ok(None);
        }
    }
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
