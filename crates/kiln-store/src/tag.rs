//! Templates and their tags. A tag's file holds where it points and how it moved.

use crate::error::{StoreError, StoreResult};
use crate::layout::Store;
use kiln_core::recipe::RECIPE_BYTES_MAX;
use kiln_core::{Digest, Tag, TemplateName};
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::{clock, fail, fs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The most moves a tag's log keeps.
pub(crate) const MOVES_MAX: usize = 1000;
/// The largest tag file that is read, in bytes.
const TAG_FILE_BYTES_MAX: usize = 1 << 20;

/// Where a tag points, and how it came there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    /// The record's version, 1.
    pub version: u32,
    /// The revision it points to.
    pub revision: Digest,
    /// Its moves, oldest first, the last 1,000.
    pub log: Vec<TagMove>,
}

/// One move of a tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagMove {
    /// When, in milliseconds since 1970 (UTC).
    pub at_unix_ms: u64,
    /// From where; none for a new tag.
    pub from: Option<Digest>,
    /// To where.
    pub to: Digest,
    /// By what: `build`, `tag`, `import`.
    pub by: String,
}

impl TagRecord {
    /// Returns the revisions it pointed to, each once, the current one first and then the one it had last.
    pub fn revisions(&self) -> Vec<Digest> {
        let mut found = vec![self.revision];
        for step in self.log.iter().rev() {
            for digest in [Some(step.to), step.from].into_iter().flatten() {
                if !found.contains(&digest) {
                    found.push(digest);
                }
            }
        }
        found
    }

    /// Returns whether the tag points to a revision, or did.
    pub fn mentions(&self, digest: &Digest) -> bool {
        self.revision == *digest || self.log.iter().any(|step| step.to == *digest)
    }
}

/// A template and its tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateEntry {
    /// Its name.
    pub name: TemplateName,
    /// Its tags.
    pub tags: BTreeMap<Tag, TagRecord>,
}

impl Store {
    /// Points a tag to a revision that is in the store. The caller holds the template's lock.
    pub fn set_tag(
        &self,
        template: &TemplateName,
        tag: &Tag,
        revision: &Digest,
        by: &str,
    ) -> StoreResult<()> {
        self.revision(revision)?;
        let directory = self.tags_dir(template);
        fail::point("tag.directory", &directory)?;
        fs::create_dir_all(&directory)?;
        let path = directory.join(format!("{tag}.json"));
        let before = self.read_tag(template, tag)?;
        if before.as_ref().is_some_and(|record| record.revision == *revision) {
            return Ok(());
        }
        let from = before.as_ref().map(|record| record.revision);
        let mut log = before.map(|record| record.log).unwrap_or_default();
        log.push(TagMove { at_unix_ms: clock::now_unix_ms(), from, to: *revision, by: by.to_owned() });
        let excess = log.len().saturating_sub(MOVES_MAX);
        log.drain(..excess);
        let record = TagRecord { version: 1, revision: *revision, log };
        #[expect(clippy::unwrap_used, reason = "plain data always serializes")]
        let bytes = serde_json::to_vec_pretty(&record).unwrap();
        fail::point("tag.write", &path)?;
        Ok(write_file(&path, &bytes, 0o644, Existing::Replace)?)
    }

    /// Removes a tag; its revision stays, and its log until a tag of that name is removed again. The caller holds the
    /// template's lock.
    pub fn remove_tag(&self, template: &TemplateName, tag: &Tag) -> StoreResult<()> {
        let (tags, removed) = (self.tags_dir(template), self.template_dir(template).join("removed"));
        fs::create_dir_all(&removed)?;
        let file = format!("{tag}.json");
        fail::point("tag.remove", &removed)?;
        fs::optional(fs::rename(&tags.join(&file), &removed.join(&file)))?;
        fail::point("tag.remove-sync", &removed)?;
        fs::sync_dir(&removed)?;
        Ok(fs::sync_dir(&tags)?)
    }

    /// Returns what a tag was before it was removed last.
    pub fn removed_tag(&self, template: &TemplateName, tag: &Tag) -> StoreResult<Option<TagRecord>> {
        read_tag_file(&self.template_dir(template).join("removed").join(format!("{tag}.json")))
    }

    /// Brings a removed tag back with its log. The caller holds the template's lock and knows that there is no tag of
    /// that name.
    pub fn restore_tag(&self, template: &TemplateName, tag: &Tag) -> StoreResult<()> {
        let file = format!("{tag}.json");
        let removed = self.template_dir(template).join("removed");
        fs::create_dir_all(&self.tags_dir(template))?;
        fs::rename_new(&removed.join(&file), &self.tags_dir(template).join(&file))?;
        fs::sync_dir(&self.tags_dir(template))?;
        Ok(fs::sync_dir(&removed)?)
    }

    fn tags_dir(&self, template: &TemplateName) -> PathBuf {
        self.template_dir(template).join("tags")
    }

    /// Keeps the recipe a template was last built from.
    pub fn keep_recipe(&self, template: &TemplateName, text: &str) -> StoreResult<()> {
        fs::create_dir_all(&self.template_dir(template))?;
        let path = self.template_dir(template).join("kiln.toml");
        fail::point("recipe.write", &path)?;
        Ok(write_file(&path, text.as_bytes(), 0o644, Existing::Replace)?)
    }

    /// Returns the recipe a template was last built from.
    pub fn recipe_text(&self, template: &TemplateName) -> StoreResult<Option<String>> {
        Ok(fs::optional(fs::read_text_limited(
            &self.template_dir(template).join("kiln.toml"),
            RECIPE_BYTES_MAX,
        ))?)
    }

    /// Returns a template with its tags; none when it has no tag.
    pub fn template(&self, name: &TemplateName) -> StoreResult<Option<TemplateEntry>> {
        let mut tags = BTreeMap::new();
        for file in fs::list_dir(&self.tags_dir(name))? {
            let tag =
                file.to_str().and_then(|file| file.strip_suffix(".json")).and_then(|tag| tag.parse().ok());
            let Some(tag) = tag else { continue };
            if let Some(record) = self.read_tag(name, &tag)? {
                tags.insert(tag, record);
            }
        }
        Ok((!tags.is_empty()).then(|| TemplateEntry { name: name.clone(), tags }))
    }

    /// Lists the templates that have tags.
    pub fn templates(&self) -> StoreResult<Vec<TemplateEntry>> {
        let mut entries = Vec::new();
        for file in fs::list_dir(&self.root().join("templates"))? {
            let Some(name) = file.to_str().and_then(|file| file.parse::<TemplateName>().ok()) else {
                continue;
            };
            entries.extend(self.template(&name)?);
        }
        Ok(entries)
    }

    /// Lists the tags that point to a revision.
    pub fn tags_of(&self, revision: &Digest) -> StoreResult<Vec<(TemplateName, Tag)>> {
        let mut found = Vec::new();
        for entry in self.templates()? {
            for (tag, record) in entry.tags {
                if record.revision == *revision {
                    found.push((entry.name.clone(), tag));
                }
            }
        }
        Ok(found)
    }

    fn read_tag(&self, template: &TemplateName, tag: &Tag) -> StoreResult<Option<TagRecord>> {
        read_tag_file(&self.tags_dir(template).join(format!("{tag}.json")))
    }
}

fn read_tag_file(path: &Path) -> StoreResult<Option<TagRecord>> {
    let Some(bytes) = fs::read_optional(path, TAG_FILE_BYTES_MAX)? else { return Ok(None) };
    let damaged = |reason: String| StoreError::Damaged { path: path.to_owned(), reason };
    let record: TagRecord = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if record.version != 1 {
        return Err(damaged(format!("it has version {}, this kiln knows 1", record.version)));
    }
    Ok(Some(record))
}
