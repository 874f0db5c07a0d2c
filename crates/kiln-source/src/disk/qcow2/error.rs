//! Why a qcow2 image is not read.

use std::path::PathBuf;

/// Why a qcow2 image is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Qcow2Error {
    /// Not a qcow2 file.
    #[error("it is not a qcow2 image")]
    NotQcow2,
    /// A version of the format that nobody defined, or the first one.
    #[error("it is qcow version {0}; versions 2 and 3 can be read")]
    Version(u32),
    /// Something of the format that is not read here.
    #[error("it uses {0}, which kiln does not read")]
    Unsupported(&'static str),
    /// Features that are not known.
    #[error("it has incompatible features that kiln does not know: {0:#x}")]
    Features(u64),
    /// A field of the header that cannot be.
    #[error("its header is damaged: {field} is {value}")]
    Header {
        /// The field, as the format's description names it.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A table that does not lie where the file is.
    #[error("its {table} at {offset} with {len} bytes is not aligned or not inside the file of {file} bytes")]
    Table {
        /// Which table.
        table: &'static str,
        /// Where it should lie.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// The length of the file.
        file: u64,
    },
    /// More than a stranger's image may have.
    #[error("its {what} is {value}, more than {max}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        value: u64,
        /// The most there may be.
        max: u64,
    },
    /// Data that does not lie in the file.
    #[error(
        "the data of guest offset {guest} should be at {host}, which is not aligned or beyond the file's end at {file}: the file is cut off or damaged"
    )]
    Outside {
        /// Where the guest has it.
        guest: u64,
        /// Where the file should have it.
        host: u64,
        /// The length of the file.
        file: u64,
    },
    /// An entry of a table that the format does not allow.
    #[error("its table entry for guest offset {guest} is damaged: {reason}")]
    Entry {
        /// Where the guest has it.
        guest: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Tables that refer to the same data again and again.
    #[error("its tables refer to more {what} than its file can hold")]
    Repeated {
        /// To what.
        what: &'static str,
    },
    /// A compressed cluster that is damaged.
    #[error("the {format} data of guest offset {guest} does not uncompress")]
    Uncompress {
        /// How it is compressed.
        format: &'static str,
        /// Where the guest has it.
        guest: u64,
    },
    /// A backing file, and nobody said that it may be read.
    #[error("it is based on `{0}`, a backing file")]
    Backing(String),
    /// A backing file that is not read, whatever the caller allows.
    #[error("its backing file `{name}` {reason}")]
    BackingRefused {
        /// The name as written in the image.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// A chain of backing files that is too long.
    #[error("it has more than {0} backing files")]
    ChainTooLong(usize),
    /// A backing file that is based on itself.
    #[error("its backing files lead back to {}", .0.display())]
    ChainLoop(PathBuf),
}
