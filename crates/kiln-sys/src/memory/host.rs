//! What memory is left for new processes.

use super::group::{self, GroupMemory};
use super::kib_line;
use crate::error::{IoResult, IoResultExt};
use crate::fs;
use kiln_core::ByteSize;
use std::io;
use std::path::Path;

/// `/proc/meminfo` has some 60 lines.
const MEMINFO_BYTES_MAX: usize = 64 << 10;

/// What memory is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMemory {
    /// What the kernel says new programs can have without swapping (MemAvailable): free pages, and caches that it can
    /// drop.
    pub available: ByteSize,
    /// The control group of the caller with the least left, where one has a limit.
    pub group: Option<GroupMemory>,
}

impl HostMemory {
    /// Reads what is left now, for the caller and the processes it starts.
    ///
    /// # Errors
    /// When `/proc/meminfo` cannot be read or has no MemAvailable. Control groups that cannot be read count as without
    /// a limit: what is not mounted here cannot be asked.
    pub fn read() -> IoResult<Self> {
        Ok(Self { available: available(Path::new("/proc/meminfo"))?, group: group::tightest(Path::new("/")) })
    }

    /// Returns what is left under every limit.
    pub fn left(&self) -> ByteSize {
        self.group.as_ref().map_or(self.available, |group| group.left().min(self.available))
    }
}

fn available(path: &Path) -> IoResult<ByteSize> {
    let text = fs::read_text_limited(path, MEMINFO_BYTES_MAX)?;
    kib_line(&text, "MemAvailable")
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it says no MemAvailable"))
        .at("read", path)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures are written plainly")]
mod tests {
    use super::*;
    use crate::tool::ScratchDir;

    #[test]
    fn this_host_has_memory_left() {
        let host = HostMemory::read().unwrap();
        assert!(host.available > ByteSize::from_mib(1) && host.left() <= host.available, "{host:?}");
    }

    #[test]
    fn what_is_available_is_in_the_kernels_words() {
        let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let path = scratch.path().join("meminfo");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            available(&path)
        };
        let text = "MemTotal:       24684112 kB\nMemFree:        19032784 kB\nMemAvailable:   24071584 kB\n";
        assert_eq!(read(text).unwrap().bytes(), 24_071_584 << 10);
        assert_eq!(read("MemTotal: 1 kB\n").unwrap_err().kind(), io::ErrorKind::InvalidData);
        let long = "x".repeat(MEMINFO_BYTES_MAX + 1);
        assert_eq!(read(&long).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn the_tighter_of_host_and_group_counts() {
        let of = |limit: u32, used: u32| GroupMemory {
            path: "/sys/fs/cgroup/g".into(),
            limit: ByteSize::from_mib(limit),
            used: ByteSize::from_mib(used),
        };
        for (group, left) in
            [(None, 100), (Some(of(90, 20)), 70), (Some(of(900, 20)), 100), (Some(of(50, 60)), 0)]
        {
            let host = HostMemory { available: ByteSize::from_mib(100), group };
            assert_eq!(host.left(), ByteSize::from_mib(left));
        }
    }
}
