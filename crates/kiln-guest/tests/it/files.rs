//! Files and trees.

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use kiln_guest::message::{Configure, FileKind, ShutdownMode, WriteFile};
use kiln_guest::probe::{ProbeCheck, Probed};
use kiln_guest::{ErrorKind, GuestPath, Session, SessionError};

use crate::harness::{Agent, assert_ends, noise, soon, tick};

fn write(session: &Session, path: GuestPath, bytes: &[u8], append: bool) -> Result<(), SessionError> {
    let mut writer = session.write_file(WriteFile { path, mode: 0o640, uid: None, gid: None, append })?;
    writer.write_all(bytes).unwrap();
    writer.finish()
}

fn kind<T: std::fmt::Debug>(result: Result<T, SessionError>) -> ErrorKind {
    match result {
        Err(SessionError::Remote(error)) => error.kind,
        other => panic!("{other:?}"),
    }
}

#[test]
fn eight_mebibytes_are_written_and_read() {
    let agent = Agent::start();
    let session = agent.session();
    let sent = noise(8 * 1024 * 1024 + 3);
    write(&session, agent.path("big"), &sent, false).unwrap();
    let mut received = Vec::new();
    session.read_file(agent.path("big"), 0).unwrap().read_to_end(&mut received).unwrap();
    assert!(received == sent);
    let mut tail = Vec::new();
    session.read_file(agent.path("big"), 8 * 1024 * 1024).unwrap().read_to_end(&mut tail).unwrap();
    assert_eq!(tail, &sent[8 * 1024 * 1024..]);
    assert_eq!(std::fs::metadata(agent.file("big")).unwrap().mode() & 0o7777, 0o640);
}

#[test]
fn a_file_is_replaced_at_once_or_not_at_all() {
    let agent = Agent::start();
    let session = agent.session();
    write(&session, agent.path("f"), b"old", false).unwrap();
    let request = WriteFile { path: agent.path("f"), mode: 0o600, uid: None, gid: None, append: false };
    let mut writer = session.write_file(request).unwrap();
    writer.write_all(b"new").unwrap();
    assert_eq!(std::fs::read(agent.file("f")).unwrap(), b"old");
    drop(writer);
    let deadline = soon();
    while std::fs::read_dir(agent.dir()).unwrap().count() > 2 {
        assert!(std::time::Instant::now() < deadline, "the temporary file stays");
        tick();
    }
    assert_eq!(std::fs::read(agent.file("f")).unwrap(), b"old");
    write(&session, agent.path("f"), b"+more", true).unwrap();
    assert_eq!(std::fs::read(agent.file("f")).unwrap(), b"old+more");
    write(&session, agent.path("f"), b"", false).unwrap();
    assert_eq!(std::fs::read(agent.file("f")).unwrap(), b"");
}

#[test]
fn absent_things_are_not_found() {
    let agent = Agent::start();
    let session = agent.session();
    let missing = session.stat(agent.path("missing")).unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
    assert!(missing.to_string().contains("missing"), "{missing}");
    assert_eq!(kind(session.read_file(agent.path("missing"), 0)), ErrorKind::NotFound);
    assert_eq!(kind(session.pack(agent.path("missing"))), ErrorKind::NotFound);
    assert_eq!(kind(session.unpack(agent.path("missing"))), ErrorKind::NotFound);
    assert_eq!(kind(write(&session, agent.path("missing/f"), b"", false)), ErrorKind::NotFound);
    assert_eq!(kind(session.read_file(agent.path(""), 0)), ErrorKind::Invalid);
    assert_eq!(kind(session.configure(Configure::default())), ErrorKind::Unsupported);
}

#[test]
fn stat_describes_without_following() {
    let agent = Agent::start();
    let session = agent.session();
    write(&session, agent.path("f"), b"12345", false).unwrap();
    symlink("f", agent.file("link")).unwrap();
    let file = session.stat(agent.path("f")).unwrap();
    assert_eq!((file.kind, file.size, file.mode), (FileKind::File, 5, 0o640));
    let link = session.stat(agent.path("link")).unwrap();
    assert_eq!((link.kind, link.link_target.as_deref()), (FileKind::Symlink, Some("f")));
    assert_eq!(session.stat(agent.path("")).unwrap().kind, FileKind::Directory);
    assert_eq!(session.stat(GuestPath::new("/dev/null").unwrap()).unwrap().kind, FileKind::Other);
}

#[test]
fn a_tree_survives_packing_and_unpacking() {
    let agent = Agent::start();
    let session = agent.session();
    let tree = agent.file("tree");
    let deep = tree.join("a/b".to_owned() + &"c".repeat(120));
    std::fs::create_dir_all(&deep).unwrap();
    let big = noise(600_000);
    std::fs::write(deep.join("big"), &big).unwrap();
    std::fs::write(tree.join("run"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(tree.join("run"), PermissionsExt::from_mode(0o4751)).unwrap();
    std::fs::set_permissions(tree.join("a"), PermissionsExt::from_mode(0o550)).unwrap();
    std::fs::hard_link(tree.join("run"), tree.join("zrun")).unwrap();
    symlink("/absolute/nowhere", tree.join("link")).unwrap();
    let mut archive = Vec::new();
    session.pack(agent.path("tree")).unwrap().read_to_end(&mut archive).unwrap();

    std::fs::create_dir(agent.file("out")).unwrap();
    let mut writer = session.unpack(agent.path("out")).unwrap();
    writer.write_all(&archive).unwrap();
    writer.finish().unwrap();

    let out = agent.file("out/tree");
    let run = std::fs::metadata(out.join("run")).unwrap();
    assert_eq!(run.mode() & 0o7777, 0o4751);
    assert_eq!(run.mtime(), std::fs::metadata(tree.join("run")).unwrap().mtime());
    assert_eq!(run.ino(), std::fs::metadata(out.join("zrun")).unwrap().ino());
    assert_eq!(std::fs::metadata(out.join("a")).unwrap().mode() & 0o7777, 0o550);
    assert_eq!(std::fs::read_link(out.join("link")).unwrap().to_str(), Some("/absolute/nowhere"));
    assert!(std::fs::read(out.join("a/b".to_owned() + &"c".repeat(120)).join("big")).unwrap() == big);

    let mut single = Vec::new();
    session.pack(agent.path("tree/run")).unwrap().read_to_end(&mut single).unwrap();
    let mut archive = tar::Archive::new(single.as_slice());
    let names: Vec<_> = archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
    assert_eq!(names, [std::path::PathBuf::from("run")]);
}

#[test]
fn an_archive_cannot_leave_its_directory() {
    let agent = Agent::start();
    let session = agent.session();
    std::fs::create_dir(agent.file("out")).unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..9].copy_from_slice(b"../escape");
    header.set_size(4);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append(&header, &b"evil"[..]).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "up", "..").unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o644);
    builder.append_data(&mut header, "up/escape", &b"evil"[..]).unwrap();
    let archive = builder.into_inner().unwrap();
    let mut writer = session.unpack(agent.path("out")).unwrap();
    writer.write_all(&archive).unwrap();
    let _ = writer.finish();
    assert!(!agent.file("escape").exists());
}

#[test]
fn a_bad_archive_fails_with_a_reason() {
    let agent = Agent::start();
    let session = agent.session();
    let mut writer = session.unpack(agent.path("")).unwrap();
    // More than the window: the writer must hear the error instead of waiting for credit.
    let error = writer.write_all(&noise(1024 * 1024)).map_err(|error| error.to_string());
    let error = error.and_then(|()| writer.finish().map_err(|error| error.to_string()));
    assert!(error.unwrap_err().contains("cannot unpack"));
}

#[test]
fn a_shutdown_is_answered_and_ends_the_agent() {
    let agent = Agent::start();
    let session = agent.session();
    let pid = agent.pid();
    session.shutdown(ShutdownMode::Poweroff, Duration::from_secs(1)).unwrap();
    assert!(session.wait_lost(soon()));
    assert_ends(pid);
}

#[test]
fn a_probe_is_answered_whether_it_succeeds_or_not() {
    let agent = Agent::start();
    let session = agent.session();
    let probe = |name: &str| {
        session.probe(ProbeCheck::File { path: agent.path(name) }, Duration::from_secs(5)).unwrap()
    };
    assert_eq!(probe("agent.sock"), Probed::default());
    let absent = probe("absent").failure.unwrap();
    assert!(absent.ends_with("/absent does not exist"), "{absent}");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = std::num::NonZeroU16::new(listener.local_addr().unwrap().port()).unwrap();
    let tcp = session.probe(ProbeCheck::Tcp { port }, Duration::from_secs(5)).unwrap();
    assert_eq!(tcp, Probed::default());
    // Nobody answers, and the time passes.
    let check = ProbeCheck::Http { port, path: "/".to_owned() };
    let silent = session.probe(check, Duration::from_millis(20)).unwrap().failure.unwrap();
    assert_eq!(silent, format!("no answer from port {port} within 20 ms"));
    let check = ProbeCheck::Http { port, path: "no path".to_owned() };
    assert_eq!(kind(session.probe(check, Duration::from_secs(5))), ErrorKind::Invalid);
}
