//! What a test sees of one clone, through its agent: files mostly, since a guest may have few programs. Whatever the
//! guest answers is a stranger's: every read has a limit and a deadline.

use super::judge::{Offset, Seen, Wrong};
use kiln_core::Digest;
use kiln_core::ready::ReadyProbe;
use kiln_core::text::{chain, clip};
use kiln_guest::message::{ExecRequest, FileKind, WriteFile};
use kiln_guest::{GuestPath, Session};
use kiln_sys::{Cancel, clock, lock};
use std::io::{self, Read, Write as _};
use std::time::{Duration, Instant};

/// Time one question to a guest may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Bytes that are read of the random device.
const RANDOM_BYTES: usize = 16;
/// The longest file of a guest that is looked at, in bytes.
const FILE_BYTES_MAX: usize = 64 << 10;
/// Bytes of a program's output that are kept.
const OUTPUT_BYTES_MAX: usize = 1024;
/// The kinds of SSH host keys that OpenSSH makes.
const KEY_KINDS: [&str; 4] = ["ed25519", "ecdsa", "rsa", "dsa"];
/// The most network devices that are looked at.
const DEVICES_MAX: usize = 16;
/// The longest name Linux gives a network device, in bytes.
const DEVICE_BYTES_MAX: usize = 15;
/// How far a guest's clock may be from the host's, in milliseconds.
const CLOCK_WITHIN_MS: i64 = 1000;
/// How late the times of files may be on a kernel with 100 ticks a second, in milliseconds.
const TICK_MS: i64 = 10;
/// How often a clock is looked at until it is known how far it is.
const CLOCK_LOOKS: u32 = 50;
/// Time between two looks at the same thing.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Time a guest may take to be seen going on.
const GO_ON_WITHIN: Duration = Duration::from_secs(10);

fn soon() -> Instant {
    Instant::now() + ANSWER_WITHIN
}

fn words(error: &dyn std::error::Error) -> String {
    clip(&chain(error))
}

/// Reads a file of the guest, at most `limit` bytes; none where it is not there.
fn read(session: &Session, path: &str, limit: usize) -> Result<Option<Vec<u8>>, String> {
    let path = GuestPath::new(path).map_err(|error| words(&error))?;
    let reader = match session.read_file(path, 0) {
        Err(error) if error.is_not_found() => return Ok(None),
        other => other.map_err(|error| words(&error))?,
    };
    read_to(reader.with_deadline(soon()), limit).map(Some).map_err(|error| words(&error))
}

/// Reads to the end, or to a limit in bytes.
fn read_to(reader: impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(u64::try_from(limit).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a file of one line.
fn line(session: &Session, path: &str) -> Seen {
    match read(session, path, FILE_BYTES_MAX) {
        Ok(None) => Seen::Absent,
        Ok(Some(bytes)) => {
            let text = String::from_utf8_lossy(&bytes).trim().to_owned();
            if text.is_empty() { Seen::Absent } else { Seen::Value(clip(&text)) }
        }
        Err(why) => Seen::Unknown(why),
    }
}

/// Returns a file's kind; none where it is not there.
fn kind(session: &Session, path: &str) -> Result<Option<FileKind>, String> {
    let path = GuestPath::new(path).map_err(|error| words(&error))?;
    match session.stat(path) {
        Err(error) if error.is_not_found() => Ok(None),
        other => other.map(|stat| Some(stat.kind)).map_err(|error| words(&error)),
    }
}

/// Reads the first random bytes; they are shown by their digest.
pub(super) fn random(session: &Session) -> Seen {
    match read(session, "/dev/urandom", RANDOM_BYTES) {
        Ok(Some(bytes)) if bytes.len() == RANDOM_BYTES => Seen::Value(Digest::of(&bytes).short()),
        Ok(Some(_)) => Seen::Unknown("the random device has an end".to_owned()),
        Ok(None) => Seen::Unknown("there is no /dev/urandom".to_owned()),
        Err(why) => Seen::Unknown(why),
    }
}

pub(super) fn machine_id(session: &Session) -> Seen {
    line(session, "/etc/machine-id")
}

pub(super) fn restore_epoch(session: &Session) -> Seen {
    line(session, "/run/kiln/epoch")
}

/// Compares the guest's host name with its machine's.
pub(super) fn hostname(session: &Session, name: &str) -> Result<String, Wrong> {
    match line(session, "/proc/sys/kernel/hostname") {
        Seen::Value(found) if found == name => Ok("each is its machine's name".to_owned()),
        Seen::Value(found) => Err(Wrong::Failed(format!("it is called {found}"))),
        Seen::Absent => Err(Wrong::NotChecked("there is no /proc/sys/kernel/hostname".to_owned())),
        Seen::Unknown(why) => Err(Wrong::NotChecked(why)),
    }
}

/// Reads the public host keys of each kind, shown by their digests.
pub(super) fn ssh_host_keys(session: &Session) -> Vec<(String, Seen)> {
    KEY_KINDS
        .iter()
        .map(|name| {
            let path = format!("/etc/ssh/ssh_host_{name}_key.pub");
            let seen = match kind(session, &path) {
                Ok(None) => Seen::Absent,
                Ok(Some(FileKind::File)) => match read(session, &path, FILE_BYTES_MAX) {
                    Ok(Some(bytes)) => Seen::Value(Digest::of(&bytes).short()),
                    Ok(None) => Seen::Absent,
                    Err(why) => Seen::Unknown(why),
                },
                Ok(Some(_)) => Seen::Unknown(format!("{path} is no file")),
                Err(why) => Seen::Unknown(why),
            };
            ((*name).to_owned(), seen)
        })
        .collect()
}

/// Reads the hardware address of each network device that is one: what a kernel makes up by itself has none behind it.
pub(super) fn macs(session: &Session) -> Result<Vec<(String, Seen)>, String> {
    let Some(table) = read(session, "/proc/net/dev", FILE_BYTES_MAX)? else {
        return Err("there is no /proc/net/dev".to_owned());
    };
    let mut found = Vec::new();
    for name in device_names(&String::from_utf8_lossy(&table)) {
        if kind(session, &format!("/sys/class/net/{name}/device"))?.is_some() {
            let seen = line(session, &format!("/sys/class/net/{name}/address"));
            found.push((name, seen));
        }
    }
    Ok(found)
}

/// Returns the names in `/proc/net/dev` that are fit for a path.
fn device_names(table: &str) -> Vec<String> {
    let fit = |name: &&str| {
        (1..=DEVICE_BYTES_MAX).contains(&name.len())
            && !name.starts_with('.')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-@".contains(&b))
    };
    let names = table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim()));
    names.filter(fit).take(DEVICES_MAX).map(str::to_owned).collect()
}

/// Finds out how far the guest's clock is from the host's, by the times of a file that is written at `path`.
pub(super) fn clock_offset(session: &Session, path: &str, cancel: &Cancel) -> Result<String, Wrong> {
    let mut known = Offset::ANY;
    for _ in 0..CLOCK_LOOKS {
        known = known.and(look_at_clock(session, path).map_err(Wrong::NotChecked)?);
        match known.is_within(CLOCK_WITHIN_MS) {
            Some(true) => return Ok(format!("within {CLOCK_WITHIN_MS} ms of the host's")),
            Some(false) => {
                let off = known.least.unsigned_abs().min(known.most.unsigned_abs());
                let which = if known.least < 0 { "behind" } else { "before" };
                return Err(Wrong::Failed(format!("its clock is at least {off} ms {which} the host's")));
            }
            None => {}
        }
        if lock::wait_cancelled(cancel, LOOK_AGAIN) {
            break;
        }
    }
    Err(Wrong::NotChecked(format!("its clock is within {} ms, more is not known", known.furthest())))
}

fn look_at_clock(session: &Session, path: &str) -> Result<Offset, String> {
    let now = || i64::try_from(clock::now_unix_ms()).unwrap_or(i64::MAX);
    let begun = now();
    write(session, path, b"")?;
    let ended = now();
    let path = GuestPath::new(path).map_err(|error| words(&error))?;
    let stat = session.stat(path).map_err(|error| words(&error))?;
    Ok(Offset::of_file(begun, stat.mtime, ended, TICK_MS))
}

pub(super) fn ping(session: &Session) -> Result<String, Wrong> {
    match session.ping(soon()) {
        Ok(took) => Ok(format!("after {:.1} ms", took.as_secs_f64() * 1000.0)),
        Err(error) => Err(Wrong::Failed(words(&error))),
    }
}

/// Runs a shell that says a word.
pub(super) fn exec(session: &Session) -> Result<String, Wrong> {
    const WORD: &str = "kiln";
    let request = ExecRequest::new(["sh", "-c", "echo kiln"]);
    let outcome = session.exec(request).and_then(|stream| stream.collect(OUTPUT_BYTES_MAX, soon()));
    match outcome {
        Err(error) if error.is_not_found() => Err(Wrong::NotChecked("the guest has no sh".to_owned())),
        Err(error) => Err(Wrong::Failed(words(&error))),
        Ok(outcome) if !outcome.status.success() => {
            let code = outcome.status.code.map_or("a signal".to_owned(), |code| format!("code {code}"));
            Err(Wrong::Failed(format!("sh ended with {code}")))
        }
        Ok(outcome) if String::from_utf8_lossy(&outcome.stdout).trim() != WORD => {
            let said = clip(&String::from_utf8_lossy(&outcome.stdout));
            Err(Wrong::Failed(format!("sh said `{said}`")))
        }
        Ok(_) => Ok("sh runs".to_owned()),
    }
}

/// Tries the recipe's probe once more.
pub(super) fn readiness(session: &Session, probe: &ReadyProbe) -> Result<String, Wrong> {
    use crate::supervisor::{Tried, attempt};
    match attempt(session, &probe.check, soon()) {
        Ok(Tried::Succeeded) => Ok("the recipe's probe succeeds".to_owned()),
        Ok(Tried::Failed(said)) => Err(Wrong::Failed(said)),
        Ok(Tried::CutShort) => {
            Err(Wrong::Failed(format!("the probe did not end within {} s", ANSWER_WITHIN.as_secs())))
        }
        Err(error) => Err(Wrong::Failed(words(&error))),
    }
}

/// Writes a file, down to the disk.
pub(super) fn write(session: &Session, path: &str, bytes: &[u8]) -> Result<(), String> {
    let path = GuestPath::new(path).map_err(|error| words(&error))?;
    let request = WriteFile { path, mode: 0o600, uid: None, gid: None, append: false };
    let mut writer = session.write_file(request).map_err(|error| words(&error))?;
    writer.write_all(bytes).map_err(|error| words(&error))?;
    writer.finish().map_err(|error| words(&error))
}

/// Returns whether a file is there.
pub(super) fn is_there(session: &Session, path: &str) -> Result<bool, String> {
    Ok(kind(session, path)?.is_some())
}

/// Returns whether a file has this content and no other.
pub(super) fn holds(session: &Session, path: &str, bytes: &[u8]) -> Result<bool, String> {
    Ok(read(session, path, bytes.len() + 1)?.as_deref() == Some(bytes))
}

/// Reads for how long the guest has run, in hundredths of a second.
pub(super) fn uptime(session: &Session) -> Result<u64, String> {
    match read(session, "/proc/uptime", FILE_BYTES_MAX)? {
        Some(bytes) => parse_uptime(&String::from_utf8_lossy(&bytes))
            .ok_or_else(|| "its /proc/uptime cannot be read".to_owned()),
        None => Err("there is no /proc/uptime".to_owned()),
    }
}

fn parse_uptime(text: &str) -> Option<u64> {
    let (whole, part) = text.split_whitespace().next()?.split_once('.')?;
    if part.len() != 2 {
        return None;
    }
    whole.parse::<u64>().ok()?.checked_mul(100)?.checked_add(part.parse().ok()?)
}

/// Waits until the guest's time has moved; returns whether it did.
pub(super) fn goes_on(session: &Session, cancel: &Cancel) -> Result<bool, String> {
    let begun = uptime(session)?;
    let until = Instant::now() + GO_ON_WITHIN;
    loop {
        if uptime(session)? > begun {
            return Ok(true);
        }
        if Instant::now() >= until || lock::wait_cancelled(cancel, LOOK_AGAIN) {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_a_guest_have_names_fit_for_a_path() {
        let table =
            "Inter-|   Receive\n face |bytes\n    lo: 1 2\n  eth0: 3 4\n ../x: 5\n a/b: 6\neth0.1: 7\n : 8\n";
        assert_eq!(device_names(table), ["lo", "eth0", "eth0.1"]);
        let many: String = (0..40).map(|n| format!("e{n}: 1\n")).collect();
        assert_eq!(device_names(&many).len(), DEVICES_MAX);
        assert_eq!(device_names(&format!("{}: 1", "e".repeat(16))), Vec::<String>::new());
    }

    #[test]
    fn a_file_of_a_guest_is_read_to_a_limit() {
        assert_eq!(read_to(io::repeat(0), FILE_BYTES_MAX).unwrap().len(), FILE_BYTES_MAX);
        assert_eq!(read_to(&b"short"[..], FILE_BYTES_MAX).unwrap(), b"short");
    }

    #[test]
    fn an_uptime_is_in_hundredths() {
        assert_eq!(parse_uptime("12.34 56.78\n"), Some(1234));
        for bad in ["", "12", "12.3 4", "x.00", "-1.00", "99999999999999999999.00"] {
            assert_eq!(parse_uptime(bad), None, "{bad}");
        }
    }
}
