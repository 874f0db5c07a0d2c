//! `kiln exec` and `kiln shell`.

use super::Context;
use super::suspend::tell_woken;
use crate::error::{CliError, CliResult};
use crate::terminal::{self, Attach};
use clap::Args;
use kiln_guest::message::ExecRequest;
use kiln_guest::{GuestPath, Session, UserSpec};
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;

/// Options of a program in the guest.
#[derive(Debug, Clone, Args)]
pub(crate) struct GuestOptions {
    /// Hand standard input on
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Run as this user: name or number, with :group or :number
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<UserSpec>,
    /// Run in this directory
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<GuestPath>,
}

impl GuestOptions {
    /// Returns the request that runs `command` with these options.
    pub(crate) fn request(&self, command: &[String]) -> ExecRequest {
        let mut request = ExecRequest::new(command.iter().cloned());
        request.user = self.user.clone();
        request.cwd = self.workdir.clone();
        request
    }

    pub(crate) fn attach(&self) -> Attach {
        Attach { stdin: self.interactive, tty: self.tty }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
The command's exit code is kiln's; 127 when the guest has no such program, 126 when it cannot run
it, 128 and the signal's number when a signal ended it.

Examples:
  kiln exec web-1a2b -- ls -l /
  kiln exec -it web-1a2b -- bash
  echo hello | kiln exec -i web-1a2b -- tee /tmp/hello
  kiln exec -u www-data -e LANG=C web-1a2b -- id")]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    options: GuestOptions,
    /// Set an environment variable, above the machine's own
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// The machine
    machine: String,
    /// The command
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) fn run(context: &Context, args: ExecArgs) -> CliResult {
    let command = strip_dashes(&args.command);
    let mut request = args.options.request(command);
    request.env = environment(&args.env)?;
    let session = context.engine.session_woken(&args.machine, &mut tell_woken)?;
    let code = terminal::exec(&session, request, args.options.attach(), &context.signals)?;
    Ok(ExitCode::from(code))
}

fn environment(pairs: &[String]) -> Result<BTreeMap<String, String>, CliError> {
    let mut env = BTreeMap::new();
    for pair in pairs {
        let Some((name, value)) = pair.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(CliError::Usage(format!("`{pair}` is not NAME=VALUE")));
        };
        env.insert(name.to_owned(), value.to_owned());
    }
    Ok(env)
}

/// Drops the `--` that clap leaves in front of a trailing command.
pub(crate) fn strip_dashes(command: &[String]) -> &[String] {
    match command {
        [dashes, rest @ ..] if dashes == "--" && !rest.is_empty() => rest,
        all => all,
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln shell web-1a2b\n  kiln shell -u www-data web-1a2b")]
pub(crate) struct ShellArgs {
    /// The machine
    machine: String,
    /// Run as this user: name or number, with :group or :number
    #[arg(short, long, value_name = "USER")]
    user: Option<UserSpec>,
}

impl ShellArgs {
    /// Asks for a shell of root.
    pub(super) fn of(machine: &str) -> Self {
        Self { machine: machine.to_owned(), user: None }
    }
}

pub(crate) fn shell(context: &Context, args: ShellArgs) -> CliResult {
    let session = context.engine.session_woken(&args.machine, &mut tell_woken)?;
    let tty = std::io::stdin().is_terminal();
    let mut request = ExecRequest::new([shell_of(&session)]);
    request.user = args.user;
    let code = terminal::exec(&session, request, Attach { stdin: true, tty }, &context.signals)?;
    Ok(ExitCode::from(code))
}

/// Returns the best shell that the guest has.
pub(crate) fn shell_of(session: &Session) -> &'static str {
    let has = |path: &str| GuestPath::new(path).is_ok_and(|path| session.stat(path).is_ok());
    if has("/bin/bash") { "/bin/bash" } else { "/bin/sh" }
}
