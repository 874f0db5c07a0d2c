//! Stops the guest.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::sync;
use rustix::mount::{MountFlags, mount_remount};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::system::{RebootCommand, reboot};

use super::boot::{pause, read_attribute};
use super::console::log;
use super::raw;
use super::reaper::Reaper;
use super::server::Server;
use crate::message::{AgentState, ShutdownMode};

/// How long a guest that cannot boot waits for a host to hear why.
const REPORT_WAIT: Duration = Duration::from_secs(5);

/// How long killed processes may take to end.
const KILL_WAIT: Duration = Duration::from_secs(2);

/// How long the last frames may take to be written.
const DRAIN_WAIT: Duration = Duration::from_millis(500);

/// Where the programs are that ask an init to stop the machine.
const PROGRAM_DIRS: [&str; 4] = ["/sbin", "/usr/sbin", "/bin", "/usr/bin"];

/// systemd's real-time signals for a power-off and a reboot: `SIGRTMIN+4` and `SIGRTMIN+5`.
const SYSTEMD_POWEROFF: i32 = 34 + 4;
const SYSTEMD_REBOOT: i32 = 34 + 5;

/// Reports that the guest cannot boot, and powers off.
pub(super) fn fail(server: &Server, reason: String) -> ! {
    log(&reason);
    server.set_state(AgentState::Failed { reason });
    server.wait_reported(Instant::now() + REPORT_WAIT);
    restart(ShutdownMode::Poweroff)
}

/// As PID 1: ends every process and stops the machine.
pub(super) fn stop(server: &Server, reaper: &Reaper, mode: ShutdownMode, grace: Duration) -> ! {
    server.begin_shutdown();
    kill_all(Signal::TERM);
    // A stopped process does not take the signal.
    kill_all(Signal::CONT);
    if !reaper.wait_none(Instant::now() + grace) {
        kill_all(Signal::KILL);
        reaper.wait_none(Instant::now() + KILL_WAIT);
    }
    server.wait_reported(Instant::now() + DRAIN_WAIT);
    restart(mode)
}

/// Beside an image's init: asks it to stop the machine, and stops it when it does not.
pub(super) fn stop_beside_init(server: &Server, mode: ShutdownMode, grace: Duration) -> ! {
    // Not every init leaves the filesystems clean.
    sync();
    if ask_init(mode) {
        pause(grace);
        log("the image's init did not stop the guest in time");
    } else {
        log("the image's init cannot be asked to stop the guest");
        kill_all(Signal::TERM);
        pause(grace.min(KILL_WAIT));
    }
    server.wait_reported(Instant::now() + DRAIN_WAIT);
    restart(mode)
}

/// Asks an image's init to stop the machine; `false` when there is no way to.
fn ask_init(mode: ShutdownMode) -> bool {
    if read_attribute("/proc/1/comm".as_ref()).as_deref() == Some("systemd") {
        let number = match mode {
            ShutdownMode::Poweroff => SYSTEMD_POWEROFF,
            ShutdownMode::Reboot => SYSTEMD_REBOOT,
        };
        if raw::signal(number).is_some_and(|signal| kill_process(Pid::INIT, signal).is_ok()) {
            return true;
        }
    }
    let program = match mode {
        ShutdownMode::Poweroff => "poweroff",
        ShutdownMode::Reboot => "reboot",
    };
    PROGRAM_DIRS.into_iter().any(|dir| Command::new(format!("{dir}/{program}")).spawn().is_ok())
}

fn kill_all(signal: Signal) {
    // Group 1 is -1 for the kernel: every process but PID 1 and the caller.
    let _ = kill_process_group(Pid::INIT, signal);
}

fn restart(mode: ShutdownMode) -> ! {
    sync();
    // A root that is busy is clean after the sync. Of one that is laid over another the scratch disk stays mounted: its journal
    // is replayed at the next start.
    let _ = mount_remount("/", MountFlags::RDONLY, c"");
    sync();
    let command = match mode {
        ShutdownMode::Poweroff => RebootCommand::PowerOff,
        ShutdownMode::Reboot => RebootCommand::Restart,
    };
    if let Err(error) = reboot(command) {
        log(format!("cannot stop the machine: {error}"));
    }
    loop {
        // PID 1 must not end: the kernel would panic.
        thread::park();
    }
}
