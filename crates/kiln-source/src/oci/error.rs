//! Why an image cannot be used.

use crate::download::{DownloadError, InvalidUrl};
use kiln_core::image::{ContentDigest, Platform};
use kiln_core::size::ByteSize;
use kiln_sys::cancel::Cancelled;
use kiln_sys::lock::LockError;
use kiln_sys::{IoError, ToolError};
use std::io;
use std::path::PathBuf;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OciError {
    /// Neither a layout nor an archive.
    #[error("{} is not {wanted}: {problem}", path.display())]
    NotAnImage {
        /// The file or directory.
        path: PathBuf,
        /// What was looked for.
        wanted: &'static str,
        /// What is missing or wrong.
        problem: String,
    },
    /// Something that is read whole has a form kiln does not understand.
    #[error("the {what} of the image is not understood")]
    Json {
        /// Which part.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A form of image that is not read.
    #[error("the {what} of the image {problem}")]
    Form {
        /// Which part.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Over a limit.
    #[error("the image has more {what} than {max}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        max: u64,
    },
    /// The layers are more than there is room for.
    #[error("its layers, uncompressed, take up more than the {} there is room for", ByteSize::from_bytes(*room).human())]
    NoRoom {
        /// The bytes they may take up.
        room: u64,
    },
    /// The image's files lack a part that it names.
    #[error("the image names the {what} {digest}, which is not there")]
    BlobMissing {
        /// What it is.
        what: &'static str,
        /// The part.
        digest: ContentDigest,
    },
    /// A part has other bytes than it is named by.
    #[error("{what} {expected} has the digest {actual}")]
    Digest {
        /// Which part.
        what: String,
        /// What it is named by.
        expected: ContentDigest,
        /// What its bytes have.
        actual: ContentDigest,
    },
    /// A part has another size than the image says.
    #[error("{what} {digest} has {actual} bytes and not the {expected} it is said to have")]
    Size {
        /// Which part.
        what: String,
        /// Its digest.
        digest: ContentDigest,
        /// The size that is said.
        expected: u64,
        /// The size that it has, or more.
        actual: u64,
    },
    /// No image for the platform.
    #[error("the image is not for {wanted}; it is for {}", list(found))]
    Platform {
        /// The platform wanted.
        wanted: Platform,
        /// Those there are.
        found: Vec<String>,
    },
    /// Several images, none of them named.
    #[error("{} holds {}; one has to be named", path.display(), choices(found))]
    Several {
        /// The layout or archive.
        path: PathBuf,
        /// Their names.
        found: Vec<String>,
    },
    /// No image of this name.
    #[error("{} has no image `{name}`; it holds {}", path.display(), choices(found))]
    NoSuchImage {
        /// The layout or archive.
        path: PathBuf,
        /// The name.
        name: String,
        /// Those there are.
        found: Vec<String>,
    },
    /// A layer cannot be used.
    #[error("layer {number} of the image cannot be used")]
    Layer {
        /// Which, from 1.
        number: usize,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// The registry would have to be asked, and may not be.
    #[error("{reference} is not in the cache, and the network may not be asked")]
    Offline {
        /// The image.
        reference: String,
    },
    /// The registry has no such image.
    #[error("the registry has no {reference}")]
    NotFound {
        /// The image.
        reference: String,
    },
    /// The registry does not give the image to us.
    #[error("the registry does not let us have {reference}")]
    Denied {
        /// The image.
        reference: String,
    },
    /// The registry gave no usable answer.
    #[error("{url} cannot be had")]
    Registry {
        /// What was asked for.
        url: String,
        /// Why.
        #[source]
        source: Unreachable,
    },
    /// A program that keeps credentials did not do its work.
    #[error("the credential helper `{name}` {problem}")]
    Helper {
        /// The program.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A program that keeps credentials could not be run.
    #[error("docker's credentials cannot be had")]
    HelperFailed {
        /// Why.
        #[source]
        source: ToolError,
    },
    /// A part that another build fetches could not be waited for.
    #[error(transparent)]
    Lock(LockError),
    /// Cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A file could not be read or written.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// Why a registry gave no usable answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unreachable {
    /// A token server that would get credentials in clear.
    #[error("it asks for credentials over plain HTTP")]
    InClear,
    /// No answer.
    #[error(transparent)]
    Http(Box<ureq::Error>),
    /// An answer that breaks off.
    #[error("the answer broke off")]
    Read(#[source] io::Error),
    /// Less than there should be, in every try.
    #[error("{have} bytes came of {size}")]
    Short {
        /// The bytes that came.
        have: u64,
        /// Those there should be.
        size: u64,
    },
    /// An answer that is an error.
    #[error("it answered with status {status}{}{said}", if said.is_empty() { "" } else { ": " })]
    Status {
        /// The status.
        status: u16,
        /// What it said.
        said: String,
    },
    /// An address that is none.
    #[error(transparent)]
    Address(#[from] InvalidUrl),
    /// It cannot be fetched for another reason.
    #[error(transparent)]
    Download(Box<DownloadError>),
    /// A token server that gives no token.
    #[error("the answer has no token")]
    NoToken,
}

/// Why a layer cannot be used. Names are clipped and escaped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// More names than a tree may have, directories that are only on the way among them.
    #[error("with it, the image has more than {0} names")]
    TooManyNames(usize),
    /// Compressed in a format that is not read.
    #[error("it is compressed with {0}; plain, gzip and zstd can be read")]
    Compression(&'static str),
    /// Compressed data that is damaged.
    #[error("it cannot be uncompressed")]
    Damaged(#[source] io::Error),
    /// More bytes than such a layer may become.
    #[error("it has {stored} bytes and becomes more than {max}")]
    Bomb {
        /// Its size as stored.
        stored: u64,
        /// The limit.
        max: u64,
    },
    /// It ends before its end mark.
    #[error("it ends within {0}")]
    Truncated(String),
    /// A header that is none.
    #[error("the header at byte {offset} is damaged: {problem}")]
    Header {
        /// Where it is, in the uncompressed layer.
        offset: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// A name that leads out, or that no file system takes.
    #[error("entry `{entry}` {problem}")]
    Name {
        /// The entry.
        entry: String,
        /// What is wrong with its name.
        problem: &'static str,
    },
    /// A mark that hides nothing that can be named.
    #[error("`{entry}` hides `{name}`, which is no name")]
    Whiteout {
        /// The mark.
        entry: String,
        /// What it would hide.
        name: String,
    },
    /// An entry below something that is no directory.
    #[error("entry `{entry}` lies below `{parent}`, which is no directory")]
    BelowNonDirectory {
        /// The entry.
        entry: String,
        /// What it lies below.
        parent: String,
    },
    /// An entry below links that lead on without end.
    #[error("entry `{0}` lies below more symbolic links than are followed")]
    Links(String),
    /// A hard link to nothing that can be linked to.
    #[error("entry `{entry}` is a hard link to `{target}`, which is no earlier file of the image")]
    HardLink {
        /// The entry.
        entry: String,
        /// What it links to.
        target: String,
    },
    /// A type that no root file system needs.
    #[error("entry `{entry}` has type `{kind}`, which cannot be unpacked")]
    Type {
        /// The entry.
        entry: String,
        /// The type's letter.
        kind: String,
    },
    /// An entry with content that cannot have any.
    #[error("entry `{entry}` has {size} bytes of content, which its type cannot have")]
    Content {
        /// The entry.
        entry: String,
        /// The bytes it claims.
        size: u64,
    },
}

fn list(found: &[String]) -> String {
    if found.is_empty() { "no platform".to_owned() } else { found.join(", ") }
}

fn choices(found: &[String]) -> String {
    if found.is_empty() { "no image with a name".to_owned() } else { found.join(", ") }
}

impl From<Cancelled> for OciError {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}
