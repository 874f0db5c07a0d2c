#![expect(clippy::disallowed_methods, reason = "tests make their images with the tools of the host")]

use super::super::super::images::{image, open};
use super::super::{Inventory, compare, read};
use super::*;
use crate::Settings;
use kiln_sys::Cancel;
use kiln_sys::tool::{ScratchDir, Toolbox};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

/// A root file system in the making, and a directory for a program that passes for `rpm`.
struct Fixture(ScratchDir);

impl Fixture {
    fn new() -> Self {
        let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
        for dir in DIRS {
            std::fs::create_dir_all(scratch.path().join("tree").join(dir.trim_start_matches('/'))).unwrap();
        }
        std::fs::create_dir(scratch.path().join("bin")).unwrap();
        Self(scratch)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join("tree").join(path.trim_start_matches('/'))
    }

    /// Puts a file into the tree.
    fn put(&self, path: &str, content: &[u8]) {
        std::fs::write(self.at(path), content).unwrap();
    }

    /// Writes the program that passes for `rpm`.
    fn program(&self, script: &str) -> Vec<PathBuf> {
        let path = self.0.path().join("bin/rpm");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        vec![self.0.path().join("bin")]
    }

    /// Reads the packages of the tree as it is now, with programs of these directories.
    fn read(&self, search: Vec<PathBuf>) -> Inventory {
        let file = image(&self.0, "image", &["-b", "4096"]);
        let digest_of = std::fs::File::open(&file).unwrap();
        let cancel = Cancel::new().unwrap();
        let index = kiln_store::hash_file(&digest_of, &file, &cancel).unwrap();
        let side = Side::new(index.digest(), open(&file).unwrap(), &index);
        let settings = Settings {
            // What looks like a macro is none.
            home: self.0.path().join("home %{name} %(touch ran)"),
            toolbox: Toolbox::new(search, Vec::new()),
            own_program: PathBuf::from("/nonexistent"),
        };
        let engine = Engine::open(settings, cancel).unwrap();
        let inventory = read(&engine, &side).unwrap();
        let staged = std::fs::read_dir(engine.store.root().join("staging")).unwrap().count();
        assert_eq!(staged, 0, "nothing stays behind");
        inventory
    }

    /// Returns what the packages are, and what was not read.
    fn lines(&self, search: Vec<PathBuf>) -> Vec<String> {
        let diff = compare(&Inventory::default(), &self.read(search));
        let line = |change: &super::super::PackageChange| {
            format!("{} {}", change.name, change.after.as_deref().unwrap_or_default())
        };
        diff.changes.iter().map(line).chain(diff.not_read).collect()
    }
}

/// The host's programs.
fn host() -> Vec<PathBuf> {
    kiln_sys::tool::SEARCH_DEFAULT.iter().map(PathBuf::from).collect()
}

/// Prints each file of the directory as a package, with its length as the version.
const FILES_AS_PACKAGES: &str =
    r#"for file in *; do printf '%s\t\t%s\t1\t\n' "$file" "$(/usr/bin/wc -c < "$file")"; done"#;

#[test]
fn the_files_of_a_database_are_copied_and_no_others() {
    let fixture = Fixture::new();
    let program = fixture.program(FILES_AS_PACKAGES);
    fixture.put("/var/lib/rpm/Packages", b"old");
    fixture.put("/var/lib/rpm/Packages.db", b"newer");
    fixture.put("/var/lib/rpm/other", b"no");
    assert_eq!(fixture.lines(program.clone()), ["Packages.db 5-1"]);
    fixture.put("/var/lib/rpm/rpmdb.sqlite", &[7; 3_000_001]);
    fixture.put("/var/lib/rpm/rpmdb.sqlite-wal", b"");
    fixture.put("/var/lib/rpm/rpmdb.sqlite-shm", b"shm");
    fixture.put("/usr/lib/sysimage/rpm/Packages", b"old");
    assert_eq!(
        fixture.lines(program),
        ["Packages 3-1", "rpmdb.sqlite 3000001-1", "rpmdb.sqlite-wal 0-1"],
        "both directories, the newest kind of each"
    );
}

#[test]
fn a_copy_has_the_content_of_its_file() {
    let fixture = Fixture::new();
    let content: Vec<u8> = (0..700_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    // A hole, more than is copied at a time, and an end within a block.
    let path = fixture.at("/var/lib/rpm/Packages");
    let file = std::fs::File::create(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &content, 1 << 20).unwrap();
    let want = std::fs::read(&path).unwrap();
    let sum = kiln_core::Digest::of(&want).to_string();
    let program = fixture
        .program(r#"printf 'sum\t\t%s\t1\t\n' "$(/usr/bin/sha256sum < Packages | /usr/bin/cut -c1-64)""#);
    assert_eq!(fixture.lines(program), [format!("sum {}-1", sum.trim_start_matches("sha256:"))]);
}

#[test]
fn without_the_program_the_database_is_named() {
    let fixture = Fixture::new();
    assert_eq!(fixture.lines(Vec::new()), Vec::<String>::new(), "no database, nothing to say");
    fixture.put("/var/lib/rpm/.rpm.lock", b"");
    assert_eq!(fixture.lines(Vec::new()), Vec::<String>::new());
    fixture.put("/usr/lib/sysimage/rpm/rpmdb.sqlite", b"");
    assert_eq!(fixture.lines(Vec::new()), ["rpm: /usr/lib/sysimage/rpm: program `rpm` is not installed"]);
}

#[test]
fn what_is_no_database_is_refused_with_what_the_program_says() {
    let fixture = Fixture::new();
    let noise: Vec<u8> = (0..100_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    for (name, content, want) in [
        (
            "rpmdb.sqlite",
            &noise[..],
            "`rpm` does not read rpmdb.sqlite: cannot open Packages database in /var/lib/rpm",
        ),
        (
            "rpmdb.sqlite",
            b"",
            "`rpm` does not read rpmdb.sqlite: cannot open Packages database in /var/lib/rpm",
        ),
        ("Packages", &noise, "`rpm` does not read Packages: cannot open Packages database in /var/lib/rpm"),
        ("other", b"", "it holds no database that is known"),
    ] {
        fixture.put(&format!("/var/lib/rpm/{name}"), content);
        assert_eq!(fixture.lines(host()), [format!("rpm: /var/lib/rpm: {want}")], "{name}");
        std::fs::remove_file(fixture.at("/var/lib/rpm").join(name)).unwrap();
    }
    // Some builds of rpm know this kind and some do not: those make a new database beside it and list nothing.
    fixture.put("/var/lib/rpm/Packages.db", &noise);
    let lines = fixture.lines(host());
    assert!(lines.len() == 1 && lines[0].starts_with("rpm: /var/lib/rpm: `rpm` "), "{lines:?}");
}

#[test]
fn a_program_that_fails_keeps_nothing_else_back() {
    let fixture = Fixture::new();
    fixture.put("/var/lib/rpm/Packages", b"any");
    for (script, want) in [
        ("exit 3", "`rpm` does not read Packages: exit code 3"),
        ("kill -SEGV $$", "`rpm` does not read Packages: killed by signal 11"),
        (
            r"printf 'a\t\t1\t1\t\n'; echo 'error: skipping one' >&2",
            "`rpm` does not read Packages: skipping one",
        ),
        ("echo 'warning: of no weight' >&2", "`rpm` lists no package of Packages"),
        (r"printf 'a\t\t1\t1\t'", "line 1 of the list is not five fields"),
        (r"printf 'a\t\t(none)\t1\t\n'", "line 1 of the list has no version that can be one: `(none)`"),
        ("/usr/bin/head -c 67108865 /dev/zero", "`rpm` wrote more than 67108864 bytes"),
    ] {
        let search = fixture.program(script);
        assert_eq!(fixture.lines(search), [format!("rpm: /var/lib/rpm: {want}")], "{script}");
    }
    std::fs::create_dir_all(fixture.at("/var/lib/dpkg")).unwrap();
    fixture.put("/var/lib/dpkg/status", b"Package: bash\nVersion: 5\n");
    let lines = fixture.lines(fixture.program("exit 3"));
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0], "bash 5");
}

#[test]
fn packages_are_not_compared_with_a_database_that_was_not_read() {
    let fixture = Fixture::new();
    fixture.put("/var/lib/rpm/Packages", b"any");
    let good = fixture.read(fixture.program(FILES_AS_PACKAGES));
    let bad = fixture.read(fixture.program("exit 3"));
    for (a, b) in [(&good, &bad), (&bad, &good)] {
        let diff = compare(a, b);
        assert_eq!((diff.changes.len(), diff.not_read.len()), (0, 1), "{diff:?}");
    }
}

#[test]
fn nothing_is_followed_out_of_the_directory() {
    let fixture = Fixture::new();
    let program = fixture.program(FILES_AS_PACKAGES);
    fixture.put("/usr/lib/sysimage/rpm/Packages", b"here");
    std::fs::remove_dir(fixture.at("/var/lib/rpm")).unwrap();
    for (target, want) in [
        ("../../usr/lib/sysimage/rpm", &["Packages 4-1"][..]),
        ("/usr/lib/sysimage/rpm/", &["Packages 4-1"]),
        (
            "../../../../etc",
            &["rpm: /var/lib/rpm: it is a symbolic link to ../../../../etc, which is not followed"],
        ),
        ("/etc", &["rpm: /var/lib/rpm: it is a symbolic link to /etc, which is not followed"]),
    ] {
        symlink(target, fixture.at("/var/lib/rpm")).unwrap();
        assert_eq!(fixture.lines(program.clone()), want, "{target}");
        std::fs::remove_file(fixture.at("/var/lib/rpm")).unwrap();
    }
    for name in ["rpmdb.sqlite", "rpmdb.sqlite-wal"] {
        let path = fixture.at("/usr/lib/sysimage/rpm").join(name);
        fixture.put("/usr/lib/sysimage/rpm/rpmdb.sqlite", b"");
        _ = std::fs::remove_file(&path);
        symlink("/etc/passwd", &path).unwrap();
        let want = format!("rpm: /usr/lib/sysimage/rpm: {name} in it is no regular file");
        assert_eq!(fixture.lines(program.clone()), [want]);
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_database_has_a_largest_size() {
    let fixture = Fixture::new();
    let path = fixture.at("/var/lib/rpm/rpmdb.sqlite");
    std::fs::File::create(&path).unwrap().set_len(DATABASE_BYTES_MAX).unwrap();
    let program = fixture.program(r#"printf 'a\t\t%s\t1\t\n' "$(/usr/bin/wc -c < rpmdb.sqlite)""#);
    assert_eq!(fixture.lines(program.clone()), ["a 536870912-1"], "a hole is copied as one");
    fixture.put("/var/lib/rpm/rpmdb.sqlite-wal", b"w");
    assert_eq!(
        fixture.lines(program),
        ["rpm: /var/lib/rpm: its database has 536870913 bytes, more than 536870912"]
    );
}

#[test]
fn a_line_is_a_package() {
    let list = b"bash\t\t5.2\t1.el9\tx86_64\nkernel\t0\t6.1\t2\tx86_64\nperl\t4\t5.36\t3\tnoarch\ngpg-pubkey\t\tab\tcd\t\n";
    let text: Vec<String> = parse(list)
        .unwrap()
        .iter()
        .map(|package| format!("{} {} {:?}", package.name, package.version, package.arch.as_deref()))
        .collect();
    assert_eq!(
        text,
        [
            "bash 5.2-1.el9 Some(\"x86_64\")",
            "kernel 6.1-2 Some(\"x86_64\")",
            "perl 4:5.36-3 Some(\"noarch\")",
            "gpg-pubkey ab-cd None"
        ]
    );
    assert_eq!(parse(b"").unwrap(), []);
}

#[test]
fn what_is_no_package_is_named_with_its_line_and_field() {
    let long = format!("{}\t\t1\t1\t\n", "n".repeat(FIELD_BYTES_MAX + 1));
    for (line, want) in [
        (&b"\n"[..], "line 2 of the list is not five fields"),
        (b"a\t\t1\t1\n", "line 2 of the list is not five fields"),
        (b"a\t\t1\t1\t\t\n", "line 2 of the list is not five fields"),
        (b"\t\t1\t1\t\n", "line 2 of the list has no name that can be one: ``"),
        (b"a b\t\t1\t1\t\n", "line 2 of the list has no name that can be one: `a b`"),
        (b"a\t-1\t1\t1\t\n", "line 2 of the list has no epoch that can be one: `-1`"),
        (b"a\t+1\t1\t1\t\n", "line 2 of the list has no epoch that can be one: `+1`"),
        (b"a\t4294967296\t1\t1\t\n", "line 2 of the list has no epoch that can be one: `4294967296`"),
        (b"a\t\t\x1b[2J\t1\t\n", "line 2 of the list has no version that can be one: `\\u{1b}[2J`"),
        (b"a\t\t1\t\xff\t\n", "line 2 of the list has no release that can be one: `\u{fffd}`"),
        (b"a\t\t1\t1\t(none)\n", "line 2 of the list has no architecture that can be one: `(none)`"),
    ] {
        let error = parse(&[b"a\t\t1\t1\t\n", line].concat()).unwrap_err().to_string();
        assert_eq!(error, want);
    }
    assert!(parse(&long.as_bytes()[1..]).is_ok());
    let error = parse(long.as_bytes()).unwrap_err().to_string();
    assert!(error.starts_with("line 1 of the list has no name that can be one: `nnn"), "{error}");
    let error = parse(b"a\t\t1\t1\t").unwrap_err().to_string();
    assert_eq!(error, "line 1 of the list is not five fields");
}
