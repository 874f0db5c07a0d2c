//! `kiln template test`.

use crate::cmd::Context;
use crate::cmd::run::Identity;
use crate::error::{CliError, CliResult};
use crate::output;
use clap::Args;
use clap::builder::RangedU64ValueParser;
use kiln_core::template_test::{CheckStatus, SnapshotTest, TEST_CLONES_MAX, TEST_CLONES_MIN};
use kiln_core::{Digest, Reference};
use kiln_engine::template_test::TemplateTestRequest;
use serde::Serialize;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
Restores machines from the snapshot that kiln run takes, and checks that each is a machine of its
own (random numbers, names, keys, clock), that it works, that it lives through pauses, and that the
snapshot's files stay what they are. What the guest has no means to show is `not checked`. The
machines are removed at the end, also after Ctrl-C. Exits with 1 when a check failed.

Examples:
  kiln template test web
  kiln template test -n 5 --save web:v1
  kiln template test --json web | jq '.checks[] | select(.status == \"failed\")'")]
pub(super) struct TestArgs {
    /// How many machines are restored, 2 to 16
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value = "3",
        value_parser = RangedU64ValueParser::<usize>::new()
            .range(TEST_CLONES_MIN as u64..=TEST_CLONES_MAX as u64)
    )]
    clones: usize,
    /// Keep the result with the snapshot: kiln snapshot show prints it
    #[arg(long)]
    save: bool,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// What becomes of a restored guest that cannot be given names, keys and random numbers of its own
    #[arg(long, value_enum, default_value = "require", hide = true)]
    identity: Identity,
    #[arg(help = "What to test: NAME[/VARIANT][:TAG][@sha256:…] or sha256:…")]
    reference: Reference,
}

#[derive(Serialize)]
struct Tested<'a> {
    revision: Digest,
    snapshot: Digest,
    passed: bool,
    #[serde(flatten)]
    result: &'a SnapshotTest,
}

pub(super) fn run(context: &Context, args: &TestArgs) -> CliResult {
    let request = TemplateTestRequest {
        reference: args.reference.clone(),
        clones: args.clones,
        identity: args.identity.into(),
        save: args.save,
    };
    let reporter = context.reporter(args.quiet);
    let report = context.engine.test_template(&request, &reporter)?;
    drop(reporter);
    let result = &report.result;
    if args.json {
        let (revision, snapshot) = (report.revision, report.snapshot);
        output::json(Tested { revision, snapshot, passed: result.is_passed(), result });
    } else {
        let row = |check: &kiln_core::template_test::Check| {
            vec![check.name.as_str().to_owned(), shown(check.status).to_owned(), check.detail.clone()]
        };
        output::table(&["CHECK", "RESULT", "DETAIL"], &result.checks.iter().map(row).collect::<Vec<_>>());
    }
    if !args.quiet {
        let took = output::span(result.elapsed_ms);
        output::tell(&format!("snapshot {}: {} in {took}", report.snapshot.short(), summary(result)));
    }
    match result.count(CheckStatus::Failed) {
        0 => Ok(ExitCode::SUCCESS),
        failed => Err(CliError::Test { failed, all: result.checks.len() }),
    }
}

fn shown(status: CheckStatus) -> &'static str {
    match status {
        CheckStatus::Passed => "passed",
        CheckStatus::Failed => "FAILED",
        CheckStatus::NotApplicable => "not applicable",
        CheckStatus::NotChecked => "not checked",
    }
}

/// Returns what a test came to, in one line.
pub(in crate::cmd) fn summary(test: &SnapshotTest) -> String {
    use CheckStatus::{Failed, NotApplicable, NotChecked, Passed};
    let counts =
        [Passed, Failed, NotApplicable, NotChecked].map(|status| (test.count(status), shown(status)));
    let words = counts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}"));
    let with = kiln_core::text::count(test.clones.len(), "clone");
    format!("{} with {with}", words.collect::<Vec<_>>().join(", "))
}
