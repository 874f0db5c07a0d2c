//! The agent as PID 1.
//!
//! ```text
//! mount, load modules, open the port (booting) -> mount root, switch -> image's init, daemon beside it
//!                                                                     \-> stay: entry point, serve, reap
//! ```
//!
//! Where the kernel's command line says so, the entry point waits for the machine's environment and secrets.
//!
//! PID 1 never ends: a guest that cannot boot says so over the channel and powers off.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::system::RebootCommand;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::boot::{is_private, new_boot_id, read_config};
use super::channel::{Handed, Served};
use super::console::log;
use super::launch::{self, DEFAULT_PATH, Launched, Spec, Streams, check_format};
use super::machine::Machine;
use super::process::Process;
use super::reaper::Reaper;
use super::server::{Platform, Server, spawn_worker};
use super::{configure, daemon, grow, modules, mounts, power};
use crate::config::{Entrypoint, Init, InitConfig};
use crate::error::{ErrorKind, RemoteError};
use crate::flow::lock;
use crate::message::{AgentEvent, AgentState, Configure, Configured, ExitStatus, ShutdownMode};
use crate::name::GuestPath;
use crate::private::Environment;

/// Where an image's init may be.
const IMAGE_INITS: [&str; 4] =
    ["/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/bin/init"];

/// Time processes have to end when the guest stops by itself.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// What makes PID 1 do something.
enum Order {
    Signal(i32),
    EntrypointExited(ExitStatus),
    Shutdown(ShutdownMode, Duration),
    /// The machine's secrets and this environment are there; the answer says whether what waited for them could be started.
    Private(Environment, Sender<Result<(), String>>),
}

struct GuestPlatform {
    orders: Mutex<Sender<Order>>,
    machine: Machine,
}

impl Platform for GuestPlatform {
    fn configure(&self, request: &Configure) -> Result<Configured, RemoteError> {
        let configured = configure::apply(request)?;
        if request.is_private() {
            let (answer, answered) = mpsc::channel();
            let environment = request.environment.clone().unwrap_or_default();
            // PID 1 takes orders as long as it lives, and answers unless it stops.
            let _ = lock(&self.orders).send(Order::Private(environment, answer));
            if let Ok(Err(reason)) = answered.recv() {
                return Err(RemoteError::new(ErrorKind::Io, reason));
            }
        }
        Ok(configured)
    }

    fn machine(&self) -> Option<&Machine> {
        Some(&self.machine)
    }

    fn shutdown(&self, mode: ShutdownMode, grace: Duration) {
        // PID 1 takes orders as long as it lives.
        let _ = lock(&self.orders).send(Order::Shutdown(mode, grace));
    }
}

pub(super) fn run() -> ExitCode {
    mounts::early();
    mounts::attach_console();
    let (orders, taken) = mpsc::channel();
    let boot_id = new_boot_id();
    let reaper = match Reaper::start() {
        Ok(reaper) => reaper,
        Err(error) => {
            log(format!("cannot start a thread: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let platform = Box::new(GuestPlatform { orders: Mutex::new(orders.clone()), machine: Machine::live() });
    let server = Server::new(platform, reaper, boot_id.clone(), AgentState::Booting);
    let Err(reason) = boot(&server, &boot_id, &orders, &taken);
    power::fail(&server, reason)
}

enum Never {}

fn boot(
    server: &Arc<Server>,
    boot_id: &str,
    orders: &Sender<Order>,
    taken: &Receiver<Order>,
) -> Result<Never, String> {
    let config = read_config()?;
    let loaded = modules::load(&config.modules);
    let served = Served::start(server).inspect_err(log_failure).ok();
    loaded?;
    let root = mounts::mount_root(&config)?;
    grow::root(&config.root, root)?;
    mounts::switch_root()?;
    match image_init(&config)? {
        Some(init) => hand_over(server, served, boot_id, &init),
        None => stay(server, config.entrypoint, orders, taken),
    }
}

fn log_failure(reason: &String) {
    log(reason);
}

/// Returns the image's init when it is to be PID 1.
fn image_init(config: &InitConfig) -> Result<Option<String>, String> {
    let runnable = |path: &str| {
        Path::new(path).is_file() && accessat(CWD, path, Access::EXEC_OK, AtFlags::empty()).is_ok()
    };
    match &config.init {
        Init::Agent => Ok(None),
        Init::Auto if config.entrypoint.is_some() => Ok(None),
        Init::Auto => Ok(IMAGE_INITS.into_iter().find(|path| runnable(path)).map(str::to_owned)),
        Init::Image(path) if runnable(path.as_str()) => {
            check_format(Path::new(path.as_str())).map_err(|reason| format!("the image's init: {reason}"))?;
            Ok(Some(path.as_str().to_owned()))
        }
        Init::Image(path) => Err(missing_init(path)),
    }
}

fn missing_init(path: &GuestPath) -> String {
    format!("the image's init {path} does not exist or is not executable")
}

/// Leaves the channel to a daemon and becomes the image's init. The daemon hears whether that worked from a
/// pipe that the exec closes.
fn hand_over(
    server: &Arc<Server>,
    served: Option<Served>,
    boot_id: &str,
    init: &str,
) -> Result<Never, String> {
    let mut status: Option<File> = None;
    if let Some(served) = served {
        let told = start_daemon(server, served.stop(), boot_id);
        status = Some(told.map_err(|error| format!("cannot start the agent's daemon: {error}"))?);
    }
    let error = Command::new(init)
        .arg0(init)
        .env_clear()
        .envs([("PATH", DEFAULT_PATH), ("HOME", "/"), ("TERM", "linux")])
        .exec();
    let reason = format!("cannot run the image's init {init}: {error}");
    let Some(mut status) = status else { return Err(reason) };
    log(&reason);
    // The daemon reports it and powers off.
    let _ = status.write_all(reason.as_bytes());
    drop(status);
    loop {
        thread::park();
    }
}

fn start_daemon(server: &Server, handed: Handed, boot_id: &str) -> std::io::Result<File> {
    let (reading, writing) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut command = Command::new("/proc/self/exe");
    let session = handed.session.as_deref().unwrap_or(daemon::NO_SESSION);
    command.arg0(daemon::NAME).args([daemon::MODE, handed.channel, session, boot_id]).env_clear();
    command.stdin(handed.stdin.map_or_else(Stdio::null, Stdio::from)).stdout(Stdio::from(reading));
    server.reaper().spawn(|| command.spawn().map(|child| child.id()))?;
    Ok(File::from(writing))
}

/// Stays PID 1 until the guest stops.
fn stay(
    server: &Arc<Server>,
    entrypoint: Option<Entrypoint>,
    orders: &Sender<Order>,
    taken: &Receiver<Order>,
) -> Result<Never, String> {
    // Ctrl-Alt-Del arrives as SIGINT instead of restarting at once.
    let _ = rustix::system::reboot(RebootCommand::CadOff);
    take_signals(orders).map_err(|error| format!("cannot take signals: {error}"))?;
    if let (Some(machine), Some(entrypoint)) = (server.served_machine(), &entrypoint) {
        machine.set_purpose_environment(&entrypoint.env);
    }
    let mut waiting = entrypoint;
    let mut entrypoint = None;
    if !is_private() {
        entrypoint = waiting.take().map(|waited| start_entrypoint(server, waited, orders)).transpose()?;
    }
    server.set_state(AgentState::Ready);
    loop {
        let order = taken.recv().map_err(|_| "no one gives orders any more".to_owned())?;
        let (mode, grace) = match order {
            Order::Signal(number) => match &entrypoint {
                Some(process) => {
                    process.signal(number);
                    continue;
                }
                None if number == SIGINT => (ShutdownMode::Reboot, STOP_GRACE),
                None if number == SIGTERM => (ShutdownMode::Poweroff, STOP_GRACE),
                None => continue,
            },
            Order::EntrypointExited(status) => {
                server.event(&AgentEvent::EntrypointExited { status });
                (ShutdownMode::Poweroff, STOP_GRACE)
            }
            Order::Shutdown(mode, grace) => (mode, grace),
            Order::Private(environment, answer) => {
                let told = match waiting.take() {
                    Some(mut waited) => {
                        waited.env.extend(environment.into_iter().map(|(name, value)| (name.into(), value)));
                        start_entrypoint(server, waited, orders).map(|process| entrypoint = Some(process))
                    }
                    None => Ok(()),
                };
                // Whoever asked may have given up.
                let _ = answer.send(told);
                continue;
            }
        };
        power::stop(server, server.reaper(), mode, grace);
    }
}

fn take_signals(orders: &Sender<Order>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2])?;
    let orders = orders.clone();
    spawn_worker("signals", move || {
        for number in &mut signals {
            let _ = orders.send(Order::Signal(number));
        }
    })
}

fn start_entrypoint(
    server: &Server,
    entrypoint: Entrypoint,
    orders: &Sender<Order>,
) -> Result<Arc<Process>, String> {
    let program = entrypoint.argv.first().cloned().unwrap_or_default();
    let failed = |error: std::io::Error| format!("cannot start the entry point {program}: {error}");
    let null = File::open("/dev/null").map_err(failed)?;
    let console = || {
        let console = File::options().write(true).open("/dev/console");
        console.or_else(|_| File::options().write(true).open("/dev/null")).map(OwnedFd::from)
    };
    let (stdout, stderr) = (console().map_err(failed)?, console().map_err(failed)?);
    let spec = Spec::for_entrypoint(entrypoint);
    let streams = Streams { stdin: null.into(), stdout, stderr };
    let Launched { process, exited } = launch::start(server.reaper(), &spec, streams, None)
        .map_err(|error| format!("cannot start the entry point {program}: {error}"))?;
    let orders = orders.clone();
    spawn_worker("entrypoint", move || {
        if let Ok(status) = exited.recv() {
            let _ = orders.send(Order::EntrypointExited(status));
        }
    })
    .map_err(failed)?;
    Ok(process)
}
