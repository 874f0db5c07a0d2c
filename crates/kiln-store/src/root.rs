//! Roots: what keeps revisions.

use crate::error::StoreResult;
use crate::layout::Store;
use crate::tag::TemplateEntry;
use kiln_core::{Digest, DiskOwner, Tag, TemplateName};
use kiln_sys::clock;
use std::fmt;

/// A reason for which a revision is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Root {
    /// A tag points to it.
    Tag {
        /// The template.
        template: TemplateName,
        /// The tag.
        tag: Tag,
    },
    /// A tag pointed to it not long ago, and may be moved back.
    Former {
        /// The template.
        template: TemplateName,
        /// The tag.
        tag: Tag,
        /// How many revisions ago: 1 is the one before the current.
        back: usize,
    },
    /// A lease keeps it.
    Lease {
        /// The lease.
        id: String,
        /// Its reason.
        reason: String,
    },
    /// A disk of another program began with it.
    Disk {
        /// The disk's owner.
        owner: DiskOwner,
    },
    /// A machine runs it, or may be started on it.
    Machine {
        /// The machine's name.
        name: String,
    },
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag { template, tag } => write!(f, "tag {template}:{tag}"),
            Self::Former { template, tag, back: 1 } => write!(f, "tag {template}:{tag}, one revision ago"),
            Self::Former { template, tag, back } => write!(f, "tag {template}:{tag}, {back} revisions ago"),
            Self::Lease { id, reason } => write!(f, "lease {id} ({reason})"),
            Self::Disk { owner } => write!(f, "disk of {owner}"),
            Self::Machine { name } => write!(f, "machine {name}"),
        }
    }
}

impl Store {
    /// Lists the roots and the revision each keeps. `keep_last` counts the revisions that are kept for each tag, the
    /// current one among them.
    ///
    /// # Errors
    /// When a root cannot be read: it may keep anything, so nothing may be taken for unused.
    pub fn roots(&self, keep_last: usize) -> StoreResult<Vec<(Root, Digest)>> {
        self.roots_with(&self.templates()?, keep_last)
    }

    /// Like [`Store::roots`], with the templates that somebody read already.
    pub(crate) fn roots_with(
        &self,
        templates: &[TemplateEntry],
        keep_last: usize,
    ) -> StoreResult<Vec<(Root, Digest)>> {
        let mut roots = Vec::new();
        for entry in templates {
            for (tag, record) in &entry.tags {
                for (back, revision) in record.each_revision().enumerate().take(keep_last.max(1)) {
                    let (template, tag) = (entry.name.clone(), tag.clone());
                    let root = if back == 0 {
                        Root::Tag { template, tag }
                    } else {
                        Root::Former { template, tag, back }
                    };
                    roots.push((root, revision));
                }
            }
        }
        let now = clock::now_unix_ms();
        for lease in self.leases()?.into_iter().filter(|lease| lease.holds_at(now)) {
            roots.push((Root::Lease { id: lease.id, reason: lease.reason }, lease.revision));
        }
        let disks = self.disk_revisions()?.into_iter();
        roots.extend(disks.map(|(owner, revision)| (Root::Disk { owner }, revision)));
        for (_, entry) in self.machines()? {
            let record = entry?.record;
            roots.push((Root::Machine { name: record.name.to_string() }, record.revision));
        }
        Ok(roots)
    }
}
