//! Steps every boot takes: waiting, the configuration and the root filesystem.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::poll;

use super::exec::timespec;
use super::files;
use crate::config::{INIT_CONFIG_PATH, InitConfig, WAIT_ARGUMENT};
use crate::limits::INIT_CONFIG_BYTES_MAX;

/// Interval of looking for a device; the kernel makes them in its own time.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Makes the name of this boot. The kernel's own is not read: it is made at the first read, and a template
/// that has read it gives the same one to all its clones.
pub(super) fn new_boot_id() -> String {
    files::random_hex::<16>().unwrap_or_default()
}

/// Returns whether the host will tell the machine something that its entry point is to have.
pub(super) fn is_private() -> bool {
    let line = read_attribute(Path::new("/proc/cmdline")).unwrap_or_default();
    line.split_whitespace().any(|word| word == WAIT_ARGUMENT)
}

/// Lets some time pass.
pub(super) fn pause(time: Duration) {
    // An interrupted pause is a short one; every caller looks again.
    let _ = poll(&mut [], timespec(time).as_ref());
}

/// Looks for something until it is there or the time is over.
pub(super) fn wait_for<T>(time: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + time;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        pause(LOOK_INTERVAL);
    }
}

/// Reads the configuration from the initramfs.
pub(super) fn read_config() -> Result<InitConfig, String> {
    let failed = |error: io::Error| format!("cannot read {INIT_CONFIG_PATH}: {error}");
    let file = File::open(INIT_CONFIG_PATH).map_err(failed)?;
    let limit = u64::try_from(INIT_CONFIG_BYTES_MAX + 1).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    InitConfig::from_json(&bytes).map_err(|error| format!("{INIT_CONFIG_PATH}: {error}"))
}

/// Reads a small text of a kernel interface.
pub(super) fn read_attribute(path: &Path) -> Option<String> {
    const ATTRIBUTE_BYTES_MAX: u64 = 4096;
    let mut text = String::new();
    File::open(path).ok()?.take(ATTRIBUTE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

/// Lists the names in a directory of a kernel interface, sorted.
pub(super) fn list(directory: &str) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}
