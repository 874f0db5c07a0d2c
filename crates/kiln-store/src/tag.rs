//! Templates and their tags. A tag's file holds where it points and how it moved.

use crate::error::{StoreError, StoreResult};
use crate::layout::Store;
use crate::parallel;
use kiln_core::recipe::RECIPE_BYTES_MAX;
use kiln_core::{Digest, Tag, TemplateName};
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::stamp::OpenDir;
use kiln_sys::{clock, fail, fs};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
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
        self.each_revision().collect()
    }

    /// Like [`TagRecord::revisions`], looking no further back than is asked for.
    pub(crate) fn each_revision(&self) -> impl Iterator<Item = Digest> {
        let mut seen = Seen { few: [self.revision; FEW], count: 0, many: HashSet::new() };
        let moves = self.log.iter().rev().flat_map(|step| [Some(step.to), step.from]).flatten();
        std::iter::once(self.revision).chain(moves).filter(move |digest| seen.is_new(digest))
    }

    /// Returns whether the tag points to a revision, or did.
    pub fn mentions(&self, digest: &Digest) -> bool {
        self.revision == *digest || self.log.iter().any(|step| step.to == *digest)
    }
}

/// Revisions that [`Seen`] keeps without a table.
const FEW: usize = 8;

/// The revisions a tag was found to have had. A collection asks every tag for its last two or three.
struct Seen {
    few: [Digest; FEW],
    count: usize,
    many: HashSet<Digest>,
}

impl Seen {
    fn is_new(&mut self, digest: &Digest) -> bool {
        if self.few[..self.count].contains(digest) || self.many.contains(digest) {
            return false;
        }
        if let Some(place) = self.few.get_mut(self.count) {
            *place = *digest;
            self.count += 1;
        } else {
            self.many.insert(*digest);
        }
        true
    }
}

/// A tag, with where it points or what is wrong with it.
#[derive(Debug)]
pub struct TagEntry {
    /// The template.
    pub template: TemplateName,
    /// The tag.
    pub tag: Tag,
    /// Where it points.
    pub record: StoreResult<TagRecord>,
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
    /// Points a tag to a revision that is in the store; returns whether it did not point there before. The caller holds
    /// the template's lock.
    pub fn set_tag(
        &self,
        template: &TemplateName,
        tag: &Tag,
        revision: &Digest,
        by: &str,
    ) -> StoreResult<bool> {
        self.revision(revision)?;
        let directory = self.tags_dir(template);
        fail::point("tag.directory", &directory)?;
        fs::create_dir_all(&directory)?;
        let path = directory.join(format!("{tag}.json"));
        let before = self.tag(template, tag)?;
        if before.as_ref().is_some_and(|record| record.revision == *revision) {
            return Ok(false);
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
        write_file(&path, &bytes, 0o644, Existing::Replace)?;
        Ok(true)
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
        Ok(entries(self.tags_in(std::slice::from_ref(name))?)?.pop())
    }

    /// Lists the templates that have tags, with their tags, by name.
    ///
    /// # Errors
    /// When a tag cannot be read: what it keeps is not known.
    pub fn templates(&self) -> StoreResult<Vec<TemplateEntry>> {
        entries(self.tags()?)
    }

    /// Lists all tags, by template and tag. One that cannot be read has its error in its place.
    pub fn tags(&self) -> StoreResult<Vec<TagEntry>> {
        let directory = self.root().join("templates");
        let names: Vec<String> = fs::list_dir_where(&directory, |name| name.to_str().map(str::to_owned))?;
        self.tags_in(&names.iter().filter_map(|name| name.parse().ok()).collect::<Vec<_>>())
    }

    fn tags_in(&self, names: &[TemplateName]) -> StoreResult<Vec<TagEntry>> {
        let mut wanted: Vec<(usize, Tag)> = Vec::new();
        let mut directories = Vec::with_capacity(names.len());
        for (of, name) in names.iter().enumerate() {
            directories.push(fs::optional(OpenDir::open(&self.tags_dir(name)))?);
            let tags = fs::list_dir_where(&self.tags_dir(name), |file| {
                file.to_str()?.strip_suffix(".json")?.parse::<Tag>().ok()
            })?;
            wanted.extend(tags.into_iter().map(|tag| (of, tag)));
        }
        let records = parallel::map(&wanted, |(of, tag)| -> StoreResult<Option<TagRecord>> {
            let Some(directory) = &directories[*of] else { return Ok(None) };
            let file = format!("{tag}.json");
            let Some(bytes) = directory.read_optional(&file, TAG_FILE_BYTES_MAX)? else { return Ok(None) };
            parse_tag(&bytes, || self.tags_dir(&names[*of]).join(file)).map(Some)
        });
        let found = wanted.into_iter().zip(records).filter_map(|((of, tag), record)| {
            Some(TagEntry { template: names[of].clone(), tag, record: record.transpose()? })
        });
        Ok(found.collect())
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

    /// Returns where a tag points and how it came there; none when there is no such tag.
    pub fn tag(&self, template: &TemplateName, tag: &Tag) -> StoreResult<Option<TagRecord>> {
        read_tag_file(&self.tags_dir(template).join(format!("{tag}.json")))
    }
}

/// Puts tags together by template; the first one that cannot be read is the error.
pub(crate) fn entries(tags: Vec<TagEntry>) -> StoreResult<Vec<TemplateEntry>> {
    let mut entries: Vec<TemplateEntry> = Vec::new();
    for TagEntry { template, tag, record } in tags {
        let record = record?;
        match entries.last_mut().filter(|entry| entry.name == template) {
            Some(entry) => drop(entry.tags.insert(tag, record)),
            None => entries.push(TemplateEntry { name: template, tags: BTreeMap::from([(tag, record)]) }),
        }
    }
    Ok(entries)
}

fn read_tag_file(path: &Path) -> StoreResult<Option<TagRecord>> {
    let Some(bytes) = fs::read_optional(path, TAG_FILE_BYTES_MAX)? else { return Ok(None) };
    parse_tag(&bytes, || path.to_owned()).map(Some)
}

fn parse_tag(bytes: &[u8], path: impl FnOnce() -> PathBuf) -> StoreResult<TagRecord> {
    let reason = match serde_json::from_slice::<TagRecord>(bytes) {
        Ok(record) if record.version == 1 => return Ok(record),
        Ok(record) => format!("it has version {}, this kiln knows 1", record.version),
        Err(error) => error.to_string(),
    };
    Err(StoreError::Damaged { path: path(), reason })
}
