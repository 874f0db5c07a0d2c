//! Packs and unpacks trees as tar streams.
//!
//! Owners are numbers; modes, times, symlinks and hard links within the tree are kept. Sockets are left out,
//! as no archive can hold them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tar::{Archive, Builder, EntryType, Header, HeaderMode};

use super::stream::{AgentStream, InputReader, OutputWriter, invalid};
use crate::error::{ErrorKind, RemoteError};
use crate::message::Opened;
use crate::name::GuestPath;

/// Depth of a tree; a deeper one has paths no program can open.
const DEPTH_MAX: usize = 2048;

pub(super) fn pack(stream: &AgentStream, output: OutputWriter, path: &GuestPath) -> Result<(), RemoteError> {
    let root = Path::new(path.as_str());
    let found = fs::symlink_metadata(root)
        .map_err(|error| RemoteError::from_io(format!("cannot pack {path}"), &error))?;
    stream.opened(&Opened::default());
    let mut packer = Packer { builder: Builder::new(output), links: HashMap::new() };
    packer.builder.mode(HeaderMode::Complete);
    packer.builder.follow_symlinks(false);
    let name = root.file_name().unwrap_or(OsStr::new("."));
    packer
        .add(root, Path::new(name), &found, 0)
        .map_err(|(at, error)| RemoteError::from_io(format!("cannot pack {}", at.display()), &error))?;
    packer
        .builder
        .into_inner()
        .map(|_| ())
        .map_err(|error| RemoteError::from_io(format!("cannot pack {path}"), &error))
}

struct Packer {
    builder: Builder<OutputWriter>,
    /// First name of each file that has several.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Packer {
    fn add(
        &mut self,
        path: &Path,
        name: &Path,
        found: &Metadata,
        depth: usize,
    ) -> Result<(), (PathBuf, io::Error)> {
        let failed = |error| (path.to_owned(), error);
        let kind = found.file_type();
        let mut header = Header::new_gnu();
        header.set_metadata_in_mode(found, HeaderMode::Complete);
        if kind.is_dir() {
            if depth >= DEPTH_MAX {
                return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "the tree is too deep")));
            }
            self.builder.append_data(&mut header, name, io::empty()).map_err(failed)?;
            let mut names = Vec::new();
            for entry in fs::read_dir(path).map_err(failed)? {
                names.push(entry.map_err(failed)?.file_name());
            }
            names.sort();
            for child in names {
                let below = path.join(&child);
                match fs::symlink_metadata(&below) {
                    Ok(found) => self.add(&below, &name.join(&child), &found, depth + 1)?,
                    // The tree is in use; what has gone is not part of it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err((below, error)),
                }
            }
            return Ok(());
        }
        if kind.is_socket() {
            return Ok(());
        }
        if found.nlink() > 1 {
            let key = (found.dev(), found.ino());
            if let Some(first) = self.links.get(&key) {
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                return self.builder.append_link(&mut header, name, first).map_err(failed);
            }
            self.links.insert(key, name.to_owned());
        }
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(failed)?;
            header.set_size(0);
            return self.builder.append_link(&mut header, name, target).map_err(failed);
        }
        if kind.is_file() {
            let file = File::open(path).map_err(failed)?;
            // A file that grows or shrinks meanwhile must not shift the entries behind it.
            let contents = file.take(found.len()).chain(io::repeat(0)).take(found.len());
            return self.builder.append_data(&mut header, name, contents).map_err(failed);
        }
        if kind.is_block_device() || kind.is_char_device() {
            header.set_device_major(rustix::fs::major(found.rdev())).map_err(failed)?;
            header.set_device_minor(rustix::fs::minor(found.rdev())).map_err(failed)?;
        }
        header.set_size(0);
        self.builder.append_data(&mut header, name, io::empty()).map_err(failed)
    }
}

pub(super) fn unpack(
    stream: &AgentStream,
    mut input: InputReader,
    dest: &GuestPath,
) -> Result<(), RemoteError> {
    let directory = Path::new(dest.as_str());
    let found = fs::metadata(directory)
        .map_err(|error| RemoteError::from_io(format!("cannot unpack into {dest}"), &error))?;
    if !found.is_dir() {
        return Err(invalid(format!("cannot unpack into {dest}: it is no directory")));
    }
    stream.opened(&Opened::default());
    let mut archive = Archive::new(&mut input);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_preserve_mtime(true);
    archive.set_overwrite(true);
    archive
        .unpack(directory)
        .map_err(|error| RemoteError::from_io(format!("cannot unpack into {dest}"), &innermost(error)))?;
    // What pads an archive behind its end is not looked at, but it must be taken.
    io::copy(&mut input, &mut io::sink())
        .map(|_| ())
        .map_err(|_| RemoteError::new(ErrorKind::Io, format!("cannot unpack into {dest}: the data stopped")))
}

/// The tar reader wraps errors in texts that end with their cause; the message needs one line.
fn innermost(error: io::Error) -> io::Error {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    io::Error::new(error.kind(), text)
}
