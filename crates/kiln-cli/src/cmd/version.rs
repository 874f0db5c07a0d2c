//! `kiln version`.

use crate::error::CliResult;
use crate::output;
use clap::Args;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Version {
    version: &'static str,
    store_format: u32,
    guest_protocol: u32,
    manifest: u32,
}

pub(crate) fn run(args: &VersionArgs) -> CliResult {
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        store_format: kiln_store::STORE_VERSION,
        guest_protocol: kiln_guest::limits::PROTOCOL_VERSION,
        manifest: kiln_core::revision::MANIFEST_VERSION,
    };
    if args.json {
        output::json(version);
    } else {
        output::line(&format!("kiln {}", version.version));
    }
    Ok(ExitCode::SUCCESS)
}
