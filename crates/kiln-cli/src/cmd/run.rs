//! `kiln run`.

use super::catalog::{FetchArgs, bring};
use super::clone::CloneBy;
use super::exec::{GuestOptions, shell_of, strip_dashes};
use super::private::PrivateOptions;
use super::ssh::keys::SshKeyOptions;
use super::suspend::idle_after;
use super::{Context, echo, logs};
use crate::error::{CliError, CliResult};
use crate::output;
use crate::progress::Shown;
use crate::terminal;
use clap::{Args, ValueEnum};
use kiln_core::machine::{EndCause, Forward, IdentityPolicy, Network};
use kiln_core::variant::Board;
use kiln_core::{ByteSize, MachineName, Reference, RestartPolicy, SshPublicKey, TimeSpan};
use kiln_engine::EngineError;
use kiln_engine::create::CreateRequest;
use kiln_engine::machines::ConsoleReader;
use kiln_engine::restore::RestoreChoice;
use kiln_engine::start::{Ownership, Started};
use kiln_guest::message::ExecRequest;
use kiln_guest::private::Private;
use kiln_store::MachineEntry;
use std::process::ExitCode;
use std::time::Duration;

/// Time a guest has to power off after its command.
const POWER_OFF_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Net {
    /// No network device
    None,
    /// Only the published ports
    Restricted,
    /// The published ports, and connections to the outside, the host's loopback included
    User,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Accel {
    Auto,
    Kvm,
    Tcg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BoardName {
    Pc,
    Q35,
    Microvm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Restore {
    /// As a snapshot where one fits, else by a boot
    Auto,
    /// By a boot
    Never,
    /// As a snapshot, or not at all
    Require,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Identity {
    /// It ends
    Require,
    /// It is handed over as it is
    Try,
    /// Nothing is tried: it stays what was captured
    Skip,
}

impl From<Identity> for IdentityPolicy {
    fn from(identity: Identity) -> Self {
        match identity {
            Identity::Require => Self::Require,
            Identity::Try => Self::Try,
            Identity::Skip => Self::Skip,
        }
    }
}

/// Returns the network that the two options mean.
pub(super) fn network_of(net: Option<Net>, forwards: Vec<Forward>) -> Result<Network, CliError> {
    match net {
        None if forwards.is_empty() => Ok(Network::None),
        Some(Net::None) if forwards.is_empty() => Ok(Network::None),
        Some(Net::None) => Err(CliError::Usage("ports cannot be published with --net none".to_owned())),
        None | Some(Net::Restricted) => Ok(Network::User { forwards, outbound: false }),
        Some(Net::User) => Ok(Network::User { forwards, outbound: true }),
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
With a command: boots, runs it, passes its exit code through, and powers the machine off.
Without: shows the console until the machine ends. With -it and no command: opens a shell.
With -d: leaves the machine running and prints its name. A machine in the foreground ends with
kiln, however that ends.
A machine that was ready once is started again as --restart says, after a rest of 100 ms that
doubles to a minute; kiln stop, --ttl and kiln rm -f end it for good.
An image of the catalog (kiln catalog ls) that is not here yet is pulled first.
Its environment is that of its entrypoint and of every command in it, its secrets are files there;
it has both again whenever it is started. id=NAME,src=FILE is another form of NAME=FILE.

Examples:
  kiln run --rm web -- uname -a
  kiln run -it --rm web
  kiln run -d --name w1 -p 8080:80 web
  kiln run -d --restart on-failure:5 --ttl 12h web
  kiln run -d --ssh-key ~/.ssh/id_ed25519.pub --name w1 web && kiln ssh w1
  kiln run --rm -e LANG=C --secret token=token.txt web -- cat /run/kiln/secrets/token
  kiln run web/big:v1 -- nproc
  kiln run -it --rm ubuntu:24.04")]
pub(crate) struct RunArgs {
    /// Remove the machine and its disk when it ends
    #[arg(long)]
    rm: bool,
    /// Leave it running, and print its name once it is ready
    #[arg(short, long)]
    detach: bool,
    /// Its name [default: the template's and four digits]
    #[arg(long)]
    name: Option<MachineName>,
    /// Publish a TCP port of the guest on 127.0.0.1
    #[arg(short, long, value_name = "HOST:GUEST")]
    publish: Vec<Forward>,
    /// The network [default: none, or restricted with -p]
    #[arg(long, value_enum, value_name = "MODE")]
    net: Option<Net>,
    /// Virtual processors, in place of the template's
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Memory, in place of the template's
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// The board, in place of the template's
    #[arg(long, value_enum)]
    board: Option<BoardName>,
    /// The accelerator: auto takes KVM only where it really works
    #[arg(long, value_enum, default_value = "auto")]
    accel: Accel,
    /// Size of its root disk, more than the template's; the file system grows to it
    #[arg(long, value_name = "SIZE")]
    disk: Option<ByteSize>,
    /// How its private disk is made
    #[arg(long, value_enum, default_value = "auto", value_name = "METHOD")]
    clone: CloneBy,
    /// How it begins
    #[arg(long, value_enum, default_value = "auto")]
    restore: Restore,
    /// What becomes of a restored guest that cannot be given names, keys and random numbers of its own
    #[arg(long, value_enum, default_value = "require", hide = true)]
    identity: Identity,
    /// Stop it when it has run so long since its start, such as 90s, 10m or 2h
    #[arg(long, value_name = "TIME")]
    ttl: Option<TimeSpan>,
    #[arg(
        long,
        value_name = "POLICY",
        help = "With -d, start it again on its disk when it ends: no, on-failure[:N] or always [default: no]"
    )]
    restart: Option<RestartPolicy>,
    /// With -d, suspend it when nobody used it and it did nothing for so long; whoever asks for it wakes it
    #[arg(long, value_name = "TIME")]
    idle_suspend: Option<TimeSpan>,
    #[command(flatten)]
    pull: FetchArgs,
    #[command(flatten)]
    ssh: SshKeyOptions,
    #[command(flatten)]
    private: PrivateOptions,
    #[command(flatten)]
    options: GuestOptions,
    #[arg(
        value_parser = super::catalog::reference,
        help = "What to run: NAME[/VARIANT][:TAG][@sha256:…], sha256:… or an image of the catalog"
    )]
    reference: Reference,
    /// A command for the guest
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl RunArgs {
    fn network(&self) -> Result<Network, CliError> {
        let forwards = self.publish.clone();
        if forwards.len() > kiln_core::machine::FORWARDS_MAX {
            let max = kiln_core::machine::FORWARDS_MAX;
            return Err(CliError::Usage(format!(
                "{} ports are published, at most {max} can be",
                forwards.len()
            )));
        }
        network_of(self.net, forwards)
    }

    fn create_request(
        &self,
        private: Private,
        ssh_keys: Vec<SshPublicKey>,
    ) -> Result<CreateRequest, CliError> {
        Ok(CreateRequest {
            reference: self.reference.clone(),
            name: self.name.clone(),
            vcpus: self.vcpus,
            memory: self.memory,
            network: self.network()?,
            accelerator: match self.accel {
                Accel::Auto => "auto",
                Accel::Kvm => "kvm",
                Accel::Tcg => "tcg",
            }
            .to_owned(),
            board: self.board.map(|board| match board {
                BoardName::Pc => Board::Pc,
                BoardName::Q35 => Board::Q35,
                BoardName::Microvm => Board::Microvm,
            }),
            clone: self.clone.into(),
            disk: self.disk,
            restore: match self.restore {
                Restore::Auto => RestoreChoice::Auto,
                Restore::Never => RestoreChoice::Never,
                Restore::Require => RestoreChoice::Require,
            },
            identity: self.identity.into(),
            capturable: false,
            remove_on_exit: self.rm,
            ttl: self.ttl.map(TimeSpan::get),
            restart: self.restart.unwrap_or_default(),
            private,
            ssh_keys,
            idle_suspend: idle_after(self.idle_suspend)?,
        })
    }

    /// Refuses what does not go together.
    fn check_end(&self) -> Result<(), CliError> {
        if self.ttl == Some(TimeSpan::default()) {
            return Err(CliError::Usage("--ttl 0 leaves a machine no time".to_owned()));
        }
        if idle_after(self.idle_suspend)?.is_some() && !self.detach {
            return Err(CliError::Usage(
                "--idle-suspend needs -d: a machine in the foreground is in use".to_owned(),
            ));
        }
        if self.restart.unwrap_or_default() == RestartPolicy::No {
            return Ok(());
        }
        if self.rm {
            return Err(CliError::Usage("--rm and --restart want opposite things when it ends".to_owned()));
        }
        if !self.detach {
            return Err(CliError::Usage(
                "--restart needs -d: a machine in the foreground ends with kiln".to_owned(),
            ));
        }
        Ok(())
    }
}

pub(crate) fn run(context: &Context, args: &RunArgs) -> CliResult {
    let command = strip_dashes(&args.command).to_vec();
    if args.detach && (args.options.tty || args.options.interactive) {
        return Err(CliError::Usage("-d leaves the terminal, -i and -t want it".to_owned()));
    }
    if args.detach && !command.is_empty() {
        return Err(CliError::Usage(
            "-d takes no command: run -d, then kiln exec NAME -- COMMAND".to_owned(),
        ));
    }
    args.check_end()?;
    let exec = args.options.request(&command);
    let private = args.private.read(args.identity, args.options.interactive)?;
    let reference = bring(context, &args.reference, &args.pull)?;
    let ssh_keys = args.ssh.read(context, &reference)?;
    let mut request = args.create_request(private, ssh_keys)?;
    request.reference = reference;
    let reporter =
        if args.detach { context.reporter(false) } else { Shown::of_foreground(context.progress_mode()) };
    let created = context.engine.create(&request, &reporter)?;
    let entry = created.entry.clone();
    let ownership = if args.detach { Ownership::Detached } else { Ownership::Owned };
    let started = context.engine.start_created(created, ownership, &reporter)?;
    drop(reporter);
    if args.detach {
        let from = if started.restored { "restored" } else { "ready" };
        let how = format!("{from} in {} ({})", output::span(started.ready_after_ms), started.accelerator);
        output::tell(&format!("{} is {how}", started.name));
        echo(&started.name);
        return Ok(ExitCode::SUCCESS);
    }
    foreground(context, args, started, &entry, exec)
}

fn foreground(
    context: &Context,
    args: &RunArgs,
    mut started: Started,
    entry: &MachineEntry,
    mut request: ExecRequest,
) -> CliResult {
    let id = entry.record.id.as_str();
    if request.argv.is_empty() && !args.options.tty {
        return console(context, started, entry);
    }
    let ran = context.engine.session(id).map_err(CliError::from).and_then(|session| {
        if request.argv.is_empty() {
            request.argv = vec![shell_of(&session).to_owned()];
        }
        terminal::exec(&session, request, args.options.attach(), &context.signals)
    });
    match ran {
        Ok(code) => {
            // A disk that is thrown away needs no clean end.
            let grace = if args.rm { Duration::ZERO } else { POWER_OFF_WITHIN };
            context.engine.stop(id, grace)?;
            Ok(ExitCode::from(code))
        }
        Err(CliError::Engine(EngineError::Guest(error))) if error.is_lost() => {
            let cause = started.wait_end(&context.engine)?;
            Err(EngineError::Ended { name: started.name, cause, console: Vec::new() }.into())
        }
        Err(error) => {
            drop(started);
            // The machine ends with its owner's handle; what it leaves must be gone when this returns.
            let _ = context.engine.wait_ended_always(entry);
            Err(error)
        }
    }
}

/// Shows the console until the machine ends.
fn console(context: &Context, mut started: Started, entry: &MachineEntry) -> CliResult {
    let followed = logs::follow(context, entry.record.id.as_str(), ConsoleReader::open(entry));
    if let Err(error) = followed {
        drop(started);
        let _ = context.engine.wait_ended_always(entry);
        return Err(error);
    }
    match started.wait_end(&context.engine)? {
        EndCause::Suspended => {
            output::tell(&format!(
                "{} was suspended; kiln resume {} lets it go on",
                started.name, started.name
            ));
            Ok(ExitCode::SUCCESS)
        }
        EndCause::GuestShutdown | EndCause::Requested | EndCause::Expired => Ok(ExitCode::SUCCESS),
        EndCause::EntrypointExited { code } => Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1))),
        cause => Err(EngineError::Ended { name: started.name, cause, console: Vec::new() }.into()),
    }
}
