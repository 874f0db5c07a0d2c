//! Root file systems made of Debian packages, by `mmdebstrap`.
//!
//! As root it works in mount and process namespaces that end with this process, so that not even `kill -9` leaves a
//! mount or a process behind; as another user it makes its own.

use crate::apt;
use crate::error::BuildError;
use crate::ext4::EPOCH_SECONDS;
use crate::source::{DebianPlan, MirrorPlan};
use crate::unpack::set_time;
use kiln_core::arch::Arch;
use kiln_sys::{Cancel, Tool, ToolError, Toolbox, fs};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

/// Where documents and translations lie, and whether the directories below stay: programs that set up alternatives
/// expect those of manual pages. They are removed from the finished tree, because the package tool would start a
/// filter for each package.
const DOCUMENTS: [(&str, bool); 7] = [
    ("usr/share/man", true),
    ("usr/share/info", true),
    ("usr/share/doc", false),
    ("usr/share/doc-base", false),
    ("usr/share/lintian", false),
    ("usr/share/locale", false),
    ("usr/share/gnome/help", false),
];
/// Files among them that stay: licences, and what the C library reads.
const DOCUMENTS_KEPT: [&str; 2] = ["copyright", "locale.alias"];

/// Files that only say something about the host or about this build, and copies of what was before its last step.
const HOST_FILES: [&str; 8] = [
    "etc/resolv.conf",
    "etc/hostname",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "var/lib/apt/lists/lock",
    "var/cache/apt/archives/lock",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/lib/dpkg/status-old",
];

/// The most bytes of dpkg's status file.
const STATUS_BYTES_MAX: usize = 64 << 20;

/// What to make.
pub(crate) struct Request<'a> {
    pub(crate) plan: &'a DebianPlan,
    pub(crate) arch: Arch,
    pub(crate) is_root: bool,
    pub(crate) scratch: &'a Path,
    /// The tar file to write, which must not exist.
    pub(crate) tar: &'a Path,
}

/// Makes a tar file of the root file system.
pub(crate) fn bootstrap(
    request: &Request<'_>,
    toolbox: &Toolbox,
    cancel: &Cancel,
    line: &mut (dyn FnMut(&str) + Send),
) -> Result<(), BuildError> {
    let tool = mmdebstrap(request, toolbox, cancel)?;
    // The tar file goes through a descriptor of this process, which may write where the tool may not.
    let tool = tool.stdout_file(fs::create_new(request.tar)?).arg("--format=tar");
    let tool = targets(tool, request.plan, "-");
    tool.run(cancel, line).map_err(|error| explain(error, &request.plan.suite))?;
    Ok(())
}

/// Asks the archives what would be installed: names of packages and their versions. Nothing is installed.
pub(crate) fn simulate(
    request: &Request<'_>,
    toolbox: &Toolbox,
    cancel: &Cancel,
    line: &mut (dyn FnMut(&str) + Send),
) -> Result<BTreeMap<String, String>, BuildError> {
    let mut installed = BTreeMap::new();
    // What apt says, the tool repeats on its standard error.
    let tool = mmdebstrap(request, toolbox, cancel)?.args(["--simulate", "--verbose", "--format=null"]);
    let tool = targets(tool, request.plan, "/dev/null");
    let mut read = |said: &str| {
        if let Some((name, version)) = would_install(said) {
            installed.insert(name.to_owned(), version.to_owned());
        } else if said.starts_with("I: ") {
            line(said);
        }
    };
    tool.run(cancel, &mut read).map_err(|error| explain(error, &request.plan.suite))?;
    Ok(installed)
}

/// Reads a line of a simulation: `Inst libc6 (2.36-9 Debian:12/stable [amd64])`.
fn would_install(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
    // What is there already, in an earlier round of the simulation, stands in brackets first.
    let version = rest.split_once('(')?.1.split([' ', ')']).next()?;
    let plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
    (plain(name) && plain(version)).then_some((name, version))
}

/// Adds what the tool takes after its options.
fn targets(tool: Tool, plan: &DebianPlan, target: &str) -> Tool {
    let tool = tool.arg(&plan.suite).arg(target);
    match &plan.mirror {
        MirrorPlan::Default => tool,
        MirrorPlan::Recipe(mirror) => tool.arg(mirror),
        MirrorPlan::Host(sources) => tool.args(sources.iter().map(apt::AptSource::line)),
    }
}

/// Returns the tool with the options that say what is to be installed.
fn mmdebstrap(request: &Request<'_>, toolbox: &Toolbox, cancel: &Cancel) -> Result<Tool, BuildError> {
    let Request { plan, arch, is_root, scratch, .. } = *request;
    let mmdebstrap = toolbox.find("mmdebstrap")?;
    let mut tool = if is_root {
        let temporary = scratch.join("mmdebstrap");
        fs::create_dir(&temporary)?;
        let unshare = toolbox.find("unshare")?.args(["--mount", "--pid", "--fork", "--kill-child", "--"]);
        unshare.arg(mmdebstrap.program()).arg("--mode=root").env("TMPDIR", temporary)
    } else {
        // Its users are others on the host, which cannot enter the scratch directory: it works in the system's own.
        mmdebstrap.arg("--mode=unshare")
    };
    tool = tool.env("SOURCE_DATE_EPOCH", EPOCH_SECONDS.to_string());
    tool = tool.arg(format!("--variant={}", plan.variant));
    tool = tool.arg(format!("--architectures={}", arch.debian()));
    tool = tool.arg(format!("--components={}", plan.components.join(",")));
    for package in &plan.packages {
        tool = tool.arg(format!("--include={package}"));
    }
    for setting in apt::settings(toolbox, cancel)? {
        tool = tool.arg(format!("--aptopt={setting}"));
    }
    Ok(tool)
}

/// Names the package that an error is about.
fn explain(error: ToolError, suite: &str) -> BuildError {
    let package = match &error {
        ToolError::Failed { stderr, .. } => stderr.lines().find_map(unknown_package),
        _ => None,
    };
    match package {
        Some(package) => BuildError::PackageUnknown { package, suite: suite.to_owned(), source: error },
        None => error.into(),
    }
}

fn unknown_package(line: &str) -> Option<String> {
    let name = match line.split_once("Unable to locate package ") {
        Some((_, name)) => name,
        None => line.strip_suffix(" has no installation candidate")?.rsplit_once("Package ")?.1,
    };
    Some(kiln_core::text::clip(name.trim_matches(['\'', '‘', '’', ' '])))
}

/// Removes from an unpacked root file system what the host left in it. The times of directories stay.
pub(crate) fn neutralise(root: &Path) -> Result<(), BuildError> {
    for file in HOST_FILES {
        let path = root.join(file);
        in_directory_of(&path, || {
            // A symbolic link there was put by a package.
            if fs::optional(fs::symlink_metadata(&path))?.is_some_and(|meta| meta.is_file()) {
                fs::remove_file(&path)?;
            }
            Ok(())
        })?;
    }
    // Empty means: a new identity at each start, kept by whoever can write it.
    let machine_id = root.join("etc/machine-id");
    in_directory_of(&machine_id, || {
        fs::remove_file(&machine_id)?;
        fs::create_new(&machine_id)?;
        fs::set_mode(&machine_id, 0o444)?;
        set_time(&machine_id, crate::unpack::epoch())
    })
}

/// Removes documents and translations from an unpacked root file system. Licences stay, and links between packages'
/// documents.
pub(crate) fn strip_documents(root: &Path) -> Result<(), BuildError> {
    for (path, directories_stay) in DOCUMENTS {
        strip(&root.join(path), directories_stay, crate::tree::DEPTH_MAX)?;
    }
    Ok(())
}

fn strip(dir: &Path, directories_stay: bool, depth_left: usize) -> Result<(), BuildError> {
    let kind = fs::optional(fs::symlink_metadata(dir))?.map(|meta| meta.file_type());
    if depth_left == 0 || !kind.is_some_and(|kind| kind.is_dir()) {
        return Ok(());
    }
    for name in fs::list_dir(dir)? {
        let path = dir.join(&name);
        let kind = fs::symlink_metadata(&path)?.file_type();
        if kind.is_dir() {
            strip(&path, directories_stay, depth_left - 1)?;
            if !directories_stay && fs::list_dir(&path)?.is_empty() {
                fs::remove_tree(&path)?;
            }
        } else if kind.is_file() && DOCUMENTS_KEPT.iter().all(|kept| name != *kept) || directories_stay {
            fs::remove_file(&path)?;
        }
    }
    set_time(dir, crate::unpack::epoch())
}

/// Does work in a directory, if there is one, and gives it back its time.
pub(crate) fn in_directory_of(
    path: &Path,
    work: impl FnOnce() -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    let Some(meta) = fs::optional(fs::symlink_metadata(parent))?.filter(std::fs::Metadata::is_dir) else {
        return Ok(());
    };
    work()?;
    set_time(parent, meta.modified().unwrap_or(SystemTime::UNIX_EPOCH))
}

/// Returns the packages installed in a root file system with their versions.
pub(crate) fn installed(root: &Path) -> Result<BTreeMap<String, String>, BuildError> {
    let status = fs::read_optional(&root.join("var/lib/dpkg/status"), STATUS_BYTES_MAX)?.unwrap_or_default();
    let mut installed = BTreeMap::new();
    let mut package = None;
    for line in String::from_utf8_lossy(&status).lines() {
        if let Some(name) = line.strip_prefix("Package: ") {
            package = Some(name.trim().to_owned());
        } else if let Some(version) = line.strip_prefix("Version: ")
            && let Some(name) = package.take()
        {
            installed.insert(name, version.trim().to_owned());
        }
    }
    Ok(installed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_installed_is_read() {
        let line = "Inst libc6 (2.36-9+deb12u14 Debian:12.15/oldstable [amd64]) []";
        assert_eq!(would_install(line), Some(("libc6", "2.36-9+deb12u14")));
        assert_eq!(would_install("Inst libc6 [2.35] (2.36 Debian:12 [amd64])"), Some(("libc6", "2.36")));
        for other in ["Conf libc6 (2.36 Debian:12 [amd64])", "Inst libc6", "Inst  (1)", "Inst a ()", ""] {
            assert_eq!(would_install(other), None, "{other}");
        }
    }

    #[test]
    fn the_unknown_package_is_named() {
        assert_eq!(unknown_package("E: Unable to locate package no-such").as_deref(), Some("no-such"));
        assert_eq!(
            unknown_package("E: Package 'gone' has no installation candidate").as_deref(),
            Some("gone")
        );
        assert_eq!(unknown_package("E: apt-get failed"), None);
    }
}
