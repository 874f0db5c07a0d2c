use super::*;
use std::io::{BufRead, BufReader};
use std::thread::JoinHandle;

const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";
const SOON: Duration = Duration::from_secs(20);

/// Runs a monitor that greets, answers the capabilities and then each command with the next of `answers`, in which
/// `ID` stands for the command's id. It closes after the last one.
fn monitor(answers: Vec<&'static str>) -> (UnixStream, JoinHandle<Vec<Value>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let mut seen = Vec::new();
        let mut out = theirs.try_clone().unwrap();
        out.write_all(GREETING.as_bytes()).unwrap();
        let mut answers = std::iter::once("{\"return\": {}, \"id\": ID}\n").chain(answers).peekable();
        for line in BufReader::new(theirs).lines() {
            let Ok(command) = serde_json::from_str::<Value>(&line.unwrap()) else { break };
            let answer = answers.next().unwrap_or_default().replace("ID", &command["id"].to_string());
            seen.push(command);
            if out.write_all(answer.as_bytes()).is_err() || answers.peek().is_none() {
                break;
            }
        }
        seen
    });
    (ours, thread)
}

fn raw(bytes: &'static [u8]) -> UnixStream {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(bytes).unwrap();
    ours
}

#[test]
fn commands_are_answered_by_id_and_events_kept() {
    let (stream, thread) = monitor(vec![
        "{\"event\": \"NEW_IN_9\", \"data\": {\"a\": [1]}, \"timestamp\": {}}\r\n{\"return\": 7, \"id\": 1}\n{\"return\": {\"running\": true}, \"id\": ID}\n",
        "\n{\"return\": null, \"id\": ID}\n{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-reset\"}}\n",
    ]);
    let mut qmp = Qmp::open(stream, SOON).unwrap();
    assert_eq!(qmp.execute("query-status", None, SOON).unwrap()["running"], true);
    assert_eq!(qmp.execute("x", Some(json!({"k": "v, \"w\""})), SOON).unwrap(), Value::Null);
    let seen = thread.join().unwrap();
    assert_eq!(seen[2], json!({"execute": "x", "arguments": {"k": "v, \"w\""}, "id": 3}));
    let events = qmp.take_events().unwrap();
    assert_eq!(events[0].name, "NEW_IN_9");
    assert_eq!((events[1].name.as_str(), events[1].text("reason")), ("SHUTDOWN", Some("guest-reset")));
    assert!(matches!(qmp.take_events(), Err(QmpError::Closed)));
    assert!(matches!(qmp.execute("cont", None, SOON), Err(QmpError::Closed)));
}

#[test]
fn a_refusal_has_class_and_words() {
    let (stream, thread) = monitor(vec![
        "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"The command x has not been found\"}, \"id\": ID}\n",
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no id\"}}\n",
    ]);
    let mut qmp = Qmp::open(stream, SOON).unwrap();
    let error = qmp.execute("x", None, SOON).unwrap_err();
    assert_eq!(error.to_string(), "`x` was refused: The command x has not been found (CommandNotFound)");
    assert!(matches!(qmp.execute("y", None, SOON), Err(QmpError::Refused { .. })));
    thread.join().unwrap();
}

#[test]
fn garbage_and_silence_are_told_apart() {
    assert!(matches!(Qmp::open(raw(b"SSH-2.0\n"), SOON), Err(QmpError::Garbage(_))));
    assert!(matches!(Qmp::open(raw(b"[1]\n"), SOON), Err(QmpError::Garbage(_))));
    assert!(matches!(Qmp::open(raw(b"{}\n"), SOON), Err(QmpError::Garbage(_))));
    assert!(matches!(Qmp::open(raw(b"{\"event\":\"STOP\"}\n"), SOON), Err(QmpError::Garbage(_))));
    assert!(matches!(Qmp::open(raw(b"{\"QMP\": {}, \"ver"), SOON), Err(QmpError::Closed)));
    assert!(matches!(Qmp::open(raw(b""), SOON), Err(QmpError::Closed)));
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let error = Qmp::open(ours, Duration::from_millis(20)).unwrap_err();
    assert_eq!(error.to_string(), "no answer to `greeting` within 20 ms");
}

#[test]
fn an_overlong_line_ends_the_connection() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let chunk = vec![b'x'; 64 << 10];
        // Ends when the reader has given up.
        while theirs.write_all(&chunk).is_ok() {}
    });
    assert!(matches!(Qmp::open(ours, SOON), Err(QmpError::LineTooLong)));
    thread.join().unwrap();
}

#[test]
fn a_command_that_is_not_answered_times_out_and_the_next_is_not_confused() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut out = theirs.try_clone().unwrap();
    out.write_all(GREETING.as_bytes()).unwrap();
    out.write_all(b"{\"return\": {}, \"id\": 1}\n").unwrap();
    let mut qmp = Qmp::open(ours, SOON).unwrap();
    let late = qmp.execute("slow", None, Duration::from_millis(20));
    assert!(matches!(late, Err(QmpError::TimedOut { .. })));
    out.write_all(b"{\"return\": \"late\", \"id\": 2}\n{\"return\": \"now\", \"id\": 3}\n").unwrap();
    assert_eq!(qmp.execute("next", None, SOON).unwrap(), "now");
    drop(theirs);
}

#[test]
fn a_descriptor_arrives_with_its_command() {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use std::io::{IoSliceMut, Seek as _, SeekFrom};
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut out = theirs.try_clone().unwrap();
    out.write_all(GREETING.as_bytes()).unwrap();
    out.write_all(b"{\"return\": {}, \"id\": 1}\n{\"return\": {}, \"id\": 2}\n").unwrap();
    let mut qmp = Qmp::open(ours, SOON).unwrap();
    BufReader::with_capacity(1, theirs.try_clone().unwrap()).lines().next().unwrap().unwrap();
    let scratch = kiln_sys::tool::ScratchDir::new(&std::env::temp_dir()).unwrap();
    let mut file = kiln_sys::fs::create_new(&scratch.path().join("state")).unwrap();
    qmp.execute_with_fd("getfd", Some(json!({"fdname": "state"})), file.as_fd(), SOON).unwrap();
    let mut line = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got =
        recvmsg(&theirs, &mut [IoSliceMut::new(&mut line)], &mut ancillary, RecvFlags::empty()).unwrap();
    let command: Value = serde_json::from_slice(&line[..got.bytes]).unwrap();
    assert_eq!(command, json!({"execute": "getfd", "arguments": {"fdname": "state"}, "id": 2}));
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let [fd] = <[std::os::fd::OwnedFd; 1]>::try_from(fds).unwrap();
    std::fs::File::from(fd).write_all(b"through").unwrap();
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
}

#[test]
fn an_event_is_awaited_and_the_others_stay() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(GREETING.as_bytes()).unwrap();
    theirs.write_all(b"{\"return\": {}, \"id\": 1}\n").unwrap();
    let mut qmp = Qmp::open(ours, SOON).unwrap();
    assert!(qmp.await_event(&["B"], Instant::now()).unwrap().is_none());
    theirs.write_all(b"{\"event\": \"A\"}\n{\"event\": \"B\"}\n{\"event\": \"C\"}\n").unwrap();
    assert_eq!(qmp.await_event(&["B"], Instant::now() + SOON).unwrap().unwrap().name, "B");
    // One that came while another was awaited.
    assert_eq!(qmp.await_event(&["A"], Instant::now()).unwrap().unwrap().name, "A");
    let left: Vec<String> = qmp.take_events().unwrap().into_iter().map(|event| event.name).collect();
    assert_eq!(left, ["C"]);
    drop(theirs);
    assert!(matches!(qmp.await_event(&["B"], Instant::now() + SOON), Err(QmpError::Closed)));
}

#[test]
fn events_are_bounded() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut out = theirs.try_clone().unwrap();
    out.write_all(GREETING.as_bytes()).unwrap();
    out.write_all(b"{\"return\": {}, \"id\": 1}\n").unwrap();
    let mut qmp = Qmp::open(ours, SOON).unwrap();
    assert!(qmp.take_events().unwrap().is_empty());
    for number in 0..EVENTS_MAX + 5 {
        out.write_all(format!("{{\"event\": \"E{number}\"}}\n").as_bytes()).unwrap();
    }
    let events = qmp.take_events().unwrap();
    assert_eq!(events.len(), EVENTS_MAX);
    assert_eq!(events[0].name, "E5");
    drop(theirs);
}
