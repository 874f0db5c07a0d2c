//! `kiln ssh`, `kiln ssh-config`, and the way through the agent.

mod config;
mod dial;
pub(crate) mod keys;
mod options;

pub(crate) use config::{SshConfigArgs, config};
pub(crate) use dial::{DialArgs, dial};

use super::Context;
use super::exec::strip_dashes;
use super::suspend::tell_woken;
use crate::error::{CliError, CliResult};
use crate::{env, output};
use clap::Args;
use kiln_core::{LoginName, TimeSpan};
use kiln_sys::process;
use options::SshOptions;
pub(crate) use options::UnwritablePath;
use std::ffi::OsString;
use std::time::Duration;

/// Time that a guest's server has to come up where nothing else is asked for.
const AWAIT_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
#[command(after_help = "\
Runs the host's ssh, without its configuration files: kiln ssh-config prints one for other programs.
It goes to the host's port where the guest's port 22 is published, and else through the guest's
agent, which needs no network. kiln's own key, yours and your agent's are tried; kiln run gives
them to machines whose template has a seed. The machine's host keys are kept with it. The command is
read by the user's shell there, and its exit code is kiln's; 255 when ssh itself fails.

Examples:
  kiln ssh web-1a2b
  kiln ssh -l debian web-1a2b -- systemctl status nginx
  tar -c . | kiln ssh web-1a2b -- tar -x -C /srv")]
pub(crate) struct SshArgs {
    /// Log in as this user [default: the template's, else root]
    #[arg(short = 'l', long, value_name = "USER")]
    user: Option<LoginName>,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// How long to wait for the guest's server to come up [default: 30s]
    #[arg(long, value_name = "TIME")]
    wait: Option<TimeSpan>,
    /// The machine
    machine: String,
    /// A command [default: the user's shell]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) fn run(context: &Context, args: SshArgs) -> CliResult {
    let entry = context.engine.find_machine(&args.machine)?;
    let ssh = env::toolbox().find("ssh")?;
    let within = args.wait.map_or(AWAIT_WITHIN, TimeSpan::get);
    let name = entry.record.name.to_string();
    let mut waiting = || output::tell(&format!("waiting for the SSH server of {name}"));
    context.engine.await_ssh(&entry, within, &mut tell_woken, &mut waiting)?;
    let options = SshOptions::of(context, &entry, args.user)?;
    let mut words: Vec<OsString> = ["-F", "none"].map(OsString::from).to_vec();
    for (key, value) in options.pairs()? {
        words.extend(["-o".into(), format!("{key}={value}").into()]);
    }
    if args.tty {
        words.push("-t".into());
    }
    words.push("--".into());
    words.push(name.into());
    words.extend(strip_dashes(&args.command).iter().map(OsString::from));
    Err(CliError::Io(process::replace(ssh.program(), &words)))
}
