//! The table `[source]` as written, and the checks that make it a [`Source`].

use super::{parsed, parsed_opt, value};
use crate::name::VariantName;
use crate::recipe::{
    BackingFiles, BuildStep, CatalogSource, DebianSource, DiskBoot, DiskFormat, DiskSource, DockerfileSource,
    FlakeAttribute, KernelSource, NixSource, OciSource, PACKAGES_MAX, PathSource, RecipeError, Source,
    TemplateSource,
};
use crate::reference::Reference;
use crate::variant::Variant;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum SourceTable {
    /// Debian packages.
    Debian(DebianTable),
    /// A directory that holds the root file system.
    Directory(PathTable),
    /// A tar file (plain, gzip or zstd) that holds the root file system.
    Tar(PathTable),
    /// A disk image.
    Disk(DiskTable),
    /// A disk image that a distribution publishes, by its name in the catalog.
    Catalog(CatalogTable),
    /// An attribute of a Nix flake, which brings kernel and root file system.
    Nix(NixTable),
    /// An OCI image.
    Oci(OciTable),
    /// A Dockerfile, built by `buildah`, `podman` or `docker`.
    Dockerfile(DockerfileTable),
    /// Another template, changed by `[[step]]`s.
    Template(TemplateTable),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DebianTable {
    /// The release's code name, such as `bookworm`.
    suite: String,
    /// Packages to install beyond the package set.
    #[serde(default)]
    packages: Vec<String>,
    /// The package set to begin with: `essential`, `minbase` (default), `apt`, `standard`.
    variant: Option<String>,
    /// The archive's components. Default: `main`.
    components: Option<Vec<String>>,
    /// The archive's URL. Default: what the host's apt uses.
    mirror: Option<String>,
    /// The package that brings the kernel. Default: `linux-image-cloud-ARCH`.
    kernel: Option<String>,
    /// Whether manual pages, documents and translations are kept. Default: false.
    #[serde(default)]
    docs: bool,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TemplateTable {
    /// The template: `NAME[:TAG][@sha256:…]` or `sha256:…`.
    from: String,
    /// Whether steps reach the network. Default: true.
    #[serde(default = "yes")]
    network: bool,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CatalogTable {
    /// The image, `NAME[:RELEASE]`, such as `ubuntu:24.04`.
    image: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PathTable {
    /// The directory or tar file, relative to the recipe.
    path: PathBuf,
    /// The kernel: an uncompressed ELF or a bzImage, relative to the recipe. Default: that of a package.
    kernel: Option<PathBuf>,
    /// The directory of the kernel's modules, `…/lib/modules/VERSION`. Default: the kernel needs none.
    modules: Option<PathBuf>,
    /// The package that brings kernel and modules, where `kernel` does not. Default: `linux-image-cloud-ARCH`.
    kernel_package: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OciTable {
    /// `oci-layout:PATH[:TAG]`, `oci-archive:PATH[:TAG]`, `docker-archive:PATH[:REF]`, `-` for an archive on standard input, or
    /// `HOST/REPOSITORY[:TAG][@DIGEST]`.
    image: String,
    /// The platform to choose, `linux/ARCH[/VARIANT]`. Default: the host's.
    platform: Option<String>,
    /// The kernel: an uncompressed ELF or a bzImage, relative to the recipe. Default: that of a package.
    kernel: Option<PathBuf>,
    /// The directory of the kernel's modules, `…/lib/modules/VERSION`. Default: the kernel needs none.
    modules: Option<PathBuf>,
    /// The package that brings kernel and modules, where `kernel` does not. Default: `linux-image-cloud-ARCH`.
    kernel_package: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DockerfileTable {
    /// The file, relative to the recipe. Default: `Dockerfile`.
    path: Option<PathBuf>,
    /// The directory whose files it may copy, relative to the recipe. Default: that of the recipe.
    context: Option<PathBuf>,
    /// The stage that is wanted. Default: the last.
    target: Option<String>,
    /// Arguments of the build.
    #[serde(default)]
    args: BTreeMap<String, String>,
    /// The kernel: an uncompressed ELF or a bzImage, relative to the recipe. Default: that of a package.
    kernel: Option<PathBuf>,
    /// The directory of the kernel's modules, `…/lib/modules/VERSION`. Default: the kernel needs none.
    modules: Option<PathBuf>,
    /// The package that brings kernel and modules, where `kernel` does not. Default: `linux-image-cloud-ARCH`.
    kernel_package: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NixTable {
    /// The flake: a path relative to the recipe (`.`, `path:../image`), or what Nix fetches (`github:owner/repository`).
    flake: String,
    /// The package of the flake, or a whole path of attributes. Default: `tenant-PROFILE`, without a profile `default`.
    attribute: Option<String>,
    /// Whether the flake may look at the host (`nix build --impure`). Default: false.
    #[serde(default)]
    impure: bool,
}

/// What else of a recipe has a say in its source.
pub(super) struct Others<'a> {
    pub(super) steps: Vec<BuildStep>,
    pub(super) profile: Option<&'a VariantName>,
    pub(super) variants: &'a [Variant],
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DiskTable {
    /// The image, relative to the recipe.
    path: PathBuf,
    /// Its format: `raw`, `qcow2`, `vmdk` or `vhdx`. Default: by its content.
    format: Option<DiskFormatWord>,
    /// What is done with a qcow2 image that is based on other files: `refuse` (default), or `flatten`, which reads those
    /// that lie in its own directory.
    backing: Option<BackingWord>,
    /// The partition with the root file system, from 1. Default: the one that can be it.
    partition: Option<u32>,
    /// The kernel: an uncompressed ELF or a bzImage, relative to the recipe. Default: that of the image.
    kernel: Option<PathBuf>,
    /// The directory of the kernel's modules, `…/lib/modules/VERSION`. Default: the kernel needs none.
    modules: Option<PathBuf>,
    /// The package that brings kernel and modules, in place of the image's.
    kernel_package: Option<String>,
    /// Who loads the kernel: `direct`, the machine monitor; `firmware`, the disk's own boot loader, which UEFI firmware starts;
    /// or `auto` (default), the machine monitor where the root is ext4 and has a kernel, else firmware.
    boot: Option<DiskBootWord>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum DiskBootWord {
    Auto,
    Direct,
    Firmware,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum DiskFormatWord {
    Raw,
    Qcow2,
    Vmdk,
    Vhdx,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum BackingWord {
    Refuse,
    Flatten,
}

fn disk(table: DiskTable) -> Result<DiskSource, RecipeError> {
    if table.path.as_os_str().is_empty() {
        return Err(value("source.path", "a path is wanted"));
    }
    if table.partition == Some(0) {
        return Err(value("source.partition", "partitions are counted from 1"));
    }
    let own_kernel = table.kernel.is_none() && table.modules.is_none() && table.kernel_package.is_none();
    let kernel =
        (!own_kernel).then(|| kernel(table.kernel, table.modules, table.kernel_package)).transpose()?;
    let boot = match table.boot {
        None | Some(DiskBootWord::Auto) => DiskBoot::Auto,
        Some(DiskBootWord::Direct) => DiskBoot::Direct,
        Some(DiskBootWord::Firmware) => DiskBoot::Firmware,
    };
    if boot == DiskBoot::Firmware && (kernel.is_some() || table.partition.is_some()) {
        return Err(value(
            "source.boot",
            "firmware takes the whole disk with its own kernel: it goes with neither `partition` nor a kernel",
        ));
    }
    Ok(DiskSource {
        path: table.path,
        format: table.format.map(|word| match word {
            DiskFormatWord::Raw => DiskFormat::Raw,
            DiskFormatWord::Qcow2 => DiskFormat::Qcow2,
            DiskFormatWord::Vmdk => DiskFormat::Vmdk,
            DiskFormatWord::Vhdx => DiskFormat::Vhdx,
        }),
        backing: match table.backing {
            Some(BackingWord::Flatten) => BackingFiles::Flatten,
            Some(BackingWord::Refuse) | None => BackingFiles::Refuse,
        },
        partition: table.partition,
        kernel,
        boot,
    })
}

/// Checks what a recipe says of its source.
pub(super) fn checked(table: SourceTable, others: Others<'_>) -> Result<Source, RecipeError> {
    let Others { steps, profile, variants } = others;
    if !steps.is_empty() && !matches!(table, SourceTable::Template(_)) {
        return Err(value("step", "steps belong to a source of type `template`"));
    }
    Ok(match table {
        SourceTable::Debian(table) => Source::Debian(debian(table)?),
        SourceTable::Directory(table) => Source::Directory(path(table)?),
        SourceTable::Tar(table) => Source::Tar(path(table)?),
        SourceTable::Disk(table) => Source::Disk(disk(table)?),
        SourceTable::Catalog(table) => {
            Source::Catalog(CatalogSource { image: parsed("source.image", &table.image)? })
        }
        SourceTable::Nix(table) => Source::Nix(nix(table, profile, variants)?),
        SourceTable::Oci(table) => Source::Oci(oci(table)?),
        SourceTable::Dockerfile(table) => Source::Dockerfile(dockerfile(table)?),
        SourceTable::Template(table) => {
            let from: Reference = parsed("source.from", &table.from)?;
            if from.variant.is_some() {
                return Err(value("source.from", "a template is wanted: variants have the same files"));
            }
            Source::Template(TemplateSource { from, network: table.network, steps })
        }
    })
}

fn dockerfile(table: DockerfileTable) -> Result<DockerfileSource, RecipeError> {
    if let Some(target) = &table.target {
        word("source.target", target.clone(), &['-', '_', '.'])?;
    }
    for (name, to) in &table.args {
        let plain = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !plain || to.contains('\0') {
            return Err(value(
                "source.args",
                format_args!("`{}` is not an argument", crate::text::clip(name)),
            ));
        }
    }
    Ok(DockerfileSource {
        path: table.path.unwrap_or_else(|| "Dockerfile".into()),
        context: table.context.unwrap_or_else(|| ".".into()),
        target: table.target,
        args: table.args,
        kernel: kernel(table.kernel, table.modules, table.kernel_package)?,
    })
}

fn oci(table: OciTable) -> Result<OciSource, RecipeError> {
    Ok(OciSource {
        image: parsed("source.image", &table.image)?,
        platform: parsed_opt("source.platform", table.platform.as_deref())?,
        kernel: kernel(table.kernel, table.modules, table.kernel_package)?,
    })
}

fn path(table: PathTable) -> Result<PathSource, RecipeError> {
    if table.path.as_os_str().is_empty() {
        return Err(value("source.path", "a path is wanted"));
    }
    Ok(PathSource { path: table.path, kernel: kernel(table.kernel, table.modules, table.kernel_package)? })
}

/// Checks where the kernel of a source comes from: files or a package.
fn kernel(
    kernel: Option<PathBuf>,
    modules: Option<PathBuf>,
    package: Option<String>,
) -> Result<KernelSource, RecipeError> {
    match (kernel, modules, package) {
        (Some(kernel), _, _) if kernel.as_os_str().is_empty() => {
            Err(value("source.kernel", "a path is wanted"))
        }
        (Some(_), _, Some(_)) => {
            Err(value("source.kernel_package", "`kernel` and `kernel_package` cannot both bring the kernel"))
        }
        (Some(kernel), modules, None) => Ok(KernelSource::Files { kernel, modules }),
        (None, Some(_), _) => Err(value("source.modules", "modules belong to a `kernel`, and none is named")),
        (None, None, package) => {
            let package = package.map(|text| word("source.kernel_package", text, PACKAGE)).transpose()?;
            Ok(KernelSource::Package(package))
        }
    }
}

/// What the name of a package may hold besides letters and digits, and a version after `=`.
const PACKAGE: &[char] = &['+', '-', '.', ':', '='];

/// Words that are handed to package tools as arguments: nothing that could be an option, a path or a list.
fn word(field: &str, text: String, extra: &[char]) -> Result<String, RecipeError> {
    let ok = text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.len() <= 128
        && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(&c));
    if ok {
        Ok(text)
    } else {
        Err(value(field, format_args!("`{}` is not a name", crate::text::clip(&text))))
    }
}

pub(super) fn words(field: &str, texts: Vec<String>, extra: &[char]) -> Result<Vec<String>, RecipeError> {
    if texts.len() > PACKAGES_MAX {
        return Err(value(field, format_args!("{} entries, more than {PACKAGES_MAX}", texts.len())));
    }
    texts.into_iter().map(|text| word(field, text, extra)).collect()
}

fn debian(table: DebianTable) -> Result<DebianSource, RecipeError> {
    if let Some(mirror) = &table.mirror {
        let plain = mirror.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '[' | ']' | '"' | '\''));
        let known =
            ["http://", "https://", "file:///", "copy:/", "cdrom:"].iter().any(|s| mirror.starts_with(s));
        if !plain || !known {
            return Err(value("source.mirror", "a URL without spaces is wanted, http, https or file"));
        }
    }
    Ok(DebianSource {
        suite: word("source.suite", table.suite, &['-', '.'])?,
        packages: words("source.packages", table.packages, PACKAGE)?,
        variant: word("source.variant", table.variant.unwrap_or_else(|| "minbase".to_owned()), &['-'])?,
        components: words(
            "source.components",
            table.components.unwrap_or_else(|| vec!["main".to_owned()]),
            &['-'],
        )?,
        mirror: table.mirror,
        kernel_package: table.kernel.map(|text| word("source.kernel", text, PACKAGE)).transpose()?,
        docs: table.docs,
    })
}

fn nix(
    table: NixTable,
    profile: Option<&VariantName>,
    variants: &[Variant],
) -> Result<NixSource, RecipeError> {
    let flake = parsed("source.flake", &table.flake)?;
    let attribute = match &table.attribute {
        Some(text) => parsed("source.attribute", text)?,
        None => {
            let of =
                |profile: Option<&VariantName>| FlakeAttribute::of_profile(profile.map(VariantName::as_str));
            let attribute = of(profile).map_err(|error| value("profile", error))?;
            for variant in variants {
                let field = || format!("variant.{}.profile", variant.name);
                let other =
                    of(variant.profile.as_ref().or(profile)).map_err(|error| value(&field(), error))?;
                if other != attribute {
                    return Err(value(
                        &field(),
                        format_args!(
                            "it wants `{other}` of the flake and the template `{attribute}`: one revision holds one set of files"
                        ),
                    ));
                }
            }
            attribute
        }
    };
    Ok(NixSource { flake, attribute, impure: table.impure })
}
