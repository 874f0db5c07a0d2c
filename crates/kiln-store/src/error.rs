//! What can go wrong in a store.

use crate::artifact::SPACE_MARGIN;
use crate::grow::CannotGrow;
use crate::index::LENGTH_MAX;
use kiln_core::machine::CloneMethod;
use kiln_core::name::InvalidName;
use kiln_core::revision::InvalidManifest;
use kiln_core::{ByteSize, Digest, DiskOwner, Reference, Tag, TemplateName};
use kiln_sys::IoError;
use kiln_sys::lock::LockError;
use kiln_sys::protect::ProtectError;
use std::path::PathBuf;

/// The result of a store's work.
pub type StoreResult<T> = Result<T, StoreError>;

/// Why a store did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Nothing has that name.
    #[error("{kind} `{name}` not found")]
    NotFound {
        /// What was looked for.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Names like it that exist.
        similar: Vec<String>,
    },
    /// A digest prefix fits more than one revision.
    #[error("reference `{reference}` fits {} revisions", candidates.len())]
    Ambiguous {
        /// The reference.
        reference: Reference,
        /// The revisions it fits.
        candidates: Vec<Digest>,
    },
    /// A tag moved away from the digest that the reference pins.
    #[error("revision {digest} was never one of template `{template}`")]
    NotOfTemplate {
        /// The template.
        template: TemplateName,
        /// The pinned digest.
        digest: Digest,
    },
    /// A name or the beginning of an id fits more than one snapshot.
    #[error("`{wanted}` fits {} snapshots", candidates.len())]
    AmbiguousSnapshot {
        /// What was asked for.
        wanted: String,
        /// The snapshots it fits.
        candidates: Vec<Digest>,
    },
    /// Machines continue a snapshot.
    #[error("snapshot {} is in use by {}", snapshot.short(), machines.join(", "))]
    SnapshotInUse {
        /// The snapshot.
        snapshot: Digest,
        /// The machines' names.
        machines: Vec<String>,
    },
    /// Snapshots that a user made keep a revision.
    #[error("revision {} is kept by the snapshot {}", revision.short(), snapshots.join(", "))]
    HasSnapshots {
        /// The revision.
        revision: Digest,
        /// The snapshots' names.
        snapshots: Vec<String>,
    },
    /// A snapshot's manifest is not one.
    #[error("snapshot {id} is damaged")]
    BadSnapshot {
        /// The snapshot.
        id: Digest,
        /// What is wrong with it.
        #[source]
        source: kiln_core::snapshot::InvalidSnapshot,
    },
    /// The result of a test cannot be kept.
    #[error("the test of snapshot {} cannot be kept", id.short())]
    BadTest {
        /// The snapshot.
        id: Digest,
        /// What is wrong with the result.
        #[source]
        source: kiln_core::template_test::InvalidTest,
    },
    /// Machines still use it.
    #[error("revision {} is in use by {}", revision.short(), machines.join(", "))]
    InUse {
        /// The revision.
        revision: Digest,
        /// The machines' names.
        machines: Vec<String>,
    },
    /// Tags still point to it.
    #[error("revision {} has the tags {}", revision.short(), tags.join(", "))]
    Tagged {
        /// The revision.
        revision: Digest,
        /// The tags, each with its template.
        tags: Vec<String>,
    },
    /// Disks of other programs were made from it.
    #[error("revision {} is in use by the disk of {}", revision.short(), list(owners))]
    HasDisks {
        /// The revision.
        revision: Digest,
        /// The disks' owners.
        owners: Vec<DiskOwner>,
    },
    /// Leases keep it.
    #[error("revision {} is kept by the lease {}", revision.short(), leases.join(", "))]
    Leased {
        /// The revision.
        revision: Digest,
        /// The leases that have not ended.
        leases: Vec<String>,
    },
    /// An owner has a disk of another revision.
    #[error("the disk of `{owner}` was made from revision {have}, not from {want}")]
    Mismatch {
        /// The owner.
        owner: DiskOwner,
        /// The revision of the disk that is there.
        have: Digest,
        /// The revision that was asked for.
        want: Digest,
    },
    /// An owner has a disk of another length.
    #[error("the disk of `{owner}` has {} bytes, not {}", have.bytes(), want.bytes())]
    SizeMismatch {
        /// The owner.
        owner: DiskOwner,
        /// The length of the disk that is there.
        have: ByteSize,
        /// The length that was asked for.
        want: ByteSize,
    },
    /// Somebody uses the disk.
    #[error("the disk of `{owner}` is in use by {holder}")]
    Busy {
        /// The disk's owner.
        owner: DiskOwner,
        /// Who uses it, in its own words.
        holder: String,
    },
    /// Something stands where a new file is to be.
    #[error("{} exists already", path.display())]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// A file is not what the store wrote.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Only the content of a file can tell whether it is what the store wrote.
    #[error("{} has to be read before it is used: {reason}", path.display())]
    Unsealed {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// A manifest is not one.
    #[error("revision {id} is damaged")]
    BadManifest {
        /// The revision.
        id: Digest,
        /// What is wrong with it.
        #[source]
        source: InvalidManifest,
    },
    /// The store was written by a newer kiln.
    #[error("store {} has format version {found}, this kiln knows up to {known}", path.display())]
    NewerStore {
        /// The store's directory.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest known version.
        known: u32,
    },
    /// The store has a feature this kiln does not know and may not ignore.
    #[error("store {} uses the feature `{feature}`, unknown to this kiln", path.display())]
    UnknownFeature {
        /// The store's directory.
        path: PathBuf,
        /// The feature.
        feature: String,
    },
    /// The directory holds something else.
    #[error("{} is not a kiln store: {reason}", path.display())]
    NotAStore {
        /// The directory.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// There is too little room.
    #[error("not enough space in {}: {need} bytes needed and {SPACE_MARGIN} to spare, {have} free", path.display())]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Bytes needed.
        need: u64,
        /// Bytes free.
        have: u64,
    },
    /// A file changed while it was read.
    #[error("{} changed while it was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A file is too large for an index.
    #[error("{} has {len} bytes, more than {LENGTH_MAX}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
    /// A disk cannot be made in the way asked for.
    #[error("no disk can be made in {} by {method}", path.display())]
    CloneUnsupported {
        /// Where.
        path: PathBuf,
        /// The way.
        method: CloneMethod,
    },
    /// A tag that templates of this store do not have.
    #[error("template `{template}` has no tag `{tag}`")]
    NoTag {
        /// The template.
        template: TemplateName,
        /// The tag.
        tag: Tag,
    },
    /// A disk was asked for that its artifact does not fit in.
    #[error("a disk of {} is too small: its template's has {}", wanted.human(), least.human())]
    Shrink {
        /// The length asked for.
        wanted: ByteSize,
        /// The artifact's length.
        least: ByteSize,
    },
    /// A disk was asked for that is longer than its artifact, and what lies on that cannot be made longer.
    #[error("no disk of {} can be made of artifact {artifact}", wanted.human())]
    CannotGrow {
        /// The artifact.
        artifact: Digest,
        /// The length asked for.
        wanted: ByteSize,
        /// Why not.
        #[source]
        source: CannotGrow,
    },
    /// A tag that never pointed anywhere else.
    #[error("tag `{template}:{tag}` has no former revision")]
    NoFormer {
        /// The template.
        template: TemplateName,
        /// The tag.
        tag: Tag,
    },
    /// A name in the store is not a name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A file could not be protected, or what protects it not taken off.
    #[error(transparent)]
    Protect(ProtectError),
    /// A lock was not to be had.
    #[error(transparent)]
    Lock(LockError),
    /// A file could not be used.
    #[error(transparent)]
    Io(IoError),
}

fn list(owners: &[DiskOwner]) -> String {
    owners.iter().map(DiskOwner::as_str).collect::<Vec<_>>().join(", ")
}

impl From<IoError> for StoreError {
    fn from(error: IoError) -> Self {
        if kiln_sys::lock::is_cancelled(&error.source) { Self::Cancelled } else { Self::Io(error) }
    }
}

impl From<ProtectError> for StoreError {
    fn from(error: ProtectError) -> Self {
        match error {
            ProtectError::Io(error) => error.into(),
            error => Self::Protect(error),
        }
    }
}

impl From<LockError> for StoreError {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Io(error) => Self::Io(error),
            error @ LockError::Cancelled { .. } => Self::Lock(error),
            error => Self::Lock(error),
        }
    }
}

impl From<kiln_sys::cancel::Cancelled> for StoreError {
    fn from(_: kiln_sys::cancel::Cancelled) -> Self {
        Self::Cancelled
    }
}
