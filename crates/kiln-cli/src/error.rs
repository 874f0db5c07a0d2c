//! From an error to what the user reads and the exit code the script reads.

use crate::cmd::private::PrivateError;
use crate::cmd::ssh::UnwritablePath;
use crate::cmd::ssh::keys::SshKeyError;
use crate::{env, hints, output};
use kiln_core::text::count;
use kiln_engine::EngineError;
use std::error::Error as _;
use std::process::ExitCode;

/// Failed, or refused.
pub(crate) const EXIT_FAILED: u8 = 1;
/// Bad usage.
pub(crate) const EXIT_USAGE: u8 = 2;
/// A bug of kiln.
pub(crate) const EXIT_BUG: u8 = 70;
/// Ended by Ctrl-C.
pub(crate) const EXIT_INTERRUPTED: u8 = 130;

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The arguments do not make sense together.
    #[error("{0}")]
    Usage(String),
    /// A machine cannot be given the environment or secrets that were asked for.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// A machine cannot be given an SSH key.
    #[error(transparent)]
    SshKey(#[from] SshKeyError),
    /// ssh cannot be told where kiln's files are.
    #[error(transparent)]
    SshPath(#[from] UnwritablePath),
    /// A bucket without a key to it.
    #[error("no key to the bucket is set")]
    NoBucketKey,
    /// Something on the way to the engine failed.
    #[error(transparent)]
    Io(#[from] kiln_sys::IoError),
    /// Several things were asked for, and some failed; each was told already.
    #[error("{failed} of {all} failed")]
    Some {
        /// How many failed.
        failed: usize,
        /// How many there were.
        all: usize,
    },
    /// A test of a template found what is wrong with it.
    #[error("{failed} of {} failed", count(*all, "check"))]
    Test {
        /// How many checks failed.
        failed: usize,
        /// How many there were.
        all: usize,
    },
    /// A verification found what is not whole.
    #[error("{}", not_whole(*artifacts, *revisions, *snapshots))]
    Verify {
        /// Artifacts that are damaged or missing.
        artifacts: usize,
        /// Those of them that only snapshots have.
        captured: usize,
        /// Revisions that cannot be read.
        revisions: usize,
        /// Snapshots that cannot be read.
        snapshots: usize,
        /// Snapshots that cannot be used any more, by name or the beginning of their ids.
        lost: Vec<String>,
        /// Whether a repair was tried.
        repaired: bool,
    },
}

fn not_whole(artifacts: usize, revisions: usize, snapshots: usize) -> String {
    let all = [(artifacts, "artifact"), (revisions, "revision"), (snapshots, "snapshot")];
    let bad: Vec<String> =
        all.iter().filter(|(bad, _)| *bad > 0).map(|(bad, kind)| count(*bad, kind)).collect();
    let are = if artifacts + revisions + snapshots == 1 { "is" } else { "are" };
    let text = match bad.as_slice() {
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        bad => bad.concat(),
    };
    format!("{text} {are} not whole")
}

impl CliError {
    fn code(&self) -> u8 {
        match self {
            Self::Private(PrivateError::File(_)) | Self::SshKey(SshKeyError::Unreadable(_)) => EXIT_FAILED,
            Self::Usage(_)
            | Self::Private(_)
            | Self::SshKey(_)
            | Self::Engine(
                EngineError::Recipe { .. }
                | EngineError::TemplateFile { .. }
                | EngineError::CopySides
                | EngineError::Shape(_)
                | EngineError::SshKeys(_),
            ) => EXIT_USAGE,
            Self::Engine(EngineError::Cancelled) => EXIT_INTERRUPTED,
            _ => EXIT_FAILED,
        }
    }
}

macro_rules! through_engine {
    ($($error:ty),*) => {$(
        impl From<$error> for CliError {
            fn from(error: $error) -> Self {
                Self::Engine(error.into())
            }
        }
    )*};
}
through_engine!(kiln_store::StoreError, kiln_guest::SessionError, kiln_sys::ToolError);

/// The result of a command: the exit code, or why there is none.
pub(crate) type CliResult = Result<ExitCode, CliError>;

/// Tells an error with its causes and hints, and returns the exit code.
pub(crate) fn report(error: &CliError) -> ExitCode {
    tell(error);
    ExitCode::from(error.code())
}

/// Tells an error with its causes and hints.
pub(crate) fn tell(error: &CliError) {
    let (red, bold, plain) = if output::stderr_is_terminal() && !env::no_color() {
        ("\x1b[1;31m", "\x1b[1m", "\x1b[0m")
    } else {
        ("", "", "")
    };
    output::tell(&format!("{red}error:{plain} {error}"));
    let mut source = match error {
        CliError::Engine(error) => error.source(),
        error => error.source(),
    };
    while let Some(cause) = source {
        output::tell(&format!("  because: {cause}"));
        source = cause.source();
    }
    for line in hints::details(error) {
        output::tell(&format!("  | {line}"));
    }
    for hint in hints::hints(error) {
        output::tell(&format!("{bold}try:{plain} {hint}"));
    }
}
