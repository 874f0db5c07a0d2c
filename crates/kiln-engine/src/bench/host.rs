//! The facts of a host without which figures say nothing.

use crate::{EngineError, EngineResult};
use kiln_sys::{Cancel, IoResultExt as _, Toolbox, fs};
use std::io;
use std::path::Path;

/// The most bytes of a file of `/proc` that are read.
const PROC_BYTES_MAX: usize = 4 << 20;
/// Tools and what makes each print its version.
const TOOLS: [(&str, &str); 5] = [
    ("openssl", "version"),
    ("sha256sum", "--version"),
    ("cp", "--version"),
    ("qemu-img", "--version"),
    ("casync", "--version"),
];

/// A host on which was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// The file system of the benchmark's directory.
    pub file_system: &'static str,
    /// Whether files can share blocks there.
    pub reflink: bool,
    /// The kernel's release.
    pub kernel: String,
    /// The processor's name, where the kernel tells.
    pub processor: String,
    /// Processors this process may use.
    pub processors: usize,
    /// The load average of a minute before the first measurement.
    pub load: f64,
    /// The first line of each tool's version; none for what is not installed.
    pub tools: Vec<(&'static str, Option<String>)>,
}

impl Host {
    pub(super) fn gather(toolbox: &Toolbox, dir: &Path, cancel: &Cancel) -> EngineResult<Self> {
        let mut tools = Vec::new();
        for (name, question) in TOOLS {
            let version = match toolbox.find(name) {
                Ok(tool) => Some(first_line(&tool.arg(question).run(cancel, &mut |_| ())?.stdout)),
                Err(_) => None,
            };
            tools.push((name, version));
        }
        let info = fs::read_limited(Path::new("/proc/cpuinfo"), PROC_BYTES_MAX).unwrap_or_default();
        let info = String::from_utf8_lossy(&info).into_owned();
        let model = info.lines().find(|line| line.starts_with("model name"));
        Ok(Self {
            file_system: fs::file_system_name(dir)?,
            reflink: can_reflink(dir)?,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            processor: model
                .and_then(|line| line.split_once(':'))
                .map_or("unknown", |(_, name)| name.trim())
                .to_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            load: load()?,
            tools,
        })
    }
}

/// Returns the load average of the last minute.
pub(super) fn load() -> EngineResult<f64> {
    let path = Path::new("/proc/loadavg");
    let text = fs::read_text_limited(path, PROC_BYTES_MAX)?;
    let first = text.split_whitespace().next().and_then(|word| word.parse().ok());
    first
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no load average"))
        .at("read", path)
        .map_err(EngineError::from)
}

pub(super) fn can_reflink(dir: &Path) -> EngineResult<bool> {
    let (from, to) = (dir.join("reflink-from"), dir.join("reflink-to"));
    let works = kiln_sys::copy::reflink(&fs::create_new(&from)?, &fs::create_new(&to)?, &to)?;
    fs::remove_file(&from)?;
    fs::remove_file(&to)?;
    Ok(works)
}

fn first_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    // casync prints its build options below the version, with or without a line break after its name.
    kiln_core::text::clip(text.lines().next().unwrap_or_default().trim())
}
