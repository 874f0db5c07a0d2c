//! Who talks to a supervisor: commands over the control socket, and the owner by being there.

use super::desk::{Desk, News};
use crate::EngineResult;
use crate::control::{Answer, Ask, CONTROL_SOCKET, read_line, write_line};
use kiln_guest::limits::RELAY_CLIENTS_MAX;
use kiln_sys::process::poll_within;
use kiln_sys::{IoResultExt as _, socket};
use rustix::event::{PollFd, PollFlags};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a client may take to ask.
const ASK_WITHIN: Duration = Duration::from_secs(10);

/// Listens on the machine's control socket.
pub(super) fn listen(dir: &Path, desk: &Arc<Desk>) -> EngineResult<()> {
    let listener = socket::listen(dir, CONTROL_SOCKET)?;
    let desk = Arc::clone(desk);
    std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                let desk = Arc::clone(&desk);
                // A client that cannot be served is dropped, and sees its connection end.
                let _ =
                    std::thread::Builder::new().name("client".to_owned()).spawn(move || serve(stream, &desk));
            }
        })
        .at("start", "the control thread")?;
    Ok(())
}

fn serve(mut stream: UnixStream, desk: &Desk) -> io::Result<()> {
    stream.set_read_timeout(Some(ASK_WITHIN))?;
    let ask: Ask = match read_line(&mut stream) {
        Ok(ask) => ask,
        Err(error) => return write_line(&mut stream, &Answer::Refused { reason: error.to_string() }),
    };
    match ask {
        Ask::Stop { grace_ms } => {
            desk.post(News::StopRequested { grace: Duration::from_millis(grace_ms) });
            write_line(&mut stream, &Answer::Ok)
        }
        Ask::Ready => match desk.wait_ready(&stream)? {
            true => write_line(&mut stream, &Answer::Ok),
            false => Ok(()),
        },
        Ask::Agent => match desk.relay() {
            Some(relay) if !relay.has_room() => {
                let reason = format!("it serves {RELAY_CLIENTS_MAX} clients already, the most there may be");
                write_line(&mut stream, &Answer::Refused { reason })
            }
            Some(relay) => {
                write_line(&mut stream, &Answer::Ok)?;
                stream.set_read_timeout(None)?;
                relay.serve_client(stream)
            }
            None => {
                let reason = "the guest's agent is not up yet".to_owned();
                write_line(&mut stream, &Answer::Refused { reason })
            }
        },
    }
}

/// Watches whether anybody still reads this process's standard output.
pub(super) fn watch_owner(desk: &Arc<Desk>) -> EngineResult<()> {
    let desk = Arc::clone(desk);
    std::thread::Builder::new()
        .name("owner".to_owned())
        .spawn(move || {
            let stdout = io::stdout();
            loop {
                let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
                match poll_within(&mut fds, None) {
                    Ok(1..) => return desk.post(News::OwnerLost),
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        })
        .at("start", "the owner's thread")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(desk: &Arc<Desk>, ask: &Ask) -> (UnixStream, std::thread::JoinHandle<io::Result<()>>) {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        write_line(&mut ours, ask).unwrap();
        let desk = Arc::clone(desk);
        (ours, std::thread::spawn(move || serve(theirs, &desk)))
    }

    #[test]
    fn whoever_waits_for_readiness_is_answered_then_and_not_before() {
        let desk = Desk::new().unwrap();
        let (mut early, served) = asking(&desk, &Ask::Ready);
        early.set_nonblocking(true).unwrap();
        let none = read_line::<Answer>(&mut early).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
        early.set_nonblocking(false).unwrap();
        desk.set_ready();
        assert_eq!(read_line::<Answer>(&mut early).unwrap(), Answer::Ok);
        served.join().unwrap().unwrap();
        let (mut late, served) = asking(&desk, &Ask::Ready);
        assert_eq!(read_line::<Answer>(&mut late).unwrap(), Answer::Ok);
        served.join().unwrap().unwrap();
    }

    #[test]
    fn a_client_that_waits_no_more_is_let_go() {
        let desk = Desk::new().unwrap();
        let (gone, served) = asking(&desk, &Ask::Ready);
        drop(gone);
        served.join().unwrap().unwrap();
    }

    #[test]
    fn a_client_has_so_much_time_to_ask() {
        let desk = Desk::new().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        // The same socket, to look at it afterwards.
        let seen = theirs.try_clone().unwrap();
        drop(ours);
        // Whoever asked is gone, so that the answer may fail.
        let _ = serve(theirs, &desk);
        assert_eq!(seen.read_timeout().unwrap(), Some(Duration::from_secs(10)));
    }
}
