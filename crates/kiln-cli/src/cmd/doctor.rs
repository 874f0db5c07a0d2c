//! `kiln doctor`.

use super::Context;
use crate::error::{CliResult, EXIT_FAILED};
use crate::output;
use clap::Args;
use kiln_engine::doctor::Health;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(
    after_help = "Exits with 1 when something kiln does would fail.\n\nExamples:\n  kiln doctor\n  kiln doctor --json | jq -r '.[] | select(.health != \"ok\") | .fix'"
)]
pub(crate) struct DoctorArgs {
    /// Print an array of JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(context: &Context, args: &DoctorArgs) -> CliResult {
    let findings = context.engine.doctor()?;
    let failed = findings.iter().any(|finding| finding.health == Health::Fail);
    if args.json {
        output::json_list(&findings);
    } else {
        for finding in &findings {
            let word = match finding.health {
                Health::Ok => "ok  ",
                Health::Warn => "warn",
                Health::Fail => "FAIL",
            };
            output::line(&format!("{word}  {:<20} {}", finding.check, finding.detail));
            if let Some(fix) = &finding.fix {
                output::line(&format!("      {:<20} try: {fix}", ""));
            }
        }
    }
    Ok(if failed { ExitCode::from(EXIT_FAILED) } else { ExitCode::SUCCESS })
}
