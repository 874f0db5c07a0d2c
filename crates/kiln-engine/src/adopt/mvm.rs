//! Templates of mvm: flakes that it built for Firecracker, with their revisions, read into the store and written from it.
//! `docs/formats/mvm.md` describes the layout.
//!
//! ```text
//! DIR/templates/<id>/template.json
//!                    current                       a link whose text names a revision
//!                    artifacts/<rev>/revision.json, vmlinux, rootfs.ext4, fc-base.json, checksums.json
//! ```
//!
//! Records are what another program wrote: types of their own (`record`), names checked before they become paths, and
//! files that lie within their template's directory.

mod boot_args;
mod export;
mod find;
mod import;
mod read;
mod record;
mod template_file;

pub use export::{ExportMvm, ExportedMvm};
pub use import::{ImportMvm, ImportedMvm, ImportedMvmTemplate};
pub use template_file::{WrittenRecipe, write_recipes};

const TEMPLATE_FILE: &str = "template.json";
const REVISION_FILE: &str = "revision.json";
const CHECKSUMS_FILE: &str = "checksums.json";
const CONFIG_FILE: &str = "fc-base.json";
const KERNEL_FILE: &str = "vmlinux";
const ROOTFS_FILE: &str = "rootfs.ext4";
const INITRD_FILE: &str = "initrd";
/// Beside the layout's own files: the manifest of a revision that kiln wrote.
const MANIFEST_FILE: &str = "kiln.json";
const CURRENT: &str = "current";
const TEMPLATES: &str = "templates";
const ARTIFACTS: &str = "artifacts";
const REVISIONS: &str = "revisions";

/// What a text of another program may be where it is kept: short, and one line.
fn is_plain(text: &str, bytes_max: usize) -> bool {
    text.len() <= bytes_max && !text.chars().any(char::is_control)
}

/// Whether a name is one the layout has for templates: 1 to 63 of `a-z`, `0-9`, `-` and `_`, not beginning with the last two.
fn is_template_id(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && !text.starts_with(['-', '_'])
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
}
