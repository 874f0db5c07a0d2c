//! Where the layout keeps what: templates, their revisions in all the places these were ever kept in, and `current`.

use super::{ARTIFACTS, CURRENT, REVISIONS, TEMPLATE_FILE, TEMPLATES, is_template_id};
use crate::adopt::scan::{Refusal, entries, refuse, shown};
use crate::{EngineError, EngineResult};
use kiln_core::Tag;
use kiln_core::text::clip;
use kiln_sys::fs;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

/// The most revisions of a template.
pub(super) const REVISIONS_MAX: usize = 1000;
/// The largest file `current`, in bytes: a tag and the folders before it.
const CURRENT_BYTES_MAX: usize = 1024;

/// Finds the directories of templates: in `templates` of the directory given, in it, or it alone.
pub(super) fn templates(dir: &Path) -> EngineResult<Vec<(OsString, PathBuf)>> {
    let holds = |dir: &Path| fs::exists(&dir.join(TEMPLATES));
    let dir = if fs::exists(dir)? && holds(dir)? { dir.join(TEMPLATES) } else { dir.to_owned() };
    if fs::exists(&dir)? && fs::exists(&dir.join(TEMPLATE_FILE))? {
        let path = fs::canonicalize(&dir)?;
        let name = path.file_name().unwrap_or_default().to_owned();
        return Ok(vec![(name, path)]);
    }
    let mut found = Vec::new();
    for name in entries(&dir)? {
        let path = dir.join(&name);
        // Other files beside templates are none of the layout's; a directory without its record is a damaged template.
        if fs::optional(fs::metadata(&path))?.is_none_or(|meta| meta.is_dir()) {
            found.push((name, path));
        }
    }
    if found.is_empty() {
        return Err(EngineError::RegistryEmpty { path: dir, file: "TEMPLATE/template.json" });
    }
    Ok(found)
}

/// A template's directory, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The directory, with links followed.
    pub(super) home: PathBuf,
    /// Revisions by name.
    pub(super) revisions: BTreeMap<String, PathBuf>,
    /// The name of the one in use.
    pub(super) current: Option<String>,
}

/// Looks into a template's directory.
pub(super) fn template(name: &OsString, path: &Path) -> Result<Found, Refusal> {
    if !name.to_str().is_some_and(is_template_id) {
        return refuse(
            "the layout has no such name: 1 to 63 of a-z, 0-9, `-` and `_`, a letter or digit first",
        );
    }
    let home = fs::canonicalize(path)?;
    let mut revisions = BTreeMap::new();
    for place in [ARTIFACTS.to_owned(), format!("{ARTIFACTS}/{REVISIONS}"), REVISIONS.to_owned()] {
        let dir = home.join(&place);
        let Some(meta) = fs::optional(fs::symlink_metadata(&dir))? else { continue };
        if meta.is_symlink() {
            // One link is the layout's own, which leads to where the revisions were found already.
            if fs::canonicalize(&dir)? != home.join(ARTIFACTS) {
                return refuse(format!("`{place}` is a link that leads elsewhere"));
            }
            continue;
        }
        for entry in entries(&dir)? {
            let path = dir.join(&entry);
            let meta = fs::symlink_metadata(&path)?;
            if place == ARTIFACTS && entry == REVISIONS && !meta.is_symlink() || meta.is_file() {
                continue;
            }
            let Some(name) = entry.to_str().filter(|name| is_revision(name)) else {
                return refuse(format!("`{}` cannot be the name of a revision", shown(&entry)));
            };
            if !meta.is_dir() {
                return refuse(format!("revision {name} is no directory"));
            }
            if revisions.insert(name.to_owned(), path).is_some() {
                return refuse(format!("revision {name} is there twice"));
            }
        }
    }
    if revisions.len() > REVISIONS_MAX {
        return refuse(format!("it has {} revisions, more than {REVISIONS_MAX}", revisions.len()));
    }
    let current = current(&home)?;
    match &current {
        Some(name) if !revisions.contains_key(name) => {
            refuse(format!("`{CURRENT}` names revision {name}, which is not there"))
        }
        _ if revisions.is_empty() => refuse("it has no revision: it was never built"),
        _ => Ok(Found { home, revisions, current }),
    }
}

/// Whether a name can be a revision's: it becomes a tag.
fn is_revision(name: &str) -> bool {
    name.parse::<Tag>().is_ok() && ![Tag::latest().as_str(), REVISIONS, CURRENT].contains(&name)
}

/// Reads which revision is in use. The text of the link counts, not where it leads: usually it leads nowhere.
fn current(home: &Path) -> Result<Option<String>, Refusal> {
    let path = home.join(CURRENT);
    let Some(meta) = fs::optional(fs::symlink_metadata(&path))? else { return Ok(None) };
    let text = if meta.is_symlink() {
        fs::read_link(&path)?
    } else {
        // As in a bucket: a file that holds the text.
        PathBuf::from(fs::read_text_limited(&path, CURRENT_BYTES_MAX)?.trim())
    };
    let told = || clip(&String::from_utf8_lossy(text.as_os_str().as_bytes()));
    let mut names = Vec::new();
    for component in text.components() {
        match component {
            Component::Normal(name) => names.push(name.to_str().unwrap_or_default()),
            Component::CurDir => {}
            _ => return refuse(format!("`{CURRENT}` is `{}`, which leads elsewhere", told())),
        }
    }
    match names[..] {
        [name] | [REVISIONS | ARTIFACTS, name] | [ARTIFACTS, REVISIONS, name] if is_revision(name) => {
            Ok(Some(name.to_owned()))
        }
        _ => refuse(format!("`{CURRENT}` is `{}`, which names no revision", told())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_sys::commit::{Existing, write_file};
    use kiln_sys::tool::ScratchDir;

    fn scratch() -> ScratchDir {
        ScratchDir::new(&std::env::temp_dir()).unwrap()
    }

    fn looked(home: &Path) -> Result<Found, String> {
        template(&OsString::from("web"), home).map_err(|refusal| match refusal {
            Refusal::Because(reason) => reason,
            Refusal::Stop(error) => panic!("{error}"),
        })
    }

    fn link(text: &str, home: &Path) {
        let _ = fs::remove_file(&home.join(CURRENT));
        fs::symlink(Path::new(text), &home.join(CURRENT)).unwrap();
    }

    #[test]
    fn current_is_read_in_all_its_spellings() {
        for place in ["artifacts/r1", "artifacts/revisions/r1", "revisions/r1"] {
            let scratch = scratch();
            let home = scratch.path();
            fs::create_dir_all(&home.join(place)).unwrap();
            assert_eq!(looked(home).unwrap().current, None);
            for text in ["r1", "revisions/r1", "artifacts/r1", "artifacts/revisions/r1", "./r1"] {
                link(text, home);
                let found = looked(home).unwrap();
                assert_eq!(found.current.as_deref(), Some("r1"), "{place} {text}");
                let real = fs::canonicalize(&home.join(place)).unwrap();
                assert_eq!(found.revisions.into_values().collect::<Vec<_>>(), [real]);
            }
            fs::remove_file(&home.join(CURRENT)).unwrap();
            write_file(&home.join(CURRENT), b"r1\n", 0o644, Existing::Refuse).unwrap();
            assert_eq!(looked(home).unwrap().current.as_deref(), Some("r1"), "a file, as in a bucket");
        }
    }

    #[test]
    fn a_file_current_has_a_largest_size() {
        let scratch = scratch();
        let home = scratch.path();
        fs::create_dir_all(&home.join("artifacts/r1")).unwrap();
        let put = |bytes: usize| {
            let text = format!("r1{}", " ".repeat(bytes - 2));
            write_file(&home.join(CURRENT), text.as_bytes(), 0o644, Existing::Replace).unwrap();
        };
        put(CURRENT_BYTES_MAX);
        assert_eq!(looked(home).unwrap().current.as_deref(), Some("r1"));
        put(CURRENT_BYTES_MAX + 1);
        assert!(looked(home).unwrap_err().contains("more than 1024 bytes"));
    }

    #[test]
    fn a_link_that_leads_elsewhere_is_refused() {
        let scratch = scratch();
        let home = scratch.path();
        fs::create_dir_all(&home.join("artifacts/r1")).unwrap();
        for text in ["../other/r1", "/r1", "artifacts/../../r1"] {
            link(text, home);
            assert!(looked(home).unwrap_err().contains("which leads elsewhere"), "{text}");
        }
        for text in ["revisions", "a/r1", "revisions/a/r1", "latest", "-r1", "r 1", "\u{1b}"] {
            link(text, home);
            let told = looked(home).unwrap_err();
            assert!(told.contains("which names no revision") && !told.contains('\u{1b}'), "{text}: {told}");
        }
        let bytes = std::ffi::OsStr::from_bytes(b"r\xff");
        fs::remove_file(&home.join(CURRENT)).unwrap();
        fs::symlink(Path::new(bytes), &home.join(CURRENT)).unwrap();
        assert!(looked(home).unwrap_err().contains("which names no revision"));
        link("r2", home);
        assert_eq!(looked(home).unwrap_err(), "`current` names revision r2, which is not there");
    }

    #[test]
    fn the_extra_link_is_followed_by_nobody_and_others_are_refused() {
        let scratch = scratch();
        let home = scratch.path();
        fs::create_dir_all(&home.join("artifacts/r1")).unwrap();
        fs::symlink(Path::new("artifacts"), &home.join(REVISIONS)).unwrap();
        assert_eq!(looked(home).unwrap().revisions.len(), 1);
        fs::symlink(Path::new("/etc"), &home.join("artifacts/r2")).unwrap();
        assert_eq!(looked(home).unwrap_err(), "revision r2 is no directory");
        fs::remove_file(&home.join("artifacts/r2")).unwrap();
        fs::remove_file(&home.join(REVISIONS)).unwrap();
        fs::symlink(Path::new("/etc"), &home.join(REVISIONS)).unwrap();
        assert!(looked(home).unwrap_err().contains("leads elsewhere"));
    }

    #[test]
    fn the_revisions_of_a_template_are_limited_and_of_one_name() {
        let scratch = scratch();
        let home = scratch.path();
        assert_eq!(looked(home).unwrap_err(), "it has no revision: it was never built");
        fs::create_dir_all(&home.join("artifacts/revisions/r1")).unwrap();
        fs::create_dir(&home.join("artifacts/r1")).unwrap();
        assert_eq!(looked(home).unwrap_err(), "revision r1 is there twice");
        fs::remove_tree(&home.join("artifacts/revisions")).unwrap();
        for n in 2..=REVISIONS_MAX {
            fs::create_dir(&home.join(format!("artifacts/r{n}"))).unwrap();
        }
        assert_eq!(looked(home).unwrap().revisions.len(), REVISIONS_MAX);
        fs::create_dir(&home.join("artifacts/more")).unwrap();
        assert_eq!(looked(home).unwrap_err(), "it has 1001 revisions, more than 1000");
        for name in ["Web", "-web", "_web", "we.b", "", "../web"] {
            assert!(template(&OsString::from(name), home).is_err(), "{name}");
        }
    }
}
