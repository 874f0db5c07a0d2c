//! What can go wrong in an operation.

use kiln_build::BuildError;
use kiln_core::Digest;
use kiln_core::catalog::{CatalogError, NotListed, Serial};
use kiln_core::machine::EndCause;
use kiln_core::recipe::RecipeError;
use kiln_core::text::count;
use kiln_guest::SessionError;
use kiln_store::StoreError;
use kiln_sys::{IoError, ToolError};
use kiln_vmm::VmmError;
use std::path::PathBuf;

/// The result of an operation.
pub type EngineResult<T> = Result<T, EngineError>;

/// Why an operation did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No recipe here or above.
    #[error("no kiln.toml in {} or any directory above it", from.display())]
    NoRecipe {
        /// Where the search began.
        from: PathBuf,
    },
    /// A template file of another program is not one.
    #[error("{} is no template file of mvm", path.display())]
    TemplateFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: RecipeError,
    },
    /// A recipe is not one.
    #[error("{} is not a valid recipe", path.display())]
    Recipe {
        /// The recipe's file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: RecipeError,
    },
    /// A lock is not one.
    #[error("{} is not a valid lock", path.display())]
    Lock {
        /// The lock's file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: kiln_core::lock::LockError,
    },
    /// A build was to keep to a lock, and there is none.
    #[error("{} is not there, and the build was to keep to it", path.display())]
    LockMissing {
        /// Where it would be.
        path: PathBuf,
    },
    /// The recipe asks for something else than when its lock was made.
    #[error("{} does not fit the recipe: {} changed since it was made", path.display(), changed.join(", "))]
    LockStale {
        /// The lock's file.
        path: PathBuf,
        /// The inputs that are not the same.
        changed: Vec<String>,
    },
    /// A lock has nothing for this host's architecture.
    #[error("{} says nothing for {arch}", path.display())]
    LockArch {
        /// The lock's file.
        path: PathBuf,
        /// The architecture.
        arch: kiln_core::Arch,
    },
    /// A step of a recipe cannot be done in any guest.
    #[error("step {number} of the recipe cannot be done: {reason}")]
    StepInvalid {
        /// Its number, from 1.
        number: usize,
        /// Why not.
        reason: String,
    },
    /// A template made of another wants a kernel module of its own.
    #[error("module `{module}` is asked for, and modules come with the template that this one begins as")]
    StepModule {
        /// The module.
        module: String,
    },
    /// A step of a recipe failed.
    #[error("step {number} ({step}) failed: {reason}")]
    StepFailed {
        /// Its number, from 1.
        number: usize,
        /// What it was.
        step: String,
        /// How it failed, with its last words.
        reason: String,
        /// What all steps said.
        log: PathBuf,
        /// The machine as the step left it, where it was to be kept.
        machine: Option<String>,
    },
    /// What belongs to one machine could not be removed from a template.
    #[error("the guest could not be cleaned: {reason}")]
    CleaningFailed {
        /// Its last words.
        reason: String,
    },
    /// A template whose root is no file system that can be written to cannot be the beginning of another.
    #[error("the root of revision {revision} is of format {format}, which steps cannot write to")]
    BaseFormat {
        /// The revision.
        revision: kiln_core::Digest,
        /// What it is.
        format: &'static str,
    },
    /// A template cannot be the beginning of another.
    #[error("revision {revision} has no {role}: no template can be made of it by steps")]
    BaseLacks {
        /// The revision.
        revision: kiln_core::Digest,
        /// What it lacks.
        role: kiln_core::ArtifactRole,
    },
    /// A file that would be overwritten.
    #[error("{} exists already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The directory of a new file is missing.
    #[error("directory {} is not there", path.display())]
    NoDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// A directory of another program holds what cannot be taken over, or would have to.
    #[error("{} of {} cannot be {action}; nothing was written", count(problems.len(), "entry"), path.display())]
    Registry {
        /// What was to be done with it: "imported", "exported".
        action: &'static str,
        /// The directory.
        path: PathBuf,
        /// Every entry that is in the way.
        problems: Vec<RegistryProblem>,
    },
    /// A directory of another program holds nothing to take over.
    #[error("{} holds no {file}", path.display())]
    RegistryEmpty {
        /// The directory.
        path: PathBuf,
        /// What is looked for.
        file: &'static str,
    },
    /// No machine has that name or id.
    #[error("machine `{name}` not found")]
    NoMachine {
        /// The name or id.
        name: String,
        /// A name like it.
        similar: Option<String>,
    },
    /// A machine has that name already.
    #[error("a machine named `{name}` exists already")]
    MachineExists {
        /// The name.
        name: String,
    },
    /// A shape no machine can have was asked for.
    #[error("such a machine cannot be made")]
    Shape(#[from] kiln_core::variant::InvalidShape),
    /// SSH keys for a machine whose guest would not be told of them.
    #[error("`{reference}` has no seed: its machines are told no SSH keys")]
    NoSeed {
        /// What the machine was to run.
        reference: String,
    },
    /// More SSH keys than a machine can have.
    #[error(transparent)]
    SshKeys(#[from] kiln_core::ssh::TooManySshKeys),
    /// Nothing listens on the guest's port of SSH.
    #[error("machine `{machine}` has no SSH server that takes connections: {reason}")]
    NoSshServer {
        /// The machine.
        machine: String,
        /// Whether the guest has such a server, which may come up yet.
        installed: bool,
        /// What the port's answer was.
        reason: String,
    },
    /// The machine is not in a phase in which that can be done.
    #[error("machine `{name}` is {phase}: it cannot be {action}")]
    Phase {
        /// The machine.
        name: String,
        /// Its phase.
        phase: &'static str,
        /// What was asked for: "started", "removed", "reached", "paused", "resumed", "suspended".
        action: &'static str,
    },
    /// The machine ended while something was asked of it.
    #[error("machine `{name}` ended: {cause}")]
    Ended {
        /// The machine.
        name: String,
        /// Why.
        cause: EndCause,
        /// The console's last lines.
        console: Vec<String>,
    },
    /// A machine took longer to become ready than was waited for.
    #[error("machine `{name}` was not ready within {} s", within.as_secs_f32())]
    NotReady {
        /// The machine.
        name: String,
        /// How long was waited.
        within: std::time::Duration,
    },
    /// A machine that must begin as a snapshot cannot.
    #[error("`{reference}` cannot be restored: {reason}")]
    NotRestorable {
        /// What was to be restored.
        reference: String,
        /// Why not.
        reason: String,
    },
    /// A revision has no snapshot with memory.
    #[error("`{reference}` has no snapshot with memory")]
    NoSnapshot {
        /// The revision.
        reference: String,
    },
    /// A machine could not be captured.
    #[error("machine `{name}` could not be captured: {reason}")]
    NotCaptured {
        /// The machine.
        name: String,
        /// Why not.
        reason: String,
    },
    /// A machine could not be suspended.
    #[error("machine `{name}` could not be suspended: {reason}")]
    NotSuspended {
        /// The machine.
        name: String,
        /// Why not.
        reason: String,
    },
    /// A suspended machine could not go on, and is suspended as before.
    #[error("machine `{name}` stays suspended: {reason}")]
    NotResumed {
        /// The machine.
        name: String,
        /// The first thing that is in the way.
        reason: String,
    },
    /// What was saved of a machine cannot be used.
    #[error("{reason}")]
    Saved {
        /// Why not.
        reason: String,
    },
    /// The supervisor gave no sign of life.
    #[error("the supervisor of machine `{name}` ended before it reported{}", said(log))]
    SupervisorDied {
        /// The machine.
        name: String,
        /// The supervisor's last words.
        log: String,
    },
    /// The supervisor does not understand, or refuses.
    #[error("the supervisor of machine `{name}` refused: {reason}")]
    SupervisorRefused {
        /// The machine.
        name: String,
        /// Why.
        reason: String,
    },
    /// A copy names no machine, or two.
    #[error("a copy needs a machine on exactly one side: MACHINE:/path")]
    CopySides,
    /// A path in the guest is not as needed.
    #[error("`{path}` in machine `{machine}` {reason}")]
    GuestPath {
        /// The machine.
        machine: String,
        /// The path in the guest.
        path: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// A path on the host is not as needed.
    #[error("{} {reason}", path.display())]
    HostPath {
        /// The path.
        path: PathBuf,
        /// Why it cannot be used.
        reason: String,
    },
    /// The archive a guest sent is not what was asked for.
    #[error("the guest sent an unusable archive entry `{entry}`: {reason}")]
    GuestArchive {
        /// The entry.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A root file system cannot be read.
    #[error("the root file system in artifact {artifact} cannot be read")]
    Image {
        /// The artifact.
        artifact: kiln_core::Digest,
        /// What is wrong with it.
        #[source]
        source: crate::diff::ImageError,
    },
    /// Machines that were asked for would not fit into the memory that is left.
    #[error(transparent)]
    Memory(#[from] crate::preflight::NotEnoughMemory),
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A build failed.
    #[error(transparent)]
    Build(BuildError),
    /// The store refused.
    #[error(transparent)]
    Store(StoreError),
    /// A file that cannot be fetched.
    #[error(transparent)]
    Download(kiln_source::download::DownloadError),
    /// The machine monitor refused.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The guest agent refused or is gone.
    #[error(transparent)]
    Guest(#[from] SessionError),
    /// A tool failed.
    #[error(transparent)]
    Tool(ToolError),
    /// A file could not be used.
    #[error(transparent)]
    Io(IoError),
    /// An image that the catalog does not have.
    #[error(transparent)]
    NotListed(#[from] NotListed),
    /// An image of another program's directory that did not come.
    #[error("image `{name}` was not imported")]
    NotImported {
        /// Its place in the directory.
        name: String,
        /// Why not.
        #[source]
        source: Box<EngineError>,
    },
    /// What another program keeps as an image is none that is whole.
    #[error(transparent)]
    ImageFiles(#[from] crate::adopt::vmrs::ImageFilesError),
    /// A catalog that was added and is none.
    #[error("{} is not a catalog", path.display())]
    Catalog {
        /// Its file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: CatalogError,
    },
    /// Catalogs that are added, or a mirror.
    #[error(transparent)]
    Catalogs(Box<crate::catalogs::CatalogsError>),
    /// An image whose name cannot be a template's.
    #[error("image `{name}` has a name that no template can have")]
    ImageName {
        /// The image.
        name: String,
    },
    /// The template that an image would be is something else.
    #[error("`{name}` is revision {}, which was not made of the catalog's image", revision.short())]
    NotAnImage {
        /// Distribution and release.
        name: String,
        /// What the tag points to.
        revision: Digest,
    },
    /// What is offered was signed before that which is there.
    #[error("image `{name}` of {offered} is offered, older than that of {have} which is here")]
    OlderImage {
        /// Distribution and release.
        name: String,
        /// When that which is here was signed.
        have: Serial,
        /// When that which is offered was signed.
        offered: Serial,
    },
    /// What is offered is not signed, and that which is there was.
    #[error("image `{name}` is offered without a signature, and that which is here was signed at {have}")]
    UnsignedImage {
        /// Distribution and release.
        name: String,
        /// When that which is here was signed.
        have: Serial,
    },
}

/// Why one entry of another program's directory cannot be taken over, or written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryProblem {
    /// The entry.
    pub name: String,
    /// What is the matter with it.
    pub reason: String,
}

fn said(log: &str) -> String {
    if log.trim().is_empty() { String::new() } else { format!("; it said:\n{}", log.trim_end()) }
}

impl From<StoreError> for EngineError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Cancelled => Self::Cancelled,
            error => Self::Store(error),
        }
    }
}

impl From<ToolError> for EngineError {
    fn from(error: ToolError) -> Self {
        match error {
            ToolError::Cancelled { .. } => Self::Cancelled,
            error => Self::Tool(error),
        }
    }
}

impl From<BuildError> for EngineError {
    fn from(error: BuildError) -> Self {
        if matches!(error, BuildError::Cancelled) { Self::Cancelled } else { Self::Build(error) }
    }
}

impl From<kiln_source::download::DownloadError> for EngineError {
    fn from(error: kiln_source::download::DownloadError) -> Self {
        use kiln_source::download::DownloadError;
        match error {
            DownloadError::Cancelled => Self::Cancelled,
            DownloadError::Io(error) => error.into(),
            error => Self::Download(error),
        }
    }
}

impl From<IoError> for EngineError {
    fn from(error: IoError) -> Self {
        if kiln_sys::lock::is_cancelled(&error.source) { Self::Cancelled } else { Self::Io(error) }
    }
}

impl From<kiln_sys::cancel::Cancelled> for EngineError {
    fn from(_: kiln_sys::cancel::Cancelled) -> Self {
        Self::Cancelled
    }
}
