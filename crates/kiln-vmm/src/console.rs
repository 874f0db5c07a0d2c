//! Logs of what guests and monitors write: capped and rotated, because a guest decides how much it writes, with the
//! end of the present run in memory.

use kiln_sys::{IoError, IoResult, IoResultExt, fs};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

/// The size at which a console's log is rotated; two of them exist at most.
pub const CONSOLE_BYTES_MAX: u64 = 4 << 20;
/// The size at which a monitor's log is rotated; two of them exist at most.
pub const VMM_LOG_BYTES_MAX: u64 = 256 << 10;
/// Bytes of a run's end kept in memory.
pub const TAIL_BYTES_MAX: usize = 32 << 10;
/// The longest message of a panic that is kept, in characters.
const PANIC_CHARS_MAX: usize = 300;
const CHUNK_BYTES: usize = 16 << 10;
const PANIC_MARK: &str = "Kernel panic - not syncing: ";

/// A log that is never larger than agreed: when it is full it becomes `NAME.1`, and what that was is gone.
#[derive(Debug)]
pub struct ConsoleLog {
    path: PathBuf,
    file: File,
    len: u64,
    max: u64,
    tail: Vec<u8>,
}

impl ConsoleLog {
    /// Opens or continues the log at `path`.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path, max: u64) -> IoResult<Self> {
        let file = fs::append(path)?;
        let len = file.metadata().at("inspect", path)?.len();
        Ok(Self { path: path.to_owned(), file, len, max: max.max(1), tail: Vec::new() })
    }

    /// Writes bytes, rotating where the log is full. The tail has them also when the file does not.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write(&mut self, mut bytes: &[u8]) -> IoResult<()> {
        self.keep(bytes);
        while !bytes.is_empty() {
            if self.len >= self.max {
                self.rotate()?;
            }
            let room = usize::try_from(self.max - self.len).unwrap_or(usize::MAX).min(bytes.len());
            self.file.write_all(&bytes[..room]).at("write", &self.path)?;
            self.len += room as u64;
            bytes = &bytes[room..];
        }
        Ok(())
    }

    /// Returns the end of what was written since the log was opened.
    pub fn tail(&self) -> String {
        String::from_utf8_lossy(&self.tail).into_owned()
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        let excess = self.tail.len().saturating_sub(TAIL_BYTES_MAX);
        self.tail.drain(..excess);
    }

    fn rotate(&mut self) -> IoResult<()> {
        fs::rename(&self.path, &rotated(&self.path))?;
        self.file = fs::append(&self.path)?;
        self.len = 0;
        Ok(())
    }
}

fn rotated(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// A thread that writes what comes out of a pipe to a log, until the pipe ends.
#[derive(Debug)]
pub struct Pump(JoinHandle<PumpEnd>);

/// What a pump leaves.
#[derive(Debug)]
pub struct PumpEnd {
    /// The end of what came out of the pipe.
    pub tail: String,
    /// The first error of the log; the pipe was emptied all the same.
    pub error: Option<IoError>,
}

impl Pump {
    /// Starts the thread. The writer of the pipe never waits for the log's file system longer than a write takes.
    pub fn start(mut pipe: impl Read + Send + 'static, mut log: ConsoleLog) -> Self {
        Self(std::thread::spawn(move || {
            let mut buffer = [0; CHUNK_BYTES];
            let mut error = None;
            loop {
                match pipe.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => {
                        if let Err(failure) = log.write(&buffer[..read]) {
                            error.get_or_insert(failure);
                        }
                    }
                    Err(failure) if failure.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(failure) => {
                        error.get_or_insert(IoError {
                            action: "read the pipe for",
                            path: log.path.clone(),
                            source: failure,
                        });
                        break;
                    }
                }
            }
            PumpEnd { tail: log.tail(), error }
        }))
    }

    /// Waits for the end of the pipe.
    pub fn finish(self) -> PumpEnd {
        self.0.join().unwrap_or_else(|_| PumpEnd { tail: String::new(), error: None })
    }
}

/// Returns the last bytes, at most `bytes`, of the log `name` in `dir` and of the one rotated before it. A log that
/// is not there is empty.
///
/// # Errors
/// When a log is there and cannot be read.
pub fn tail(dir: &Path, name: &str, bytes: u64) -> IoResult<Vec<u8>> {
    let path = dir.join(name);
    let new = end_of(&path, bytes)?;
    let mut all = end_of(&rotated(&path), bytes - new.len() as u64)?;
    all.extend_from_slice(&new);
    Ok(all)
}

fn end_of(path: &Path, bytes: u64) -> IoResult<Vec<u8>> {
    let Some(file) = fs::optional(fs::open(path))? else { return Ok(Vec::new()) };
    let len = file.metadata().at("inspect", path)?.len();
    let mut end = vec![0; usize::try_from(len.min(bytes)).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut end, len.saturating_sub(bytes)).at("read", path)?;
    Ok(end)
}

/// Returns the message of a kernel's panic in a console's text.
pub fn find_panic(console: &str) -> Option<String> {
    let (_, rest) = console.split_once(PANIC_MARK)?;
    let line = rest.lines().next().unwrap_or_default();
    let line = line.split(" ]---").next().unwrap_or_default().trim();
    Some(line.chars().filter(|c| !c.is_control()).take(PANIC_CHARS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_sys::tool::ScratchDir;

    fn scratch() -> ScratchDir {
        ScratchDir::new(&std::env::temp_dir()).unwrap()
    }

    #[test]
    fn a_log_stays_within_its_size_and_the_tail_spans_the_rotation() {
        let dir = scratch();
        let path = dir.path().join("console.log");
        let mut log = ConsoleLog::open(&path, 10).unwrap();
        log.write(b"0123456").unwrap();
        log.write(b"789abcdefghijklm").unwrap();
        assert_eq!(log.tail(), "0123456789abcdefghijklm");
        assert_eq!(fs::metadata(&path).unwrap().len(), 3);
        assert_eq!(tail(dir.path(), "console.log", 5).unwrap(), b"ijklm");
        assert_eq!(tail(dir.path(), "console.log", 100).unwrap(), b"abcdefghijklm");
        drop(log);
        let mut again = ConsoleLog::open(&path, 10).unwrap();
        again.write(b"n").unwrap();
        assert_eq!(again.tail(), "n");
        assert_eq!(tail(dir.path(), "console.log", 4).unwrap(), b"klmn");
        assert!(tail(dir.path(), "other.log", 4).unwrap().is_empty());
    }

    #[test]
    fn the_tail_in_memory_is_bounded() {
        let dir = scratch();
        let mut log = ConsoleLog::open(&dir.path().join("log"), 1 << 20).unwrap();
        for _ in 0..20 {
            log.write(&[b'x'; 10_000]).unwrap();
        }
        assert_eq!(log.tail().len(), TAIL_BYTES_MAX);
    }

    #[test]
    fn a_pump_empties_its_pipe_also_when_the_log_fails() {
        let dir = scratch();
        let sub = dir.path().join("gone");
        fs::create_dir(&sub).unwrap();
        let log = ConsoleLog::open(&sub.join("log"), 8).unwrap();
        fs::remove_tree(&sub).unwrap();
        let end = Pump::start(&b"0123456789 and more"[..], log).finish();
        assert!(end.error.is_some());
        assert_eq!(end.tail, "0123456789 and more");
    }

    #[test]
    fn a_panic_is_found_once_and_without_control_characters() {
        let text = "x\r\n[ 0.9] Kernel panic - not syncing: No working init found.\x1b\r\n\
                    [ 0.9] ---[ end Kernel panic - not syncing: No working init found. ]---\r\n";
        assert_eq!(find_panic(text).unwrap(), "No working init found.");
        assert_eq!(find_panic("end Kernel panic - not syncing: a ]---").unwrap(), "a");
        assert_eq!(find_panic("Kernel panic"), None);
    }
}
