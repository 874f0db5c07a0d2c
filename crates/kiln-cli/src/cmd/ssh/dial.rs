//! The hidden command that connects standard input and output with a port of a guest.

use super::super::Context;
use super::super::suspend::tell_woken;
use crate::error::{CliError, CliResult};
use clap::Args;
use kiln_engine::EngineError;
use kiln_engine::ssh::SSH_PORT;
use kiln_guest::SessionError;
use kiln_guest::session::{ConnectionReader, InputWriter};
use kiln_sys::{IoResultExt as _, process};
use std::io::{self, Read as _, Write as _};
use std::num::NonZeroU16;
use std::process::ExitCode;

/// Bytes of one read.
const BUFFER_BYTES: usize = 64 << 10;

#[derive(Debug, Args)]
pub(crate) struct DialArgs {
    machine: String,
    port: NonZeroU16,
}

pub(crate) fn dial(context: &Context, args: &DialArgs) -> CliResult {
    let connection = context.engine.dial(&args.machine, args.port, &mut tell_woken);
    let (writer, reader) = match connection {
        Err(EngineError::Guest(error)) if error.is_refused() && args.port == SSH_PORT => {
            let (machine, reason) = (args.machine.clone(), error.to_string());
            return Err(EngineError::NoSshServer { machine, installed: false, reason }.into());
        }
        other => other?.split(),
    };
    // It ends with the process: a read of standard input cannot be called off.
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || send(writer))
        .at("start", "a thread for standard input")?;
    receive(reader)?;
    Ok(ExitCode::SUCCESS)
}

fn send(mut writer: InputWriter) {
    let mut stdin = io::stdin().lock();
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(read @ 1..) = stdin.read(&mut buffer) {
        if writer.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
    // A connection that has ended is told where it is read.
    let _ = writer.close();
}

fn receive(mut reader: ConnectionReader) -> Result<(), CliError> {
    let broken = |error: io::Error| match error.downcast::<SessionError>() {
        Ok(error) => CliError::from(error),
        Err(source) => kiln_sys::IoError { action: "read", path: "the guest's port".into(), source }.into(),
    };
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = reader.read(&mut buffer).map_err(broken)?;
        if read == 0 {
            break;
        }
        let mut out = io::stdout().lock();
        if out.write_all(&buffer[..read]).and_then(|()| out.flush()).is_err() {
            // Nobody reads any more.
            return Ok(());
        }
    }
    // Whoever reads is to see the end while more may come from there.
    process::close_stdout()?;
    Ok(reader.finish()?)
}
