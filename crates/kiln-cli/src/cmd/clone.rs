//! `kiln clone`: a disk for somebody who brings a machine monitor.

use super::Context;
use crate::error::CliResult;
use crate::output;
use clap::{Args, ValueEnum};
use kiln_core::machine::CloneMethod;
use kiln_core::{ByteSize, Digest, Reference};
use kiln_engine::grow::{FileSystemSize, NotGrown};
use kiln_store::{CloneChoice, CloneOptions};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// How a private disk is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CloneBy {
    /// The first that this host can
    Auto,
    /// Blocks shared by the file system
    Reflink,
    /// A file of what is written, over the template's disk
    Overlay,
    /// A whole copy
    Copy,
}

impl From<CloneBy> for CloneChoice {
    fn from(by: CloneBy) -> Self {
        match by {
            CloneBy::Auto => Self::Auto,
            CloneBy::Reflink => Self::Exactly(CloneMethod::Reflink),
            CloneBy::Overlay => Self::Exactly(CloneMethod::Overlay),
            CloneBy::Copy => Self::Exactly(CloneMethod::Copy),
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Writes the template's root disk to a new file that only its owner may use: raw, or with --clone
overlay a qcow2 file that needs the store's copy. Nothing is overwritten, and the store does not
change.

With --disk it is longer than the template's: the last partition of a GUID partition table takes
the new space, and an ext4 file system without a table is grown with e2fsck and resize2fs. A note
says where the file system is left to be grown: by the guest, on an overlay, in a partition,
without these programs, or when it is not ext4.

Examples:
  kiln clone web disk.raw
  kiln clone web:v1 /srv/disks/          names it /srv/disks/web.raw
  kiln clone web disk.qcow2 --clone overlay
  kiln clone web disk.raw --disk 8G
  kiln clone web disk.raw --json | jq .allocated_bytes")]
pub(crate) struct CloneArgs {
    /// What to clone
    reference: Reference,
    /// The new file, or a directory for it
    dest: PathBuf,
    /// How it is made: auto means reflink, else copy
    #[arg(long, value_enum, default_value = "auto", value_name = "HOW")]
    clone: CloneBy,
    /// Its size, no less than the template's; the file system is grown where this host can
    #[arg(long, value_name = "SIZE")]
    disk: Option<ByteSize>,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
    /// Print the file's path only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct Shown {
    path: PathBuf,
    reference: String,
    revision: Digest,
    artifact: Digest,
    method: CloneMethod,
    format: &'static str,
    size_bytes: u64,
    allocated_bytes: u64,
    /// `as_made`, `grown` or `not_grown`.
    file_system: &'static str,
    /// Why it was not grown, and how it is.
    file_system_note: Option<String>,
}

/// Says how a file system fits its disk: a word, and what is left to do.
fn file_system(size: FileSystemSize, path: &Path) -> (&'static str, Option<String>) {
    let why = match size {
        FileSystemSize::AsMade => return ("as_made", None),
        FileSystemSize::Grown => return ("grown", None),
        FileSystemSize::NotGrown(why) => why,
    };
    let how = match why {
        NotGrown::Overlay => {
            "on an overlay only a guest grows it: run resize2fs on the disk there, such as /dev/vda"
                .to_owned()
        }
        NotGrown::Partition { number } => format!(
            "partition {number} was: in the guest, run resize2fs, or what its kind has, on it, such as /dev/vda{number}"
        ),
        NotGrown::NoProgram { name } => {
            let path = path.display();
            format!(
                "{name} is not installed: install e2fsprogs and run e2fsck -f {path}, then resize2fs {path}; \
                 or run resize2fs on the disk in the guest"
            )
        }
        _ => "it is not ext4: grow it with the program of its kind, where it has one".to_owned(),
    };
    ("not_grown", Some(format!("the file system is not grown yet: {how}")))
}

pub(crate) fn run(context: &Context, args: &CloneArgs) -> CliResult {
    let reporter = context.reporter(args.quiet);
    let options = CloneOptions { choice: args.clone.into(), disk: args.disk };
    let report = context.engine.clone_disk(&args.reference, &args.dest, options, &reporter)?;
    drop(reporter);
    let (file_system, file_system_note) = file_system(report.file_system, &report.path);
    if args.json {
        output::json(Shown {
            reference: args.reference.to_string(),
            revision: report.revision,
            artifact: report.artifact,
            method: report.method,
            format: report.method.extension(),
            size_bytes: report.size.bytes(),
            allocated_bytes: report.allocated.bytes(),
            file_system,
            file_system_note,
            path: report.path,
        });
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(note) = file_system_note {
        output::tell(&format!("note: {note}"));
    }
    let path = report.path.display();
    if args.quiet {
        output::line(&path.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    let (size, allocated) = (report.size.human(), report.allocated.human());
    output::line(&format!("{path}: {size} by {}, {allocated} on disk", report.method));
    if report.method == CloneMethod::Overlay {
        let id = report.revision.short();
        output::tell(&format!("note: it needs revision {id} in this store; kiln rm does not know of it"));
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_to_do_is_told() {
        let notes = [
            NotGrown::Overlay,
            NotGrown::Partition { number: 15 },
            NotGrown::NoProgram { name: "resize2fs" },
            NotGrown::OtherKind,
        ]
        .map(|why| {
            let (word, note) = file_system(FileSystemSize::NotGrown(why), Path::new("disk.raw"));
            assert_eq!(word, "not_grown");
            note.unwrap()
        });
        insta::assert_snapshot!(notes.join("\n"), @r"
        the file system is not grown yet: on an overlay only a guest grows it: run resize2fs on the disk there, such as /dev/vda
        the file system is not grown yet: partition 15 was: in the guest, run resize2fs, or what its kind has, on it, such as /dev/vda15
        the file system is not grown yet: resize2fs is not installed: install e2fsprogs and run e2fsck -f disk.raw, then resize2fs disk.raw; or run resize2fs on the disk in the guest
        the file system is not grown yet: it is not ext4: grow it with the program of its kind, where it has one
        ");
        assert_eq!(file_system(FileSystemSize::Grown, Path::new("x")), ("grown", None));
    }
}
