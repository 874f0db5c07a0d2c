//! Bakes recipes into artifacts: sources, file systems, kernels, initramfs.
//!
//! [`plan`] looks at a recipe, its inputs and the host, changes nothing, and names the result by a key: the same key
//! means that there is nothing to do. [`run`] does the work in a scratch directory of the caller and leaves files
//! there; the caller takes them into its store and writes the revision.
//!
//! The same inputs give the same bytes. What may differ between two builds of one key (versions of tools and
//! packages) is told beside the files, as facts.

mod agent;
mod apt;
pub mod archive;
mod debian;
mod decompress;
mod error;
pub mod ext4;
mod fingerprint;
mod firmware;
mod host;
pub mod initramfs;
pub mod kernel;
mod kernel_package;
mod key;
mod lock;
pub mod modules;
mod packed;
mod plan;
mod report;
mod run;
mod seed;
mod source;
mod steps;
mod tree;
mod unpack;

pub use agent::AGENT;
pub use apt::AptSource;
pub use error::BuildError;
pub use host::HostFacts;
pub use key::KeyPart;
pub use kiln_source::oci::OciError;
pub use plan::{BuildPlan, PlanContext, plan, plan_local};
pub use report::{BuildEvent, Quiet, Reporter, Step};
pub use run::{
    BuildContext, BuildOutput, OutputFile, PACKAGES_SPACE_MIN, SPACE_RESERVE, boot, builder_pins, resolve,
    run,
};
pub use seed::PlannedSeed;
pub use source::{FetchOptions, LocalFiles, LocalImage, NixError, PlannedStep, legacy_key, look_at};
pub use tree::TreeSize;
pub use unpack::Ownership;

/// Images of the catalog, for whoever says how to fetch them and what to try.
pub mod catalog {
    pub use kiln_source::catalog::{LookUpError, Verify};
    pub use kiln_source::download::DownloadError;
    pub use kiln_source::openpgp::SignatureError;
}

/// Why disk images cannot be used, for whoever says what to try.
pub mod disk {
    pub use kiln_source::disk::DiskError;
    pub use kiln_source::disk::qcow2::Qcow2Error;
    pub use kiln_source::ext4::ImageError;
}
