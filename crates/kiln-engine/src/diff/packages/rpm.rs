//! Packages of an RPM database. Its files are copied out of the image into a directory of the store that nobody else
//! sees, and the host's `rpm` lists them there. Nothing of the image's own is run, and what `rpm` writes to a database
//! it writes to the copy.
//!
//! A database that cannot be listed is told with the reason; it keeps nothing else of a comparison back. What is listed
//! in part counts as not listed: packages that were skipped would look like packages that are not there.

use super::super::side::Side;
use crate::{Engine, EngineError};
use kiln_core::text::clip;
use kiln_source::ext4::{ImageError, Inode, Kind};
use kiln_sys::{ToolError, fs};
use std::path::Path;
use std::time::Duration;

/// Where databases lie. On many systems the first is a link to the second.
pub(super) const DIRS: [&str; 2] = ["/var/lib/rpm", "/usr/lib/sysimage/rpm"];
/// The file of a database and what else belongs to it, by kind: SQLite, ndb, Berkeley DB. Where several are there, the
/// first counts: it is what the others were converted to. SQLite makes the index of its log (`-shm`) anew.
const KINDS: [&[&str]; 3] = [&["rpmdb.sqlite", "rpmdb.sqlite-wal"], &["Packages.db"], &["Packages"]];
/// The most bytes of the files of one database.
const DATABASE_BYTES_MAX: u64 = 512 << 20;
/// The most bytes `rpm` may write.
const LIST_BYTES_MAX: usize = 64 << 20;
/// The longest field of a package, in bytes.
const FIELD_BYTES_MAX: usize = 256;
/// The time `rpm` may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// The database's directory as `rpm` is told it. The option is subject to the expansion of macros, which can run
/// programs; the path of a store may hold what looks like one.
const HERE: &str = "/proc/self/cwd";
/// What `rpm` prints of a package: five fields, of which epoch and architecture may be empty.
const FORMAT: &str = "%{NAME}\\t%|EPOCH?{%{EPOCH}}:{}|\\t%{VERSION}\\t%{RELEASE}\\t%|ARCH?{%{ARCH}}:{}|\\n";
const FIELDS: [&str; 5] = ["name", "epoch", "version", "release", "architecture"];

/// Why a database was not listed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RpmError {
    /// The directory is a link to somewhere else.
    #[error("it is a symbolic link to {}, which is not followed", clip(target))]
    Link {
        /// Where it leads.
        target: String,
    },
    /// Something else than a directory, or than a file in it.
    #[error("{name} in it is no regular file")]
    NotAFile {
        /// The name in the directory.
        name: &'static str,
    },
    /// A directory with files of which none is a database that is known.
    #[error("it holds no database that is known")]
    Unknown,
    /// A database too large to be copied.
    #[error("its database has {size} bytes, more than {max}")]
    TooLarge {
        /// Its length in bytes.
        size: u64,
        /// The most that is copied.
        max: u64,
    },
    /// There is no `rpm`, or it did not come to its end.
    #[error(transparent)]
    Tool(ToolError),
    /// `rpm` does not take the database, or not all of it.
    #[error("`rpm` does not read {file}: {}", clip(said))]
    Refused {
        /// The database's file.
        file: &'static str,
        /// What it said.
        said: String,
    },
    /// `rpm` lists nothing, as it does of databases whose kind it was built without.
    #[error("`rpm` lists no package of {file}")]
    Nothing {
        /// The database's file.
        file: &'static str,
    },
    /// A line of the list is none.
    #[error("line {line} of the list is not five fields")]
    Line {
        /// Its number, from 1.
        line: usize,
    },
    /// A field of a package is not what it should be.
    #[error("line {line} of the list has no {field} that can be one: `{}`", clip(text))]
    Field {
        /// The line's number, from 1.
        line: usize,
        /// The field.
        field: &'static str,
        /// What stands there.
        text: String,
    },
    /// What ends the whole comparison.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A package as it is listed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    /// Epoch where it is not 0, version and release.
    pub(super) version: String,
    pub(super) arch: Option<String>,
}

/// Lists the packages of the database in `dir`, one of [`DIRS`]; none where there is no database.
///
/// # Errors
/// With [`RpmError::Engine`] what ends the comparison: damage of the image, lack of space, cancellation.
pub(super) fn list(engine: &Engine, side: &Side, dir: &'static str) -> Result<Vec<Package>, RpmError> {
    let Some(inode) = side.find(dir)? else { return Ok(Vec::new()) };
    match inode.kind {
        Kind::Directory => {}
        Kind::Link => {
            let target = String::from_utf8_lossy(&side.link_target(&inode)?).into_owned();
            let is_known = resolve(dir, &target).is_some_and(|path| DIRS.contains(&path.as_str()));
            return if is_known { Ok(Vec::new()) } else { Err(RpmError::Link { target }) };
        }
        _ => return Err(RpmError::Unknown),
    }
    let Some(files) = find(side, &inode)? else { return Ok(Vec::new()) };
    let main = files[0].0;
    let tool = engine.settings.toolbox.find("rpm").map_err(RpmError::Tool)?;
    let staging = engine.store.stage("reading packages").map_err(EngineError::from)?;
    copy(side, &files, staging.path())?;
    let args = ["--dbpath", HERE, "-qa", "--nosignature", "--nodigest", "--queryformat", FORMAT];
    let tool = tool.args(args).current_dir(staging.path()).deadline(DEADLINE).stdout_max(LIST_BYTES_MAX);
    let output = match tool.run(&engine.cancel, &mut |_| ()) {
        Ok(output) => output,
        Err(ToolError::Cancelled { .. }) => return Err(EngineError::Cancelled.into()),
        Err(ToolError::Failed { exit, stderr, .. }) => {
            let said = complaint(&stderr, dir).unwrap_or_else(|| exit.to_string());
            return Err(RpmError::Refused { file: main, said });
        }
        Err(ToolError::TimedOut { name, after, .. }) => {
            return Err(RpmError::Tool(ToolError::TimedOut { name, after, stderr: String::new() }));
        }
        Err(error) => return Err(RpmError::Tool(error)),
    };
    // It passes over packages that are damaged, and succeeds.
    if let Some(said) = complaint(&output.stderr, dir) {
        return Err(RpmError::Refused { file: main, said });
    }
    let packages = parse(&output.stdout)?;
    if packages.is_empty() { Err(RpmError::Nothing { file: main }) } else { Ok(packages) }
}

/// Returns where a link at `path` leads, by its words alone; none above the root.
fn resolve(path: &str, target: &str) -> Option<String> {
    let mut names: Vec<&str> = Vec::new();
    if !target.starts_with('/') {
        names.extend(path.split('/').filter(|name| !name.is_empty()));
        names.pop();
    }
    for name in target.split('/') {
        match name {
            "" | "." => {}
            ".." => _ = names.pop()?,
            name => names.push(name),
        }
    }
    Some(format!("/{}", names.join("/")))
}

/// Returns the files of the database in a directory, its own first. A directory with hidden files only is one that was
/// made for a database yet to come.
fn find(side: &Side, dir: &Inode) -> Result<Option<Vec<(&'static str, Inode)>>, RpmError> {
    let entries = side.entries(dir)?;
    for kind in KINDS {
        let mut files = Vec::with_capacity(kind.len());
        for &name in kind {
            let Some(entry) = entries.iter().find(|entry| entry.name == name.as_bytes()) else { continue };
            files.push((name, side.inode(entry.inode)?));
        }
        if files.first().is_some_and(|(name, _)| *name == kind[0]) {
            return Ok(Some(files));
        }
    }
    if entries.iter().all(|entry| entry.name.starts_with(b".")) { Ok(None) } else { Err(RpmError::Unknown) }
}

/// Copies files of a database to a directory, under names that are ours.
fn copy(side: &Side, files: &[(&'static str, Inode)], to: &Path) -> Result<(), RpmError> {
    let mut size = 0_u64;
    for (name, inode) in files {
        if inode.kind != Kind::File {
            return Err(RpmError::NotAFile { name });
        }
        size = size.saturating_add(inode.size);
    }
    if size > DATABASE_BYTES_MAX {
        return Err(RpmError::TooLarge { size, max: DATABASE_BYTES_MAX });
    }
    for (name, inode) in files {
        let path = to.join(name);
        let file = fs::create_new(&path).map_err(|error| side.error(ImageError::Io(error)))?;
        side.copy_file(inode, &file, &path)?;
    }
    Ok(())
}

/// Returns the last error of what `rpm` said: those before it are its causes, of which some are long.
fn complaint(stderr: &str, dir: &str) -> Option<String> {
    let mut errors = stderr.lines().filter_map(|line| line.strip_prefix("error: "));
    errors.next_back().map(|error| error.replace(HERE, dir))
}

/// Takes the list of `rpm` apart.
fn parse(list: &[u8]) -> Result<Vec<Package>, RpmError> {
    let Some(list) = list.strip_suffix(b"\n") else {
        return if list.is_empty() { Ok(Vec::new()) } else { Err(RpmError::Line { line: 1 }) };
    };
    list.split(|byte| *byte == b'\n').zip(1..).map(|(bytes, line)| package(bytes, line)).collect()
}

fn package(bytes: &[u8], line: usize) -> Result<Package, RpmError> {
    let fields: Vec<&[u8]> = bytes.split(|byte| *byte == b'\t').collect();
    let fields: [&[u8]; 5] = fields.try_into().map_err(|_| RpmError::Line { line })?;
    let wrong = |at: usize| RpmError::Field {
        line,
        field: FIELDS[at],
        text: String::from_utf8_lossy(fields[at]).into(),
    };
    let word = |at: usize| word(fields[at]).ok_or_else(|| wrong(at));
    let epoch: u32 = if fields[1].is_empty() {
        0
    } else {
        let is_number = fields[1].iter().all(u8::is_ascii_digit);
        str::from_utf8(fields[1])
            .ok()
            .filter(|_| is_number)
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| wrong(1))?
    };
    let (name, version, release) = (word(0)?, word(2)?, word(3)?);
    Ok(Package {
        name: name.to_owned(),
        version: if epoch == 0 {
            format!("{version}-{release}")
        } else {
            format!("{epoch}:{version}-{release}")
        },
        arch: if fields[4].is_empty() { None } else { Some(word(4)?.to_owned()) },
    })
}

/// Returns a field that is one visible word. `rpm` writes `(none)` for what a package has not, and refuses to build
/// packages with parentheses in these fields.
fn word(bytes: &[u8]) -> Option<&str> {
    let is_word = (1..=FIELD_BYTES_MAX).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'(' | b')'));
    str::from_utf8(bytes).ok().filter(|_| is_word)
}

#[cfg(test)]
mod tests;
