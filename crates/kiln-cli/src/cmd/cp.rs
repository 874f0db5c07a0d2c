//! `kiln cp`.

use super::Context;
use crate::error::CliResult;
use crate::output;
use crate::progress::ProgressMode;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use kiln_core::ByteSize;
use kiln_engine::copy::CopyRequest;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(after_help = "\
Directories are copied whole, links as links. Into a machine files belong to root; out of it, to
you. A directory on the host is never replaced.

Examples:
  kiln cp app.conf web-1a2b:/etc/app.conf
  kiln cp site/ web-1a2b:/var/www
  kiln cp web-1a2b:/var/log/app.log .")]
pub(crate) struct CpArgs {
    /// A path, or MACHINE:/path
    source: String,
    /// A path, or MACHINE:/path
    target: String,
    /// Tell nothing
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn run(context: &Context, args: &CpArgs) -> CliResult {
    let request = CopyRequest::parse(&args.source, &args.target)?;
    let (CopyRequest::In { machine, .. } | CopyRequest::Out { machine, .. }) = &request;
    super::suspend::wake(context, machine)?;
    let bar = bar(context, args.quiet);
    let report = context.engine.copy(&request, &mut |bytes| bar.set_position(bytes));
    bar.finish_and_clear();
    let report = report?;
    if !args.quiet {
        let bytes = ByteSize::from_bytes(report.bytes).human();
        let things = if report.entries == 1 { "file" } else { "files and directories" };
        output::tell(&format!("copied {} {things}, {bytes}", report.entries));
    }
    Ok(ExitCode::SUCCESS)
}

fn bar(context: &Context, quiet: bool) -> ProgressBar {
    let wanted = context.progress_mode() == ProgressMode::Auto && output::stderr_is_terminal() && !quiet;
    if !wanted {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} copied {bytes} ({bytes_per_sec})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
