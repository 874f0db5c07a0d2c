//! A program in the guest on the user's terminal or pipes: bytes, signals and window sizes both ways.

use crate::error::{CliError, EXIT_FAILED};
use crate::signals::{Handled, SignalDesk};
use crate::{env, output};
use kiln_engine::EngineError;
use kiln_guest::message::{ExecRequest, ExitStatus, TtySize};
use kiln_guest::session::{ExecControl, ExecEvent, InputWriter};
use kiln_guest::{ErrorKind, Session, SessionError, SignalNumber};
use kiln_sys::{IoResultExt as _, terminal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Exit code where the guest has no such program, as shells give it.
const EXIT_NOT_FOUND: u8 = 127;
/// Exit code where the guest has it and cannot run it.
const EXIT_NOT_RUNNABLE: u8 = 126;
/// Interrupts after which a program that ignores them is given up.
const PATIENCE: usize = 3;

/// How a program is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attach {
    /// Standard input is handed on.
    pub(crate) stdin: bool,
    /// The program gets a terminal.
    pub(crate) tty: bool,
}

/// Runs a program in the guest to its end and returns the exit code to pass on.
pub(crate) fn exec(
    session: &Session,
    mut request: ExecRequest,
    attach: Attach,
    signals: &SignalDesk,
) -> Result<u8, CliError> {
    let stdin = io::stdin();
    let on_terminal = attach.tty && stdin.is_terminal();
    request.stdin = attach.stdin;
    if attach.tty {
        let (rows, cols) = terminal::size(stdin.as_fd()).unwrap_or((24, 80));
        request.tty = Some(TtySize { rows, cols });
        request.term = Some(env::term());
    }
    let stream = match session.exec(request) {
        Ok(stream) => stream,
        Err(SessionError::Remote(error)) => {
            let code = match error.kind {
                ErrorKind::NotFound => EXIT_NOT_FOUND,
                ErrorKind::Permission => EXIT_NOT_RUNNABLE,
                _ => EXIT_FAILED,
            };
            crate::error::tell(&CliError::Engine(SessionError::Remote(error).into()));
            return Ok(code);
        }
        Err(error) => return Err(EngineError::from(error).into()),
    };
    let (to_guest, control, mut from_guest) = stream.split();
    let raw = if on_terminal { Some(terminal::RawMode::enter(stdin.as_fd())?) } else { None };
    hand_on_signals(signals, &control, attach.tty);
    if attach.stdin {
        // It ends with the process: a read of a terminal cannot be called off.
        std::thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || pump_stdin(to_guest))
            .at("start", "a thread for standard input")?;
    } else {
        drop(to_guest);
    }
    let ended = loop {
        match from_guest.recv() {
            Ok(ExecEvent::Stdout(bytes)) => {
                if write(&mut io::stdout().lock(), &bytes).is_err() {
                    // Nobody reads any more: the program ends as it would on a broken pipe.
                    break Ok(ExitStatus { code: None, signal: Some(13) });
                }
            }
            Ok(ExecEvent::Stderr(bytes)) => {
                let _ = write(&mut io::stderr().lock(), &bytes);
            }
            Ok(ExecEvent::Exit(status)) => break Ok(status),
            Err(error) => break Err(error),
        }
    };
    signals.release();
    drop(raw);
    match ended {
        Ok(status) => Ok(exit_code(status)),
        Err(SessionError::Reset { .. }) => Err(EngineError::Cancelled.into()),
        Err(error) => Err(EngineError::from(error).into()),
    }
}

fn write(to: &mut impl io::Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// Returns the code a shell would give.
fn exit_code(status: ExitStatus) -> u8 {
    let code = match (status.code, status.signal) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => EXIT_FAILED.into(),
    };
    u8::try_from(code & 0xff).unwrap_or(EXIT_FAILED)
}

fn pump_stdin(mut to_guest: InputWriter) {
    let mut stdin = io::stdin().lock();
    let mut buffer = [0; 16 << 10];
    while let Ok(read @ 1..) = stdin.read(&mut buffer) {
        if to_guest.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
    // The program may have ended already.
    let _ = to_guest.close();
}

fn hand_on_signals(signals: &SignalDesk, control: &ExecControl, tty: bool) {
    let control = control.clone();
    let interrupts = Arc::new(AtomicUsize::new(0));
    signals.handle(move |signal| {
        match signal {
            SIGWINCH if tty => {
                if let Some((rows, cols)) = terminal::size(io::stdin().as_fd()) {
                    let _ = control.resize(TtySize { rows, cols });
                }
            }
            SIGWINCH => {}
            SIGINT | SIGTERM | SIGHUP | SIGQUIT
                if interrupts.fetch_add(1, Ordering::Relaxed) + 1 >= PATIENCE =>
            {
                output::tell("given up after repeated interrupts");
                control.reset();
            }
            signal => {
                if let Ok(signal) = SignalNumber::try_from(signal) {
                    let _ = control.signal(signal);
                }
            }
        }
        Handled::Yes
    });
}
