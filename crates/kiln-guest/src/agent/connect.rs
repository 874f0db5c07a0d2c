//! A connection to a port of the guest, as a stream carries it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use super::probe;
use super::stream::{AgentStream, Input};
use crate::error::RemoteError;
use crate::frame::Channel;
use crate::limits::{CONNECT_TIMEOUT, DATA_CHUNK_BYTES};
use crate::message::Opened;

/// Stack of the thread that writes to the port.
const WRITER_STACK_BYTES: usize = 64 * 1024;

/// Connects, and carries bytes until both directions have ended. Each ends by itself: what the port was sent before the
/// host's end still comes out of it, and so the other way round.
pub(super) fn run(stream: &Arc<AgentStream>, input: Receiver<Input>, port: NonZeroU16) {
    let socket = match probe::connect_within(port, CONNECT_TIMEOUT) {
        Ok(socket) => Arc::new(socket),
        Err(error) => {
            return stream.fail(&RemoteError::from_io(format!("cannot connect to port {port}"), &error));
        }
    };
    // Small pieces are what a terminal sends, and the host has waited for them already.
    let _ = socket.set_nodelay(true);
    stream.opened(&Opened::default());
    stream.set_socket(&socket);
    let (done, written) = mpsc::channel();
    let (reading, target) = (Arc::clone(stream), Arc::clone(&socket));
    let writer = thread::Builder::new().name("port".to_owned()).stack_size(WRITER_STACK_BYTES);
    if let Err(error) = writer.spawn(move || write(&reading, &input, &target, done)) {
        return stream.fail(&RemoteError::from_io(format!("cannot serve port {port}"), &error));
    }
    match read(stream, &socket) {
        Ok(true) => {}
        // Nobody listens any more.
        Ok(false) => return,
        Err(error) => return stream.fail(&RemoteError::from_io(format!("port {port}"), &error)),
    }
    stream.eof(Channel::Stdout);
    // The writer tells of its end by leaving.
    let _ = written.recv();
    stream.finish(Ok(()));
}

/// Sends what comes from the port; tells whether its end was seen, and not the stream's.
fn read(stream: &AgentStream, mut socket: &TcpStream) -> io::Result<bool> {
    let mut buffer = vec![0; DATA_CHUNK_BYTES];
    loop {
        let Some(credit) = stream.take_credit() else { return Ok(false) };
        let room = buffer.get_mut(..credit.min(DATA_CHUNK_BYTES)).unwrap_or_default();
        let count = match socket.read(room) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                stream.send(Channel::Stdout, &[], credit);
                continue;
            }
            Err(error) => return Err(error),
        };
        if !stream.send(Channel::Stdout, buffer.get(..count).unwrap_or_default(), credit) {
            return Ok(false);
        }
        if count == 0 {
            return Ok(true);
        }
    }
}

/// Writes what comes from the host. Lets go of `done` once the port gets nothing more.
fn write(stream: &AgentStream, input: &Receiver<Input>, mut socket: &TcpStream, done: Sender<()>) {
    let mut done = Some(done);
    while let Ok(Input::Data(bytes)) = input.recv() {
        // A port that was closed is told by who reads it; what it does not want is dropped, so that the host is not
        // held up.
        if done.is_some() && socket.write_all(&bytes).is_err() {
            done = None;
        }
        stream.consumed(bytes.len());
    }
    let _ = socket.shutdown(Shutdown::Write);
}
