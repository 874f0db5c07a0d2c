//! The store: artifacts named by their content, revisions, tags, the cache of builds, and private clones.
//!
//! `docs/formats/store.md` describes the files. Nothing is visible before it is complete: everything is written in a
//! staging directory or aside and moved into place by [`kiln_sys::commit`]. Writers that add hold the store's lock
//! shared; removal holds it alone.

mod artifact;
mod aside;
pub mod blocks;
mod clone;
mod collect;
mod disks;
mod error;
mod file_hash;
mod grow;
mod hash;
pub mod index;
mod layout;
mod lease;
mod machine;
mod mapping;
mod mark;
mod migrate;
mod overlay;
mod parallel;
mod protect;
mod remove;
mod revision;
mod root;
mod seal;
mod snapshot;
mod staging;
mod summary;
mod survey;
mod tag;
mod verify;

pub use artifact::{IngestFrom, Ingested, SPACE_MARGIN};
pub use blocks::{BlockTable, SharedBlocks, SharedRun};
pub use clone::{CloneChoice, CloneOptions, CloneRequest, CopyAside, CopyOut};
pub use collect::{CollectPolicy, Collection, DeadRevision, DeadSnapshot};
pub use disks::{
    AdoptDisk, ClonedDisk, DISK_RECORD_VERSION, Disk, DiskLock, DiskRecord, DiskTemplate, Disks,
};
pub use error::{StoreError, StoreResult};
pub use file_hash::FileHash;
pub use grow::{CannotGrow, GrownContent, Growth};
pub use hash::{hash_file, hash_file_with_blocks};
pub use index::Index;
pub use layout::{STORE_VERSION, Store, StoreLock};
pub use lease::Lease;
pub use machine::MachineEntry;
pub use protect::{AUTO_VERITY_BYTES_MAX, InvalidProtect, Protect};
pub use remove::Removed;
pub use revision::{BuildRecord, Revision};
pub use root::Root;
pub use snapshot::{Snapshot, SnapshotContent, SnapshotUse};
pub use staging::Staging;
pub use summary::{Content, Summaries, Summary};
pub use survey::{ArtifactUse, Survey};
pub use tag::{TagEntry, TagMove, TagRecord, TemplateEntry};
pub use verify::{DAMAGED_RANGES_MAX, Damage, Verdict};
