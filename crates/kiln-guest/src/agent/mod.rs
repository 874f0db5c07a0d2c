//! The agent: the guest's side of the channel.
//!
//! One program has four modes, chosen by its arguments: PID 1 of an initramfs, the daemon beside an image's own init that
//! PID 1 leaves, a service of an image that firmware boots, and, for tests, a server on a unix socket.

#![expect(
    clippy::disallowed_methods,
    reason = "the agent runs inside the guest, not on the host: kiln-sys is not there"
)]

mod boot;
mod channel;
mod child;
mod configure;
mod connect;
mod console;
mod daemon;
mod exec;
mod facts;
mod files;
mod grow;
mod hooks;
mod host_keys;
mod identity;
mod init;
mod launch;
mod link;
mod machine;
mod modules;
mod mounts;
mod netlink;
mod network;
mod port;
mod power;
mod pretend;
mod private;
mod probe;
mod process;
mod program;
mod quiesce;
mod raw;
mod reaper;
mod runtime;
mod server;
mod service;
mod socket;
mod stream;
mod tree;
mod user;
mod vsock;
mod workers;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use machine::Machine;
use socket::Pretence;

/// Exit code of wrong arguments.
const EXIT_USAGE: u8 = 2;

/// Runs the agent in the mode its arguments (without the program's name) ask for.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let words: Vec<Option<&str>> = arguments.iter().map(|a| a.to_str()).collect();
    match (words.as_slice(), arguments.as_slice()) {
        ([Some(daemon::MODE), Some(channel), Some(session), Some(boot_id)], _) => {
            daemon::run(channel, session, boot_id)
        }
        ([Some("serve"), Some("--port")], _) => service::run(),
        ([Some("serve"), Some("--socket"), _, rest @ ..], [_, _, path, ..]) => {
            let socket = PathBuf::from(path);
            match (rest, arguments.get(4)) {
                ([], _) => socket::run(&socket, Pretence::Nothing),
                ([Some("--pretend-configure")], _) => socket::run(&socket, Pretence::Configure),
                ([Some("--pretend-root"), _], Some(root)) => {
                    socket::run(&socket, Pretence::Machine(Machine::pretended(root.into())))
                }
                _ => usage(),
            }
        }
        // The kernel passes unknown words of its command line to PID 1.
        _ if rustix::process::getpid().is_init() => init::run(),
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    console::log(
        "usage: kiln-agent serve (--port | --socket PATH [--pretend-configure | --pretend-root DIR])",
    );
    ExitCode::from(EXIT_USAGE)
}
