//! Fuzz targets: each takes bytes as a stranger would send them, has kiln read them, and checks what must hold of whatever
//! comes out. `scripts/fuzz` makes the first inputs and runs them.
//!
//! Without the feature `libfuzzer` a target is a program that replays the files it is given.
#![forbid(unsafe_code)]

pub mod ext4;
pub mod oci_documents;
pub mod oci_layer;
pub mod partition;
pub mod qcow2;

use kiln_sys::tool::ScratchDir;
use kiln_sys::{Cancel, fs};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The largest input that is replayed or compared, in bytes.
pub const INPUT_BYTES_MAX: usize = 16 << 20;

/// Why a harness gives up: what it needs itself is not there.
const HOST: &str = "the directory for temporary files can be written to";

/// Makes a fuzz target of a function, or without the feature `libfuzzer` a program that replays files.
#[macro_export]
macro_rules! target {
    ($run:path) => {
        #[cfg(feature = "libfuzzer")]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $run(data));

        #[cfg(not(feature = "libfuzzer"))]
        fn main() {
            $crate::replay($run);
        }
    };
}

/// Runs a target on each file that the program was given.
pub fn replay(run: fn(&[u8])) {
    for path in std::env::args_os().skip(1).map(PathBuf::from) {
        run(&fs::read_limited(&path, INPUT_BYTES_MAX).expect("the input can be read"));
    }
    // What all runs share has no end of its own.
    fs::remove_tree(Bench::shared().dir()).expect(HOST);
}

/// The directory of a process, and what all runs in it share.
#[derive(Debug)]
pub struct Bench {
    dir: ScratchDir,
    /// A flag that nobody sets.
    pub cancel: Cancel,
}

impl Bench {
    /// Makes a directory for temporary files. A process that a fuzzer ends leaves it: `scripts/fuzz` removes those.
    pub fn new() -> Self {
        let dir = ScratchDir::new(&std::env::temp_dir()).expect(HOST);
        Self { dir, cancel: Cancel::new().expect("there is a file descriptor") }
    }

    /// Returns the one that all runs of a target share.
    fn shared() -> &'static Self {
        static SHARED: OnceLock<Bench> = OnceLock::new();
        SHARED.get_or_init(|| {
            let bench = Self::new();
            qcow2::make_bases(&bench);
            bench
        })
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the path of a name in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file in place of what has its name; returns it and its path.
    pub fn write(&self, name: &str, bytes: &[u8]) -> (File, PathBuf) {
        let path = self.path(name);
        let file = match fs::optional(fs::open_rw(&path)).expect(HOST) {
            Some(file) => file,
            None => {
                let file = fs::create_new(&path).expect(HOST);
                drop(file);
                fs::open_rw(&path).expect(HOST)
            }
        };
        file.set_len(0).expect(HOST);
        file.write_all_at(bytes, 0).expect(HOST);
        (file, path)
    }

    /// Removes a file, if it is there.
    pub fn remove(&self, name: &str) {
        fs::optional(fs::remove_file(&self.path(name))).expect(HOST);
    }
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}
