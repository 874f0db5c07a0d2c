//! Whole builds from directories and tar files.

use crate::archive::archive;
use crate::host::{facts, kernel, output, planned, scratch, write};
use kiln_build::archive::ArchiveError;
use kiln_build::modules::ModuleError;
use kiln_build::{AGENT, BuildContext, BuildError, BuildOutput, HostFacts, Quiet, run};
use kiln_core::digest::Digest;
use kiln_core::recipe::parse;
use kiln_sys::tool::ScratchDir;
use kiln_sys::{Cancel, Toolbox, fs};
use std::io::Write as _;
use std::path::Path;

fn build_as(host: &HostFacts, text: &str, base: &Path, scratch: &Path) -> Result<BuildOutput, BuildError> {
    let (toolbox, cancel) = (Toolbox::default(), Cancel::new().unwrap());
    let plan = planned(&parse(text).unwrap(), base, host)?;
    run(
        &plan,
        &BuildContext {
            toolbox: &toolbox,
            scratch,
            cache: scratch,
            offline: false,
            reporter: &Quiet,
            cancel: &cancel,
            host,
        },
    )
}

fn build(text: &str, base: &Path) -> Result<(ScratchDir, BuildOutput), BuildError> {
    let scratch = scratch();
    let output = build_as(&facts(), text, base, scratch.path())?;
    Ok((scratch, output))
}

fn recipe(kind: &str, path: &str, rest: &str) -> String {
    format!("name = 'demo'\n{rest}\n[source]\ntype = '{kind}'\npath = '{path}'\nkernel = 'kernel'\n")
}

fn base() -> ScratchDir {
    let dir = scratch();
    write(&dir.path().join("kernel"), &kernel());
    let root = dir.path().join("root");
    fs::create_dir_all(&root.join("sbin")).unwrap();
    write(&root.join("sbin/start"), b"#!/bin/sh\n");
    fs::set_mode(&root.join("sbin/start"), 0o755).unwrap();
    std::os::unix::fs::symlink("/sbin/start", root.join("init")).unwrap();
    dir
}

fn refused(bytes: &[u8]) -> ArchiveError {
    let dir = base();
    write(&dir.path().join("tar"), bytes);
    let scratch = scratch();
    match build_as(&facts(), &recipe("tar", "tar", ""), dir.path(), scratch.path()).unwrap_err() {
        BuildError::Archive { source, .. } => {
            // Refused before anything was written.
            assert!(fs::list_dir(scratch.path()).unwrap().is_empty());
            source
        }
        other => panic!("{other}"),
    }
}

fn tar_of(dir: &Path) -> Vec<u8> {
    let tar = dir.join("made.tar");
    let args = ["-cf", tar.to_str().unwrap(), "--sort=name", "--owner=x:12", "--group=y:34"];
    let root = dir.join("root");
    output("tar", &[&args[..], &["--mtime=@1600000000", "-C", root.to_str().unwrap(), "."]].concat());
    fs::read_limited(&tar, 1 << 30).unwrap()
}

fn disk_digest(output: &BuildOutput) -> Digest {
    Digest::of(&fs::read_limited(&output.artifacts[2].path, 1 << 30).unwrap())
}

#[test]
fn a_directory_becomes_a_disk_and_stays_as_it_is() {
    let dir = base();
    let before = output("find", &[dir.path().to_str().unwrap(), "-printf", "%p %T@ %C@ %m\n"]);
    let (_scratch, built) =
        build(&recipe("directory", "root", "[agent]\ninit = '/init'"), dir.path()).unwrap();
    let roles: Vec<&str> = built.artifacts.iter().map(|file| file.role.as_str()).collect();
    assert_eq!(roles, ["initrd", "kernel", "rootfs"]);
    let initrd = fs::read_limited(&built.artifacts[0].path, 1 << 28).unwrap();
    assert!(initrd.windows(AGENT.len().min(64)).any(|part| part == &AGENT[..AGENT.len().min(64)]));
    assert_eq!(fs::read_limited(&built.artifacts[1].path, 1 << 20).unwrap(), kernel());
    assert_eq!(before, output("find", &[dir.path().to_str().unwrap(), "-printf", "%p %T@ %C@ %m\n"]));
}

#[test]
fn a_tar_file_gives_the_same_disk_however_it_is_compressed_and_whoever_unpacks_it() {
    let dir = base();
    let plain = tar_of(dir.path());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let zstd = ruzstd::encoding::compress_to_vec(&plain[..], ruzstd::encoding::CompressionLevel::Fastest);
    write(&dir.path().join("a.tar"), &plain);
    write(&dir.path().join("b.tar"), &gzip.finish().unwrap());
    write(&dir.path().join("c.tar"), &zstd);
    let mut digests = Vec::new();
    for (name, is_root) in [("a.tar", true), ("b.tar", true), ("c.tar", true), ("a.tar", false)] {
        let host = facts();
        let host = HostFacts { is_root: host.is_root && is_root, ..host };
        let scratch = scratch();
        let built = build_as(&host, &recipe("tar", name, ""), dir.path(), scratch.path()).unwrap();
        let disk = built.artifacts[2].path.to_str().unwrap().to_owned();
        let stat = output("debugfs", &["-R", "stat /sbin/start", &disk]);
        assert!(stat.contains("User:    12   Group:    34") && stat.contains("Mode:  0755"), "{stat}");
        digests.push(disk_digest(&built));
    }
    digests.dedup();
    assert_eq!(digests.len(), 1);
}

#[test]
fn directories_without_an_entry_have_a_fixed_time() {
    let dir = base();
    let mut file = crate::archive::raw(b"a/b/file", b'0', 0, b"");
    file.set_cksum();
    write(&dir.path().join("tar"), &archive(&[file.as_bytes().to_vec()]));
    let (_one, first) = build(&recipe("tar", "tar", ""), dir.path()).unwrap();
    let (_two, second) = build(&recipe("tar", "tar", ""), dir.path()).unwrap();
    assert_eq!(disk_digest(&first), disk_digest(&second));
    let stat = output("debugfs", &["-R", "stat /a/b", first.artifacts[2].path.to_str().unwrap()]);
    assert!(stat.contains("Mode:  0755") && stat.contains("mtime: 0x6553f100"), "{stat}");
}

#[test]
fn tar_files_that_cannot_be_used_are_refused_before_anything_is_written() {
    let evil = crate::archive::raw(b"../evil", b'0', 0, b"");
    assert!(matches!(refused(&archive(&[evil.as_bytes().to_vec()])), ArchiveError::Parent(_)));
    let xz = [0xfd, b'7', b'z', b'X', b'Z', 0, 0];
    assert_eq!(refused(&xz).to_string(), "it is compressed with xz; plain, gzip and zstd can be read");
    assert!(matches!(refused(b"BZh91AY"), ArchiveError::Compression("bzip2")));
    assert!(matches!(refused(b""), ArchiveError::Truncated(_)));
    assert!(matches!(refused(&[0x1f, 0x8b, 8, 0, 0]), ArchiveError::Truncated(_) | ArchiveError::Read(_)));
}

#[test]
fn an_init_that_is_not_there_is_named() {
    let dir = base();
    let error = build(&recipe("directory", "root", "[agent]\ninit = '/lib/systemd/systemd'"), dir.path())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the image has no `/lib/systemd/systemd`, which the recipe names as its init"
    );
}

#[test]
fn what_cannot_be_a_kernel_is_named() {
    let dir = base();
    write(&dir.path().join("text"), b"hello");
    let text = recipe("directory", "root", "").replace("'kernel'", "'text'");
    let error = build(&text, dir.path()).unwrap_err();
    assert_eq!(error.to_string(), format!("kernel {}/text cannot be used", dir.path().display()));
}

#[test]
fn modules_need_a_directory_of_modules() {
    let dir = base();
    let error =
        build(&recipe("directory", "root", "[agent]\nmodules = ['overlay']"), dir.path()).unwrap_err();
    assert!(matches!(error, BuildError::Modules(ModuleError::NoDirectory(name)) if name == "overlay"));
    let text = recipe("directory", "root", "") + "modules = 'root'\n";
    assert!(matches!(build(&text, dir.path()), Err(BuildError::Modules(ModuleError::Empty(_)))));
}

#[test]
fn a_cancelled_build_says_so() {
    let (dir, scratch, host) = (base(), scratch(), facts());
    let (toolbox, cancel) = (Toolbox::default(), Cancel::new().unwrap());
    let plan = planned(&parse(&recipe("directory", "root", "")).unwrap(), dir.path(), &host).unwrap();
    cancel.cancel();
    let cx = BuildContext {
        toolbox: &toolbox,
        scratch: scratch.path(),
        cache: scratch.path(),
        offline: false,
        reporter: &Quiet,
        cancel: &cancel,
        host: &host,
    };
    assert!(matches!(run(&plan, &cx), Err(BuildError::Cancelled)));
}

/// Where the test below finds its file system in its own mount namespace.
const SMALL: &str = "/tmp/kiln-build-small";

#[test]
fn too_little_room_is_told_with_need_and_have() {
    if !kiln_sys::process::is_root() {
        return;
    }
    fs::create_dir_all(Path::new(SMALL)).unwrap();
    let own = std::env::current_exe().unwrap();
    let args =
        ["--mount", "--", own.to_str().unwrap(), "--exact", "run::within_a_small_file_system", "--ignored"];
    output("unshare", &args);
}

#[test]
#[ignore = "the test above runs it in a mount namespace of its own"]
fn within_a_small_file_system() {
    output("mount", &["-t", "tmpfs", "-o", "size=90m", "tmpfs", SMALL]);
    let dir = base();
    write(&dir.path().join("root/large"), &vec![1; 40 << 20]);
    let text = recipe("directory", "root", "");
    let error = build_as(&facts(), &text, dir.path(), Path::new(SMALL)).unwrap_err();
    assert!(
        matches!(error, BuildError::NoSpace { need, have, .. } if need > have && have > 80 << 20),
        "{error:?}"
    );
    let message = error.to_string();
    assert!(message.starts_with("/tmp/kiln-build-small has 90.0 MiB free, the build needs 10"), "{message}");
    assert!(fs::list_dir(Path::new(SMALL)).unwrap().is_empty());
}
