//! Copying between host and guest. What comes out of a guest is a stranger's: it is written in a directory of its
//! own beside the target, entries that would leave it are refused, and the result appears in one step.

use crate::{Engine, EngineError, EngineResult};
use kiln_guest::message::{FileKind, FileStat, WriteFile};
use kiln_guest::{GuestPath, Session};
use kiln_sys::tool::ScratchDir;
use kiln_sys::{IoResultExt as _, clock, fs};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The most entries taken from a guest in one copy.
const ENTRIES_MAX: u64 = 10_000_000;

/// A copy, from where to where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyRequest {
    /// Into a machine.
    In {
        /// The file or directory on the host.
        from: PathBuf,
        /// The machine.
        machine: String,
        /// The path in the guest.
        to: String,
    },
    /// Out of a machine.
    Out {
        /// The machine.
        machine: String,
        /// The path in the guest.
        from: String,
        /// The file or directory on the host.
        to: PathBuf,
    },
}

/// What a copy moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyReport {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of file content.
    pub bytes: u64,
}

impl CopyRequest {
    /// Reads two arguments, one of which is `MACHINE:/path`. A name with a slash before the colon is a host path.
    pub fn parse(from: &str, to: &str) -> EngineResult<Self> {
        match (split(from), split(to)) {
            (None, Some((machine, path))) => Ok(Self::In { from: PathBuf::from(from), machine, to: path }),
            (Some((machine, path)), None) => Ok(Self::Out { machine, from: path, to: PathBuf::from(to) }),
            _ => Err(EngineError::CopySides),
        }
    }
}

fn split(text: &str) -> Option<(String, String)> {
    let (machine, path) = text.split_once(':')?;
    (!machine.is_empty() && !machine.contains('/') && !machine.starts_with('.'))
        .then(|| (machine.to_owned(), path.to_owned()))
}

impl Engine {
    /// Copies a file or a tree. `moved` is told the bytes of content so far.
    pub fn copy(&self, request: &CopyRequest, moved: &mut dyn FnMut(u64)) -> EngineResult<CopyReport> {
        match request {
            CopyRequest::In { from, machine, to } => {
                let session = self.session(machine)?;
                self.copy_in(&session, from, machine, to, moved)
            }
            CopyRequest::Out { machine, from, to } => {
                let session = self.session(machine)?;
                self.copy_out(&session, machine, from, to, moved)
            }
        }
    }

    pub(crate) fn copy_in(
        &self,
        session: &Session,
        from: &Path,
        machine: &str,
        to: &str,
        moved: &mut dyn FnMut(u64),
    ) -> EngineResult<CopyReport> {
        let meta = fs::metadata(from)?;
        let base = fs::canonicalize(from)?;
        let base = base.file_name().and_then(|name| name.to_str()).ok_or_else(|| EngineError::HostPath {
            path: from.to_owned(),
            reason: "has no name that a guest can use".to_owned(),
        })?;
        let target = GuestTarget::find(session, machine, to, base)?;
        if meta.is_file() {
            return self.send_file(session, from, &target, moved);
        }
        if !meta.is_dir() {
            return Err(EngineError::HostPath {
                path: from.to_owned(),
                reason: "is neither a file nor a directory".to_owned(),
            });
        }
        if target.existing.as_ref().is_some_and(|stat| stat.kind != FileKind::Directory) {
            return Err(guest_path(
                machine,
                target.path.as_str(),
                "is a file: a directory cannot replace it",
            ));
        }
        let dest =
            GuestPath::new(target.parent.clone()).map_err(|e| guest_path(machine, &target.parent, e))?;
        let mut report = CopyReport::default();
        let mut stream = session.unpack(dest)?;
        let sent = {
            let mut archive = tar::Builder::new(&mut stream);
            let top = PathBuf::from(&target.name);
            let mut sender = Sender { engine: self, report: &mut report, moved };
            sender
                .send(&mut archive, from, &top)
                .and_then(|()| archive.finish().at("send", from).map_err(Into::into))
        };
        // Should the guest have refused, its words say more than the broken stream.
        let finished = stream.finish();
        match (sent, finished) {
            (Ok(()), Ok(_)) => Ok(report),
            (Err(EngineError::Cancelled), _) => Err(EngineError::Cancelled),
            (_, Err(error)) => Err(error.into()),
            (Err(error), Ok(_)) => Err(error),
        }
    }

    /// Makes a directory in the guest, and those above it, where they are not there: of root, and with mode 0755.
    pub(crate) fn make_directories(&self, session: &Session, machine: &str, dir: &str) -> EngineResult<()> {
        let bad = |reason: &dyn std::fmt::Display| guest_path(machine, dir, reason);
        let names: Vec<&str> = dir.split('/').filter(|name| !name.is_empty()).collect();
        let mut there = 0;
        while there < names.len() {
            // The end follows a link.
            let path =
                GuestPath::new(format!("/{}/.", names[..=there].join("/"))).map_err(|error| bad(&error))?;
            match session.stat(path) {
                Ok(_) => there += 1,
                Err(error) if error.is_not_found() => break,
                Err(error) => return Err(error.into()),
            }
        }
        if there == names.len() {
            return Ok(());
        }
        let above = format!("/{}", names[..there].join("/"));
        let mut stream = session.unpack(GuestPath::new(above).map_err(|error| bad(&error))?)?;
        let sent = {
            let mut archive = tar::Builder::new(&mut stream);
            let mut sent = Ok(());
            for last in there..names.len() {
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(tar::EntryType::Directory);
                header.set_uid(0);
                header.set_gid(0);
                header.set_mode(0o755);
                header.set_mtime(clock::now_unix_ms() / 1000);
                header.set_size(0);
                let path = names[there..=last].join("/");
                sent = sent.and_then(|()| archive.append_data(&mut header, path, io::empty()));
            }
            sent.and_then(|()| archive.finish())
        };
        stream.finish()?;
        Ok(sent.at("make", Path::new(dir))?)
    }

    fn send_file(
        &self,
        session: &Session,
        from: &Path,
        target: &GuestTarget,
        moved: &mut dyn FnMut(u64),
    ) -> EngineResult<CopyReport> {
        use std::os::unix::fs::PermissionsExt as _;
        let mut file = fs::open(from)?;
        let mode = file.metadata().at("inspect", from)?.permissions().mode() & 0o777;
        let request =
            WriteFile { path: target.path.clone(), mode, uid: Some(0), gid: Some(0), append: false };
        let mut stream = session.write_file(request)?;
        let copied = self.pump(&mut file, &mut stream, from, moved);
        let finished = stream.finish();
        match (copied, finished) {
            (Ok(bytes), Ok(_)) => Ok(CopyReport { entries: 1, bytes }),
            (Err(EngineError::Cancelled), _) => Err(EngineError::Cancelled),
            (_, Err(error)) => Err(error.into()),
            (Err(error), Ok(_)) => Err(error),
        }
    }

    /// Moves bytes until the source ends, looking at the cancellation flag in between.
    fn pump(
        &self,
        from: &mut impl Read,
        to: &mut impl Write,
        path: &Path,
        moved: &mut dyn FnMut(u64),
    ) -> EngineResult<u64> {
        let mut buffer = vec![0; 64 << 10];
        let mut total = 0;
        loop {
            self.cancel.check()?;
            let read = match from.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.at("copy", path)?,
            };
            if read == 0 {
                return Ok(total);
            }
            to.write_all(&buffer[..read]).at("copy", path)?;
            total += read as u64;
            moved(total);
        }
    }

    fn copy_out(
        &self,
        session: &Session,
        machine: &str,
        from: &str,
        to: &Path,
        moved: &mut dyn FnMut(u64),
    ) -> EngineResult<CopyReport> {
        let path = GuestPath::new(from.to_owned()).map_err(|error| guest_path(machine, from, error))?;
        let stat = session.stat(path.clone())?;
        let base = from.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let (parent, name) = host_target(to, base)?;
        let scratch = ScratchDir::new(&parent)?;
        let report = match stat.kind {
            FileKind::File => self.fetch_file(session, &path, &stat, &scratch.path().join(&name), moved)?,
            FileKind::Directory | FileKind::Symlink => {
                self.fetch_tree(session, &path, scratch.path(), &name, moved)?
            }
            FileKind::Other => return Err(guest_path(machine, from, "is neither a file nor a directory")),
        };
        let target = parent.join(&name);
        let is_dir = |path: &Path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
        if is_dir(&target) || (is_dir(&scratch.path().join(&name)) && fs::exists(&target)?) {
            return Err(EngineError::Exists { path: target });
        }
        fs::rename(&scratch.path().join(&name), &target)?;
        fs::sync_dir(&parent)?;
        Ok(report)
    }

    fn fetch_file(
        &self,
        session: &Session,
        path: &GuestPath,
        stat: &FileStat,
        to: &Path,
        moved: &mut dyn FnMut(u64),
    ) -> EngineResult<CopyReport> {
        let mut file = fs::create_new(to)?;
        let mut stream = session.read_file(path.clone(), 0)?;
        let bytes = self.pump(&mut stream, &mut file, to, moved)?;
        fs::set_mode(to, stat.mode & 0o777)?;
        file.sync_all().at("sync", to)?;
        Ok(CopyReport { entries: 1, bytes })
    }

    fn fetch_tree(
        &self,
        session: &Session,
        path: &GuestPath,
        scratch: &Path,
        name: &str,
        moved: &mut dyn FnMut(u64),
    ) -> EngineResult<CopyReport> {
        let stream = session.pack(path.clone())?;
        let report = unpack_strange(stream, scratch, &self.cancel, moved)?;
        let names = fs::list_dir(scratch)?;
        let [top] = names.as_slice() else {
            let reason = format!("{} things came where one was asked for", names.len());
            return Err(EngineError::GuestArchive { entry: path.as_str().to_owned(), reason });
        };
        if top.as_os_str() != name {
            fs::rename(&scratch.join(top), &scratch.join(name))?;
        }
        Ok(report)
    }
}

/// Unpacks an archive made by a guest that may be hostile into `dir`, which holds nothing else.
fn unpack_strange(
    stream: impl Read,
    dir: &Path,
    cancel: &kiln_sys::Cancel,
    moved: &mut dyn FnMut(u64),
) -> EngineResult<CopyReport> {
    let mut archive = tar::Archive::new(stream);
    let mut report = CopyReport::default();
    for entry in archive.entries().at("read the archive for", dir)? {
        cancel.check()?;
        let mut entry = entry.at("read the archive for", dir)?;
        let name = kiln_core::text::clip(&String::from_utf8_lossy(&entry.path_bytes()));
        let refuse =
            |reason: &str| EngineError::GuestArchive { entry: name.clone(), reason: reason.to_owned() };
        report.entries += 1;
        check_entries(report.entries).map_err(|reason| refuse(&reason))?;
        let kind = entry.header().entry_type();
        match kind {
            tar::EntryType::Regular
            | tar::EntryType::Continuous
            | tar::EntryType::GNUSparse
            | tar::EntryType::Directory
            | tar::EntryType::Symlink
            | tar::EntryType::Link => {}
            // Devices, pipes and sockets mean something only where they were made.
            _ => continue,
        }
        if kind == tar::EntryType::Link {
            let outside =
                |path: &Path| !path.components().all(|c| matches!(c, std::path::Component::Normal(_)));
            let target = entry.link_name().at("read the archive for", dir)?.unwrap_or_default().into_owned();
            if outside(&target) {
                return Err(refuse("it is a hard link to the outside"));
            }
        }
        entry.set_preserve_permissions(false);
        entry.set_preserve_mtime(true);
        report.bytes += entry.size();
        if !entry.unpack_in(dir).at("unpack into", dir)? {
            return Err(refuse("it would leave the directory it belongs in"));
        }
        moved(report.bytes);
    }
    Ok(report)
}

/// Checks how many entries an archive had up to here.
fn check_entries(entries: u64) -> Result<(), String> {
    if entries > ENTRIES_MAX { Err(format!("there are more than {ENTRIES_MAX} entries")) } else { Ok(()) }
}

fn guest_path(machine: &str, path: &str, reason: impl std::fmt::Display) -> EngineError {
    EngineError::GuestPath {
        machine: machine.to_owned(),
        path: kiln_core::text::clip(path),
        reason: reason.to_string(),
    }
}

/// Returns the directory and the name that a copy to `to` of something called `base` gets.
fn host_target(to: &Path, base: &str) -> EngineResult<(PathBuf, String)> {
    let usable = |name: &str| !name.is_empty() && name != "." && name != ".." && !name.contains('/');
    let wants_dir = to.as_os_str().as_encoded_bytes().ends_with(b"/");
    let existing = fs::optional(fs::metadata(to))?;
    let (parent, name) = match existing {
        Some(meta) if meta.is_dir() => (to.to_owned(), base.to_owned()),
        _ if wants_dir => {
            return Err(EngineError::HostPath {
                path: to.to_owned(),
                reason: "is not a directory".to_owned(),
            });
        }
        _ => {
            let parent =
                to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let name = to.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            (parent.to_owned(), name.to_owned())
        }
    };
    if !usable(&name) {
        return Err(EngineError::HostPath {
            path: to.to_owned(),
            reason: "needs a name to copy to".to_owned(),
        });
    }
    Ok((fs::canonicalize(&parent)?, name))
}

/// Where something lands in the guest.
struct GuestTarget {
    parent: String,
    name: String,
    path: GuestPath,
    existing: Option<FileStat>,
}

impl GuestTarget {
    /// Decides as cp(1) does: into a directory that exists, else under the path's own name in its parent.
    fn find(session: &Session, machine: &str, to: &str, base: &str) -> EngineResult<Self> {
        let bad = |reason: &dyn std::fmt::Display| guest_path(machine, to, reason);
        let asked = GuestPath::new(to.to_owned()).map_err(|error| bad(&error))?;
        let stat = |path: &GuestPath| match session.stat(path.clone()) {
            Ok(stat) => Ok(Some(stat)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(EngineError::from(error)),
        };
        let follow = |path: &GuestPath| -> EngineResult<Option<FileStat>> {
            match stat(path)? {
                // A link to a directory counts as one: `/path/.` follows it.
                Some(found) if found.kind == FileKind::Symlink => {
                    let through = GuestPath::new(format!("{}/.", path.as_str().trim_end_matches('/')));
                    Ok(through.ok().map(|through| stat(&through)).transpose()?.flatten().or(Some(found)))
                }
                found => Ok(found),
            }
        };
        let trimmed = to.trim_end_matches('/');
        let (parent, name) = match follow(&asked)? {
            Some(found) if found.kind == FileKind::Directory => {
                (if trimmed.is_empty() { "/" } else { trimmed }.to_owned(), base.to_owned())
            }
            _ if to.ends_with('/') => return Err(bad(&"is not a directory")),
            _ => {
                let (parent, name) = trimmed.rsplit_once('/').ok_or_else(|| bad(&"is not absolute"))?;
                let parent = if parent.is_empty() { "/" } else { parent };
                let holder = GuestPath::new(parent.to_owned()).map_err(|error| bad(&error))?;
                match follow(&holder)? {
                    Some(found) if found.kind == FileKind::Directory => {}
                    _ => return Err(guest_path(machine, parent, "is not a directory")),
                }
                (parent.to_owned(), name.to_owned())
            }
        };
        let path = GuestPath::new(format!("{}/{name}", parent.trim_end_matches('/')))
            .map_err(|error| bad(&error))?;
        let existing = stat(&path)?;
        Ok(Self { parent, name, path, existing })
    }
}

/// Writes a host tree as an archive: modes and times kept, owned by root in the guest.
struct Sender<'a> {
    engine: &'a Engine,
    report: &'a mut CopyReport,
    moved: &'a mut dyn FnMut(u64),
}

impl Sender<'_> {
    fn send<W: Write>(&mut self, archive: &mut tar::Builder<W>, from: &Path, to: &Path) -> EngineResult<()> {
        self.engine.cancel.check()?;
        // The top may be a link that the user named; below it links are copied as links.
        let meta = if self.report.entries == 0 { fs::metadata(from)? } else { fs::symlink_metadata(from)? };
        let mut header = tar::Header::new_gnu();
        header.set_metadata_in_mode(&meta, tar::HeaderMode::Complete);
        header.set_uid(0);
        header.set_gid(0);
        if meta.is_dir() {
            self.report.entries += 1;
            header.set_size(0);
            archive.append_data(&mut header, to, io::empty()).at("send", from)?;
            for name in fs::list_dir(from)? {
                self.send(archive, &from.join(&name), &to.join(&name))?;
            }
        } else if meta.is_symlink() {
            self.report.entries += 1;
            header.set_size(0);
            let target = fs::read_link(from)?;
            archive.append_link(&mut header, to, target).at("send", from)?;
        } else if meta.is_file() {
            self.report.entries += 1;
            let file: File = fs::open(from)?;
            header.set_size(meta.len());
            // A file that grows meanwhile is cut at the length that was announced; one that shrinks is an error.
            let content = Exact { inner: file.take(meta.len()), left: meta.len() };
            archive.append_data(&mut header, to, content).at("send", from)?;
            self.report.bytes += meta.len();
            (self.moved)(self.report.bytes);
        }
        Ok(())
    }
}

/// Reads exactly the announced number of bytes.
struct Exact<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Exact<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left -= read as u64;
        if read == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o4755);
            let raw = header.as_old_mut();
            raw.name[..name.len()].copy_from_slice(name.as_bytes());
            if matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link) {
                raw.linkname[..content.len()].copy_from_slice(content.as_bytes());
                header.set_size(0);
            } else {
                header.set_size(content.len() as u64);
            }
            header.set_cksum();
            let body = if header.size().unwrap() == 0 { "" } else { content };
            builder.append(&header, body.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpack(entries: &[(&str, tar::EntryType, &str)]) -> (ScratchDir, EngineResult<CopyReport>) {
        let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
        fs::create_dir(&dir.path().join("in")).unwrap();
        let bytes = archive(entries);
        let cancel = kiln_sys::Cancel::new().unwrap();
        let result = unpack_strange(bytes.as_slice(), &dir.path().join("in"), &cancel, &mut |_| ());
        (dir, result)
    }

    #[test]
    fn a_hostile_guest_stays_in_its_directory() {
        use tar::EntryType::{Link, Regular, Symlink};
        for entries in [
            &[("../out", Regular, "x")][..],
            &[("a/../../out", Regular, "x")],
            &[("link", Symlink, ".."), ("link/out", Regular, "x")],
            &[("hard", Link, "../out"), ("hard", Regular, "x")],
            &[("hard", Link, "/etc/passwd")],
        ] {
            let (dir, result) = unpack(entries);
            assert!(result.is_err() || !fs::exists(&dir.path().join("out")).unwrap(), "{entries:?}");
            assert!(!fs::exists(&dir.path().join("out")).unwrap(), "{entries:?}");
        }
        let (dir, result) = unpack(&[("/abs", Regular, "x")]);
        assert!(result.is_err() || fs::exists(&dir.path().join("in/abs")).unwrap());
    }

    #[test]
    fn the_entries_of_a_guests_archive_are_limited() {
        check_entries(10_000_000).unwrap();
        assert_eq!(check_entries(10_000_001).unwrap_err(), "there are more than 10000000 entries");
    }

    #[test]
    fn set_user_id_bits_do_not_come_along() {
        use std::os::unix::fs::PermissionsExt as _;
        let (dir, result) = unpack(&[("file", tar::EntryType::Regular, "x")]);
        assert_eq!(result.unwrap(), CopyReport { entries: 1, bytes: 1 });
        let mode = fs::metadata(&dir.path().join("in/file")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7000, 0);
    }

    #[test]
    fn one_side_is_a_machine() {
        assert!(matches!(CopyRequest::parse("a", "m:/b"), Ok(CopyRequest::In { .. })));
        assert!(matches!(CopyRequest::parse("m:/b", "."), Ok(CopyRequest::Out { .. })));
        assert!(matches!(CopyRequest::parse("./a:b", "m:/b"), Ok(CopyRequest::In { .. })));
        assert!(CopyRequest::parse("a", "b").is_err());
        assert!(CopyRequest::parse("m:/a", "m:/b").is_err());
    }
}
