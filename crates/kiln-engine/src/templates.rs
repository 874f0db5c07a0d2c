//! Listing, tagging and removing templates and revisions.

use crate::progress::{Reporter, waiting};
use crate::{Engine, EngineError, EngineResult};
use kiln_core::{Digest, Reference, RevisionSelector, Tag, TemplateName};
use kiln_store::{Content as RevisionContent, Removed, StoreError, StoreLock, TagEntry, TagRecord};
use kiln_sys::lock::{FileLock, Share};

/// One tag of one template, with what it points to.
#[derive(Debug)]
pub struct TagLine {
    /// The template.
    pub template: TemplateName,
    /// The tag.
    pub tag: Tag,
    /// The revision; none where the tag cannot be read.
    pub revision: Option<Digest>,
    /// When it was built, where that is known, in milliseconds since 1970 (UTC).
    pub built_unix_ms: Option<u64>,
    /// What the revision is, in short, or what is wrong with it or with the tag.
    pub content: Result<RevisionContent, StoreError>,
}

/// What a removal did.
#[derive(Debug, Default)]
pub struct RemovalReport {
    /// The tags that went.
    pub untagged: Vec<String>,
    /// The revision that went, when nothing refers to it any more.
    pub revision: Option<Digest>,
    /// What that freed.
    pub removed: Removed,
}

impl Engine {
    /// Returns whether a reference leads to a revision.
    pub fn knows(&self, reference: &Reference) -> bool {
        self.store.resolve(reference).is_ok()
    }

    /// Lists all tags. A damaged tag or revision is a line of its own, not the end of the list.
    pub fn tag_lines(&self) -> EngineResult<Vec<TagLine>> {
        let tags = self.store.tags()?;
        let revisions: Vec<Digest> =
            tags.iter().filter_map(|entry| Some(entry.record.as_ref().ok()?.revision)).collect();
        let mut summaries = self.store.summaries(&revisions).revisions.into_iter();
        let line = |TagEntry { template, tag, record }| match record {
            Err(error) => {
                Some(TagLine { template, tag, revision: None, built_unix_ms: None, content: Err(error) })
            }
            Ok(_) => summaries.next().map(|summary| TagLine {
                template,
                tag,
                revision: Some(summary.id),
                built_unix_ms: summary.built_unix_ms,
                content: summary.content,
            }),
        };
        Ok(tags.into_iter().filter_map(line).collect())
    }

    /// Points a new tag, or an existing one, of a template to a revision.
    pub fn tag(
        &self,
        from: &Reference,
        template: &TemplateName,
        tag: &Tag,
        reporter: &dyn Reporter,
    ) -> EngineResult<Digest> {
        let (_store, _template) = self.hold(template, "tagging", reporter)?;
        let revision = self.store.resolve(from)?;
        self.store.set_tag(template, tag, &revision.id, "tag")?;
        Ok(revision.id)
    }

    /// Removes a tag and nothing else: its revision stays until a collection finds it unused. One that cannot be read is
    /// set aside with what is left of it.
    pub fn untag(&self, template: &TemplateName, tag: &Tag, reporter: &dyn Reporter) -> EngineResult<()> {
        let (_store, _template) = self.hold(template, "untagging", reporter)?;
        match self.tag_record(template, tag) {
            Ok(_) | Err(EngineError::Store(StoreError::Damaged { .. })) => {}
            Err(error) => return Err(error),
        }
        Ok(self.store.remove_tag(template, tag)?)
    }

    /// Returns where a tag points and how it came there. One that was removed is told with `false`.
    pub fn history(&self, template: &TemplateName, tag: &Tag) -> EngineResult<(TagRecord, bool)> {
        match self.tag_record(template, tag) {
            Ok(record) => Ok((record, true)),
            Err(error) => match self.store.removed_tag(template, tag)? {
                Some(record) => Ok((record, false)),
                None => Err(error),
            },
        }
    }

    /// Moves a tag back: to a revision it had, else to where its last move came from. A tag that was removed comes
    /// back.
    pub fn rollback(
        &self,
        template: &TemplateName,
        tag: &Tag,
        to: Option<&Reference>,
        reporter: &dyn Reporter,
    ) -> EngineResult<Digest> {
        let (_store, _template) = self.hold(template, "rolling back", reporter)?;
        let (record, there) = self.history(template, tag)?;
        let target = match to {
            Some(reference) => {
                let wanted = self.store.resolve(reference)?.id;
                if !record.mentions(&wanted) {
                    return Err(
                        StoreError::NotOfTemplate { template: template.clone(), digest: wanted }.into()
                    );
                }
                wanted
            }
            None if !there => record.revision,
            None => record
                .log
                .last()
                .and_then(|step| step.from)
                .ok_or_else(|| StoreError::NoFormer { template: template.clone(), tag: tag.clone() })?,
        };
        // A revision that was collected cannot come back; the tag stays where it is then.
        self.store.revision(&target)?;
        if !there {
            self.store.restore_tag(template, tag)?;
        }
        self.store.set_tag(template, tag, &target, "rollback")?;
        Ok(target)
    }

    fn hold(
        &self,
        template: &TemplateName,
        doing: &str,
        reporter: &dyn Reporter,
    ) -> EngineResult<(StoreLock, FileLock)> {
        let mut waiting = waiting(reporter);
        let work = format!("{doing} {template}");
        let store = self.store.lock(Share::Shared, &work, &self.cancel, &mut waiting)?;
        let lock = self.store.lock_template(template, &work, &self.cancel, &mut waiting)?;
        Ok((store, lock))
    }

    fn tag_record(&self, template: &TemplateName, tag: &Tag) -> EngineResult<TagRecord> {
        let record = self.store.tag(template, tag)?;
        Ok(record.ok_or_else(|| StoreError::NoTag { template: template.clone(), tag: tag.clone() })?)
    }

    /// Removes what a reference names: a tag, and the revision when no other tag has it. A digest removes the
    /// revision with all its tags.
    pub fn remove_template(
        &self,
        reference: &Reference,
        reporter: &dyn Reporter,
    ) -> EngineResult<RemovalReport> {
        let mut waiting = waiting(reporter);
        let alone = self.store.lock(Share::Exclusive, "removing a revision", &self.cancel, &mut waiting)?;
        let revision = self.store.resolve(reference)?.id;
        let tags = self.store.tags_of(&revision)?;
        let (gone, kept): (Vec<_>, Vec<_>) = match &reference.revision {
            RevisionSelector::Tagged { template, tag, digest: None } => {
                tags.into_iter().partition(|(t, name)| t == template && name == tag)
            }
            _ => (tags, Vec::new()),
        };
        if kept.is_empty() {
            self.store.check_unused(&revision)?;
        }
        let mut report = RemovalReport::default();
        for (template, tag) in gone {
            let _template =
                self.store.lock_template(&template, "removing a tag", &self.cancel, &mut waiting)?;
            self.store.remove_tag(&template, &tag)?;
            report.untagged.push(format!("{template}:{tag}"));
        }
        if kept.is_empty() {
            report.removed = self.store.remove_revision(&revision, &alone)?;
            report.revision = Some(revision);
        }
        Ok(report)
    }
}
