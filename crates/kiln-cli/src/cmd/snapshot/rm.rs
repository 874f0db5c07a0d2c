//! `kiln snapshot rm`.

use crate::cmd::{Context, for_each};
use crate::error::CliResult;
use crate::output;
use clap::Args;
use kiln_core::ByteSize;

#[derive(Debug, Args)]
#[command(after_help = "\
A snapshot goes with the files that nothing else has. While a machine continues it, it is not
removed.

Examples:
  kiln snapshot rm warm
  kiln snapshot rm 0123abcd 4567cdef")]
pub(super) struct RmArgs {
    /// Names or ids of snapshots
    #[arg(required = true, value_name = "SNAP")]
    snapshots: Vec<String>,
}

pub(super) fn run(context: &Context, args: &RmArgs) -> CliResult {
    let reporter = context.reporter(false);
    for_each(&args.snapshots, |wanted| {
        let (id, removed) = context.engine.remove_snapshot(wanted, &reporter)?;
        output::line(&format!("removed {id} ({} freed)", ByteSize::from_bytes(removed.bytes).human()));
        Ok(())
    })
}
