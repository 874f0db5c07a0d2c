//! Why a build did not come to be.

use crate::archive::ArchiveError;
use crate::ext4::Ext4Error;
use crate::initramfs::InitramfsError;
use crate::kernel::KernelError;
use crate::modules::ModuleError;
use crate::source::NixError;
use kiln_core::arch::Arch;
use kiln_core::catalog::{NotListed, Serial};
use kiln_core::image::{ContentDigest, Platform};
use kiln_core::lock::{Moved, PinKind};
use kiln_core::size::ByteSize;
use kiln_core::text::count;
use kiln_source::catalog::LookUpError;
use kiln_source::disk::DiskError;
use kiln_source::download::DownloadError;
use kiln_source::ext4::ImageError;
use kiln_source::oci::OciError;
use kiln_sys::{IoError, ToolError};
use std::path::PathBuf;

/// Why a build was not planned or not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// This host's processor is not one kiln makes guests for.
    #[error("architecture `{0}` is not supported")]
    Architecture(&'static str),
    /// A kind of source this build does not know.
    #[error("sources of type `{0}` cannot be built")]
    Source(&'static str),
    /// A path of the recipe leads to the wrong kind of thing.
    #[error("`{field}` is {}, {found} where {wanted} is wanted", path.display())]
    InputKind {
        /// The recipe's key.
        field: &'static str,
        /// The path it leads to.
        path: PathBuf,
        /// What is there.
        found: &'static str,
        /// What should be there.
        wanted: &'static str,
    },
    /// A path of the recipe leads nowhere.
    #[error("`{field}` is {}, which does not exist", path.display())]
    InputMissing {
        /// The recipe's key.
        field: &'static str,
        /// The path it leads to.
        path: PathBuf,
    },
    /// A file changed between the plan and its use.
    #[error("{} changed while it was read", path.display())]
    InputChanged {
        /// The file.
        path: PathBuf,
    },
    /// A directory tree is too large.
    #[error("{} holds more than {max} files", path.display())]
    TooManyFiles {
        /// The directory.
        path: PathBuf,
        /// The limit.
        max: u64,
    },
    /// A directory tree is too deep.
    #[error("{} is deeper than {max} directories", path.display())]
    TooDeep {
        /// The directory.
        path: PathBuf,
        /// The limit.
        max: usize,
    },
    /// A tar file that cannot be used.
    #[error("tar file {} cannot be used", path.display())]
    Archive {
        /// The tar file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ArchiveError,
    },
    /// An image that cannot be used.
    #[error("image {image} cannot be used")]
    Image {
        /// As the recipe names it, in back quotes, or which Dockerfile it is of.
        image: String,
        /// Why.
        #[source]
        source: OciError,
    },
    /// What the layers of an image come to cannot be unpacked.
    #[error("what the layers of image {image} come to cannot be used")]
    ImageTree {
        /// As [`BuildError::Image`] has it.
        image: String,
        /// Why.
        #[source]
        source: ArchiveError,
    },
    /// A platform that guests of this host do not run.
    #[error("programs for {platform} do not run in a guest of {arch}")]
    Platform {
        /// The platform.
        platform: Platform,
        /// The guest's architecture.
        arch: Arch,
    },
    /// An image is to come on standard input, and that is a terminal.
    #[error("the image is to come on standard input, which is a terminal")]
    NoImageInput,
    /// An entry point without a command, neither in the recipe nor in the image.
    #[error("neither the recipe's entry point nor the image names a command")]
    NoCommand,
    /// An image in a place that is not read.
    #[error("image `{0}` lies where images cannot be read from")]
    ImageName(String),
    /// A kernel that cannot be used.
    #[error("kernel {} cannot be used", path.display())]
    Kernel {
        /// The kernel's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: KernelError,
    },
    /// Modules that are needed cannot be had.
    #[error(transparent)]
    Modules(#[from] ModuleError),
    /// The initramfs cannot be written.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    /// An image that the catalog does not have.
    #[error(transparent)]
    NotListed(#[from] NotListed),
    /// An image of the catalog that is not pinned, and nobody may be asked.
    #[error("image `{name}` was never looked up here, and kiln is offline")]
    ImageNotPinned {
        /// Distribution and release.
        name: String,
    },
    /// An image of the catalog that was not looked up or not fetched.
    #[error("image `{name}` cannot be had")]
    Catalog {
        /// Distribution and release.
        name: String,
        /// Why.
        #[source]
        source: Box<LookUpError>,
    },
    /// An image that is pinned, and cannot be had any more.
    #[error("image `{name}` is pinned to {digest}, which cannot be fetched")]
    PinnedImage {
        /// Distribution and release.
        name: String,
        /// What it is pinned to.
        digest: ContentDigest,
        /// Why.
        #[source]
        source: Box<DownloadError>,
    },
    /// A file of an image that is not the one its maker publishes at present.
    #[error("{} has {digest}, and what is published of `{name}` at present{} is {published}", path.display(), of(*serial))]
    NotPublished {
        /// Distribution and release.
        name: String,
        /// The file.
        path: PathBuf,
        /// What it is.
        digest: ContentDigest,
        /// What is published.
        published: ContentDigest,
        /// When that was signed.
        serial: Option<Serial>,
    },
    /// A kernel that nobody vouches for, where there is no other.
    #[error("nothing that is published tells of {}, and there is no kernel inside {}", path.display(), disk.display())]
    UnknownKernel {
        /// Distribution and release.
        name: String,
        /// The kernel.
        path: PathBuf,
        /// The disk image.
        disk: PathBuf,
    },
    /// The root disk cannot be written.
    #[error(transparent)]
    Ext4(#[from] Ext4Error),
    /// The program that should be process 1 is not in the image.
    #[error("the image has no `{path}`, which the recipe names as its init")]
    InitMissing {
        /// The path in the image.
        path: String,
    },
    /// User data that is no text.
    #[error("{} is not text in UTF-8", path.display())]
    UserDataText {
        /// The file.
        path: PathBuf,
    },
    /// User data that cloud-init would not take.
    #[error("{} cannot be user data", path.display())]
    UserData {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: kiln_core::seed::InvalidSeed,
    },
    /// A package that the archive does not have.
    #[error("package `{package}` is not in the archive of suite `{suite}`")]
    PackageUnknown {
        /// The package.
        package: String,
        /// The suite.
        suite: String,
        /// The package tool's words.
        #[source]
        source: ToolError,
    },
    /// A name that the caller has to look up was not looked up.
    #[error("{} `{name}` is not known", kind.as_str())]
    NotPinned {
        /// What of.
        kind: PinKind,
        /// The name.
        name: String,
    },
    /// No program of the host builds Dockerfiles.
    #[error("a Dockerfile needs a builder, and this host has none of buildah, podman and docker")]
    NoBuilder,
    /// A root file system that no disk can hold.
    #[error("the root file system of {} has {bytes} bytes, more than a disk of 16 TiB", path.display())]
    RootTooLarge {
        /// Where it comes from.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// The root file system comes as it is.
    #[error("a source of type `{kind}` has an ext4 root, and `{root}` is asked for")]
    RootFormat {
        /// The source's type.
        kind: &'static str,
        /// What is asked for.
        root: &'static str,
    },
    /// The network is needed, and may not be asked.
    #[error("{what} come from the network, which an offline build may not ask")]
    Offline {
        /// What is needed from there.
        what: &'static str,
    },
    /// The archives have other versions than the lock.
    #[error("{}", of_another_version(*kind, moved))]
    LockMoved {
        /// What of.
        kind: PinKind,
        /// What is not as the lock says, by name; there is at least one.
        moved: Vec<Moved>,
    },
    /// A kernel's package is wanted, and the host has no archive to fetch it from.
    #[error("the source has no kernel, and this host has no apt archive to fetch `{package}` from")]
    NoArchive {
        /// The package.
        package: String,
    },
    /// The kernel's package does not hold what it should.
    #[error("kernel package `{package}`: {problem}")]
    KernelPackage {
        /// The package.
        package: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A flake gave nothing that can be used.
    #[error(transparent)]
    Nix(#[from] NixError),
    /// A disk image that cannot be used.
    #[error(transparent)]
    Disk(DiskError),
    /// The file system in a disk image cannot be read.
    #[error("the file system in {} cannot be read", path.display())]
    Contents {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// A disk that only firmware boots, and the host has none.
    #[error("{} needs UEFI firmware to boot, and this host has none for {arch} guests", path.display())]
    NoFirmware {
        /// The image.
        path: PathBuf,
        /// The guest's architecture.
        arch: Arch,
    },
    /// A firmware that does not fit where it is mapped.
    #[error("firmware {} has more than {max} bytes", path.display())]
    FirmwareTooLarge {
        /// The firmware.
        path: PathBuf,
        /// The limit.
        max: u64,
    },
    /// A disk without a boot loader that firmware could start.
    #[error("{} has no EFI system partition: its partitions are {there}", path.display())]
    NoEspPartition {
        /// The image.
        path: PathBuf,
        /// What there is.
        there: String,
    },
    /// A wish that goes with a kernel that kiln loads, or a root that it can write to.
    #[error("`{field}` has no effect on a disk that firmware boots, and {} is one", path.display())]
    WholeDisk {
        /// The recipe's key.
        field: &'static str,
        /// The image.
        path: PathBuf,
    },
    /// A disk image without a kernel.
    #[error("{} has no kernel that can be found: neither in /boot nor beside its modules", path.display())]
    NoKernel {
        /// The image.
        path: PathBuf,
    },
    /// A disk image without the modules of its kernel.
    #[error("the kernel in {} is {release}, and its modules are for {there}", path.display())]
    NoModules {
        /// The image.
        path: PathBuf,
        /// The kernel's version.
        release: String,
        /// The versions that there are modules for.
        there: String,
    },
    /// The scratch directory has too little room.
    #[error("{} has {} free, the build needs {}", path.display(), ByteSize::from_bytes(*have).human(), ByteSize::from_bytes(*need).human())]
    NoSpace {
        /// The scratch directory.
        path: PathBuf,
        /// Bytes needed.
        need: u64,
        /// Bytes there are.
        have: u64,
    },
    /// The scratch directory's file system filled up during the build.
    #[error("the file system of {} became full", path.display())]
    Full {
        /// The scratch directory.
        path: PathBuf,
        /// What failed for it.
        #[source]
        source: Box<BuildError>,
    },
    /// The work was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A tool did not do its work.
    #[error(transparent)]
    Tool(ToolError),
    /// A file could not be read or written.
    #[error(transparent)]
    Io(#[from] IoError),
}

fn of(serial: Option<Serial>) -> String {
    serial.map(|serial| format!(" (of {serial})")).unwrap_or_default()
}

fn of_another_version(kind: PinKind, moved: &[Moved]) -> String {
    let Some(first) = moved.first() else { return format!("a {} is not as the lock says", kind.as_str()) };
    let told = |side: &Option<String>| side.clone().unwrap_or_else(|| "none".to_owned());
    let others = match moved.len() - 1 {
        0 => String::new(),
        more => format!(", and {} moved too", count(more, "other")),
    };
    let (locked, found) = (told(&first.before), told(&first.after));
    format!("{} `{}` is {found} now and {locked} in the lock{others}", kind.as_str(), first.name)
}

impl From<ToolError> for BuildError {
    fn from(error: ToolError) -> Self {
        match error {
            ToolError::Cancelled { .. } => Self::Cancelled,
            other => Self::Tool(other),
        }
    }
}

impl BuildError {
    /// An error with the image of the catalog that it is of.
    pub(crate) fn catalog(name: &str, error: LookUpError) -> Self {
        match error {
            LookUpError::Cancelled => Self::Cancelled,
            LookUpError::Io(error) => Self::Io(error),
            error => Self::Catalog { name: name.to_owned(), source: Box::new(error) },
        }
    }

    /// An error with the image that it is of; see [`BuildError::Image`].
    pub(crate) fn image(image: &str, error: OciError) -> Self {
        match error {
            OciError::Cancelled => Self::Cancelled,
            OciError::Io(error) => Self::Io(error),
            source => Self::Image { image: image.to_owned(), source },
        }
    }
}

impl From<DiskError> for BuildError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Cancelled => Self::Cancelled,
            DiskError::Io(error) => Self::Io(error),
            DiskError::Tool(error) => Self::from(error),
            other => Self::Disk(other),
        }
    }
}

impl From<kiln_sys::cancel::Cancelled> for BuildError {
    fn from(_: kiln_sys::cancel::Cancelled) -> Self {
        Self::Cancelled
    }
}
