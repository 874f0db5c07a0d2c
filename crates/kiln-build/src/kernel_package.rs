//! The kernel of a distribution: its package is fetched with an apt state of its own and unpacked, not installed.

use crate::apt;
use crate::error::BuildError;
use kiln_core::arch::Arch;
use kiln_core::lock::{Moved, PinKind};
use kiln_sys::{Cancel, IoResultExt, Tool, ToolError, Toolbox, fs};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The most bytes of `apt-cache show` for one package.
const SHOW_BYTES_MAX: usize = 1 << 20;
/// The most bytes of an archive's release file.
const RELEASE_BYTES_MAX: usize = 8 << 20;
/// The most packages a kernel may consist of.
const PACKAGES_MAX: usize = 16;
/// The beginnings of the names of packages that hold a kernel or its modules.
const KERNEL_PREFIXES: [&str; 2] = ["linux-image-", "linux-modules-"];

/// What to fetch.
pub(crate) struct Request<'a> {
    pub(crate) package: &'a str,
    pub(crate) suite: &'a str,
    /// What a lock says that the package stands for.
    pub(crate) locked: Option<&'a str>,
    pub(crate) arch: Arch,
    /// The lines of `sources.list`.
    pub(crate) sources: Vec<String>,
    /// A directory to be made.
    pub(crate) dir: PathBuf,
}

/// What was fetched.
#[derive(Debug)]
pub(crate) struct KernelFiles {
    pub(crate) kernel: PathBuf,
    pub(crate) modules: PathBuf,
    /// Each `NAME=VERSION`.
    pub(crate) packages: Vec<String>,
}

/// What a kernel's package stands for now.
#[derive(Debug)]
pub(crate) struct KernelVersion {
    /// Packages, each `NAME=VERSION`, in order, with a space between two.
    pub(crate) packages: String,
    /// The archives, by address and suite, and the dates of their release files.
    pub(crate) archives: Vec<(String, String)>,
}

/// Looks up what a kernel's package stands for, and fetches nothing else.
pub(crate) fn look_up(
    request: &Request<'_>,
    toolbox: &Toolbox,
    cancel: &Cancel,
    line: &mut (dyn FnMut(&str) + Send),
) -> Result<KernelVersion, BuildError> {
    let apt = IsolatedApt::new(request, toolbox, cancel)?;
    apt.tool("apt-get")?.args(["--quiet", "update"]).run(cancel, line)?;
    let packages = joined(&resolve(request, &apt, cancel)?);
    let lists = request.dir.join("state/lists");
    let mut archives = Vec::new();
    for name in fs::list_dir(&lists)? {
        let Some(archive) = name.to_str().and_then(|name| name.strip_suffix("_InRelease")) else { continue };
        let head = fs::read_limited(&lists.join(&name), RELEASE_BYTES_MAX)?;
        let text = String::from_utf8_lossy(&head);
        if let Some(date) = text.lines().find_map(|line| line.strip_prefix("Date: ")) {
            archives.push((archive.replace("_dists_", " ").replace('_', "/"), date.trim().to_owned()));
        }
    }
    Ok(KernelVersion { packages, archives })
}

fn joined(packages: &[String]) -> String {
    packages.join(" ")
}

/// Fetches and unpacks.
pub(crate) fn fetch(
    request: &Request<'_>,
    toolbox: &Toolbox,
    cancel: &Cancel,
    line: &mut (dyn FnMut(&str) + Send),
) -> Result<KernelFiles, BuildError> {
    let apt = IsolatedApt::new(request, toolbox, cancel)?;
    apt.tool("apt-get")?.args(["--quiet", "update"]).run(cancel, line)?;
    let packages = resolve(request, &apt, cancel)?;
    if let Some(locked) = request.locked
        && locked != joined(&packages)
    {
        let (name, before) = (request.package.to_owned(), Some(locked.to_owned()));
        let moved = vec![Moved { kind: PinKind::Kernel, name, before, after: Some(joined(&packages)) }];
        return Err(BuildError::LockMoved { kind: PinKind::Kernel, moved });
    }
    let debs = request.dir.join("debs");
    fs::create_dir(&debs)?;
    let download = apt.tool("apt-get")?.args(["--quiet", "download"]).args(&packages).current_dir(&debs);
    download.run(cancel, line)?;
    let tree = request.dir.join("tree");
    fs::create_dir(&tree)?;
    for deb in fs::list_dir(&debs)? {
        toolbox.find("dpkg-deb")?.arg("--extract").arg(debs.join(deb)).arg(&tree).run(cancel, line)?;
    }
    let problem = |problem: &str| BuildError::KernelPackage {
        package: request.package.to_owned(),
        problem: problem.to_owned(),
    };
    let kernel =
        only(&tree.join("boot"), "vmlinu")?.ok_or_else(|| problem("it holds no kernel, or several"))?;
    let modules = match only(&tree.join("usr/lib/modules"), "")? {
        Some(modules) => Some(modules),
        None => only(&tree.join("lib/modules"), "")?,
    };
    let modules = modules.ok_or_else(|| problem("it holds no modules, or those of several kernels"))?;
    Ok(KernelFiles { kernel, modules, packages })
}

/// Returns the one entry of a directory whose name begins so.
fn only(dir: &Path, prefix: &str) -> Result<Option<PathBuf>, BuildError> {
    let names = fs::list_dir(dir)?;
    let mut found = names.iter().filter(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes()));
    match (found.next(), found.next()) {
        (Some(name), None) => Ok(Some(dir.join(name))),
        _ => Ok(None),
    }
}

/// Follows a package's dependencies to those that hold the kernel and its modules.
fn resolve(request: &Request<'_>, apt: &IsolatedApt<'_>, cancel: &Cancel) -> Result<Vec<String>, BuildError> {
    let mut waiting = vec![request.package.to_owned()];
    let mut seen: Vec<String> = Vec::new();
    let mut chosen = Vec::new();
    while let Some(package) = waiting.pop() {
        if seen.contains(&package) {
            continue;
        }
        if seen.len() == PACKAGES_MAX {
            let problem = format!("it consists of more than {PACKAGES_MAX} packages");
            return Err(BuildError::KernelPackage { package: request.package.to_owned(), problem });
        }
        seen.push(package.clone());
        let tool =
            apt.tool("apt-cache")?.args(["show", "--no-all-versions", &package]).stdout_max(SHOW_BYTES_MAX);
        let shown = tool.run(cancel, &mut |_| ()).map_err(|error| match error {
            ToolError::Failed { .. } => {
                let (package, suite) = (package.clone(), request.suite.to_owned());
                BuildError::PackageUnknown { package, suite, source: error }
            }
            other => other.into(),
        })?;
        let stanza = String::from_utf8_lossy(&shown.stdout);
        let depends = kernel_depends(&stanza);
        // A package that leads to an image is only a name for the newest one.
        if !depends.iter().any(|name| name.starts_with(KERNEL_PREFIXES[0])) {
            match stanza.lines().find_map(|line| line.strip_prefix("Version: ")) {
                Some(version) => chosen.push(format!("{package}={}", version.trim())),
                None => {
                    let problem = "the archive does not tell its version".to_owned();
                    return Err(BuildError::KernelPackage { package, problem });
                }
            }
        }
        waiting.extend(depends);
    }
    chosen.sort();
    Ok(chosen)
}

/// Returns the packages a control stanza depends on that belong to a kernel, the first of alternatives.
fn kernel_depends(stanza: &str) -> Vec<String> {
    let fields =
        stanza.lines().filter_map(|line| line.strip_prefix("Depends:").or(line.strip_prefix("Pre-Depends:")));
    let names = fields.flat_map(|field| field.split(',')).filter_map(|clause| {
        clause.split('|').next()?.split_whitespace().next().map(|name| name.split(':').next().unwrap_or(name))
    });
    names
        .filter(|name| KERNEL_PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
        .map(str::to_owned)
        .collect()
}

/// An apt that knows the wanted archives only, and keeps its lists to itself.
struct IsolatedApt<'a> {
    toolbox: &'a Toolbox,
    config: PathBuf,
}

impl<'a> IsolatedApt<'a> {
    fn new(request: &Request<'_>, toolbox: &'a Toolbox, cancel: &Cancel) -> Result<Self, BuildError> {
        let dir = &request.dir;
        fs::create_dir(dir)?;
        for below in [
            "empty",
            "state",
            "state/lists",
            "state/lists/partial",
            "cache",
            "cache/archives",
            "cache/archives/partial",
        ] {
            fs::create_dir(&dir.join(below))?;
        }
        write(&dir.join("status"), "")?;
        write(&dir.join("sources.list"), &(request.sources.join("\n") + "\n"))?;
        let paths = [
            ("Dir::State", "state"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
            ("Dir::Etc::Main", "empty/none"),
            ("Dir::Etc::Parts", "empty"),
            ("Dir::Etc::SourceList", "sources.list"),
            ("Dir::Etc::SourceParts", "empty"),
            ("Dir::Etc::Preferences", "empty/none"),
            ("Dir::Etc::PreferencesParts", "empty"),
        ];
        let mut config = String::new();
        for (name, path) in paths {
            config.push_str(&format!("{name} \"{}\";\n", dir.join(path).display()));
        }
        let arch = request.arch.debian();
        config.push_str(&format!("APT::Architecture \"{arch}\";\nAPT::Architectures {{ \"{arch}\"; }};\n"));
        // The scratch directory is closed to other users, apt's own among them.
        config.push_str("APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n");
        for setting in apt::settings(toolbox, cancel)? {
            config.push_str(&format!("{setting};\n"));
        }
        let path = dir.join("apt.conf");
        write(&path, &config)?;
        Ok(Self { toolbox, config: path })
    }

    fn tool(&self, name: &str) -> Result<Tool, BuildError> {
        Ok(self.toolbox.find(name)?.env("APT_CONFIG", &self.config))
    }
}

fn write(path: &Path, text: &str) -> Result<(), BuildError> {
    fs::create_new(path)?.write_all(text.as_bytes()).at("write", path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kernel_packages_are_followed() {
        let stanza = "Package: linux-image-virtual\nDepends: linux-image-6.8.0-1 (= 6.8.0-1.1) | linux-image-unsigned-6.8.0-1,\
                      linux-modules-extra-6.8.0-1:any, initramfs-tools\nPre-Depends: debconf\n";
        assert_eq!(kernel_depends(stanza), ["linux-image-6.8.0-1", "linux-modules-extra-6.8.0-1"]);
        assert!(
            kernel_depends("Package: linux-image-6.1.0-9\nDepends: kmod, linux-base (>= 4.3~)\n").is_empty()
        );
    }
}
