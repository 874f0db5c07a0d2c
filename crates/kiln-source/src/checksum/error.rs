//! Why a checksum manifest is refused.

use super::{LINES_MAX, MANIFEST_BYTES_MAX, NAME_BYTES_MAX};

/// Why a checksum manifest is refused. Lines are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChecksumError {
    /// A manifest over the limit of bytes.
    #[error("a checksum manifest of more than {MANIFEST_BYTES_MAX} bytes")]
    TooLong,
    /// A manifest over the limit of lines.
    #[error("a checksum manifest of more than {LINES_MAX} lines")]
    TooManyLines,
    /// A line that is no UTF-8.
    #[error("line {line} is not UTF-8 text")]
    NotText {
        /// Its number.
        line: usize,
    },
    /// A line of no known form.
    #[error("line {line} is no checksum of a known form: `{text}`")]
    Malformed {
        /// Its number.
        line: usize,
        /// Its beginning.
        text: String,
    },
    /// A name that `sha256sum` wrote with escapes, which have no place in the name of an image.
    #[error("line {line} has an escaped name: `{name}`")]
    Escaped {
        /// Its number.
        line: usize,
        /// The name as it stands, clipped.
        name: String,
    },
    /// A name over the limit.
    #[error("line {line} has a name of more than {NAME_BYTES_MAX} bytes")]
    NameTooLong {
        /// Its number.
        line: usize,
    },
    /// A digest of an algorithm that is not known at all.
    #[error("line {line} has a digest of the unknown algorithm `{algorithm}`")]
    UnknownAlgorithm {
        /// Its number.
        line: usize,
        /// The algorithm as it is called, clipped.
        algorithm: String,
    },
    /// A digest with more or fewer digits than any known algorithm gives, or than its own.
    #[error(
        "line {line} has a digest of {digits} digits, which is of no known length or not its algorithm's"
    )]
    Length {
        /// Its number.
        line: usize,
        /// How many hexadecimal digits it has.
        digits: usize,
    },
    /// A name whose digests are all of algorithms that are not computed here.
    #[error("line {line} has {algorithm} for `{name}`, which has neither SHA256 nor SHA512")]
    OnlyOther {
        /// Its number.
        line: usize,
        /// The name.
        name: String,
        /// The algorithm.
        algorithm: &'static str,
    },
    /// Two digests of one algorithm for one name.
    #[error("`{name}` has a {algorithm} digest in line {first} and another in line {second}")]
    Twice {
        /// The name.
        name: String,
        /// The algorithm.
        algorithm: &'static str,
        /// The number of the first line.
        first: usize,
        /// The number of the second line.
        second: usize,
    },
    /// Two lengths for one name.
    #[error("`{name}` has one length in line {first} and another in line {second}")]
    SizeTwice {
        /// The name.
        name: String,
        /// The number of the first line.
        first: usize,
        /// The number of the second line.
        second: usize,
    },
    /// A digest without a name in a list.
    #[error("line {line} is a digest without the name of a file")]
    NoName {
        /// Its number.
        line: usize,
    },
    /// The name of another file in a manifest that is about one.
    #[error("line {line} is about `{name}`, not `{wanted}`")]
    OtherFile {
        /// Its number.
        line: usize,
        /// The name that is there.
        name: String,
        /// The name that was asked for.
        wanted: String,
    },
    /// A manifest without a digest.
    #[error("a checksum manifest without a checksum")]
    Empty,
}

/// A file that a manifest says nothing of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not in the checksum manifest")]
pub struct NotListed {
    /// The name that was asked for, clipped.
    pub name: String,
    /// Names that are in it and resemble that one, the nearest first.
    pub similar: Vec<String>,
}
