//! Revisions: manifests named by their own digest, and beside each a record of its build that is not part of it.

use crate::error::{StoreError, StoreResult};
use crate::layout::Store;
use crate::parallel;
use kiln_core::reference::DIGEST_PREFIX_CHARS_MIN;
use kiln_core::revision::{MANIFEST_BYTES_MAX, Manifest};
use kiln_core::{Digest, Reference, RevisionSelector, Tag, TemplateName};
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::{Cancel, fail, fs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of a build record that is known.
const BUILD_RECORD_VERSION: u32 = 1;
/// The largest build record that is read, in bytes.
pub(crate) const BUILD_RECORD_BYTES_MAX: usize = 1 << 20;
/// The largest entry of the cache of builds that is read, in bytes.
const CACHE_ENTRY_BYTES_MAX: usize = 128;
/// The most candidates that are named when nothing has the wanted name.
const SIMILAR_MAX: usize = 3;

/// A revision: its id and content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision {
    /// The digest of the manifest.
    pub id: Digest,
    /// The manifest.
    pub manifest: Manifest,
}

/// When, from what and how long a revision was built: kept beside it, never part of its identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildRecord {
    /// The record's version, 1.
    pub version: u32,
    /// The template it was built as.
    pub template: TemplateName,
    /// The cache key of the build.
    pub key: Digest,
    /// When it was finished, in milliseconds since 1970 (UTC).
    pub built_unix_ms: u64,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
    /// Facts of the build, such as versions of kernel and tools.
    pub facts: BTreeMap<String, String>,
}

impl Store {
    /// Publishes a revision whose artifacts are in the store, and returns its id.
    ///
    /// # Errors
    /// [`StoreError::BadManifest`] for a manifest that could not be read again; [`StoreError::NotFound`] and
    /// [`StoreError::Damaged`] for an artifact that is not there whole.
    pub fn commit_revision(&self, manifest: &Manifest, record: &BuildRecord) -> StoreResult<Digest> {
        let bytes = manifest.to_bytes();
        let id = Digest::of(&bytes);
        Manifest::parse(&bytes).map_err(|source| StoreError::BadManifest { id, source })?;
        for artifact in &manifest.artifacts {
            match self.check_artifact(&artifact.digest, artifact.size) {
                // Another build put the same content in its place a moment ago; whoever uses it reads it first.
                Ok(()) | Err(StoreError::Unsealed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        #[expect(clippy::unwrap_used, reason = "plain data always serializes")]
        let record = serde_json::to_vec_pretty(record).unwrap();
        fail::point("revision.record", &self.build_record_path(&id))?;
        write_file(&self.build_record_path(&id), &record, 0o644, Existing::Replace)?;
        fail::point("revision.manifest", &self.revision_path(&id))?;
        write_file(&self.revision_path(&id), &bytes, 0o444, Existing::Replace)?;
        fail::point("revision.done", &self.revision_path(&id))?;
        Ok(id)
    }

    /// Reads a revision and checks it against its id.
    pub fn revision(&self, id: &Digest) -> StoreResult<Revision> {
        let bytes = fs::read_optional(&self.revision_path(id), MANIFEST_BYTES_MAX)?;
        Ok(Revision { id: *id, manifest: self.parse_revision(id, bytes)? })
    }

    /// Checks what was read of a revision, if it is there, against its id.
    pub(crate) fn parse_revision(&self, id: &Digest, bytes: Option<Vec<u8>>) -> StoreResult<Manifest> {
        let Some(bytes) = bytes else {
            return Err(StoreError::NotFound { kind: "revision", name: id.to_string(), similar: Vec::new() });
        };
        if Digest::of(&bytes) != *id {
            let reason = "its content has another digest".to_owned();
            return Err(StoreError::Damaged { path: self.revision_path(id), reason });
        }
        Manifest::parse(&bytes).map_err(|source| StoreError::BadManifest { id: *id, source })
    }

    /// Reads the record of a revision's build. A newer version of it counts as none: nothing but what is shown depends
    /// on it.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for one that is none of this version or a newer one.
    pub fn build_record(&self, id: &Digest) -> StoreResult<Option<BuildRecord>> {
        let path = self.build_record_path(id);
        let Some(bytes) = fs::read_optional(&path, BUILD_RECORD_BYTES_MAX)? else { return Ok(None) };
        parse_build_record(&bytes).map_err(|reason| StoreError::Damaged { path, reason })
    }

    /// Lists the ids of all revisions.
    pub fn revision_ids(&self) -> StoreResult<Vec<Digest>> {
        self.revision_ids_at("")
    }

    /// Lists the ids that begin with these hexadecimal digits.
    fn revision_ids_at(&self, prefix: &str) -> StoreResult<Vec<Digest>> {
        Ok(fs::list_dir_where(&self.root().join("revisions"), |name| {
            let hex = name.to_str()?.strip_suffix(".json")?;
            if hex.starts_with(prefix) { Digest::from_hex(hex).ok() } else { None }
        })?)
    }

    /// Finds the revision a reference means.
    pub fn resolve(&self, reference: &Reference) -> StoreResult<Revision> {
        let revision = self.revision(&self.resolve_id(reference)?)?;
        if let Some(variant) = &reference.variant
            && revision.manifest.variant(variant).is_none()
        {
            return Err(StoreError::NotFound {
                kind: "variant",
                name: reference.to_string(),
                similar: revision.manifest.variants.iter().map(|v| v.name.to_string()).collect(),
            });
        }
        Ok(revision)
    }

    fn resolve_id(&self, reference: &Reference) -> StoreResult<Digest> {
        match &reference.revision {
            RevisionSelector::Digest(id) => Ok(*id),
            RevisionSelector::DigestPrefix(prefix) => {
                let ids = self.revision_ids_at(prefix)?;
                match ids.as_slice() {
                    [id] => Ok(*id),
                    [] => Err(StoreError::NotFound {
                        kind: "revision",
                        name: reference.to_string(),
                        similar: Vec::new(),
                    }),
                    _ => Err(StoreError::Ambiguous { reference: reference.clone(), candidates: ids }),
                }
            }
            RevisionSelector::Tagged { template, tag, digest } => self.resolve_tag(template, tag, *digest),
            _ => Err(StoreError::NotFound {
                kind: "revision",
                name: reference.to_string(),
                similar: Vec::new(),
            }),
        }
    }

    /// Returns the revision whose digest begins with what was taken for a template's name, the way listings show it. A
    /// template of that name comes first.
    fn listed_id(
        &self,
        name: &TemplateName,
        tag: &Tag,
        pinned: Option<Digest>,
    ) -> StoreResult<Option<Digest>> {
        let prefix = name.as_str();
        let digits = prefix.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !digits || prefix.len() < DIGEST_PREFIX_CHARS_MIN || *tag != Tag::latest() || pinned.is_some() {
            return Ok(None);
        }
        match self.revision_ids_at(prefix)?.as_slice() {
            [id] => Ok(Some(*id)),
            _ => Ok(None),
        }
    }

    fn resolve_tag(&self, template: &TemplateName, tag: &Tag, pinned: Option<Digest>) -> StoreResult<Digest> {
        if pinned.is_none()
            && let Some(record) = self.tag(template, tag)?
        {
            return Ok(record.revision);
        }
        let Some(entry) = self.template(template)? else {
            if let Some(id) = self.listed_id(template, tag, pinned)? {
                return Ok(id);
            }
            let tags = self.tags()?;
            let near =
                kiln_core::text::nearest(template.as_str(), tags.iter().map(|tag| tag.template.as_str()));
            let similar = near.map(str::to_owned).into_iter().take(SIMILAR_MAX).collect();
            return Err(StoreError::NotFound { kind: "template", name: template.to_string(), similar });
        };
        match (pinned, entry.tags.get(tag)) {
            (Some(digest), _) if entry.tags.values().any(|record| record.mentions(&digest)) => Ok(digest),
            (Some(digest), _) => Err(StoreError::NotOfTemplate { template: template.clone(), digest }),
            (None, Some(record)) => Ok(record.revision),
            (None, None) => Err(StoreError::NoTag { template: template.clone(), tag: tag.clone() }),
        }
    }

    /// Forgets the builds whose revision is gone; returns how many. It needs no lock: what is forgotten while its
    /// revision comes back is only built again.
    pub fn forget_builds(&self) -> StoreResult<usize> {
        let directory = self.root().join("cache/v1/builds");
        let keys = fs::list_dir_where(&directory, |name| Digest::from_hex(name.to_str()?).ok())?;
        let built = parallel::map(&keys, |key| self.built(key));
        let mut forgotten = 0;
        for (key, built) in keys.iter().zip(built) {
            if built?.is_none() {
                fs::remove_file(&self.cache_path(key))?;
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }

    /// Returns the revision that the cache names for a key, where there is still one.
    fn built(&self, key: &Digest) -> StoreResult<Option<Digest>> {
        let bytes = match fs::read_optional(&self.cache_path(key), CACHE_ENTRY_BYTES_MAX) {
            // Larger than an entry can be: it is none, as other bytes that are none.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => None,
            read => read?,
        };
        let text = bytes.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok());
        let id = text.and_then(|text| text.trim().parse().ok());
        match id {
            Some(id) if fs::exists(&self.revision_path(&id))? => Ok(Some(id)),
            _ => Ok(None),
        }
    }

    /// Returns the revision that a build with this key made, if the cache knows and the store still has it whole.
    pub fn cached_build(&self, key: &Digest, cancel: &Cancel) -> StoreResult<Option<Revision>> {
        match self.built(key)? {
            Some(id) => self.whole_revision(&id, cancel),
            None => Ok(None),
        }
    }

    /// Returns a revision, if the store has it with all its artifacts.
    pub fn whole_revision(&self, id: &Digest, cancel: &Cancel) -> StoreResult<Option<Revision>> {
        let revision = match self.revision(id) {
            Ok(revision) => revision,
            Err(
                StoreError::NotFound { .. } | StoreError::Damaged { .. } | StoreError::BadManifest { .. },
            ) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        for artifact in &revision.manifest.artifacts {
            match self.ensure_artifact(&artifact.digest, artifact.size, cancel, &mut |_| {}) {
                Ok(()) => {}
                Err(StoreError::NotFound { .. } | StoreError::Damaged { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(revision))
    }

    /// Remembers which revision a build with this key made.
    pub fn remember_build(&self, key: &Digest, id: &Digest) -> StoreResult<()> {
        fs::create_dir_all(&self.root().join("cache/v1/builds"))?;
        fail::point("cache.entry", &self.cache_path(key))?;
        Ok(write_file(&self.cache_path(key), format!("{id}\n").as_bytes(), 0o644, Existing::Replace)?)
    }
}

/// Parses a build record; a newer version of it is none. The error says what is wrong with it.
pub(crate) fn parse_build_record(bytes: &[u8]) -> Result<Option<BuildRecord>, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let words = |error: serde_json::Error| error.to_string();
    let Version { version } = serde_json::from_slice(bytes).map_err(words)?;
    match version {
        0 => Err(format!("it has version 0, the first is {BUILD_RECORD_VERSION}")),
        BUILD_RECORD_VERSION => serde_json::from_slice(bytes).map(Some).map_err(words),
        _ => Ok(None),
    }
}
