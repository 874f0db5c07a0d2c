//! Who talks to a supervisor: commands over the control socket, and the owner by being there.

use super::desk::{Desk, News, Reply};
use crate::EngineResult;
use crate::control::{Answer, Ask, CONTROL_SOCKET, IS_SUSPENDING, read_line, write_line};
use kiln_core::machine::Phase;
use kiln_guest::limits::RELAY_CLIENTS_MAX;
use kiln_guest::relay::Relay;
use kiln_sys::process::poll_within;
use kiln_sys::{IoResultExt as _, socket};
use rustix::event::{PollFd, PollFlags};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvError, RecvTimeoutError, channel};
use std::time::Duration;

/// How long a client may take to ask.
const ASK_WITHIN: Duration = Duration::from_secs(10);
/// How long a command to the machine monitor may take: less than a client waits for the answer.
const COMMAND_WITHIN: Duration = Duration::from_secs(9);

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
            write_line(&mut stream, &Answer::ok())
        }
        Ask::Pause => write_line(&mut stream, &command(desk, News::Pause)),
        Ask::Resume => write_line(&mut stream, &command(desk, News::Resume)),
        Ask::Save { into, memory } => write_line(&mut stream, &save(desk, into, memory)),
        Ask::Capture { into } => {
            // A capture is the end of this process, and its answer comes before that.
            let _owed = desk.owe_answer();
            write_line(&mut stream, &capture(desk, into))
        }
        Ask::Suspend => {
            // A suspension is the end of this process, and its answer comes before that.
            let _owed = desk.owe_answer();
            write_line(&mut stream, &suspend(desk))
        }
        Ask::Ready => match desk.wait_ready(&stream)? {
            true => write_line(&mut stream, &Answer::ok()),
            false => Ok(()),
        },
        Ask::Agent => match agent(desk) {
            Ok(relay) => {
                write_line(&mut stream, &Answer::ok())?;
                stream.set_read_timeout(None)?;
                relay.serve_client(stream)
            }
            Err(reason) => write_line(&mut stream, &Answer::Refused { reason }),
        },
    }
}

/// Has a command done by the thread that drives the machine. Where that could not hear it soon, it is refused here.
fn command(desk: &Desk, news: impl FnOnce(Reply) -> News) -> Answer {
    let refused = |reason: &str| Answer::Refused { reason: reason.to_owned() };
    let phase = desk.phase();
    if !matches!(phase, Phase::Running | Phase::Paused) {
        return refused(&format!("it is {phase}"));
    }
    let (reply, said) = Reply::new();
    desk.post(news(reply));
    match said.recv_timeout(COMMAND_WITHIN) {
        Ok(Ok(already)) => Answer::Ok { already },
        Ok(Err(reason)) => Answer::Refused { reason },
        Err(RecvTimeoutError::Timeout) => refused("the machine monitor has not answered yet"),
        Err(RecvTimeoutError::Disconnected) => refused("it has ended"),
    }
}

/// Has the machine captured by the thread that drives it.
fn capture(desk: &Desk, into: PathBuf) -> Answer {
    let (reply, said) = channel();
    desk.post(News::Capture { into, reply });
    match said.recv() {
        Ok(Ok(captured)) => {
            Answer::Captured { paused_us: u64::try_from(captured.paused.as_micros()).unwrap_or(u64::MAX) }
        }
        Ok(Err(reason)) => Answer::Refused { reason },
        Err(RecvError) => Answer::Refused { reason: "it has ended".to_owned() },
    }
}

/// Has the machine saved by the thread that drives it.
fn save(desk: &Desk, into: PathBuf, memory: bool) -> Answer {
    let (reply, said) = channel();
    desk.post(News::Save { into, memory, reply });
    match said.recv() {
        Ok(Ok(saved)) => Answer::Saved(saved),
        Ok(Err(reason)) => Answer::Refused { reason },
        Err(RecvError) => Answer::Refused { reason: "it has ended".to_owned() },
    }
}

/// Has the machine suspended by the thread that drives it, which takes as long as its memory is large.
fn suspend(desk: &Desk) -> Answer {
    let phase = desk.phase();
    if !matches!(phase, Phase::Running | Phase::Paused) {
        return Answer::Refused { reason: format!("it is {phase}") };
    }
    let (reply, said) = Reply::new();
    desk.post(News::Suspend(reply));
    match said.recv() {
        Ok(Ok(already)) => Answer::Ok { already },
        Ok(Err(reason)) => Answer::Refused { reason },
        Err(RecvError) => Answer::Refused { reason: "it has ended".to_owned() },
    }
}

/// Returns the way to the agent, or why there is none.
fn agent(desk: &Desk) -> Result<Arc<Relay>, String> {
    if desk.phase() == Phase::Paused {
        return Err("it is paused".to_owned());
    }
    if !desk.count_session() {
        return Err(IS_SUSPENDING.to_owned());
    }
    match desk.relay() {
        Some(relay) if !relay.has_room() => {
            Err(format!("it serves {RELAY_CLIENTS_MAX} clients already, the most there may be"))
        }
        Some(relay) => Ok(relay),
        None => Err("the guest's agent is not up yet".to_owned()),
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
        assert_eq!(read_line::<Answer>(&mut early).unwrap(), Answer::ok());
        served.join().unwrap().unwrap();
        let (mut late, served) = asking(&desk, &Ask::Ready);
        assert_eq!(read_line::<Answer>(&mut late).unwrap(), Answer::ok());
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

    /// Asks with these bytes; returns the answer. `driver` stands for the thread that drives the machine.
    fn answer(desk: &Arc<Desk>, line: &[u8], driver: impl FnOnce(&Desk) + Send) -> Answer {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        io::Write::write_all(&mut ours, line).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| serve(theirs, desk).unwrap());
            driver(desk);
            read_line(&mut ours).unwrap()
        })
    }

    /// Takes the news a command becomes.
    fn commands(desk: &Desk) -> Vec<News> {
        let fd = desk.fd();
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        poll_within(&mut fds, Some(ASK_WITHIN)).unwrap();
        desk.take()
    }

    #[test]
    fn a_pause_is_answered_by_who_drives_the_machine() {
        let desk = Desk::new().unwrap();
        desk.set_phase(Phase::Running);
        for said in [Ok(false), Ok(true), Err("it cannot".to_owned())] {
            let expected = match &said {
                Ok(already) => Answer::Ok { already: *already },
                Err(reason) => Answer::Refused { reason: reason.clone() },
            };
            let got = answer(&desk, b"{\"ask\":\"pause\"}\n", |desk| match commands(desk).pop() {
                Some(News::Pause(reply)) => reply.give(said),
                other => panic!("{other:?}"),
            });
            assert_eq!(got, expected);
        }
        let lost = answer(&desk, b"{\"ask\":\"resume\",\"new\":1}\n", |desk| drop(commands(desk)));
        assert_eq!(lost, Answer::Refused { reason: "it has ended".to_owned() });
    }

    #[test]
    fn what_a_phase_does_not_allow_is_refused_without_asking() {
        let desk = Desk::new().unwrap();
        let refused = |line: &[u8]| match answer(&desk, line, |_| {}) {
            Answer::Refused { reason } => reason,
            other => panic!("{other:?}"),
        };
        for phase in [Phase::Starting, Phase::Stopping, Phase::Stopped, Phase::Failed] {
            desk.set_phase(phase);
            assert_eq!(refused(b"{\"ask\":\"pause\"}\n"), format!("it is {phase}"));
            assert_eq!(refused(b"{\"ask\":\"resume\"}\n"), format!("it is {phase}"));
        }
        desk.set_phase(Phase::Paused);
        assert_eq!(refused(b"{\"ask\":\"agent\"}\n"), "it is paused");
        assert!(desk.take().is_empty());
    }

    #[test]
    fn what_is_no_question_is_refused_in_words() {
        let desk = Desk::new().unwrap();
        desk.set_phase(Phase::Running);
        for line in [
            &b"{\"ask\":\"hibernate\"}\n"[..],
            b"{\"ask\":\"pause\"\n",
            b"{\"ask\":[\"pause\"]}\n",
            b"\"pause\"\n",
            b"\n",
            b"\xff\xfe\n",
        ] {
            assert!(matches!(answer(&desk, line, |_| {}), Answer::Refused { .. }));
        }
        assert!(desk.take().is_empty());
    }
}
