//! Small file systems of their own, for tests that fill them or need what only some can do.

use kiln_sys::tool::ScratchDir;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A file system that a test may want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// In memory.
    Tmpfs,
    /// Journalled, without shared extents.
    Ext4,
    /// Without a journal, which would be written to behind all files.
    PlainExt4,
    /// With shared extents.
    Xfs,
    /// Copy on write throughout.
    Btrfs,
}

/// A mounted file system, gone when dropped.
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
    scratch: ScratchDir,
}

impl Mounted {
    /// Mounts a new file system of `size_mib`; none where this user, kernel or installation cannot, with the reason
    /// on standard error.
    pub fn new(kind: FileSystem, size_mib: u32) -> Option<Self> {
        let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let path = scratch.path().join("mount");
        std::fs::create_dir(&path).unwrap();
        let on_image = |mkfs: &str| {
            format!("set -e; truncate -s {size_mib}M \"$1\"; {mkfs} \"$1\"; mount -o loop \"$1\" \"$2\"")
        };
        let script = match kind {
            FileSystem::Tmpfs => format!("mount -t tmpfs -o size={size_mib}m kiln-test \"$2\""),
            FileSystem::Ext4 => on_image("mkfs.ext4 -q -m 0"),
            FileSystem::PlainExt4 => on_image("mkfs.ext4 -q -m 0 -b 4096 -O ^has_journal"),
            FileSystem::Xfs => on_image("mkfs.xfs -q -m reflink=1"),
            FileSystem::Btrfs => on_image("mkfs.btrfs -q"),
        };
        let output = Command::new("sh")
            .args(["-c", &script, "sh"])
            .args([&scratch.path().join("image"), &path])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let mut stderr = std::io::stderr();
            let _ = std::io::Write::write_fmt(
                &mut stderr,
                format_args!("skipped: {kind:?} cannot be mounted here: {}\n", said.trim()),
            );
            return None;
        }
        Some(Self { path, scratch })
    }

    /// Returns what a loss of power would leave now, mounted elsewhere: what was written and not synced may be gone.
    /// For file systems that lie on a disk.
    pub fn after_power_loss(&self) -> Self {
        let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let (image, path) = (scratch.path().join("image"), scratch.path().join("mount"));
        std::fs::create_dir(&path).unwrap();
        // The image has what the file system sent to its disk, and nothing of its memory.
        let script = "cp --sparse=always \"$1\" \"$2\" && mount -o loop \"$2\" \"$3\"";
        let status = Command::new("sh")
            .args(["-c", script, "sh"])
            .args([&self.scratch.path().join("image"), &image, &path])
            .status()
            .unwrap();
        assert!(status.success(), "the copy of {} cannot be mounted", self.path.display());
        Self { path, scratch }
    }

    /// Makes the disk of a [`FileSystem::PlainExt4`] forget the last half of a file, which is then read with `EIO`.
    /// Everything that was written must be on the disk, and nothing may be written later that takes new blocks: the disk
    /// would have zeros then. The file is the one that lies furthest from the disk's beginning.
    pub fn lose_half_of(&self, file: &Path) {
        let output = Command::new("filefrag").args(["-s", "-e", "-b4096"]).arg(file).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        // "   0:        0..    2047:      34816..     36863:   2048:   last,eof", numbers of blocks of 4 KiB.
        let extents: Vec<[u64; 2]> = text
            .lines()
            .filter_map(|line| {
                let fields: Vec<&str> =
                    line.split([':', '.']).map(str::trim).filter(|f| !f.is_empty()).collect();
                fields[0].parse::<u64>().ok()?;
                Some([fields[3].parse().ok()?, fields[4].parse().ok()?])
            })
            .collect();
        let [[first, last]] = extents[..] else { panic!("{} has no single extent: {text}", file.display()) };
        let half = first.midpoint(last + 1) * 4096;
        // Read through the host's cache, what lies behind the end of the image would be zeros.
        let script = "losetup --direct-io=on \"$(findmnt -nro SOURCE --mountpoint \"$1\")\"";
        let status = Command::new("sh").args(["-c", script, "sh"]).arg(&self.path).status().unwrap();
        assert!(status.success(), "the disk cannot be read directly");
        let image = std::fs::File::options().write(true).open(self.scratch.path().join("image")).unwrap();
        image.set_len(half).unwrap();
        // What the kernel still has in memory it would not read from the disk.
        let read = std::fs::File::open(file).unwrap();
        rustix::fs::fadvise(&read, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }

    /// Returns where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A file that a test forgot to close keeps the file system, not its place.
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}

/// Returns a directory for scratch files that is in memory where the host has one.
pub fn fast_dir() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() && kiln_sys::fs::file_system_name(memory).is_ok_and(|name| name == "tmpfs") {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    }
}
