//! What the machine alone is told, by `configure` at a boot; after a restore it is part of the identity.

use super::machine::Machine;
use super::runtime;
use crate::error::{ErrorKind, RemoteError};
use crate::message::{Configure, ExecRequest};

/// Adds the machine's own environment to a request, below what it sets itself, and that of its entry point below both.
pub(super) fn with_environment(machine: Option<&Machine>, mut request: ExecRequest) -> ExecRequest {
    if let Some(machine) = machine.filter(|_| !request.clear_env) {
        for (name, value) in machine.environment() {
            request.env.entry(name.into()).or_insert(value);
        }
        for (name, value) in machine.purpose_environment() {
            request.env.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    request
}

/// Writes environment and secrets where the request has any.
pub(super) fn write(machine: Option<&Machine>, request: &Configure) -> Result<(), RemoteError> {
    if !request.is_private() {
        return Ok(());
    }
    request.check()?;
    let machine = machine.ok_or_else(|| {
        RemoteError::new(ErrorKind::Unsupported, "an agent that is a plain process has no environment")
    })?;
    let _turn = machine.turn()?;
    let (environment, secrets) = (&request.environment, &request.secrets);
    environment.as_ref().map(|all| runtime::write_environment(machine, all)).transpose()?;
    secrets.as_ref().map(|all| runtime::write_secrets(machine, all)).transpose()?;
    Ok(())
}
