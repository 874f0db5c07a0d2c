//! Makes the guest ready to be captured: the image's hooks first, because they may write, then the filesystems.

use std::time::Instant;

use super::hooks;
use super::identity::{limit_notes, millis};
use super::machine::Machine;
use super::program::Runner;
use super::runtime;
use crate::error::RemoteError;
use crate::hook::HookStage;
use crate::quiesce::{Quiesce, Quiesced};

/// Serves a `Quiesce`; a hook that failed is part of the answer, and then nothing else is done.
pub(super) fn apply(
    machine: &Machine,
    runner: &dyn Runner,
    request: &Quiesce,
) -> Result<Quiesced, RemoteError> {
    let _turn = machine.turn()?;
    let mut done = Quiesced::default();
    let epoch = machine.epoch();
    done.hooks = hooks::run(
        machine,
        runner,
        HookStage::PreSnapshot,
        epoch.as_ref(),
        request.hook_timeout_ms,
        &mut done.notes,
    )?;
    limit_notes(&mut done.notes);
    if done.hooks.failure.is_some() {
        return Ok(done);
    }
    if let Err(error) = runtime::prepare_machine_id(machine) {
        // A restored guest makes its own, and says it where that cannot be.
        done.notes.push(error.to_string());
    }
    let begun = Instant::now();
    machine.kernel.sync();
    done.sync_ms = Some(millis(begun));
    if request.drop_caches {
        let begun = Instant::now();
        machine.kernel.drop_caches()?;
        done.drop_caches_ms = Some(millis(begun));
    }
    runtime::look_ahead(machine);
    Ok(done)
}
