//! The agent: the guest's side of the channel.
//!
//! One program has four modes, chosen by its arguments: PID 1 of an initramfs, the daemon beside an image's
//! own init, the trampoline every program is started through, and, for tests, a server on a unix socket.

#![expect(
    clippy::disallowed_methods,
    reason = "the agent runs inside the guest, not on the host: kiln-sys is not there"
)]

mod boot;
mod channel;
mod configure;
mod console;
mod daemon;
mod exec;
mod files;
mod grow;
mod init;
mod link;
mod modules;
mod mounts;
mod netlink;
mod network;
mod port;
mod power;
mod probe;
mod process;
mod raw;
mod reaper;
mod server;
mod socket;
mod stream;
mod trampoline;
mod tree;
mod user;
mod vsock;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit code of wrong arguments.
const EXIT_USAGE: u8 = 2;

/// Runs the agent in the mode its arguments (without the program's name) ask for.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let words: Vec<Option<&str>> = arguments.iter().map(|a| a.to_str()).collect();
    match (words.as_slice(), arguments.as_slice()) {
        ([Some(trampoline::MODE)], _) => trampoline::run(),
        ([Some(daemon::MODE), Some(channel), Some(session), Some(boot_id)], _) => {
            daemon::run(channel, session, boot_id)
        }
        ([Some("serve"), Some("--socket"), _, rest @ ..], [_, _, path, ..]) => {
            let pretend = rest == [Some("--pretend-configure")];
            if !pretend && !rest.is_empty() {
                return usage();
            }
            socket::run(&PathBuf::from(path), pretend)
        }
        // The kernel passes unknown words of its command line to PID 1.
        _ if rustix::process::getpid().is_init() => init::run(),
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    console::log("usage: kiln-agent serve --socket PATH [--pretend-configure]");
    ExitCode::from(EXIT_USAGE)
}
