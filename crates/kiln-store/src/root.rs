//! Roots: what keeps revisions.

use crate::error::StoreResult;
use crate::layout::Store;
use crate::tag::{TagEntry, TagRecord};
use kiln_core::snapshot::SnapshotKeep;
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
    /// A snapshot that a user made is of it.
    Snapshot {
        /// The snapshot's name, or the beginning of its id.
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
            Self::Snapshot { name } => write!(f, "snapshot {name}"),
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
        let mut roots = Vec::new();
        for TagEntry { template, tag, record } in self.tags()? {
            for (back, revision) in record?.each_revision().enumerate().take(keep_last.max(1)) {
                let (template, tag) = (template.clone(), tag.clone());
                let root = match back {
                    0 => Root::Tag { template, tag },
                    _ => Root::Former { template, tag, back },
                };
                roots.push((root, revision));
            }
        }
        roots.extend(self.roots_beside_tags()?);
        Ok(roots)
    }

    /// Returns the revisions that roots keep, with the tags that somebody read already. One that several roots keep may be
    /// there as often.
    pub(crate) fn root_revisions(&self, tags: &[TagEntry], keep_last: usize) -> StoreResult<Vec<Digest>> {
        let mut kept = Vec::with_capacity(tags.len());
        let mut keep = |record: &TagRecord| kept.extend(record.each_revision().take(keep_last.max(1)));
        for entry in tags {
            match &entry.record {
                Ok(record) => keep(record),
                // Reading it again says why it cannot be read. One that can be read now counts.
                Err(_) => self.tag(&entry.template, &entry.tag)?.iter().for_each(&mut keep),
            }
        }
        kept.extend(self.roots_beside_tags()?.into_iter().map(|(_, revision)| revision));
        Ok(kept)
    }

    fn roots_beside_tags(&self) -> StoreResult<Vec<(Root, Digest)>> {
        let mut roots = Vec::new();
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
        for (_, snapshot) in self.snapshots()? {
            // One that cannot be read names no revision; its files stay all the same.
            let Ok(snapshot) = snapshot else { continue };
            if snapshot.keep() == SnapshotKeep::Always {
                roots.push((Root::Snapshot { name: snapshot.label() }, snapshot.manifest.subject));
            }
        }
        Ok(roots)
    }
}
