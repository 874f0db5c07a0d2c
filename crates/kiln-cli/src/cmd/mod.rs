//! The verbs. Each file: arguments, the call, the rendering.

pub(crate) mod bench;
pub(crate) mod build;
pub(crate) mod catalog;
pub(crate) mod clone;
pub(crate) mod completion;
pub(crate) mod cp;
pub(crate) mod df;
pub(crate) mod diff;
pub(crate) mod doctor;
mod each;
pub(crate) mod exec;
pub(crate) mod export;
pub(crate) mod fork;
pub(crate) mod gc;
pub(crate) mod history;
pub(crate) mod import;
pub(crate) mod init;
pub(crate) mod lock;
pub(crate) mod logs;
pub(crate) mod ls;
mod memory;
mod mvm;
mod named;
pub(crate) mod pause;
pub(crate) mod private;
pub(crate) mod ps;
pub(crate) mod rewarm;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod schema;
pub(crate) mod show;
pub(crate) mod snapshot;
pub(crate) mod ssh;
pub(crate) mod start;
pub(crate) mod stop;
pub(crate) mod supervise;
pub(crate) mod suspend;
pub(crate) mod tag;
pub(crate) mod template;
pub(crate) mod verify;
pub(crate) mod version;
mod vmrs;
pub(crate) mod wait;
pub(crate) mod why;

use crate::args::{Cli, Command, Global};
use crate::error::{self, CliError, CliResult};
use crate::progress::Shown;
use crate::signals::SignalDesk;
use crate::{env, output};
use kiln_engine::{Engine, EngineError};
use kiln_sys::{Cancel, IoResultExt as _};
use std::process::ExitCode;

/// What most commands need: an open engine, the signals, and a place for progress.
pub(crate) struct Context {
    pub(crate) engine: Engine,
    pub(crate) signals: SignalDesk,
    progress: crate::progress::ProgressMode,
}

impl Context {
    /// Opens the store that the options name.
    pub(crate) fn open(global: Global) -> Result<Self, CliError> {
        let cancel = Cancel::new().at("make", "an event")?;
        let signals = SignalDesk::open(&cancel).at("watch", "signals")?;
        let reporter = Shown::new(global.progress, false);
        let engine = Engine::open_with(env::settings(global.home)?, cancel, &reporter)?;
        drop(reporter);
        Ok(Self { engine, signals, progress: global.progress })
    }

    /// Returns how progress is to be shown.
    pub(crate) fn progress_mode(&self) -> crate::progress::ProgressMode {
        self.progress
    }

    /// Returns a place for progress; `quiet` silences it.
    pub(crate) fn reporter(&self, quiet: bool) -> Shown {
        Shown::new(self.progress, quiet)
    }
}

/// Runs a parsed command line.
pub(crate) fn dispatch(cli: Cli) -> ExitCode {
    let Cli { global, command } = cli;
    let result = match command {
        Command::Init(args) => init::run(&args, global),
        Command::Version(args) => version::run(&args),
        Command::Completion(args) => completion::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Bench(args) => bench::run(&args, global.home, global.progress),
        Command::Ingest(args) => bench::ingest(&args),
        Command::Disk(args) => bench::disk(&args),
        Command::Download(args) => bench::download(&args),
        Command::ProbeKvm(_) => supervise::probe_kvm(),
        Command::Supervise(args) => supervise::run(&args),
        command => Context::open(global).and_then(|context| engine_command(&context, command)),
    };
    result.unwrap_or_else(|error| error::report(&error))
}

fn engine_command(context: &Context, command: Command) -> CliResult {
    match command {
        Command::Build(args) => build::run(context, &args),
        Command::Lock(args) => lock::lock(context, &args),
        Command::Update(args) => lock::update(context, &args),
        Command::Run(args) => run::run(context, &args),
        Command::Ps(args) => ps::run(context, &args),
        Command::Stop(args) => stop::run(context, &args),
        Command::Pause(args) => pause::pause(context, &args),
        Command::Resume(args) => pause::resume(context, &args),
        Command::Suspend(args) => suspend::run(context, &args),
        Command::Start(args) => start::run(context, &args),
        Command::Rm(args) => rm::run(context, &args),
        Command::Exec(args) => exec::run(context, args),
        Command::Shell(args) => exec::shell(context, args),
        Command::Ssh(args) => ssh::run(context, args),
        Command::SshConfig(args) => ssh::config(context, &args),
        Command::Dial(args) => ssh::dial(context, &args),
        Command::Cp(args) => cp::run(context, &args),
        Command::Logs(args) => logs::run(context, &args),
        Command::Wait(args) => wait::run(context, &args),
        Command::Ls(args) => ls::run(context, &args),
        Command::Show(args) => show::run(context, &args),
        Command::Fork(args) => fork::run(context, &args),
        Command::Snapshot(args) => snapshot::run(context, &args),
        Command::Template(args) => template::run(context, &args),
        Command::Rewarm(args) => rewarm::run(context, &args),
        Command::Clone(args) => clone::run(context, &args),
        Command::Diff(args) => diff::run(context, &args),
        Command::Tag(args) => tag::run(context, &args),
        Command::Untag(args) => history::untag(context, &args),
        Command::History(args) => history::history(context, &args),
        Command::Rollback(args) => history::rollback(context, &args),
        Command::Gc(args) => gc::run(context, &args),
        Command::Why(args) => why::run(context, &args),
        Command::Df(args) => df::run(context, &args),
        Command::Verify(args) => verify::run(context, &args),
        Command::Catalog(args) => catalog::run(context, &args),
        Command::Import(args) => import::run(context, &args),
        Command::Export(args) => export::run(context, &args),
        Command::Doctor(args) => doctor::run(context, &args),
        _ => Err(CliError::Usage("this verb needs no store".to_owned())),
    }
}

/// Does the same to each of several things; a failure is told and the others still get their turn.
pub(crate) fn for_each(names: &[String], mut work: impl FnMut(&str) -> Result<(), CliError>) -> CliResult {
    let mut failed = 0;
    for name in names {
        match work(name) {
            Ok(()) => {}
            Err(error) if names.len() == 1 => return Err(error),
            Err(CliError::Engine(EngineError::Cancelled)) => return Err(EngineError::Cancelled.into()),
            Err(error) => {
                error::tell(&error);
                failed += 1;
            }
        }
    }
    if failed == 0 { Ok(ExitCode::SUCCESS) } else { Err(CliError::Some { failed, all: names.len() }) }
}

/// Prints each name of something that was done, the way docker does.
pub(crate) fn echo(name: &str) {
    output::line(name);
}
