//! The documents of an image, as OCI and docker write them. What kiln has no use for is not read.

use super::error::OciError;
use kiln_core::image::ContentDigest;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// A part of an image: what it is, its digest and its size.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: ContentDigest,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<PlatformDocument>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
}

/// A platform, in an index.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub(super) struct PlatformDocument {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) variant: Option<String>,
}

/// An index or a manifest. Both may lack their media type: what they hold tells them apart.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    pub(super) schema_version: Option<u64>,
    pub(super) manifests: Option<Vec<Descriptor>>,
    pub(super) config: Option<Descriptor>,
    #[serde(default)]
    pub(super) layers: Vec<Descriptor>,
}

/// An image of a `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerImage {
    pub(super) config: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) repo_tags: Vec<String>,
    pub(super) layers: Vec<String>,
}

/// An image's configuration.
#[derive(Debug, Deserialize)]
pub(super) struct ConfigDocument {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) variant: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) config: ConfigTable,
    pub(super) rootfs: RootDocument,
}

#[derive(Debug, Deserialize)]
pub(super) struct RootDocument {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) diff_ids: Vec<ContentDigest>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ConfigTable {
    #[serde(deserialize_with = "nullable")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    env: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    working_dir: String,
    #[serde(deserialize_with = "nullable")]
    user: String,
    #[serde(deserialize_with = "nullable")]
    stop_signal: String,
    #[serde(deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
}

/// What an image says of the process it is made for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageConfig {
    /// Its entry point and what follows it, as one list; empty where it names neither.
    pub command: Vec<String>,
    /// Its environment. Entries without `=` are left out.
    pub env: BTreeMap<String, String>,
    /// Its working directory, absolute.
    pub workdir: Option<String>,
    /// Who runs it: `name`, `uid`, `name:group` or `uid:gid`.
    pub user: Option<String>,
    /// The signal that asks it to end.
    pub stop_signal: Option<String>,
    /// Labels, which mean nothing to kiln.
    pub labels: BTreeMap<String, String>,
}

impl ConfigTable {
    pub(super) fn into_config(self) -> ImageConfig {
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        let env = self.env.iter().filter_map(|it| it.split_once('='));
        let absolute = |text: String| if text.starts_with('/') { text } else { format!("/{text}") };
        ImageConfig {
            command: self.entrypoint.into_iter().chain(self.cmd).collect(),
            env: env.filter(|(key, _)| !key.is_empty()).map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            workdir: some(self.working_dir).map(absolute),
            user: some(self.user),
            stop_signal: some(self.stop_signal),
            labels: self.labels,
        }
    }
}

/// Go writes `null` for what is empty.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

pub(super) fn parse<'a, T: Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T, OciError> {
    serde_json::from_slice(bytes).map_err(|source| OciError::Json { what, source })
}
