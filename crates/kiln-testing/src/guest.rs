//! A small real guest: Debian's cloud kernel and a static busybox.

use crate::TestContext;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Commands of busybox that tests use.
const APPLETS: [&str; 34] = [
    "sh",
    "cat",
    "echo",
    "ls",
    "sleep",
    "true",
    "false",
    "uname",
    "head",
    "tail",
    "sha256sum",
    "dd",
    "ps",
    "kill",
    "id",
    "pwd",
    "env",
    "stat",
    "stty",
    "mount",
    "hostname",
    "date",
    "nproc",
    "free",
    "test",
    "touch",
    "wc",
    "tr",
    "seq",
    "yes",
    "mkdir",
    "nc",
    "httpd",
    "poweroff",
];

/// Returns the directory of kernel and modules that `scripts/fixtures` makes.
pub fn fixtures() -> PathBuf {
    let dir = std::env::var_os("KILN_TEST_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fixtures"), PathBuf::from);
    assert!(dir.join("complete").exists(), "{} is not there: run scripts/fixtures", dir.display());
    dir.canonicalize().unwrap()
}

/// Makes a root file system of a static busybox in the context's working directory.
pub fn busybox_rootfs(context: &TestContext, name: &str) -> PathBuf {
    let root = context.work().join(name);
    for dir in ["bin", "etc", "dev", "proc", "sys", "tmp", "root", "run", "var"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    std::fs::set_permissions(root.join("tmp"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().map(Path::new).find(|path| path.exists());
    std::fs::copy(busybox.expect("busybox-static is installed"), root.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    )
    .unwrap();
    std::fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n").unwrap();
    root
}

/// Writes a recipe called `name` of that root file system, with `extra` lines, and returns its directory.
pub fn recipe(context: &TestContext, name: &str, extra: &str) -> PathBuf {
    let root = context.work().join("rootfs");
    if !root.exists() {
        busybox_rootfs(context, "rootfs");
    }
    let fixtures = fixtures();
    let text = format!(
        "name = \"{name}\"\n[source]\ntype = \"directory\"\npath = \"{}\"\nkernel = \"{}\"\nmodules = \"{}\"\n{extra}\n",
        root.display(),
        fixtures.join("vmlinuz").display(),
        fixtures.join("modules").display()
    );
    context.write(&format!("{name}/kiln.toml"), text);
    context.work().join(name)
}
