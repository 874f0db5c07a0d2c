//! The layout's records, as they are written. Only what kiln reads or writes is in them; other fields are passed over.

use kiln_core::Date;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The newest version of template and revision that is read, and the one that is written.
pub(super) const SCHEMA_VERSION: u32 = 1;
/// The largest record that is read, in bytes.
pub(super) const RECORD_BYTES_MAX: usize = 1 << 20;
/// The most files that a list of checksums names.
pub(super) const FILES_MAX: usize = 64;

/// What an absent version means.
fn first() -> u32 {
    1
}

/// `template.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TemplateRecord {
    #[serde(default = "first")]
    pub(super) schema_version: u32,
    pub(super) template_id: String,
    #[serde(flatten)]
    pub(super) origin: Origin,
    #[serde(flatten)]
    pub(super) shape: Shape,
    #[serde(default)]
    pub(super) created_at: String,
    #[serde(default)]
    pub(super) updated_at: String,
}

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Origin {
    #[serde(default)]
    pub(super) flake_ref: String,
    #[serde(default)]
    pub(super) profile: String,
    #[serde(default)]
    pub(super) role: String,
}

/// The machine it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Shape {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) vcpus: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mem_mib: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) data_disk_mib: Option<u32>,
}

/// `revision.json`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct RevisionRecord {
    #[serde(default = "first")]
    pub(super) schema_version: u32,
    pub(super) revision_hash: String,
    #[serde(flatten)]
    pub(super) origin: Origin,
    #[serde(default)]
    pub(super) flake_lock_hash: String,
    pub(super) artifact_paths: ArtifactPaths,
    #[serde(default)]
    pub(super) built_at: String,
    #[serde(flatten)]
    pub(super) shape: Shape,
    #[serde(default, skip_serializing)]
    pub(super) snapshot: Option<serde::de::IgnoredAny>,
}

/// Names within the revision's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ArtifactPaths {
    pub(super) vmlinux: String,
    pub(super) rootfs: String,
    #[serde(default)]
    pub(super) fc_base_config: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) initrd: Option<String>,
    #[serde(default, skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub(super) sizes: Option<Sizes>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Sizes {
    pub(super) vmlinux_bytes: u64,
    pub(super) rootfs_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) initrd_bytes: Option<u64>,
}

/// `checksums.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checksums {
    #[serde(default)]
    pub(super) schema_version: u32,
    pub(super) template_id: String,
    pub(super) revision_hash: String,
    /// Names, and SHA-256 in lower-case hexadecimal.
    pub(super) files: BTreeMap<String, String>,
}

/// `fc-base.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Config {
    pub(super) boot_source: BootSource,
    #[serde(default, skip_deserializing)]
    pub(super) drives: Vec<Drive>,
    #[serde(default, skip_deserializing)]
    pub(super) machine_config: MachineConfig,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BootSource {
    #[serde(default)]
    pub(super) kernel_image_path: String,
    #[serde(default)]
    pub(super) boot_args: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) initrd_path: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Drive {
    pub(super) drive_id: String,
    pub(super) path_on_host: String,
    pub(super) is_root_device: bool,
    pub(super) is_read_only: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(super) struct MachineConfig {
    pub(super) vcpu_count: u32,
    pub(super) mem_size_mib: u64,
}

/// Returns a time as the records have it: RFC 3339, in UTC, to the second.
pub(super) fn time(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{}T{hour:02}:{minute:02}:{second:02}Z", Date::of_unix_seconds(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        // date -u -d @SECONDS +%FT%TZ
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_795_294_753, "2026-11-21T20:59:13Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(time(seconds * 1000 + 999), want);
        }
    }

    #[test]
    fn what_is_absent_has_a_meaning() {
        let record: TemplateRecord = serde_json::from_str(r#"{"template_id":"a","more":1}"#).unwrap();
        assert_eq!((record.schema_version, record.shape), (1, Shape::default()));
        let paths = r#"{"vmlinux":"vmlinux","rootfs":"rootfs.ext4","sizes":{"vmlinux_bytes":1}}"#;
        let text = format!(r#"{{"revision_hash":"r","artifact_paths":{paths},"snapshot":{{"vcpus":1}}}}"#);
        let record: RevisionRecord = serde_json::from_str(&text).unwrap();
        assert_eq!((record.schema_version, record.snapshot.is_some()), (1, true));
        let text = r#"{"template_id":"a","revision_hash":"r","files":{}}"#;
        assert_eq!(serde_json::from_str::<Checksums>(text).unwrap().schema_version, 0);
    }
}
