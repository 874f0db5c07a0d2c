//! Nix itself: its arguments, its store and its answers.
//!
//! It is run by an argument vector, on its store where the host has one. Where there is none it gets one in the builds'
//! cache, with paths that are real: such a store needs no rights and no daemon, and knows neither sandbox nor caches.

use super::error::NixError;
use crate::error::BuildError;
use kiln_core::recipe::FlakeRef;
use kiln_sys::{Cancel, Tool, ToolError, Toolbox, fs};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// The store of a host with Nix.
pub(super) const STORE: &str = "/nix/store";
/// The most bytes of an answer of Nix.
pub(super) const ANSWER_BYTES_MAX: usize = 16 << 20;
/// The time a build of Nix may take: it may have a whole system to make.
const BUILD_WITHIN: Duration = Duration::from_secs(24 * 3600);
/// The letters of the hash part of a name in the store.
const HASH_CHARS: usize = 32;

/// A flake as Nix gets it.
#[derive(Debug, Clone)]
pub(super) enum Flake {
    /// In this directory.
    Directory(PathBuf),
    /// Fetched, by a reference that stands for fixed content.
    Fetched(FlakeRef),
}

/// Nix on this host.
#[derive(Debug)]
pub(super) struct Nix<'a> {
    toolbox: &'a Toolbox,
    /// The directory of the store that kiln keeps, where the host has none.
    private: Option<PathBuf>,
    offline: bool,
}

impl<'a> Nix<'a> {
    /// Finds Nix and its store.
    pub(super) fn find(toolbox: &'a Toolbox, cache: &Path, offline: bool) -> Result<Self, BuildError> {
        toolbox.find("nix")?;
        let private = if fs::exists(Path::new(STORE))? {
            None
        } else {
            // Nix has no store below a symbolic link.
            let dir = fs::canonicalize(cache)?.join("nix");
            for name in ["home", "store", "state", "log"] {
                fs::create_dir_all(&dir.join(name))?;
            }
            Some(dir)
        };
        Ok(Self { toolbox, private, offline })
    }

    /// Returns the directory of the store that kiln keeps, where it keeps one.
    pub(super) fn private_store(&self) -> Option<&Path> {
        self.private.as_deref()
    }

    /// Returns Nix with what all its commands are given.
    fn tool(&self) -> Result<Tool, ToolError> {
        let mut tool = self.toolbox.find("nix")?.stdout_max(ANSWER_BYTES_MAX);
        tool = tool.args(["--extra-experimental-features", "nix-command flakes"]);
        // A flake may ask for other settings, programs to run after each build among them.
        tool = tool.args(["--option", "accept-flake-config", "false"]);
        if let Some(dir) = &self.private {
            tool = tool.arg("--store").arg(store_uri(dir));
            for (name, value) in [("sandbox", "false"), ("substitute", "false"), ("build-users-group", "")] {
                tool = tool.args(["--option", name, value]);
            }
            tool = tool.env("HOME", dir.join("home"));
        }
        Ok(if self.offline { tool.arg("--offline") } else { tool })
    }

    /// Returns Nix as it builds: it may have a whole system to make.
    fn builder(&self) -> Result<Tool, ToolError> {
        let args = ["build", "--no-link", "--json", "--print-build-logs", "--no-update-lock-file"];
        Ok(self.tool()?.deadline(BUILD_WITHIN).args(args))
    }

    /// Asks what a reference stands for: the same reference at a revision.
    pub(super) fn locked(&self, flake: &FlakeRef, cancel: &Cancel) -> Result<String, BuildError> {
        let tool = self.tool()?.args(["flake", "metadata", "--json", "--no-update-lock-file", "--"]);
        let output = tool.arg(flake.as_str()).run(cancel, &mut |_| ());
        let output = output
            .map_err(|error| failed(error, |source| NixError::Lookup { flake: flake.to_string(), source }))?;
        let answer: Metadata = parse("nix flake metadata", &output.stdout)?;
        let fixed = answer.locked.rev.is_some() || answer.url.contains("narHash=");
        if !fixed {
            return Err(NixError::NotLocked { flake: flake.to_string() }.into());
        }
        Ok(answer.url)
    }

    /// Builds an attribute and returns where its outputs lie.
    pub(super) fn build(
        &self,
        flake: &Flake,
        attribute: &str,
        impure: bool,
        cancel: &Cancel,
        line: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Built, BuildError> {
        let mut tool = self.builder()?;
        if impure {
            tool = tool.arg("--impure");
        }
        let (shown, reference) = match flake {
            // As the working directory a path needs no escapes, whatever is in it.
            Flake::Directory(dir) => {
                tool = tool.current_dir(dir);
                (dir.display().to_string(), "path:.".to_owned())
            }
            Flake::Fetched(flake) => (flake.to_string(), flake.to_string()),
        };
        let output = tool.arg("--").arg(format!("{reference}#{attribute}")).run(cancel, line);
        let output = output.map_err(|error| {
            let attribute = attribute.to_owned();
            failed(error, |source| NixError::Build { flake: shown, attribute, source })
        })?;
        let store = self.private.as_ref().map_or_else(|| PathBuf::from(STORE), |dir| dir.join("store"));
        Built::parse(&output.stdout, &store)
    }
}

/// Returns the name of a store with real paths. Its parameters are those of an address, escaped as such.
fn store_uri(dir: &Path) -> OsString {
    let escaped = |name: &str| -> String {
        let path = dir.join(name);
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-".contains(byte);
        let byte =
            |byte: &u8| if plain(byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") };
        path.as_os_str().as_bytes().iter().map(byte).collect()
    };
    format!("local?store={}&state={}&log={}", escaped("store"), escaped("state"), escaped("log")).into()
}

/// A failure of the program is told with what was asked of it; anything else as it is.
fn failed(error: ToolError, with: impl FnOnce(ToolError) -> NixError) -> BuildError {
    match error {
        ToolError::Failed { .. } | ToolError::TimedOut { .. } => with(error).into(),
        other => other.into(),
    }
}

fn parse<'de, T: Deserialize<'de>>(command: &'static str, bytes: &'de [u8]) -> Result<T, BuildError> {
    let answer = serde_json::from_slice(bytes);
    answer.map_err(|error| NixError::Answer { command, problem: error.to_string() }.into())
}

/// What `nix flake metadata` tells that is of use here.
#[derive(Deserialize)]
struct Metadata {
    url: String,
    locked: Locked,
}

#[derive(Deserialize)]
struct Locked {
    rev: Option<String>,
}

/// What `nix build` tells: a list of packages, in other versions packages by their derivation.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    List(Vec<Package>),
    Map(BTreeMap<String, Package>),
}

#[derive(Deserialize)]
struct Package {
    outputs: BTreeMap<String, PackageOutput>,
}

/// An output is its path, in other versions an object with it.
#[derive(Deserialize)]
#[serde(untagged)]
enum PackageOutput {
    Path(PathBuf),
    Object { path: PathBuf },
}

/// What Nix built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Built {
    /// The store, with links followed.
    pub(super) store: PathBuf,
    /// The outputs, the main one first.
    pub(super) outputs: Vec<PathBuf>,
}

impl Built {
    fn parse(answer: &[u8], store: &Path) -> Result<Self, BuildError> {
        let command = "nix build";
        let mut packages = match parse(command, answer)? {
            Answer::List(packages) => packages,
            Answer::Map(packages) => packages.into_values().collect(),
        };
        let (1, Some(mut package)) = (packages.len(), packages.pop()) else {
            return Err(NixError::Packages { count: packages.len() }.into());
        };
        let main = package.outputs.remove_entry("out").or_else(|| package.outputs.pop_first());
        let outputs = main.into_iter().chain(package.outputs).map(|(_, output)| match output {
            PackageOutput::Path(path) | PackageOutput::Object { path } => path,
        });
        let outputs: Vec<PathBuf> = outputs.collect();
        let inside = |path: &PathBuf| match path.strip_prefix(store) {
            Ok(name) => matches!(name.components().collect::<Vec<_>>()[..], [Component::Normal(_)]),
            Err(_) => false,
        };
        match outputs.iter().find(|path| !inside(path)) {
            _ if outputs.is_empty() => {
                Err(NixError::Answer { command, problem: "it names no output".to_owned() }.into())
            }
            Some(path) => {
                let problem = format!("{} is not in {}", path.display(), store.display());
                Err(NixError::Answer { command, problem }.into())
            }
            None => Ok(Self { store: fs::canonicalize(store)?, outputs }),
        }
    }

    /// Returns the main output.
    pub(super) fn main(&self) -> &Path {
        self.outputs.first().map_or(Path::new(STORE), PathBuf::as_path)
    }

    /// Returns the main output's name in the store.
    pub(super) fn name(&self) -> &str {
        self.main().file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Returns the hash part of that name.
    pub(super) fn hash(&self) -> &str {
        self.name().get(..HASH_CHARS).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "bbnllvs4p9jixj7yz70mda80acl77kgy";

    fn built(answer: &str) -> Result<Built, String> {
        // Any directory that exists stands for the store.
        Built::parse(answer.as_bytes(), Path::new("/usr")).map_err(|error| error.to_string())
    }

    #[test]
    fn all_forms_of_the_answer_are_read() {
        let one = format!(r#"[{{"drvPath":"/usr/a.drv","outputs":{{"out":"/usr/{HASH}-image"}}}}]"#);
        let path = PathBuf::from(format!("/usr/{HASH}-image"));
        let built_one = built(&one).unwrap();
        assert_eq!(built_one.outputs, std::slice::from_ref(&path));
        assert_eq!((built_one.name(), built_one.hash()), (format!("{HASH}-image").as_str(), HASH));
        let newer = [
            format!(
                r#"[{{"drvPath":"a","outputs":{{"out":"/usr/{HASH}-image"}},"startTime":1,"stopTime":2}}]"#
            ),
            format!(r#"[{{"outputs":{{"out":{{"path":"/usr/{HASH}-image"}}}}}}]"#),
            format!(r#"{{"/usr/a.drv":{{"outputs":{{"out":"/usr/{HASH}-image"}}}}}}"#),
        ];
        for answer in newer {
            assert_eq!(built(&answer).unwrap().outputs, std::slice::from_ref(&path), "{answer}");
        }
        let several = r#"[{"outputs":{"dev":"/usr/d","kernel":"/usr/k","out":"/usr/o"}}]"#;
        let paths = ["/usr/o", "/usr/d", "/usr/k"].map(PathBuf::from);
        assert_eq!(built(several).unwrap().outputs, paths, "the main output comes first");
    }

    #[test]
    fn an_answer_that_leads_elsewhere_is_refused() {
        for path in ["/etc", "/usr", "/usr/../etc/x", "/usr/a/b", "usr/a", ""] {
            let error = built(&format!(r#"[{{"outputs":{{"out":"{path}"}}}}]"#)).unwrap_err();
            assert!(error.contains("is not in /usr"), "{path}: {error}");
        }
        assert_eq!(built("[]").unwrap_err(), "the attribute stands for 0 packages, one is wanted");
        assert!(built(r#"[{"outputs":{}},{"outputs":{}}]"#).unwrap_err().contains("packages, one is wanted"));
        assert!(built(r#"[{"outputs":{}}]"#).unwrap_err().contains("it names no output"));
        for answer in ["", "{", "17", r#"[{"outputs":{"out":7}}]"#, r#"[{"drvPath":"a"}]"#] {
            assert!(built(answer).unwrap_err().contains("is not understood"), "{answer}");
        }
    }

    #[test]
    fn a_build_has_so_much_time_and_an_answer_so_many_bytes() {
        let toolbox = Toolbox::default();
        let nix = Nix { toolbox: &toolbox, private: None, offline: true };
        assert_eq!(nix.builder().unwrap().limits(), (Duration::from_secs(24 * 3600), ANSWER_BYTES_MAX));
        assert_eq!(nix.tool().unwrap().limits().1, 16 << 20);
    }

    #[test]
    fn the_address_of_a_store_is_escaped() {
        let uri = store_uri(Path::new("/a b/c&d?e%"));
        let dir = "/a%20b/c%26d%3Fe%25";
        assert_eq!(uri, OsString::from(format!("local?store={dir}/store&state={dir}/state&log={dir}/log")));
    }
}
