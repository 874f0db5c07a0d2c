//! Unpacking of checked tar files, by GNU tar: as root with the owners in the tar file, else under fakeroot, which
//! remembers them for the step that writes the disk.

use crate::archive::{self, ArchiveError, Checked};
use crate::decompress::{Compression, MAGIC_BYTES};
use crate::error::BuildError;
use crate::fingerprint::FileIdentity;
use kiln_sys::{Cancel, IoResultExt, Tool, ToolError, Toolbox, fs};
use std::fs::{File, FileTimes};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How owners and device nodes of a tree are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ownership {
    /// On the files themselves: only root can.
    OnDisk,
    /// In the state file of fakeroot.
    Faked(PathBuf),
}

impl Ownership {
    /// Returns a tool that sees the owners, found by its name.
    pub(crate) fn tool(&self, toolbox: &Toolbox, name: &str) -> Result<Tool, ToolError> {
        let tool = toolbox.find(name)?;
        match self {
            Self::OnDisk => Ok(tool),
            Self::Faked(state) => {
                // Saving takes fakeroot a second: only the first tool, which makes the tree, changes owners.
                let option = if fs::exists(state)? { "-i" } else { "-s" };
                let fakeroot = toolbox.find("fakeroot")?.arg(option).arg(state);
                Ok(fakeroot.arg("--").arg(tool.program()))
            }
        }
    }
}

/// A tar file that was checked and is open.
#[derive(Debug)]
pub(crate) struct CheckedTar {
    path: PathBuf,
    file: File,
    identity: FileIdentity,
    compression: Option<Compression>,
    pub(crate) checked: Checked,
}

/// Opens a tar file and checks it from end to end.
pub(crate) fn check(path: &Path, cancel: &Cancel) -> Result<CheckedTar, BuildError> {
    let refuse = |source| BuildError::Archive { path: path.to_owned(), source };
    let mut file = fs::open(path)?;
    let identity = FileIdentity::of(&file.metadata().at("inspect", path)?);
    let mut head = Vec::new();
    (&file).take(MAGIC_BYTES as u64).read_to_end(&mut head).at("read", path)?;
    file.seek(SeekFrom::Start(0)).at("read", path)?;
    let compression = Compression::detect(&head);
    let input = reader(&file, compression).map_err(refuse)?;
    let checked = archive::check(input, &|| !cancel.is_cancelled()).map_err(|error| match error {
        ArchiveError::Read(_) if cancel.is_cancelled() => BuildError::Cancelled,
        other => refuse(other),
    })?;
    Ok(CheckedTar { path: path.to_owned(), file, identity, compression, checked })
}

fn reader(file: &File, compression: Option<Compression>) -> Result<Box<dyn Read + Send + '_>, ArchiveError> {
    let input = BufReader::with_capacity(256 << 10, file);
    match compression {
        None => Ok(Box::new(input)),
        Some(format) => format.reader(input).ok_or(ArchiveError::Compression(format.name())),
    }
}

impl CheckedTar {
    /// Unpacks into a new directory. `time` is given to what has no time in the tar file.
    pub(crate) fn unpack(
        mut self,
        to: &Path,
        time: SystemTime,
        ownership: &Ownership,
        toolbox: &Toolbox,
        cancel: &Cancel,
        line: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), BuildError> {
        self.file.seek(SeekFrom::Start(0)).at("read", &self.path)?;
        let refuse = |source| BuildError::Archive { path: self.path.clone(), source };
        let mut input = reader(&self.file, self.compression).map_err(refuse)?;
        let feeding = Feeding { input: &mut *input, checked: &self.checked };
        feeding.unpack(to, time, ownership, toolbox, cancel, line)?;
        drop(input);
        if FileIdentity::of(&self.file.metadata().at("inspect", &self.path)?) != self.identity {
            return Err(BuildError::InputChanged { path: self.path });
        }
        Ok(())
    }
}

/// A tar stream that was checked, from its beginning.
pub(crate) struct Feeding<'a> {
    pub(crate) input: &'a mut (dyn Read + Send),
    pub(crate) checked: &'a Checked,
}

impl Feeding<'_> {
    /// Unpacks into a new directory. `time` is given to what has no time in the stream.
    pub(crate) fn unpack(
        self,
        to: &Path,
        time: SystemTime,
        ownership: &Ownership,
        toolbox: &Toolbox,
        cancel: &Cancel,
        line: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), BuildError> {
        fs::create_dir(to)?;
        let mut tool = ownership.tool(toolbox, "tar")?;
        tool = tool.args(["--extract", "--file=-", "--numeric-owner", "--same-owner", "--same-permissions"]);
        tool = tool.args(["--xattrs", "--xattrs-include=*", "--acls", "--delay-directory-restore"]);
        tool = tool.arg("--warning=no-timestamp").arg("--directory").arg(to);
        let (mut input, checked) = (self.input.take(self.checked.len), self.checked);
        tool.run_fed(
            cancel,
            line,
            Some(Box::new(move |stdin| {
                let mut buffer = vec![0; FEED_BYTES];
                loop {
                    match input.read(&mut buffer)? {
                        0 => break,
                        read => stdin.write_all(&buffer[..read])?,
                    }
                }
                stdin.write_all(&[0; 1024])
            })),
        )?;
        // The innermost first: setting a time changes none above it, and modes may close a directory.
        for implied in checked.implied.iter().rev() {
            let path = to.join(implied);
            if fs::exists(&path)? {
                fs::set_mode(&path, 0o755)?;
                set_time(&path, time)?;
            }
        }
        Ok(())
    }
}

/// Bytes given to `tar` at a time.
const FEED_BYTES: usize = 256 << 10;

/// Sets both times of a directory or file.
pub(crate) fn set_time(path: &Path, time: SystemTime) -> Result<(), BuildError> {
    let file = match fs::symlink_metadata(path)?.is_dir() {
        true => File::from(fs::open_dir(path)?),
        false => fs::open(path)?,
    };
    file.set_times(FileTimes::new().set_accessed(time).set_modified(time)).at("set the times of", path)?;
    Ok(())
}

/// Returns the time that stands for "no time" in everything kiln builds.
pub(crate) fn epoch() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(crate::ext4::EPOCH_SECONDS)
}
