//! Where a template's content comes from, checked.

use super::flake::{FlakeAttribute, FlakeRef};
use crate::catalog;
use crate::image::{ImageName, Platform};
use crate::reference::Reference;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where a template's content comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// Debian packages.
    Debian(DebianSource),
    /// A directory that holds the root file system.
    Directory(PathSource),
    /// A tar file that holds the root file system.
    Tar(PathSource),
    /// A disk image.
    Disk(DiskSource),
    /// A disk image of the catalog.
    Catalog(CatalogSource),
    /// An attribute of a Nix flake.
    Nix(NixSource),
    /// An OCI image.
    Oci(OciSource),
    /// A Dockerfile, from which a builder of the host makes an image.
    Dockerfile(DockerfileSource),
    /// Another template, changed step by step in a machine.
    Template(TemplateSource),
}

impl Source {
    /// Returns the word used in recipes.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Debian(_) => "debian",
            Self::Directory(_) => "directory",
            Self::Tar(_) => "tar",
            Self::Disk(_) => "disk",
            Self::Catalog(_) => "catalog",
            Self::Nix(_) => "nix",
            Self::Oci(_) => "oci",
            Self::Dockerfile(_) => "dockerfile",
            Self::Template(_) => "template",
        }
    }
}

/// A root file system made of Debian packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebianSource {
    /// The release's code name.
    pub suite: String,
    /// Packages to install beyond the package set.
    pub packages: Vec<String>,
    /// The package set to begin with: `essential`, `minbase`, `apt`, `standard`, ….
    pub variant: String,
    /// The archive's components.
    pub components: Vec<String>,
    /// The archive; none means what the host's apt uses.
    pub mirror: Option<String>,
    /// The package that brings the kernel.
    pub kernel_package: Option<String>,
    /// Whether manual pages, documents and translations are kept.
    pub docs: bool,
}

/// A root file system that lies ready on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathSource {
    /// The directory or tar file.
    pub path: PathBuf,
    /// The kernel, which it brings none of.
    pub kernel: KernelSource,
}

/// A disk image that a distribution publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogSource {
    /// Its name in the catalog.
    pub image: catalog::ImageName,
}

/// An OCI image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OciSource {
    /// The image.
    pub image: ImageName,
    /// The platform to choose where there are several; none means the host's.
    pub platform: Option<Platform>,
    /// The kernel, which it brings none of.
    pub kernel: KernelSource,
}

/// A disk image, whose root file system becomes the machine's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSource {
    /// The image.
    pub path: PathBuf,
    /// Its format; none means by its content.
    pub format: Option<DiskFormat>,
    /// What is done with an image that is based on other files.
    pub backing: BackingFiles,
    /// The partition with the root file system, from 1; none means the one that can be it.
    pub partition: Option<u32>,
    /// The kernel; none means that of the image.
    pub kernel: Option<KernelSource>,
    /// Who loads the kernel.
    pub boot: DiskBoot,
}

/// Who loads the kernel of what is on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiskBoot {
    /// The machine monitor where it can, else firmware.
    #[default]
    Auto,
    /// The machine monitor.
    Direct,
    /// The disk's own boot loader, which firmware starts.
    Firmware,
}

impl DiskBoot {
    /// Returns the word used in recipes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Direct => "direct",
            Self::Firmware => "firmware",
        }
    }
}

/// The format of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// Hyper-V's.
    Vhdx,
}

impl DiskFormat {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Raw, Self::Qcow2, Self::Vmdk, Self::Vhdx];

    /// Returns the word used in recipes, which is QEMU's too.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
        }
    }
}

/// What is done with an image that is based on other files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackingFiles {
    /// It is refused.
    #[default]
    Refuse,
    /// The files are read too, where they lie in the image's own directory.
    Flatten,
}

/// Where the kernel of a source comes from that has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelSource {
    /// Files of the host.
    Files {
        /// The kernel: an uncompressed ELF or a bzImage.
        kernel: PathBuf,
        /// The directory with its modules (`…/lib/modules/VERSION`); none means that it needs none.
        modules: Option<PathBuf>,
    },
    /// A package, from the archives that the host's apt uses; none means `linux-image-cloud-ARCH`.
    Package(Option<String>),
}

/// A Dockerfile and what it is built with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerfileSource {
    /// The file.
    pub path: PathBuf,
    /// The directory whose files it may copy.
    pub context: PathBuf,
    /// The stage that is wanted; none means the last.
    pub target: Option<String>,
    /// Arguments of the build.
    pub args: BTreeMap<String, String>,
    /// The kernel, which an image has none of.
    pub kernel: KernelSource,
}

/// Another template and what is done to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateSource {
    /// What it begins as.
    pub from: Reference,
    /// Whether the machine that runs the steps reaches the network.
    pub network: bool,
    /// What is done, in order.
    pub steps: Vec<BuildStep>,
}

/// A thing that is done in a machine to make a template of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildStep {
    /// A command is run.
    Run {
        /// Program and arguments.
        command: Vec<String>,
        /// Time it may take, in milliseconds.
        timeout_ms: u64,
    },
    /// A file or directory of the host is copied.
    Copy {
        /// The file or directory.
        from: PathBuf,
        /// Where to: a directory where it ends with `/` or is one.
        to: String,
    },
    /// Variables are set for the steps that follow and for the entrypoint.
    Env(BTreeMap<String, String>),
    /// Who runs the steps that follow, and the entrypoint.
    User(String),
    /// Where they run.
    Workdir(String),
}

/// What Nix builds of a flake: kernel and root file system together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NixSource {
    /// The flake.
    pub flake: FlakeRef,
    /// What is built of it: as the recipe says, else by its profile.
    pub attribute: FlakeAttribute,
    /// Whether the flake may look at the host: the result then depends on more than the recipe names.
    pub impure: bool,
}
