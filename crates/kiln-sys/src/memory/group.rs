//! Limits of control groups on memory, of version 2 and 1.

use super::decimal;
use crate::fs;
use kiln_core::ByteSize;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

/// `/proc/self/cgroup` has a line for each hierarchy, of a path at most.
const MEMBERSHIP_BYTES_MAX: usize = 128 << 10;
/// Hosts with thousands of mounts are known.
const MOUNTS_BYTES_MAX: usize = 8 << 20;
/// A number, or `max`.
const VALUE_BYTES_MAX: usize = 64;
/// `memory.stat` of some 80 lines.
const STAT_BYTES_MAX: usize = 64 << 10;
/// The deepest group whose limits, and those above it, are read.
const DEPTH_MAX: usize = 64;
/// From here on a limit of version 1 means none: the kernel writes the largest number of whole pages.
const NO_LIMIT: u64 = 1 << 62;

/// A control group with a limit on memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMemory {
    /// Its directory.
    pub path: PathBuf,
    /// The most its processes may have.
    pub limit: ByteSize,
    /// What they have; files in the cache that nobody used of late are not counted: the kernel drops them first.
    pub used: ByteSize,
}

impl GroupMemory {
    /// Returns what is left below its limit.
    pub fn left(&self) -> ByteSize {
        ByteSize::from_bytes(self.limit.bytes().saturating_sub(self.used.bytes()))
    }
}

/// The names of a version's files.
struct Version {
    /// The kind of its file systems.
    mounted: &'static str,
    limit: &'static str,
    used: &'static str,
    /// The line of `memory.stat` that counts files of the group and those below it that nobody used of late.
    idle_files: &'static str,
}

static V2: Version =
    Version { mounted: "cgroup2", limit: "memory.max", used: "memory.current", idle_files: "inactive_file" };
static V1: Version = Version {
    mounted: "cgroup",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    idle_files: "total_inactive_file",
};

/// Returns, of the caller's groups and those above them, the one with the least left. Files are looked up below `root`.
pub(super) fn tightest(root: &Path) -> Option<GroupMemory> {
    let read = |path: &str, max: usize| fs::read_limited(&root.join(path), max).ok();
    let membership = read("proc/self/cgroup", MEMBERSHIP_BYTES_MAX)?;
    let mounts = read("proc/self/mountinfo", MOUNTS_BYTES_MAX)?;
    let mut found: Option<GroupMemory> = None;
    for (version, group) in memberships(&membership) {
        for dir in dirs(&mounts, version, group) {
            let dir = root.join(dir.strip_prefix("/").unwrap_or(&dir));
            let Some(group) = limited(&dir, version) else { continue };
            if found.as_ref().is_none_or(|least| group.left() < least.left()) {
                found = Some(group);
            }
        }
    }
    found
}

/// Returns the groups that may limit memory, of lines `0::/path` and `4:memory:/path`.
fn memberships(text: &[u8]) -> Vec<(&'static Version, &Path)> {
    let parse = |line| {
        let mut fields = <[u8]>::splitn(line, 3, |byte| *byte == b':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let version = match (id, controllers) {
            (b"0", b"") => &V2,
            (_, names) if names.split(|byte| *byte == b',').any(|name| name == b"memory") => &V1,
            _ => return None,
        };
        Some((version, Path::new(std::ffi::OsStr::from_bytes(path))))
    };
    text.split(|byte| *byte == b'\n').filter_map(parse).collect()
}

/// Returns the directories of a group and of those above it, as far as they are mounted: the group first.
fn dirs(mounts: &[u8], version: &Version, group: &Path) -> Vec<PathBuf> {
    let below = |line: &[u8]| {
        let (root, point) = mount(line, version)?;
        // A group outside of the mounted part, as in a namespace of groups, has no directory here.
        let rest = group.strip_prefix(root).ok()?;
        rest.components().all(|part| matches!(part, Component::Normal(_))).then(|| {
            let dir = point.join(rest);
            let above = rest.components().count();
            dir.ancestors().take(above.min(DEPTH_MAX) + 1).map(Path::to_owned).collect()
        })
    };
    mounts.split(|byte| *byte == b'\n').find_map(below).unwrap_or_default()
}

/// Returns root and mount point of a line of `mountinfo`, where it is a mount of the version's memory controller.
fn mount(line: &[u8], version: &Version) -> Option<(PathBuf, PathBuf)> {
    let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
    let root = fields.nth(3)?;
    let point = fields.next()?;
    let mut about = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = about.next()?;
    let options = about.nth(1)?;
    // A hierarchy of version 1 has the controllers it is mounted with; that of version 2 says so in no option.
    let has_memory = version.mounted == V2.mounted
        || options.split(|byte| *byte == b',').any(|option| option == b"memory");
    (kind == version.mounted.as_bytes() && has_memory).then(|| (unescaped(root), unescaped(point)))
}

/// Returns a path of `mountinfo`, where the kernel writes blanks and backslashes as `\` and three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal =
            after.get(..3).filter(|digits| first == b'\\' && digits.iter().all(|d| (b'0'..b'8').contains(d)));
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Reads limit and use of one group; none where it has no limit or cannot be read.
fn limited(dir: &Path, version: &Version) -> Option<GroupMemory> {
    let number = |name: &str| {
        decimal(fs::read_text_limited(&dir.join(name), VALUE_BYTES_MAX).ok()?.trim_end())
            .map(ByteSize::from_bytes)
    };
    let limit = number(version.limit).filter(|limit| limit.bytes() < NO_LIMIT)?;
    let used = number(version.used)?;
    let stat = fs::read_text_limited(&dir.join("memory.stat"), STAT_BYTES_MAX).unwrap_or_default();
    let idle = stat.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        if key == version.idle_files { decimal(value) } else { None }
    });
    let used = ByteSize::from_bytes(used.bytes().saturating_sub(idle.unwrap_or(0)));
    Some(GroupMemory { path: dir.to_owned(), limit, used })
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "fixtures are written plainly")]
mod tests {
    use super::*;
    use crate::tool::ScratchDir;

    const MOUNTS: &str = "\
22 1 8:1 / / rw,relatime - ext4 /dev/vda rw
31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:10 master:3 - cgroup cgroup rw,memory
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    /// A small host: what the kernel would say of groups and mounts, and files of groups.
    struct Host(ScratchDir);

    impl Host {
        fn new(membership: &str, mounts: &str, files: &[(&str, &str)]) -> Self {
            let host = Self(ScratchDir::new(&std::env::temp_dir()).unwrap());
            for (name, text) in
                files.iter().chain(&[("proc/self/cgroup", membership), ("proc/self/mountinfo", mounts)])
            {
                let path = host.0.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            host
        }

        /// Returns group (below the host's root), limit and use of the tightest.
        fn tightest(&self) -> Option<(String, u64, u64)> {
            let group = tightest(self.0.path())?;
            let path = group.path.strip_prefix(self.0.path()).unwrap().to_str().unwrap().to_owned();
            Some((path, group.limit.bytes(), group.used.bytes()))
        }
    }

    #[test]
    fn version_2_counts_the_tightest_of_all_above() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let files = [
            ("sys/fs/cgroup/user.slice/memory.max", "1000000\n"),
            ("sys/fs/cgroup/user.slice/memory.current", "900000\n"),
            ("sys/fs/cgroup/user.slice/memory.stat", "anon 5\ninactive_file 50000\nactive_file 7\n"),
            ("sys/fs/cgroup/user.slice/app/memory.max", "500000\n"),
            ("sys/fs/cgroup/user.slice/app/memory.current", "100000\n"),
            ("sys/fs/cgroup/user.slice/app/leaf/memory.max", "max\n"),
            ("sys/fs/cgroup/user.slice/app/leaf/memory.current", "100000\n"),
        ];
        let host = Host::new("0::/user.slice/app/leaf\n", mounts, &files);
        assert_eq!(host.tightest(), Some(("sys/fs/cgroup/user.slice".to_owned(), 1_000_000, 850_000)));
    }

    #[test]
    fn version_1_is_found_among_its_hierarchies() {
        let group = |limit: &str| {
            let files = [
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/memory/memory.usage_in_bytes", "800000\n"),
                ("sys/fs/cgroup/memory/a b/memory.limit_in_bytes", limit),
                ("sys/fs/cgroup/memory/a b/memory.usage_in_bytes", "700000\n"),
                ("sys/fs/cgroup/memory/a b/memory.stat", "inactive_file 1\ntotal_inactive_file 200000\n"),
            ];
            Host::new("9:name=systemd:/\n4:memory:/a b\n1:cpu:/\n0::/\n", MOUNTS, &files).tightest()
        };
        let found = Some(("sys/fs/cgroup/memory/a b".to_owned(), 1_000_000, 500_000));
        assert_eq!(group("1000000\n"), found);
        for none in ["9223372036854771712\n", "", "-1\n", "many\n", &"1".repeat(65)] {
            assert_eq!(group(none), None, "{none}");
        }
    }

    #[test]
    fn a_container_sees_its_own_part_of_the_hierarchy() {
        let files = [("g/memory.max", "4096\n"), ("g/memory.current", "8192\n")];
        let bind = "30 23 0:26 /docker/ab\\040c /g rw - cgroup2 cgroup2 rw\n";
        let found = Some(("g".to_owned(), 4096, 8192));
        for (membership, mounts, expected) in [
            ("0::/docker/ab c\n", bind, found.clone()),
            ("0::/\n", "30 23 0:26 / /g rw - cgroup2 cgroup2 rw\n", found),
            ("0::/docker\n", bind, None),
            ("0::/../other\n", "30 23 0:26 / /g rw - cgroup2 cgroup2 rw\n", None),
            ("", bind, None),
            ("0::/docker/ab c\n", "", None),
            ("nonsense", "more of it", None),
        ] {
            let host = Host::new(membership, mounts, &files);
            let found = host.tightest();
            assert_eq!(found, expected, "{membership}{mounts}");
        }
    }

    #[test]
    fn paths_of_mounts_are_unescaped() {
        for (field, path) in [
            ("/a\\040b", "/a b"),
            ("/a\\134b", "/a\\b"),
            ("/end\\04", "/end\\04"),
            ("/\\999", "/\\999"),
            ("/\\777", "/\\777"),
        ] {
            assert_eq!(unescaped(field.as_bytes()), Path::new(path), "{field}");
        }
    }
}
