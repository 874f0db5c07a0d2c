//! Mounts of the initramfs and of the root filesystem.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{chdir, chroot};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::boot::wait_for;
use super::console::log;
use crate::config::{InitConfig, RootDevice};

/// Where the root filesystem is mounted before it becomes the root.
pub(super) const NEW_ROOT: &str = "/newroot";
/// Where a root that is only read is mounted, below the overlay.
const BASE: &str = "/kiln/base";
/// Where the scratch disk is mounted.
const SCRATCH: &str = "/kiln/scratch";
/// What is written over the root, on the scratch disk.
const UPPER: &str = "/kiln/scratch/upper";
/// What the overlay needs for itself there.
const WORK: &str = "/kiln/scratch/work";
/// The directory of what is written, while it is made.
const UPPER_ASIDE: &str = "/kiln/scratch/upper.new";
/// How they are laid over one another.
const OVERLAY: &CStr = c"lowerdir=/kiln/base,upperdir=/kiln/scratch/upper,workdir=/kiln/scratch/work";

/// How long the root device may take to appear.
const ROOT_DEVICE_WAIT: Duration = Duration::from_secs(10);

const KERNEL_MOUNTS: [(&str, &str); 3] = [("/dev", "devtmpfs"), ("/proc", "proc"), ("/sys", "sysfs")];

/// Mounts the kernel's filesystems in the initramfs.
pub(super) fn early() {
    for (target, fstype) in KERNEL_MOUNTS {
        try_mount(target, fstype, kernel_flags(target), None);
    }
}

/// Makes the console the standard streams; without one they stay what the kernel gave.
pub(super) fn attach_console() {
    let console = File::options().read(true).write(true).open("/dev/console");
    if let Ok(console) = console.or_else(|_| File::options().read(true).write(true).open("/dev/null")) {
        // Only descriptors that are not open cannot be replaced, and then there is nothing to lose.
        let _ = dup2_stdin(&console);
        let _ = dup2_stdout(&console);
        let _ = dup2_stderr(&console);
    }
}

/// Mounts what is to become the root; returns where the filesystem is mounted that takes what is written.
pub(super) fn mount_root(config: &InitConfig) -> Result<&'static str, String> {
    let Some(base) = &config.base else {
        mount_device(&config.root, NEW_ROOT)?;
        return Ok(NEW_ROOT);
    };
    mount_device(base, BASE)?;
    mount_device(&config.root, SCRATCH)?;
    for dir in [WORK, NEW_ROOT] {
        fs::create_dir_all(dir).map_err(|error| format!("cannot make {dir}: {error}"))?;
    }
    if !Path::new(UPPER).exists() {
        make_upper().map_err(|error| format!("cannot make {UPPER}: {error}"))?;
    }
    mount("overlay", NEW_ROOT, "overlay", MountFlags::empty(), OVERLAY)
        .map_err(|error| format!("cannot mount the scratch disk over the root: {error}"))?;
    Ok(SCRATCH)
}

/// Makes the directory that stands for the root, once, with the mode of the base's: what the guest makes of it then stays. Its
/// owner is root, as of every root.
fn make_upper() -> std::io::Result<()> {
    let mode = fs::metadata(BASE)?.permissions();
    // A guest may be killed in the middle.
    fs::create_dir_all(UPPER_ASIDE)?;
    fs::set_permissions(UPPER_ASIDE, mode)?;
    fs::rename(UPPER_ASIDE, UPPER)
}

/// Waits for a device and mounts it.
fn mount_device(root: &RootDevice, to: &str) -> Result<(), String> {
    let device = &root.device;
    let seen = wait_for(ROOT_DEVICE_WAIT, || Path::new(device.as_str()).exists().then_some(()));
    if seen.is_none() {
        return Err(format!("root device {device} did not appear within {} s", ROOT_DEVICE_WAIT.as_secs()));
    }
    fs::create_dir_all(to).map_err(|error| format!("cannot make {to}: {error}"))?;
    let (mut flags, options) = split_options(&root.options);
    if root.read_only {
        flags |= MountFlags::RDONLY;
    }
    let data = CString::new(options).map_err(|_| "root options contain a zero byte".to_owned())?;
    mount(device.as_str(), to, root.fstype.as_str(), flags, data.as_c_str())
        .map_err(|error| format!("cannot mount root {device} as {}: {error}", root.fstype))
}

/// Makes the mounted root the root of every process, with the usual filesystems in it.
pub(super) fn switch_root() -> Result<(), String> {
    for (target, _) in KERNEL_MOUNTS {
        let moved = format!("{NEW_ROOT}{target}");
        make_directory(&moved);
        mount_move(target, &moved).map_err(|error| format!("cannot move {target} to {moved}: {error}"))?;
    }
    let failed = |error: Errno| format!("cannot switch to the root filesystem: {error}");
    chdir(NEW_ROOT).map_err(failed)?;
    mount_move(".", "/").map_err(failed)?;
    chroot(".").map_err(failed)?;
    chdir("/").map_err(failed)?;
    let tmpfs = MountFlags::NOSUID | MountFlags::NODEV;
    try_mount(
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        Some("mode=620,gid=5,ptmxmode=666"),
    );
    try_mount("/dev/shm", "tmpfs", tmpfs, Some("mode=1777"));
    try_mount("/run", "tmpfs", tmpfs, Some("mode=755"));
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        // An image's own devices are as good.
        let _ = std::os::unix::fs::symlink(target, format!("/dev/{name}"));
    }
    Ok(())
}

fn kernel_flags(target: &str) -> MountFlags {
    match target {
        "/dev" => MountFlags::NOSUID,
        _ => MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
    }
}

fn make_directory(path: &str) {
    if let Err(error) = fs::create_dir_all(path) {
        log(format!("cannot make {path}: {error}"));
    }
}

/// Mounts what a guest can also live without.
fn try_mount(target: &str, fstype: &str, flags: MountFlags, options: Option<&str>) {
    make_directory(target);
    let data = options.and_then(|options| CString::new(options).ok());
    match mount(fstype, target, fstype, flags, data.as_deref()) {
        Ok(()) | Err(Errno::BUSY) => {}
        Err(error) => log(format!("cannot mount {fstype} on {target}: {error}")),
    }
}

/// Splits options into the kernel's flags and the filesystem's own.
fn split_options(options: &str) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut own = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => flags |= MountFlags::RDONLY,
            "rw" | "defaults" => {}
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            other => own.push(other),
        }
    }
    (flags, own.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_split() {
        let (flags, own) = split_options("noatime,commit=30,,ro,data=writeback");
        assert_eq!(flags, MountFlags::NOATIME | MountFlags::RDONLY);
        assert_eq!(own, "commit=30,data=writeback");
        assert_eq!(split_options(""), (MountFlags::empty(), String::new()));
    }
}
