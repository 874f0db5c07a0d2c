//! The package archives that the host's apt is set up to use: both forms of `sources.list(5)`.
//!
//! The files are read as they are, because `apt-get indextargets` tells only of archives whose lists the host has
//! downloaded.

use crate::error::BuildError;
use kiln_sys::{Cancel, Toolbox, fs};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The most bytes of one sources file.
const SOURCES_BYTES_MAX: usize = 1 << 20;
/// The most bytes of `apt-config`'s answer.
const CONFIG_BYTES_MAX: usize = 64 << 10;
/// The beginnings of the names of keyrings that belong to a distribution. What another key signs is an archive of
/// the host's administrator, and has no place in a template that did not ask for it.
const DISTRIBUTION_KEYRINGS: [&str; 6] = [
    "debian-archive-",
    "debian-ports-archive-",
    "ubuntu-archive-",
    "devuan-",
    "kali-archive-",
    "raspbian-archive-",
];

/// One archive: a line of `sources.list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AptSource {
    /// The archive's address.
    pub uri: String,
    /// The suite.
    pub suite: String,
    /// The components.
    pub components: Vec<String>,
    /// The keyring that signs it, where one is named.
    pub signed_by: Option<String>,
    /// Whether it is used without a signature.
    pub trusted: bool,
}

impl AptSource {
    /// Returns the source as a line of `sources.list`.
    pub fn line(&self) -> String {
        let mut options = Vec::new();
        if let Some(keyring) = &self.signed_by {
            options.push(format!("signed-by={keyring}"));
        }
        if self.trusted {
            options.push("trusted=yes".to_owned());
        }
        let options = if options.is_empty() { String::new() } else { format!("[{}] ", options.join(" ")) };
        format!("deb {options}{} {} {}", self.uri, self.suite, self.components.join(" "))
    }
}

/// Returns the binary package sources of the host; none on a host without apt.
pub(crate) fn host_sources(toolbox: &Toolbox, cancel: &Cancel) -> Result<Vec<AptSource>, BuildError> {
    let Ok(tool) = toolbox.find("apt-config") else { return Ok(Vec::new()) };
    let tool = tool.args(["shell", "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d"]);
    let answer = tool.stdout_max(CONFIG_BYTES_MAX).run(cancel, &mut |_| ())?;
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
    let value = |name: &str| {
        let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(|text| PathBuf::from(text.trim_matches('\'')))
    };
    let mut files: Vec<PathBuf> = value("LIST").into_iter().collect();
    if let Some(parts) = value("PARTS") {
        files.extend(fs::list_dir(&parts)?.into_iter().map(|name| parts.join(name)));
    }
    read_sources(&files)
}

/// Settings of the host's apt that reaching an archive may need.
const CARRIED: [&str; 4] =
    ["Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::Check-Valid-Until", "Acquire::Check-Date"];

/// Returns the settings for fetching packages, in apt's own form.
pub(crate) fn settings(toolbox: &Toolbox, cancel: &Cancel) -> Result<Vec<String>, BuildError> {
    let mut settings = vec!["Acquire::Retries \"3\"".to_owned()];
    let Ok(tool) = toolbox.find("apt-config") else { return Ok(settings) };
    let dump = tool.args(["dump", "--format", "%F=%v%n"]).args(CARRIED);
    let dump = dump.stdout_max(CONFIG_BYTES_MAX).run(cancel, &mut |_| ())?;
    for (name, value) in String::from_utf8_lossy(&dump.stdout).lines().filter_map(|line| line.split_once('='))
    {
        if CARRIED.contains(&name) && !value.is_empty() && !value.contains(['"', ';']) {
            settings.push(format!("{name} \"{value}\""));
        }
    }
    Ok(settings)
}

/// Reads sources files; those of unknown kind and those that are not there have nothing in them.
pub(crate) fn read_sources(files: &[PathBuf]) -> Result<Vec<AptSource>, BuildError> {
    let mut sources = Vec::new();
    for file in files {
        let deb822 = match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => false,
            Some("sources") => true,
            _ => continue,
        };
        let Some(bytes) = fs::read_optional(file, SOURCES_BYTES_MAX)? else { continue };
        let text = String::from_utf8_lossy(&bytes);
        if deb822 {
            sources.extend(stanzas(&text).iter().flat_map(sources_of));
        } else {
            sources.extend(text.lines().filter_map(source_of_line));
        }
    }
    Ok(sources)
}

/// Returns the sources files of a root file system.
pub(crate) fn files_below(etc_apt: &Path) -> Result<Vec<PathBuf>, BuildError> {
    let parts = etc_apt.join("sources.list.d");
    let mut files = vec![etc_apt.join("sources.list")];
    files.extend(fs::list_dir(&parts)?.into_iter().map(|name| parts.join(name)));
    Ok(files)
}

/// Returns the sources for a suite, its updates and its security fixes; none where the suite itself is not among them.
pub(crate) fn for_suite(all: &[AptSource], suite: &str, components: &[String]) -> Vec<AptSource> {
    let names = [
        suite.to_owned(),
        format!("{suite}-updates"),
        format!("{suite}-security"),
        format!("{suite}/updates"),
    ];
    let mut chosen: Vec<AptSource> = Vec::new();
    for name in &names {
        for source in all.iter().filter(|source| source.suite == *name && is_distribution(source)) {
            let mut source = source.clone();
            source.components.retain(|component| components.contains(component));
            if !source.components.is_empty() && !chosen.contains(&source) {
                chosen.push(source);
            }
        }
    }
    if chosen.iter().any(|source| source.suite == suite) { chosen } else { Vec::new() }
}

fn is_distribution(source: &AptSource) -> bool {
    source.signed_by.as_deref().is_none_or(|keyring| {
        let name = keyring.rsplit('/').next().unwrap_or(keyring);
        DISTRIBUTION_KEYRINGS.iter().any(|known| name.starts_with(known))
    })
}

/// Parses `deb [option=value …] URI suite component…`.
fn source_of_line(line: &str) -> Option<AptSource> {
    let line = line.split('#').next().unwrap_or_default().trim();
    let rest = line.strip_prefix("deb").filter(|rest| rest.starts_with([' ', '\t']))?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let option = |key: &str| {
        let pair = options.split_whitespace().filter_map(|option| option.split_once('='));
        pair.filter(|(name, _)| name.trim_end_matches(['+', '-']) == key)
            .map(|(_, value)| value.to_owned())
            .next()
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    let (uri, suite) = (words.next()?, words.next()?);
    let components: Vec<String> = words.collect();
    let trusted = option("trusted").is_some_and(|value| value == "yes");
    let source = AptSource { uri, suite, components, signed_by: option("signed-by"), trusted };
    (!source.components.is_empty()).then_some(source)
}

/// Splits a deb822 file into its stanzas, keys in lower case.
fn stanzas(text: &str) -> Vec<BTreeMap<String, String>> {
    let mut stanzas: Vec<BTreeMap<String, String>> = vec![BTreeMap::new()];
    let mut key = String::new();
    for line in text.lines() {
        if line.starts_with('#') {
            continue;
        }
        let Some(fields) = stanzas.last_mut() else { break };
        if line.trim().is_empty() {
            key.clear();
            stanzas.push(BTreeMap::new());
        } else if line.starts_with([' ', '\t']) {
            if let Some(value) = fields.get_mut(&key) {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            key = name.trim().to_ascii_lowercase();
            fields.insert(key.clone(), value.trim().to_owned());
        }
    }
    stanzas
}

fn sources_of(fields: &BTreeMap<String, String>) -> Vec<AptSource> {
    let words = |key: &str| -> Vec<String> {
        fields.get(key).map(|value| value.split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
    };
    let is =
        |key: &str, wanted: &str| fields.get(key).is_some_and(|value| value.eq_ignore_ascii_case(wanted));
    let components = words("components");
    if is("enabled", "no") || !words("types").iter().any(|kind| kind == "deb") || components.is_empty() {
        return Vec::new();
    }
    // A key written out in the stanza belongs to nobody by name: it is kept, so that the source counts as foreign.
    let signed_by =
        fields.get("signed-by").map(|value| value.split_whitespace().next().unwrap_or_default().to_owned());
    let trusted = is("trusted", "yes");
    let mut sources = Vec::new();
    for uri in words("uris") {
        for suite in words("suites") {
            let (uri, components, signed_by) = (uri.clone(), components.clone(), signed_by.clone());
            sources.push(AptSource { uri, suite, components, signed_by, trusted });
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let line = "deb [arch=amd64 signed-by=/k/debian-archive-keyring.gpg] file:///mirror/ bookworm main contrib # x";
        let stanza = "# c\nTypes: deb deb-src\nURIs: file:///mirror/\nSuites: bookworm\nComponents: main\n contrib\n\
                      Signed-By: /k/debian-archive-keyring.gpg\n\nTypes: deb-src\nURIs: x\nSuites: y\nComponents: z\n";
        let one = source_of_line(line).unwrap();
        let two: Vec<AptSource> = stanzas(stanza).iter().flat_map(sources_of).collect();
        assert_eq!(vec![one.clone()], two);
        assert_eq!(
            one.line(),
            "deb [signed-by=/k/debian-archive-keyring.gpg] file:///mirror/ bookworm main contrib"
        );
        for text in ["", "# deb a b c", "deb-src a b c", "debx a b c", "deb a", "deb [x a b c"] {
            assert_eq!(source_of_line(text), None, "{text}");
        }
        assert!(
            stanzas("Types: deb\nEnabled: no\nURIs: a\nSuites: b\nComponents: c\n")
                .iter()
                .all(|s| sources_of(s).is_empty())
        );
    }

    #[test]
    fn a_suite_comes_with_its_updates_and_without_foreign_archives() {
        let source = |suite: &str, keyring: Option<&str>| AptSource {
            uri: "file:///m".to_owned(),
            suite: suite.to_owned(),
            components: vec!["main".to_owned(), "contrib".to_owned()],
            signed_by: keyring.map(str::to_owned),
            trusted: false,
        };
        let all = [
            source("bookworm-security", None),
            source("bookworm", Some("/k/vendor.gpg")),
            source("bookworm", Some("/k/debian-archive-keyring.gpg")),
            source("trixie", None),
        ];
        let main = ["main".to_owned()];
        let chosen = for_suite(&all, "bookworm", &main);
        let suites: Vec<&str> = chosen.iter().map(|source| source.suite.as_str()).collect();
        assert_eq!(suites, ["bookworm", "bookworm-security"]);
        assert!(chosen.iter().all(|source| source.components == main));
        assert!(for_suite(&all[..1], "bookworm", &main).is_empty());
        assert!(for_suite(&all, "bookworm", &["non-free".to_owned()]).is_empty());
    }
}
