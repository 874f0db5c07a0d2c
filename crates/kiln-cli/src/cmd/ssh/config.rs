//! `kiln ssh-config`.

use super::super::{Context, ps};
use super::options::SshOptions;
use crate::error::{CliError, CliResult};
use crate::output;
use clap::Args;
use kiln_core::LoginName;
use kiln_store::MachineEntry;
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
Prints a block for each machine, as ~/.ssh/config has them: for ssh, scp, rsync and editors. A
machine without a published port 22 is reached through kiln, by its path and this store's.

Examples:
  kiln ssh-config > ~/.ssh/kiln && ssh -F ~/.ssh/kiln web-1a2b
  ssh -F <(kiln ssh-config) web-1a2b
  rsync -e 'ssh -F /home/me/.ssh/kiln' -a site/ web-1a2b:/srv/site/")]
pub(crate) struct SshConfigArgs {
    /// Machines [default: all that kiln ps lists]
    machines: Vec<String>,
    /// Log in as this user [default: the template's, else root]
    #[arg(short = 'l', long, value_name = "USER")]
    user: Option<LoginName>,
    /// Print an array of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Host {
    name: String,
    user: LoginName,
    /// On 127.0.0.1; none for a machine that is reached by the command.
    port: Option<u16>,
    proxy_command: Option<String>,
    identity_files: Vec<PathBuf>,
    known_hosts_file: PathBuf,
    host_key_alias: String,
}

pub(crate) fn config(context: &Context, args: &SshConfigArgs) -> CliResult {
    let mut hosts = Vec::new();
    let mut text = String::new();
    for entry in entries(context, &args.machines)? {
        let options = SshOptions::of(context, &entry, args.user.clone())?;
        let name = entry.record.name.to_string();
        // What is written to a String is taken.
        let _ = writeln!(text, "Host {name}");
        for (key, value) in options.pairs()? {
            let _ = writeln!(text, "  {key} {value}");
        }
        hosts.push(Host {
            name,
            port: options.port(),
            proxy_command: options.proxy_command()?,
            user: options.user,
            identity_files: options.identities,
            known_hosts_file: options.target.known_hosts,
            host_key_alias: options.target.host_key_alias,
        });
    }
    if args.json {
        output::json_list(&hosts);
    } else {
        output::data(&text);
    }
    Ok(ExitCode::SUCCESS)
}

fn entries(context: &Context, names: &[String]) -> Result<Vec<MachineEntry>, CliError> {
    if !names.is_empty() {
        return names.iter().map(|name| Ok(context.engine.find_machine(name)?)).collect();
    }
    let all = context.engine.machines()?.into_iter();
    // One that cannot be read is told by kiln ps.
    Ok(all.filter_map(|(_, entry)| entry.ok()).filter(|entry| ps::is_listed(entry.status.phase)).collect())
}
