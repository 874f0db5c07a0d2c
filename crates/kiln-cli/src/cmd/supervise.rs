//! The hidden commands: what kiln runs itself as.

use crate::error::{self, CliResult};
use crate::{env, output};
use clap::Args;
use kiln_core::MachineId;
use kiln_engine::Engine;
use kiln_sys::{Cancel, IoResultExt as _, kvm};
use std::path::PathBuf;
use std::process::ExitCode;

/// The probe takes nothing.
#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {}

#[derive(Debug, Args)]
pub(crate) struct SuperviseArgs {
    store: PathBuf,
    machine: MachineId,
    #[arg(long)]
    owned: bool,
}

pub(crate) fn run(args: &SuperviseArgs) -> CliResult {
    let cancel = Cancel::new().at("make", "an event")?;
    let engine = Engine::open(env::settings(Some(args.store.clone()))?, cancel)?;
    kiln_engine::supervisor::run(&engine, &args.machine, args.owned)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn probe_kvm() -> CliResult {
    match serde_json::to_string(&kvm::probe_here()) {
        Ok(text) => {
            output::line(&text);
            Ok(ExitCode::SUCCESS)
        }
        Err(_) => Ok(ExitCode::from(error::EXIT_BUG)),
    }
}
