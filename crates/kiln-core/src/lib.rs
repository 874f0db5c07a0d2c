//! The words of kiln: digests, names, references, sizes, recipes, revision manifests and machine records.
//!
//! Everything here is a value: it is parsed once, at the edge, into a type with private fields, and printed back.
//! No file is opened, no clock is read and no environment is consulted in this crate.

pub mod arch;
pub mod bucket;
pub mod capture;
pub mod catalog;
pub mod date;
pub mod digest;
pub mod image;
pub mod lock;
pub mod machine;
pub mod name;
pub mod ready;
pub mod recipe;
pub mod reference;
pub mod restart;
pub mod revision;
pub mod seed;
pub mod size;
pub mod snapshot;
pub mod span;
pub mod ssh;
pub mod template_test;
pub mod text;
pub mod time;
pub mod variant;

pub use arch::Arch;
pub use bucket::{BucketPlace, InvalidBucketPlace};
pub use date::Date;
pub use digest::Digest;
pub use name::{ArtifactRole, DiskOwner, MachineId, MachineName, Tag, TemplateName, VariantName};
pub use reference::{Reference, RevisionSelector};
pub use restart::RestartPolicy;
pub use size::ByteSize;
pub use span::TimeSpan;
pub use ssh::{LoginName, SshPublicKey};
