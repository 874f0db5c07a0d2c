//! The file system of a disk that is longer than its template, grown before anybody sees the disk.

use crate::EngineResult;
use crate::progress::{Progress, Reporter};
use kiln_core::machine::CloneMethod;
use kiln_store::{CopyAside, GrownContent};
use kiln_sys::process::Exit;
use kiln_sys::tool::ExitText;
use kiln_sys::{Cancel, Tool, ToolError, Toolbox};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time each program may take.
const DEADLINE: Duration = Duration::from_secs(600);
/// The most that is kept of what a program says on standard output, in bytes.
const STDOUT_BYTES_MAX: usize = 64 << 10;
/// The exit code of `e2fsck` that says that it found errors, and corrected them.
const CORRECTED: Exit = Exit::Code(1);

/// How the file system on a disk fits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystemSize {
    /// The disk is as long as its template.
    AsMade,
    /// It was grown to the disk.
    Grown,
    /// It has the size it has in the template, and whoever uses the disk has to grow it.
    NotGrown(NotGrown),
}

/// Why a file system was not grown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotGrown {
    /// The disk is an overlay: it has no content of its own yet.
    Overlay,
    /// It lies in a partition, which was grown.
    Partition {
        /// The partition's number, from 1.
        number: u32,
    },
    /// A program is not installed.
    NoProgram {
        /// The program's name.
        name: &'static str,
    },
    /// It is none that kiln grows.
    OtherKind,
}

/// Grows the file system on a disk that has no name yet.
///
/// # Errors
/// [`EngineError::Tool`](crate::EngineError::Tool) when a program that is installed fails: the file system is damaged, or
/// the space short.
pub(crate) fn file_system(
    toolbox: &Toolbox,
    disk: &CopyAside,
    reporter: &dyn Reporter,
    cancel: &Cancel,
) -> EngineResult<FileSystemSize> {
    let Some(growth) = disk.growth() else { return Ok(FileSystemSize::AsMade) };
    let left = |why| Ok(FileSystemSize::NotGrown(why));
    match growth.content {
        GrownContent::Partition { number } => return left(NotGrown::Partition { number }),
        GrownContent::Ext4 if disk.record().method == CloneMethod::Overlay => return left(NotGrown::Overlay),
        GrownContent::Ext4 => {}
        _ => return left(NotGrown::OtherKind),
    }
    let tools = match programs(toolbox)? {
        Ok(tools) => tools,
        Err(why) => return left(why),
    };
    // The programs work elsewhere, and a name that begins with `-` is no option.
    let path = kiln_sys::fs::canonicalize(disk.path())?;
    grow_ext4(tools, path, reporter, cancel)?;
    Ok(FileSystemSize::Grown)
}

/// Finds the programs, both or none: `resize2fs` refuses a file system that was not checked.
fn programs(toolbox: &Toolbox) -> EngineResult<Result<Vec<Tool>, NotGrown>> {
    let mut tools = Vec::new();
    for name in ["e2fsck", "resize2fs"] {
        match toolbox.find(name) {
            Ok(tool) => tools.push(tool),
            Err(ToolError::NotFound { .. }) => return Ok(Err(NotGrown::NoProgram { name })),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Ok(tools))
}

fn grow_ext4(tools: Vec<Tool>, path: PathBuf, reporter: &dyn Reporter, cancel: &Cancel) -> EngineResult<()> {
    for (tool, args) in tools.into_iter().zip([["-f", "-p"].as_slice(), &[]]) {
        match run(tool, args, &path, reporter, cancel) {
            Err(ToolError::Failed { exit: ExitText(CORRECTED), name, .. }) if name == "e2fsck" => {}
            other => other?,
        }
    }
    Ok(())
}

fn run(
    tool: Tool,
    args: &[&str],
    path: &Path,
    reporter: &dyn Reporter,
    cancel: &Cancel,
) -> Result<(), ToolError> {
    let mut said = |line: &str| reporter.progress(Progress::Said { line: line.to_owned() });
    let tool = tool.args(args).arg(path).deadline(DEADLINE).stdout_max(STDOUT_BYTES_MAX);
    tool.run(cancel, &mut said).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EngineError, Silent};
    use kiln_core::ByteSize;
    use kiln_store::{CloneChoice, CopyOut, IngestFrom, Store};
    use kiln_sys::commit::{Existing, write_file};
    use kiln_sys::tool::ScratchDir;

    /// Passes for ext4.
    fn ext4() -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[1080..1082].copy_from_slice(&[0x53, 0xef]);
        image
    }

    /// Clones a disk of this content with these programs and a disk twice as long; returns what the disk holds.
    fn cloned(image: &[u8], tools: &[(&str, &str)]) -> (EngineResult<FileSystemSize>, Vec<u8>) {
        let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let cancel = Cancel::new().unwrap();
        let store = Store::open(&dir.path().join("home")).unwrap();
        let source = dir.path().join("source");
        write_file(&source, image, 0o600, Existing::Refuse).unwrap();
        let staging = store.stage("a test").unwrap();
        let taken = store.ingest(&source, IngestFrom::Outside, &staging, &cancel).unwrap();
        let bin = dir.path().join("bin");
        kiln_sys::fs::create_dir(&bin).unwrap();
        for (name, script) in tools {
            let script = format!("#!/bin/sh\n{script}\n");
            write_file(&bin.join(name), script.as_bytes(), 0o700, Existing::Refuse).unwrap();
        }
        let dest = dir.path().join("dest");
        let choice = CloneChoice::Exactly(CloneMethod::Copy);
        let request = CopyOut { digest: taken.digest, size: taken.size, dest: &dest, mode: 0o600, choice };
        let longer = ByteSize::from_bytes(taken.size.bytes() * 2);
        let aside = store.copy_aside(&request, Some(longer), &cancel).unwrap();
        let toolbox = Toolbox::new(vec![bin, "/usr/bin".into(), "/bin".into()], Vec::new());
        let result = file_system(&toolbox, &aside, &Silent, &cancel);
        (result, kiln_sys::fs::read_limited(aside.path(), 1 << 20).unwrap())
    }

    const RESIZE: (&str, &str) = ("resize2fs", "printf grown >> \"$1\"");

    #[test]
    fn a_checked_file_system_is_grown_and_a_damaged_one_is_told() {
        for check in ["exit 0", "[ \"$1 $2\" = '-f -p' ] && exit 1"] {
            let (result, content) = cloned(&ext4(), &[("e2fsck", check), RESIZE]);
            assert_eq!(result.unwrap(), FileSystemSize::Grown);
            assert!(content.ends_with(b"grown") && content.len() == 8192 + 5);
        }
        let (result, content) = cloned(&ext4(), &[("e2fsck", "exit 4"), RESIZE]);
        assert!(matches!(result, Err(EngineError::Tool(ToolError::Failed { name, .. })) if name == "e2fsck"));
        assert_eq!(content.len(), 8192);
        let (result, _) = cloned(&ext4(), &[("e2fsck", "exit 0"), ("resize2fs", "exit 1")]);
        assert!(
            matches!(result, Err(EngineError::Tool(ToolError::Failed { name, .. })) if name == "resize2fs")
        );
    }

    #[test]
    fn what_is_not_ext4_is_left_to_others() {
        let (result, content) = cloned(&[7; 4096], &[("e2fsck", "exit 0"), RESIZE]);
        assert_eq!(result.unwrap(), FileSystemSize::NotGrown(NotGrown::OtherKind));
        assert_eq!(content.len(), 8192);
    }

    #[test]
    fn a_missing_program_is_named_and_nothing_is_run() {
        let toolbox = |dir: &Path| Toolbox::new(vec![dir.to_owned()], Vec::new());
        let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
        assert!(matches!(programs(&toolbox(dir.path())), Ok(Err(NotGrown::NoProgram { name: "e2fsck" }))));
        let file = dir.path().join("e2fsck");
        write_file(&file, b"", 0o700, Existing::Refuse).unwrap();
        assert!(matches!(programs(&toolbox(dir.path())), Ok(Err(NotGrown::NoProgram { name: "resize2fs" }))));
    }
}
