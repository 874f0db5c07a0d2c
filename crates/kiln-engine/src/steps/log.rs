//! What the steps of a template said, the last time it was built.

use crate::EngineResult;
use kiln_core::TemplateName;
use kiln_sys::{IoResultExt as _, fs};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The most bytes of a log: what is said after them is not kept.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// A log that is written.
#[derive(Debug)]
pub(crate) struct StepLog {
    path: PathBuf,
    file: File,
    left: u64,
}

impl StepLog {
    /// Begins the log of a template anew.
    pub(super) fn create(dir: &Path, template: &TemplateName) -> EngineResult<Self> {
        let path = dir.join(format!("{template}.log"));
        fs::remove_file(&path)?;
        Ok(Self { file: fs::create_new(&path)?, path, left: LOG_BYTES_MAX })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> EngineResult<()> {
        let part = &bytes[..bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX))];
        self.left -= part.len() as u64;
        Ok(self.file.write_all(part).at("write", &self.path)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_sys::tool::ScratchDir;

    #[test]
    fn a_log_is_kept_to_its_limit() {
        let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let mut log = StepLog::create(dir.path(), &"web".parse().unwrap()).unwrap();
        let part = vec![b'x'; 3 << 20];
        for _ in 0..6 {
            log.write(&part).unwrap();
        }
        assert_eq!(fs::metadata(log.path()).unwrap().len(), LOG_BYTES_MAX);
        let again = StepLog::create(dir.path(), &"web".parse().unwrap()).unwrap();
        assert_eq!(fs::metadata(again.path()).unwrap().len(), 0);
    }
}
