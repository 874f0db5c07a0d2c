//! Makes a restored guest a machine of its own, part by part, in the order of [`Part`].

use std::time::Instant;

use super::machine::Machine;
use super::program::Runner;
use super::{hooks, host_keys, runtime};
use crate::error::{ErrorKind, RemoteError};
use crate::hook::HookStage;
use crate::identity::{Identity, IdentityReport, Part, PartReport, PartResult};
use crate::limits::{NOTE_BYTES_MAX, NOTES_MAX};
use crate::message::plain;

/// Serves an `Identity`; parts that failed are part of the answer.
pub(super) fn apply(
    machine: &Machine,
    runner: &dyn Runner,
    request: &Identity,
) -> Result<IdentityReport, RemoteError> {
    request.check()?;
    let _turn = machine.turn()?;
    let mut report = IdentityReport::default();
    for part in Part::ALL {
        if runner.abandoned() {
            return Err(RemoteError::new(ErrorKind::Io, format!("the host gave up before the {part}")));
        }
        let begun = Instant::now();
        let result = match blocked_by(part, &report) {
            Some(after) => PartResult::Skipped { after },
            None => match apply_part(part, machine, runner, request, &mut report) {
                Ok(true) => PartResult::Done,
                Ok(false) => PartResult::NotApplicable,
                Err(error) => {
                    let message = plain(&error.message, NOTE_BYTES_MAX);
                    PartResult::Failed { error: RemoteError { message, ..error } }
                }
            },
        };
        report.parts.push(PartReport { part, result, elapsed_ms: millis(begun) });
    }
    limit_notes(&mut report.notes);
    Ok(report)
}

/// Returns the failure that forbids a part: keys and tokens made from a clone's random numbers are no secrets, and
/// a hook may count on everything before it.
fn blocked_by(part: Part, report: &IdentityReport) -> Option<Part> {
    let failed = report.failed()?;
    let first = match failed.result {
        PartResult::Skipped { after } => after,
        _ => failed.part,
    };
    (first == Part::Entropy || part == Part::Hooks).then_some(first)
}

/// Returns whether there was anything to do.
fn apply_part(
    part: Part,
    machine: &Machine,
    runner: &dyn Runner,
    request: &Identity,
    report: &mut IdentityReport,
) -> Result<bool, RemoteError> {
    let kernel = &machine.kernel;
    let done = match part {
        Part::Entropy => Some(kernel.add_entropy(&request.entropy)?),
        Part::Clock => match request.clock_unix_ns {
            Some(unix_ns) => {
                report.clock_offset_ns = Some(kernel.set_clock(unix_ns)?);
                Some(())
            }
            None => None,
        },
        Part::Hostname => request.hostname.as_ref().map(|name| kernel.set_hostname(name)).transpose()?,
        Part::MachineId => {
            request.machine_id.as_ref().map(|id| runtime::write_machine_id(machine, id)).transpose()?
        }
        Part::Network => match &request.network {
            Some(network) => {
                report.interface = kernel.set_network(network, &mut report.notes)?;
                report.interface.as_ref().map(|_| ())
            }
            None => None,
        },
        Part::SshHostKeys if request.ssh_host_keys => {
            return host_keys::replace(machine, runner, &mut report.notes);
        }
        Part::Epoch => {
            runtime::write_epoch(machine, &request.epoch)?;
            machine.set_epoch(&request.epoch);
            Some(())
        }
        Part::Environment => {
            let write = |environment| runtime::write_environment(machine, environment);
            request.environment.as_ref().map(write).transpose()?
        }
        Part::Secrets => {
            request.secrets.as_ref().map(|secrets| runtime::write_secrets(machine, secrets)).transpose()?
        }
        Part::Hooks => {
            let (stage, limit) = (HookStage::PostRestore, request.hook_timeout_ms);
            let epoch = Some(&request.epoch);
            report.hooks = hooks::run(machine, runner, stage, epoch, limit, &mut report.notes)?;
            if let Some(failure) = &report.hooks.failure {
                return Err(RemoteError::new(ErrorKind::Io, failure.to_string()));
            }
            (!report.hooks.ran.is_empty()).then_some(())
        }
        Part::SshHostKeys | Part::Unknown => None,
    };
    Ok(done.is_some())
}

/// Returns the time since then, in whole milliseconds.
pub(super) fn millis(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Keeps the answer within a frame, whatever the image's names are.
pub(super) fn limit_notes(notes: &mut Vec<String>) {
    notes.truncate(NOTES_MAX);
    for note in notes {
        *note = plain(note, NOTE_BYTES_MAX);
    }
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
