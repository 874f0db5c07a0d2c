//! The table `[source]` as written, and the checks that make it a [`Source`].

use super::value;
use crate::recipe::{
    BackingFiles, DebianSource, DiskFormat, DiskSource, KernelSource, PACKAGES_MAX, PathSource, RecipeError,
    Source,
};
use schemars::JsonSchema;
use serde::Deserialize;
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
    })
}

/// Checks what a recipe says of its source.
pub(super) fn checked(table: SourceTable) -> Result<Source, RecipeError> {
    Ok(match table {
        SourceTable::Debian(table) => Source::Debian(debian(table)?),
        SourceTable::Directory(table) => Source::Directory(path(table)?),
        SourceTable::Tar(table) => Source::Tar(path(table)?),
        SourceTable::Disk(table) => Source::Disk(disk(table)?),
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
