//! The command line: one verb a file, global options here.

use crate::cmd;
use crate::progress::ProgressMode;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  kiln init                         write a commented kiln.toml
  kiln build                        bake the template of the kiln.toml here or above
  kiln run --rm web -- uname -a     boot it, run a command, pass its exit code, throw it away
  kiln run -d --name w1 web         boot it and leave it running
  kiln exec w1 -- ps                run a command in it
  kiln doctor                       check this host

Exit codes: 0 done, 1 failed or refused, 2 bad usage or recipe, 130 interrupted, 70 a bug of kiln;
run and exec pass the guest command's own through.";

/// Bakes golden images for microVMs and runs verified, private copies of them.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, after_help = EXAMPLES, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every verb.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The store [default: $KILN_HOME, /var/lib/kiln for root, else the user's data directory]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub(crate) home: Option<PathBuf>,
    /// How progress is shown on standard error
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "auto",
        value_name = "MODE",
        help_heading = "Global options"
    )]
    pub(crate) progress: ProgressMode,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a commented kiln.toml, or set up the store
    Init(cmd::init::InitArgs),
    /// Bake a template from its recipe
    Build(cmd::build::BuildArgs),
    /// Pin what the names in a recipe stand for
    Lock(cmd::lock::LockArgs),
    /// Look up anew what a lock pins, and show what moves
    Update(cmd::lock::UpdateArgs),
    /// Boot a machine from a template, and run a command in it
    Run(Box<cmd::run::RunArgs>),
    /// List machines
    Ps(cmd::ps::PsArgs),
    /// End machines, letting the guest power off first
    Stop(cmd::stop::StopArgs),
    /// Start machines that ended or are suspended
    Start(cmd::start::StartArgs),
    /// Let the processors of machines stand
    Pause(cmd::pause::PauseArgs),
    /// Let paused or suspended machines go on
    Resume(cmd::pause::ResumeArgs),
    /// Save machines to disk and end their processes
    Suspend(cmd::suspend::SuspendArgs),
    /// Remove machines, tags or revisions
    Rm(cmd::rm::RmArgs),
    /// Run a command in a machine
    Exec(cmd::exec::ExecArgs),
    /// Open a shell in a machine
    Shell(cmd::exec::ShellArgs),
    /// Log in to a machine by SSH, or run a command there
    Ssh(cmd::ssh::SshArgs),
    /// Print a configuration of ssh for machines
    #[command(name = "ssh-config")]
    SshConfig(cmd::ssh::SshConfigArgs),
    /// Copy files and directories to or from a machine
    Cp(cmd::cp::CpArgs),
    /// Show the console of a machine
    Logs(cmd::logs::LogsArgs),
    /// Wait until machines have ended, or are ready
    Wait(cmd::wait::WaitArgs),
    /// List templates and their tags
    Ls(cmd::ls::LsArgs),
    /// Show a template, revision or machine
    Show(cmd::show::ShowArgs),
    /// Capture machines, and list, show, restore or remove their snapshots
    Snapshot(cmd::snapshot::SnapshotArgs),
    /// Make machines that begin as a snapshot of a template or as a running machine, and leave them running
    Fork(cmd::fork::ForkArgs),
    /// Test a template
    Template(cmd::template::TemplateArgs),
    /// Make snapshots again that do not fit this host any more
    Rewarm(cmd::rewarm::RewarmArgs),
    /// Compare two revisions
    Diff(cmd::diff::DiffArgs),
    /// Give a revision another name
    Tag(cmd::tag::TagArgs),
    /// Remove a tag and nothing else
    Untag(cmd::history::UntagArgs),
    /// Show where a tag pointed
    History(cmd::history::HistoryArgs),
    /// Move a tag back
    Rollback(cmd::history::RollbackArgs),
    /// Free what nothing keeps
    Gc(cmd::gc::GcArgs),
    /// Show what keeps a revision or artifact
    Why(cmd::why::WhyArgs),
    /// Show what the store takes up
    Df(cmd::df::DfArgs),
    /// Read artifacts and check every byte
    Verify(cmd::verify::VerifyArgs),
    /// Write a template's disk to a file of your own
    Clone(cmd::clone::CloneArgs),
    /// List, show and pull the images that distributions publish
    Catalog(cmd::catalog::CatalogArgs),
    /// Take templates over from another program's directory
    Import(cmd::import::ImportArgs),
    /// Write templates in another program's layout
    Export(cmd::export::ExportArgs),
    /// Check this host and say what mends each lack
    Doctor(cmd::doctor::DoctorArgs),
    /// Measure kiln on this host, beside other tools
    Bench(cmd::bench::BenchArgs),
    /// Print the version
    Version(cmd::version::VersionArgs),
    /// Print a completion script for a shell
    Completion(cmd::completion::CompletionArgs),
    /// Print the JSON Schema of kiln.toml
    Schema(cmd::schema::SchemaArgs),
    #[command(skip)]
    Supervise(cmd::supervise::SuperviseArgs),
    #[command(skip)]
    Dial(cmd::ssh::DialArgs),
    #[command(skip)]
    Ingest(cmd::bench::IngestArgs),
    #[command(skip)]
    Disk(cmd::bench::DiskArgs),
    #[command(skip)]
    Download(cmd::bench::DownloadArgs),
    #[command(skip)]
    ProbeKvm(cmd::supervise::ProbeArgs),
}

/// A verb that is started so often, or so hidden, that the description of all the others would be what its users wait for.
#[derive(Debug, Parser)]
#[command(name = "kiln", disable_version_flag = true)]
struct Alone<A: Args> {
    #[command(flatten)]
    global: Global,
    #[command(flatten)]
    args: A,
}

/// Parses the process's command line.
pub(crate) fn parse() -> Result<Cli, clap::Error> {
    let line: Vec<OsString> = std::env::args_os().collect();
    if let Some(parsed) = parse_own(&line) {
        return parsed;
    }
    match parse_alone(&line) {
        Some(cli) => Ok(cli),
        None => Cli::try_parse_from(line),
    }
}

/// Parses what kiln runs itself as, which no user is to meet. None for a verb.
fn parse_own(line: &[OsString]) -> Option<Result<Cli, clap::Error>> {
    let at = verb(line)?;
    let rest = line.iter().take(at).chain(&line[at + 1..]);
    Some(match line[at].to_str()? {
        kiln_engine::start::SUPERVISE_COMMAND => alone(rest, Command::Supervise),
        kiln_engine::ssh::DIAL_COMMAND => alone(rest, Command::Dial),
        kiln_engine::PROBE_COMMAND => alone(rest, Command::ProbeKvm),
        kiln_engine::bench::INGEST_COMMAND => alone(rest, Command::Ingest),
        kiln_engine::bench::DISK_COMMAND => alone(rest, Command::Disk),
        kiln_engine::bench::DOWNLOAD_COMMAND => alone(rest, Command::Download),
        _ => return None,
    })
}

/// Parses a line without its verb.
fn alone<'a, A: Args>(
    line: impl Iterator<Item = &'a OsString>,
    command: impl FnOnce(A) -> Command,
) -> Result<Cli, clap::Error> {
    let Alone { global, args } = Alone::try_parse_from(line)?;
    Ok(Cli { global, command: command(args) })
}

/// Parses the line of a frequent verb by itself. None for any other, and for a line that is not right: the whole
/// description says what is wrong with it.
fn parse_alone(line: &[OsString]) -> Option<Cli> {
    let at = verb(line)?;
    let rest = line.iter().take(at).chain(&line[at + 1..]);
    match line[at].to_str()? {
        "clone" => alone(rest, Command::Clone).ok(),
        _ => None,
    }
}

/// Returns where the verb stands: after options of every verb only.
fn verb(line: &[OsString]) -> Option<usize> {
    let mut at = 1;
    loop {
        match line.get(at)?.to_str()? {
            "--home" | "--progress" => at += 2,
            word if word.starts_with("--home=") || word.starts_with("--progress=") => at += 1,
            word if word.starts_with('-') => return None,
            _ => return Some(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    /// The width that help is wrapped to.
    const WIDTH: usize = 100;

    #[test]
    fn texts_of_help_fit_a_line_as_they_are_written() {
        let cli = Cli::command();
        let verbs = std::iter::once(&cli).chain(cli.get_subcommands());
        let verbs = verbs.flat_map(|verb| std::iter::once(verb).chain(verb.get_subcommands()));
        for verb in verbs {
            let text = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            let long: Vec<&str> = text.lines().filter(|line| line.chars().count() > WIDTH).collect();
            assert!(long.is_empty(), "{}: {long:#?}", verb.get_name());
        }
    }

    fn line(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn a_verb_alone_is_parsed_as_among_all() {
        for text in [
            "kiln clone web disk.raw",
            "kiln --home /h clone -q --clone copy web:v1 d",
            "kiln clone web --progress=none d --home h --json",
            "kiln --progress plain --home=h clone -- web -d",
            "kiln clone clone clone",
        ] {
            let alone = parse_alone(&line(text)).unwrap();
            assert_eq!(
                format!("{alone:?}"),
                format!("{:?}", Cli::try_parse_from(line(text)).unwrap()),
                "{text}"
            );
        }
    }

    #[test]
    fn what_kiln_runs_itself_as_is_no_verb() {
        let own = parse_own(&line("kiln --home h __disk a b --sync")).unwrap().unwrap();
        assert!(matches!(own.command, Command::Disk(_)));
        let dial = parse_own(&line("kiln --home h __dial web 22")).unwrap().unwrap();
        assert!(matches!(dial.command, Command::Dial(_)));
        assert!(parse_own(&line("kiln __dial web 0")).unwrap().is_err());
        assert!(parse_own(&line("kiln __supervise")).unwrap().is_err());
        for text in ["kiln", "kiln ls", "kiln __nothing", "kiln --home __disk ls"] {
            assert!(parse_own(&line(text)).is_none(), "{text}");
        }
        // Nor is it suggested to who mistypes one.
        for text in ["kiln __disk a b", "kiln disk a b", "kiln ingest a", "kiln supervise"] {
            let error = Cli::try_parse_from(line(text)).unwrap_err().to_string();
            assert!(!error.lines().skip(1).any(|line| line.contains("__")), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_or_asks_for_help_is_left_to_the_whole_description() {
        for text in [
            "kiln",
            "kiln clone",
            "kiln clone web",
            "kiln clone web d e",
            "kiln clone --help",
            "kiln clone -V",
            "kiln clone web d --clone nothing",
            "kiln clone web d --version",
            "kiln --home clone web d",
            "kiln -q clone web d",
            "kiln ls",
            "kiln --version",
        ] {
            assert!(parse_alone(&line(text)).is_none(), "{text}");
        }
    }
}
