//! Freeing space, and saying what takes it up.

use crate::build::FETCHED;
use crate::memory::{TemplateMemory, by_template};
use crate::progress::{Reporter, waiting};
use crate::snapshots::{SnapshotUsage, files_by_revision};
use crate::{Engine, EngineResult};
use kiln_core::{ByteSize, Digest, Reference};
use kiln_store::{CollectPolicy, Collection, Root, StoreError, Summary, TagEntry};
use kiln_sys::copy::allocated_tree;
use kiln_sys::fs;
use kiln_sys::lock::Share;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

/// What a collection came to.
#[derive(Debug)]
pub struct CollectReport {
    /// What went to the trash, or would.
    pub collection: Collection,
    /// What builds had fetched, which went or would go; nothing where it stays.
    pub fetched: ByteSize,
    /// The bytes that were deleted from the trash.
    pub deleted: ByteSize,
    /// The bytes that the trash still takes up.
    pub in_trash: ByteSize,
}

/// Why a revision is kept.
#[derive(Debug)]
pub struct Reasons {
    /// The revision.
    pub revision: Digest,
    /// The role of the artifact that was asked for, where one was.
    pub role: Option<String>,
    /// The snapshot of the revision that is meant or has that artifact, where it is one: its id, and its name or the
    /// beginning of that.
    pub snapshot: Option<(Digest, String)>,
    /// What keeps it; nothing when a collection would remove it.
    pub roots: Vec<Root>,
}

/// What a store takes up.
#[derive(Debug)]
pub struct Usage {
    /// Each template, by name; last, without a name, revisions without a tag.
    pub templates: Vec<TemplateUsage>,
    /// The snapshots of each revision, by template and revision.
    pub snapshots: Vec<SnapshotUsage>,
    /// Machines, by name.
    pub machines: Vec<MachineUsage>,
    /// What the machines that run have of the host's memory, by template; nothing while none runs.
    pub memory: Vec<TemplateMemory>,
    /// What artifacts take up in all.
    pub artifacts: ByteSize,
    /// Disks of other programs, by owner.
    pub disks: Vec<DiskUsage>,
    /// What a collection would free now, the trash not counted, or why that is not known.
    pub reclaimable: Result<ByteSize, StoreError>,
    /// What waits in the trash.
    pub trash: ByteSize,
    /// What was set aside as damaged.
    pub quarantine: ByteSize,
    /// What the caches take up.
    pub cache: ByteSize,
    /// What the file system has left.
    pub available: ByteSize,
}

/// What a machine takes up.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MachineUsage {
    /// Its name, or its id where its record cannot be read.
    pub machine: String,
    /// What its files take up.
    pub allocated: ByteSize,
    /// What of it the file system says other files have too.
    pub shared: ByteSize,
}

/// What a disk of another program takes up.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskUsage {
    /// Its owner.
    pub owner: String,
    /// What its files take up.
    pub allocated: ByteSize,
    /// What of it the file system says other files have too.
    pub shared: ByteSize,
}

/// What a template's revisions take up.
#[derive(Debug)]
pub struct TemplateUsage {
    /// Its name; none for revisions without a tag.
    pub template: Option<String>,
    /// Its revisions, those its tags pointed to before among them.
    pub revisions: usize,
    /// The length of its artifacts, each once.
    pub apparent: ByteSize,
    /// What they take up.
    pub allocated: ByteSize,
    /// What of it other templates, or snapshots, have too.
    pub shared: ByteSize,
}

impl TemplateUsage {
    /// Returns what would be free without this template.
    pub fn exclusive(&self) -> ByteSize {
        ByteSize::from_bytes(self.allocated.bytes().saturating_sub(self.shared.bytes()))
    }
}

impl Engine {
    /// Moves what nothing keeps to the trash, and deletes what has been there for `grace`; with `caches` also what builds
    /// fetched, which others would fetch again. With `dry_run` nothing changes.
    pub fn collect(
        &self,
        policy: &CollectPolicy,
        grace: Duration,
        caches: bool,
        dry_run: bool,
        reporter: &dyn Reporter,
    ) -> EngineResult<CollectReport> {
        let fetched = if caches { tree_bytes(&self.store.cache_dir(FETCHED)?)? } else { ByteSize::default() };
        if dry_run {
            let collection = self.store.plan_collection(policy)?;
            let in_trash = self.store.trash_bytes()?;
            return Ok(CollectReport { collection, fetched, deleted: ByteSize::default(), in_trash });
        }
        self.sweep();
        let mut waiting = waiting(reporter);
        let alone = self.store.lock(Share::Exclusive, "collecting", &self.cancel, &mut waiting)?;
        let collection = self.store.plan_surveyed(&self.store.survey_alone(&alone)?, policy)?;
        self.store.collect(&collection, &alone)?;
        if caches {
            // No build is at work: each holds the store's lock.
            fs::remove_tree(&self.store.cache_dir(FETCHED)?)?;
        }
        drop(alone);
        // What stays remembered is no harm: what was asked for is done.
        let _ = self.store.forget_builds();
        let deleted = self.store.empty_trash(grace)?;
        Ok(CollectReport { collection, fetched, deleted, in_trash: self.store.trash_bytes()? })
    }

    /// Returns the revisions that a reference means, or that have the artifact or the snapshot whose digest it is, with what
    /// keeps each.
    pub fn why(&self, wanted: &Reference) -> EngineResult<Vec<Reasons>> {
        let keep_last = CollectPolicy::default().keep_last;
        let mut of_snapshots = Vec::new();
        let found = match self.store.resolve(wanted) {
            Ok(revision) => vec![(revision.id, None)],
            Err(error @ StoreError::NotFound { kind: "revision", .. }) => {
                let users = self.users_of(wanted)?;
                of_snapshots = self.why_snapshots(wanted)?;
                if users.is_empty() && of_snapshots.is_empty() {
                    return Err(error.into());
                }
                users
            }
            Err(error) => return Err(error.into()),
        };
        let mut roots: HashMap<Digest, Vec<Root>> = HashMap::new();
        for (root, revision) in self.store.roots(keep_last)? {
            roots.entry(revision).or_default().push(root);
        }
        let reasons = |(revision, role)| Reasons {
            revision,
            role,
            snapshot: None,
            roots: roots.get(&revision).cloned().unwrap_or_default(),
        };
        Ok(found.into_iter().map(reasons).chain(of_snapshots).collect())
    }

    /// Returns the revisions that have the artifact a digest names, with its role.
    fn users_of(&self, wanted: &Reference) -> EngineResult<Vec<(Digest, Option<String>)>> {
        use kiln_core::RevisionSelector;
        let fits = |digest: &Digest| match &wanted.revision {
            RevisionSelector::Digest(id) => digest == id,
            RevisionSelector::DigestPrefix(prefix) => digest.hex().starts_with(prefix.as_str()),
            _ => false,
        };
        let mut users = Vec::new();
        let summaries = self.store.all_summaries()?;
        for summary in &summaries.revisions {
            let Ok(content) = &summary.content else { continue };
            if !summaries.artifacts(content).any(fits) {
                continue;
            }
            let id = summary.id;
            // The role is only in the manifest.
            let Ok(revision) = self.store.revision(&id) else { continue };
            for artifact in revision.manifest.artifacts.iter().filter(|artifact| fits(&artifact.digest)) {
                users.push((id, Some(artifact.role.to_string())));
            }
        }
        Ok(users)
    }

    /// Returns what the store takes up.
    pub fn usage(&self) -> EngineResult<Usage> {
        let survey = self.store.survey()?;
        let below = |name: &str| self.store.root().join(name);
        let mut usage = Usage {
            templates: Vec::new(),
            snapshots: Vec::new(),
            machines: Vec::new(),
            memory: Vec::new(),
            disks: Vec::new(),
            artifacts: ByteSize::from_bytes(survey.artifacts.iter().map(|of| of.allocated).sum()),
            reclaimable: self
                .store
                .plan_surveyed(&survey, &CollectPolicy::default())
                .map(|plan| plan.freed()),
            trash: self.store.trash_bytes()?,
            quarantine: tree_bytes(&below("quarantine"))?,
            cache: tree_bytes(&below("cache"))?,
            available: ByteSize::from_bytes(fs::space(self.store.root())?.available),
        };
        let sizes: HashMap<Digest, (u64, u64)> =
            survey.artifacts.iter().map(|of| (of.digest, (of.length, of.allocated))).collect();
        let mut revisions: BTreeMap<Option<String>, HashSet<Digest>> = BTreeMap::new();
        let mut named = HashSet::new();
        let summaries = &survey.summaries;
        let known: HashMap<Digest, &Summary> =
            summaries.revisions.iter().map(|summary| (summary.id, summary)).collect();
        for TagEntry { template, record, .. } in &survey.tags {
            // What cannot be read is told with what is reclaimable.
            let Ok(record) = record else { continue };
            let of = revisions.entry(Some(template.to_string())).or_default();
            let there = record.revisions().into_iter().filter(|id| known.contains_key(id));
            for id in there {
                of.insert(id);
                named.insert(id);
            }
        }
        let loose: HashSet<Digest> = known.keys().filter(|id| !named.contains(*id)).copied().collect();
        if !loose.is_empty() {
            revisions.insert(None, loose);
        }
        let mut artifacts: BTreeMap<Option<String>, HashSet<Digest>> = BTreeMap::new();
        for (template, ids) in &revisions {
            let of = artifacts.entry(template.clone()).or_default();
            for content in ids.iter().filter_map(|id| known.get(id)?.content.as_ref().ok()) {
                of.extend(summaries.artifacts(content).copied());
            }
        }
        let mut users: HashMap<Digest, usize> = HashMap::new();
        let captured = files_by_revision(&survey);
        for digest in artifacts.values().chain(captured.values().map(|(_, files)| files)).flatten() {
            *users.entry(*digest).or_default() += 1;
        }
        let live = self.machines()?;
        let tagged = |id: &Digest| {
            let of = revisions.iter().find(|(template, ids)| template.is_some() && ids.contains(id));
            of.and_then(|(template, _)| template.clone())
        };
        usage.memory = by_template(live.iter().filter_map(|(_, entry)| entry.as_ref().ok()), tagged);
        // Apparent, allocated and shared.
        let sums = |own: &HashSet<Digest>| {
            let sum = |size: &dyn Fn(&Digest) -> u64| ByteSize::from_bytes(own.iter().map(size).sum());
            let size = |digest: &Digest| sizes.get(digest).copied().unwrap_or_default();
            [
                sum(&|digest| size(digest).0),
                sum(&|digest| size(digest).1),
                sum(&|digest| if users.get(digest) > Some(&1) { size(digest).1 } else { 0 }),
            ]
        };
        for (revision, (snapshots, files)) in &captured {
            let template = revisions.iter().find(|(_, ids)| ids.contains(revision));
            let template = template.and_then(|(name, _)| name.clone());
            let ([apparent, allocated, shared], snapshots) = (sums(files), *snapshots);
            let of = SnapshotUsage { revision: *revision, template, snapshots, apparent, allocated, shared };
            usage.snapshots.push(of);
        }
        usage.snapshots.sort_by_key(|of| (of.template.is_none(), of.template.clone(), of.revision));
        for (template, ids) in revisions {
            let own = artifacts.remove(&template).unwrap_or_default();
            let ([apparent, allocated, shared], revisions) = (sums(&own), ids.len());
            usage.templates.push(TemplateUsage { template, revisions, apparent, allocated, shared });
        }
        // The unnamed come last.
        usage.templates.sort_by_key(|of| (of.template.is_none(), of.template.clone()));
        for (id, entry) in live {
            let name = entry.map_or_else(|_| id.to_string(), |entry| entry.record.name.to_string());
            let dir = self.store.machine_dir(&id);
            let (allocated, shared) = (tree_bytes(&dir)?, shared_bytes(&dir)?);
            usage.machines.push(MachineUsage { machine: name, allocated, shared });
        }
        usage.machines.sort();
        for owner in fs::list_dir(&below("clones"))? {
            let dir = below("clones").join(&owner);
            let (allocated, shared) = (tree_bytes(&dir)?, shared_bytes(&dir)?);
            usage.disks.push(DiskUsage { owner: owner.to_string_lossy().into_owned(), allocated, shared });
        }
        Ok(usage)
    }
}

fn tree_bytes(path: &Path) -> EngineResult<ByteSize> {
    Ok(ByteSize::from_bytes(allocated_tree(path)?))
}

/// Returns what the files of a directory share with others, as far as the file system tells.
fn shared_bytes(dir: &Path) -> EngineResult<ByteSize> {
    let mut bytes = 0;
    for name in fs::list_dir(dir)? {
        let path = dir.join(name);
        // Sockets are not opened, and a file that went meanwhile shares nothing.
        if !fs::optional(fs::symlink_metadata(&path))?.is_some_and(|meta| meta.is_file()) {
            continue;
        }
        let Some(file) = fs::optional(fs::open(&path))? else { continue };
        bytes += kiln_sys::extents::shared_bytes(&file, &path)?.unwrap_or(0);
    }
    Ok(ByteSize::from_bytes(bytes))
}
