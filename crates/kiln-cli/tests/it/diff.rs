//! Comparing two revisions.

use crate::context;
use kiln_testing::{TestContext, plain, recipe};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

/// Bakes `web:old` and `web:latest`, which differ in a little of everything.
fn two_revisions(context: &TestContext) {
    let dir = recipe(context, "web", "");
    let root = context.work().join("rootfs");
    let dpkg = root.join("var/lib/dpkg");
    std::fs::create_dir_all(&dpkg).unwrap();
    let status = |version: &str, other: &str| {
        format!("Package: nginx\nVersion: {version}\nArchitecture: amd64\n\nPackage: {other}\nVersion: 1\n")
    };
    std::fs::write(dpkg.join("status"), status("1.22", "wget")).unwrap();
    std::fs::create_dir_all(root.join("srv/old/deep")).unwrap();
    std::fs::write(root.join("srv/old/deep/page"), "gone").unwrap();
    std::fs::write(root.join("etc/motd"), "one").unwrap();
    std::fs::write(root.join("etc/equal"), vec![b'x'; 100_000]).unwrap();
    std::fs::write(root.join("etc/mode"), "mode").unwrap();
    std::fs::write(root.join("etc/kind"), "kind").unwrap();
    symlink("motd", root.join("etc/link")).unwrap();
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    context.kiln(["tag", "web", "web:old"]).ok();

    std::fs::write(dpkg.join("status"), status("1.24", "curl")).unwrap();
    std::fs::create_dir_all(root.join("var/lib/rpm")).unwrap();
    std::fs::remove_dir_all(root.join("srv/old")).unwrap();
    std::fs::write(root.join("etc/motd"), "two").unwrap();
    std::fs::write(root.join("etc/new\x1b[2J"), "added").unwrap();
    std::fs::set_permissions(root.join("etc/mode"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::remove_file(root.join("etc/kind")).unwrap();
    std::fs::create_dir(root.join("etc/kind")).unwrap();
    std::fs::remove_file(root.join("etc/link")).unwrap();
    symlink("equal", root.join("etc/link")).unwrap();
    std::fs::write(root.join("etc/large"), vec![b'y'; 3 << 20]).unwrap();
    recipe(
        context,
        "web",
        "[machine]\nmemory = \"512M\"\n[boot]\nargs = [\"quiet\"]\n[[variant]]\nname = \"big\"\nmemory = \"1G\"",
    );
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
}

/// Replaces what depends on the host's busybox and kernel: short digests, shared sizes.
fn steady(context: &TestContext, text: &str) -> String {
    let mut out = String::new();
    for line in plain(context, text).lines() {
        let is_artifact = ["initrd ", "kernel ", "rootfs "].iter().any(|role| line.starts_with(role));
        if is_artifact {
            let words: Vec<&str> = line.split_whitespace().collect();
            let after = if words[2] == "same" { "same" } else { "[ID]" };
            out.push_str(&format!("{} [ID] {after} [SHARED]\n", words[0]));
        } else {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[test]
fn two_revisions_are_compared_as_text() {
    let context = context();
    two_revisions(&context);
    let text = context.kiln(["diff", "web:old", "web"]).ok();
    insta::assert_snapshot!(steady(&context, &text), @r#"
             REFERENCE    REVISION
    before   web:old      sha256:[DIGEST]
    after    web:latest   sha256:[DIGEST]

    SETTING       BEFORE   AFTER
    memory        256M     512M
    boot_args     -        quiet
    variant big   -        memory=1G

    ARTIFACT   BEFORE         AFTER          SHARED
    initrd [ID] same [SHARED]
    kernel [ID] same [SHARED]
    rootfs [ID] [ID] [SHARED]

    packages: 1 added, 1 changed, 1 removed
        MANAGER   PACKAGE   BEFORE   AFTER
    A   dpkg      curl      -        1
    C   dpkg      nginx     1.22     1.24
    D   dpkg      wget      1        -

    files: 3 added (3.0 MiB), 5 changed (82 B), 3 removed (4 B)
        BEFORE      AFTER       DIFFERS                   PATH
    A   -           3.0 MiB     -                         /etc/large
    C   75 B        75 B        content                   /var/lib/dpkg/status
    A   -           5 B         -                         /etc/new\u{1b}[2J
    C   4 B         directory   type, mode 0644 to 0755   /etc/kind
    C   4 B         4 B         mode 0644 to 0600         /etc/mode
    D   4 B         -           -                         /srv/old/deep/page
    C   3 B         3 B         content                   /etc/motd
    C   link        link        target                    /etc/link
    D   directory   -           -                         /srv/old
    D   directory   -           -                         /srv/old/deep
    A   -           directory   -                         /var/lib/rpm
    "#);
    let packages = context.kiln(["diff", "web:old", "web", "--packages"]).ok();
    insta::assert_snapshot!(packages, @r#"
    packages: 1 added, 1 changed, 1 removed
        MANAGER   PACKAGE   BEFORE   AFTER
    A   dpkg      curl      -        1
    C   dpkg      nginx     1.22     1.24
    D   dpkg      wget      1        -
    "#);
    assert_eq!(context.staged(), Vec::<String>::new());
}

#[test]
fn two_revisions_are_compared_as_json() {
    let context = context();
    two_revisions(&context);
    let mut json = context.kiln(["diff", "web:old", "web", "--json", "--files"]).json();
    for artifact in json["artifacts"].as_array_mut().unwrap() {
        let (before, after) = (artifact["before"].clone(), artifact["after"].clone());
        let (data, shared) =
            (before["data_bytes"].as_u64().unwrap(), artifact["shared_bytes"].as_u64().unwrap());
        if before == after {
            assert_eq!(shared, data, "{artifact}");
        } else {
            assert!(shared > 0 && shared < data, "{artifact}");
        }
        let is_equal = before == after;
        *artifact = serde_json::json!({ "role": artifact["role"], "is_equal": is_equal });
    }
    let changes = json["files"]["changes"].take();
    let changes: Vec<String> = changes.as_array().unwrap().iter().map(ToString::to_string).collect();
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let changes = changes.join("\n").replace(&format!("\"uid\":{uid}}}"), "\"uid\":ME}");
    let changes = changes.replace(&format!("\"gid\":{gid},"), "\"gid\":MINE,");
    insta::assert_snapshot!(changes, @r#"
    {"after":{"gid":MINE,"kind":"directory","mode":493,"size":0,"uid":ME},"aspects":["type","mode"],"before":{"gid":MINE,"kind":"file","mode":420,"size":4,"uid":ME},"change":"changed","path":"/etc/kind"}
    {"after":{"gid":MINE,"kind":"file","mode":420,"size":3145728,"uid":ME},"aspects":[],"before":null,"change":"added","path":"/etc/large"}
    {"after":{"gid":MINE,"kind":"link","mode":511,"size":0,"uid":ME},"aspects":["target"],"before":{"gid":MINE,"kind":"link","mode":511,"size":0,"uid":ME},"change":"changed","path":"/etc/link"}
    {"after":{"gid":MINE,"kind":"file","mode":384,"size":4,"uid":ME},"aspects":["mode"],"before":{"gid":MINE,"kind":"file","mode":420,"size":4,"uid":ME},"change":"changed","path":"/etc/mode"}
    {"after":{"gid":MINE,"kind":"file","mode":420,"size":3,"uid":ME},"aspects":["content"],"before":{"gid":MINE,"kind":"file","mode":420,"size":3,"uid":ME},"change":"changed","path":"/etc/motd"}
    {"after":{"gid":MINE,"kind":"file","mode":420,"size":5,"uid":ME},"aspects":[],"before":null,"change":"added","path":"/etc/new\u001b[2J"}
    {"after":null,"aspects":[],"before":{"gid":MINE,"kind":"directory","mode":493,"size":0,"uid":ME},"change":"removed","path":"/srv/old"}
    {"after":null,"aspects":[],"before":{"gid":MINE,"kind":"directory","mode":493,"size":0,"uid":ME},"change":"removed","path":"/srv/old/deep"}
    {"after":null,"aspects":[],"before":{"gid":MINE,"kind":"file","mode":420,"size":4,"uid":ME},"change":"removed","path":"/srv/old/deep/page"}
    {"after":{"gid":MINE,"kind":"file","mode":420,"size":75,"uid":ME},"aspects":["content"],"before":{"gid":MINE,"kind":"file","mode":420,"size":75,"uid":ME},"change":"changed","path":"/var/lib/dpkg/status"}
    {"after":{"gid":MINE,"kind":"directory","mode":493,"size":0,"uid":ME},"aspects":[],"before":null,"change":"added","path":"/var/lib/rpm"}
    "#);
    let text = serde_json::to_string_pretty(&json).unwrap();
    insta::assert_snapshot!(plain(&context, &text), @r#"
    {
      "a": {
        "reference": "web:old",
        "revision": "sha256:[DIGEST]"
      },
      "artifacts": [
        {
          "is_equal": true,
          "role": "initrd"
        },
        {
          "is_equal": true,
          "role": "kernel"
        },
        {
          "is_equal": false,
          "role": "rootfs"
        }
      ],
      "b": {
        "reference": "web:latest",
        "revision": "sha256:[DIGEST]"
      },
      "files": {
        "added": {
          "bytes_after": 3145733,
          "bytes_before": 0,
          "count": 3
        },
        "changed": {
          "bytes_after": 82,
          "bytes_before": 86,
          "count": 5
        },
        "changes": null,
        "omitted": 0,
        "removed": {
          "bytes_after": 0,
          "bytes_before": 4,
          "count": 3
        }
      },
      "packages": {
        "changes": [
          {
            "after": "1",
            "before": null,
            "change": "added",
            "manager": "dpkg",
            "name": "curl"
          },
          {
            "after": "1.24",
            "before": "1.22",
            "change": "changed",
            "manager": "dpkg",
            "name": "nginx"
          },
          {
            "after": null,
            "before": "1",
            "change": "removed",
            "manager": "dpkg",
            "name": "wget"
          }
        ],
        "not_read": []
      },
      "schema_version": 1,
      "settings": [
        {
          "after": "512M",
          "before": "256M",
          "name": "memory"
        },
        {
          "after": "quiet",
          "before": null,
          "name": "boot_args"
        },
        {
          "after": "memory=1G",
          "before": null,
          "name": "variant big"
        }
      ]
    }
    "#);
    let largest = context.kiln(["diff", "web:old", "web", "--json"]).json();
    assert_eq!(largest["files"]["changes"][0]["path"], "/etc/large");
    assert_eq!(largest["files"]["added"], json["files"]["added"]);
    let packages = context.kiln(["diff", "web:old", "web", "--json", "--packages"]).json();
    assert_eq!(packages["files"], serde_json::Value::Null);
    assert_eq!(packages["packages"], json["packages"]);
}

/// A package of a database: name, epoch or nothing, and version; its release is 1.
type Package<'a> = (&'a str, &'a str, &'a str);

/// Makes an RPM database of packages without files.
fn rpm_database(context: &TestContext, dir: &Path, packages: &[Package<'_>]) {
    let top = context.work().join("rpmbuild");
    let run = |command: &mut Command| {
        let output =
            command.env("HOME", context.work()).output().expect("rpm is installed: scripts/setup test");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let mut install = Command::new("rpm");
    install.args(["--install", "--justdb", "--nodeps", "--ignorearch", "--nosignature", "--dbpath"]).arg(dir);
    for (name, epoch, version) in packages {
        let epoch = if epoch.is_empty() { String::new() } else { format!("Epoch: {epoch}\n") };
        let spec = format!(
            "Name: {name}\nVersion: {version}\nRelease: 1\n{epoch}Summary: a test\nLicense: MIT\nBuildArch: noarch\n\
             %description\nA test.\n%files\n"
        );
        let spec = context.write(&format!("{name}-{version}.spec"), spec);
        let define = |name: &str, value: &Path| format!("{name} {}", value.display());
        let mut build = Command::new("rpmbuild");
        build.args(["-bb", "--define", &define("_topdir", &top)]);
        run(build.args(["--define", &define("_dbpath", &top.join("none"))]).arg(spec));
        install.arg(top.join(format!("RPMS/noarch/{name}-{version}-1.noarch.rpm")));
    }
    std::fs::create_dir_all(dir).unwrap();
    run(&mut install);
}

#[test]
fn rpm_packages_are_compared() {
    let context = context();
    let dir = recipe(&context, "web", "");
    let root = context.work().join("rootfs");
    let database = root.join("usr/lib/sysimage/rpm");
    let packages = [
        ("same", "", "1"),
        ("gone", "", "1"),
        ("hello", "3", "1.0"),
        ("kernel", "0", "6.1"),
        ("kernel", "0", "6.2"),
    ];
    rpm_database(&context, &database, &packages);
    std::fs::create_dir_all(root.join("var/lib")).unwrap();
    symlink("../../usr/lib/sysimage/rpm", root.join("var/lib/rpm")).unwrap();
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    context.kiln(["tag", "web", "web:old"]).ok();
    std::fs::remove_dir_all(&database).unwrap();
    let packages = [
        ("same", "", "1"),
        ("new", "", "2~rc1"),
        ("hello", "3", "1.1"),
        ("kernel", "", "6.2"),
        ("kernel", "", "6.3"),
    ];
    rpm_database(&context, &database, &packages);
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    insta::assert_snapshot!(context.kiln(["diff", "web:old", "web", "--packages"]).ok(), @r"
    packages: 1 added, 2 changed, 1 removed
        MANAGER   PACKAGE   BEFORE         AFTER
    D   rpm       gone      1-1            -
    C   rpm       hello     3:1.0-1        3:1.1-1
    C   rpm       kernel    6.1-1, 6.2-1   6.2-1, 6.3-1
    A   rpm       new       -              2~rc1-1
    ");
    assert_eq!(context.staged(), Vec::<String>::new());

    // A database that is none does not keep the files back, and no words of the image steer the terminal.
    std::fs::remove_dir_all(&database).unwrap();
    std::fs::remove_file(root.join("var/lib/rpm")).unwrap();
    symlink("/else\x1b[2Jwhere", root.join("var/lib/rpm")).unwrap();
    std::fs::create_dir(&database).unwrap();
    std::fs::write(database.join("rpmdb.sqlite"), vec![b'x'; 100_000]).unwrap();
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    let text = context.kiln(["diff", "web:old", "web"]).ok();
    let packages =
        text.lines().skip_while(|line| !line.starts_with("packages:")).take_while(|line| !line.is_empty());
    insta::assert_snapshot!(packages.collect::<Vec<_>>().join("\n"), @r"
    packages: 0 added, 0 changed, 0 removed
    not read: rpm: /usr/lib/sysimage/rpm: `rpm` does not read rpmdb.sqlite: cannot open Packages database in /usr/lib/sysimage/rpm
    not read: rpm: /var/lib/rpm: it is a symbolic link to /else\u{1b}[2Jwhere, which is not followed
    ");
    assert!(text.contains(" /usr/lib/sysimage/rpm/rpmdb.sqlite\n"), "{text}");
    assert_eq!(context.staged(), Vec::<String>::new());
}

#[test]
fn a_revision_equals_itself_and_strangers_are_named() {
    let context = context();
    let dir =
        recipe(&context, "web", "[[variant]]\nname = \"big\"\nmemory = \"1G\"\nboot_args = [\"quiet\"]");
    context.kiln(["build".as_ref(), dir.as_os_str()]).ok();
    let text = context.kiln(["diff", "web", "web:latest"]).ok();
    assert!(text.ends_with("\nthe same revision\n") && !text.contains("SETTING"), "{text}");
    let text = context.kiln(["diff", "web", "web/big"]).ok();
    for line in ["memory      256M     1G", "boot_args   -        quiet", "the same revision"] {
        assert!(text.lines().any(|have| have == line), "{text}");
    }
    let error = context.kiln(["diff", "web", "wbe"]).fails(1);
    assert!(error.contains("template `wbe` not found") && error.contains("did you mean `web`?"), "{error}");
    context.kiln(["diff", "web", "Not A Reference"]).fails(2);
    context.kiln(["diff", "web", "web", "--files", "--packages"]).fails(2);
}

/// Overwrites bytes of the artifact that is `web`'s root file system.
fn spoil(context: &TestContext, at: u64, bytes: &[u8]) -> String {
    use std::os::unix::fs::FileExt as _;
    let shown = context.kiln(["show", "web", "--json"]).json();
    let artifacts = shown["manifest"]["artifacts"].as_array().unwrap();
    let rootfs = artifacts.iter().find(|artifact| artifact["role"] == "rootfs").unwrap();
    let digest = rootfs["digest"].as_str().unwrap().to_owned();
    let path = context.home().join("artifacts").join(digest.trim_start_matches("sha256:"));
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&path, 0o644);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(bytes, at).unwrap();
    mode(&path, 0o444);
    digest
}

#[test]
fn a_damaged_root_file_system_is_an_error_that_names_its_artifact() {
    let context = context();
    two_revisions(&context);
    let digest = spoil(&context, 1024 + 0x38, &[0, 0]);
    let error = context.kiln(["diff", "web:old", "web"]).fails(1);
    assert!(
        error.contains(digest.trim_start_matches("sha256:"))
            && error.contains("its content has another digest"),
        "{error}"
    );
    assert!(error.contains("try: kiln verify --all --repair"), "{error}");
}
