//! The agent as a plain process on a unix socket: the real code without a machine.
//!
//! One client at a time, as on a virtio-serial port; the next is accepted when it has gone.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use super::console::log;
use super::link::Link;
use super::machine::Machine;
use super::reaper::Reaper;
use super::server::{Platform, Server};
use crate::error::{ErrorKind, RemoteError};
use crate::limits::OUTBOX_BYTES_MAX;
use crate::message::{AgentState, Configure, Configured, ShutdownMode};
use crate::outbox::Outbox;

/// What a plain process makes believe.
pub(super) enum Pretence {
    Nothing,
    /// `Configure` succeeds and changes nothing.
    Configure,
    /// A guest whose root is a directory and whose kernel writes down what it is asked.
    Machine(Machine),
}

struct ProcessPlatform {
    pretence: Pretence,
    stop: Sender<()>,
}

impl Platform for ProcessPlatform {
    fn configure(&self, _request: &Configure) -> Result<Configured, RemoteError> {
        if !matches!(self.pretence, Pretence::Nothing) {
            let notes = vec!["nothing was changed: the agent runs as a plain process".to_owned()];
            return Ok(Configured { interface: None, notes });
        }
        Err(RemoteError::new(ErrorKind::Unsupported, "an agent that is a plain process configures nothing"))
    }

    fn machine(&self) -> Option<&Machine> {
        match &self.pretence {
            Pretence::Machine(machine) => Some(machine),
            _ => None,
        }
    }

    fn shutdown(&self, _mode: ShutdownMode, _grace: Duration) {
        // The process is ending when no one listens.
        let _ = self.stop.send(());
    }
}

/// Serves a socket until a client asks for a shutdown.
pub(super) fn run(path: &Path, pretence: Pretence) -> ExitCode {
    let served = UnixListener::bind(path).and_then(|listener| {
        let (stop, stopped) = mpsc::channel();
        let platform = Box::new(ProcessPlatform { pretence, stop });
        let server = Server::new(platform, Reaper::start()?, super::boot::new_boot_id(), AgentState::Ready);
        let serving = Arc::clone(&server);
        thread::Builder::new().name("accept".to_owned()).spawn(move || {
            for stream in listener.incoming() {
                if let Err(error) = stream.and_then(|stream| serve(&serving, stream)) {
                    log(format!("client: {error}"));
                }
            }
        })?;
        // The sender lives in the server, which outlives this.
        let _ = stopped.recv();
        server.wait_reported(std::time::Instant::now() + Duration::from_secs(1));
        Ok(())
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(format!("cannot serve {}: {error}", path.display()));
            ExitCode::FAILURE
        }
    }
}

fn serve(server: &Arc<Server>, mut stream: UnixStream) -> std::io::Result<()> {
    let outbox = Arc::new(Outbox::new(OUTBOX_BYTES_MAX));
    let mut writer = stream.try_clone()?;
    let writing = Arc::clone(&outbox);
    let writer = thread::Builder::new().name("write".to_owned()).spawn(move || {
        // A failed write is a client that is gone, which the reader sees too.
        let _ = writing.run(&mut writer);
        writing.close();
    })?;
    let link: &mut dyn Link = &mut stream;
    let ended = server.serve(link, &outbox);
    server.end_session();
    outbox.close();
    let _ = stream.shutdown(std::net::Shutdown::Both);
    let _ = writer.join();
    ended.map(|_| ())
}
