//! The mark of a collection: which revisions and artifacts roots keep. Revisions and artifacts are numbers here, and
//! what is known of them lies in vectors: no name is looked up for a reference.

use crate::collect::{CollectPolicy, Collection, DeadRevision, DeadSnapshot};
use crate::snapshot::SnapshotContent;
use crate::summary::{Content, Summaries, Summary};
use crate::survey::Survey;
use kiln_core::snapshot::SnapshotKeep;
use kiln_core::{ByteSize, Digest};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// Hashes digests by eight of their bytes: they are uniform already, and nobody finds many whose SHA-256 agree in 64 bits.
#[derive(Default)]
struct Uniform(u64);

impl Hasher for Uniform {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last_chunk() {
            self.0 = u64::from_le_bytes(*last);
        }
    }

    fn write_usize(&mut self, _length: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

struct Marked<'a> {
    summary: &'a Summary,
    content: &'a Content,
    kept: bool,
}

/// What the artifacts that revisions name take up, and who has them. All by their place in the summaries.
struct Artifacts<'a> {
    summaries: &'a Summaries,
    /// Its place among the files; none when the file is missing.
    files: Vec<Option<usize>>,
    /// The bytes it takes up.
    allocated: Vec<u64>,
    /// Whether a revision that stays has it.
    kept: Vec<bool>,
}

impl<'a> Artifacts<'a> {
    fn new(survey: &'a Survey) -> Self {
        let summaries = &survey.summaries;
        let at = |digest: &Digest| survey.artifacts.binary_search_by(|file| file.digest.cmp(digest)).ok();
        let files: Vec<Option<usize>> = summaries.artifacts.iter().map(at).collect();
        let allocated = files.iter().map(|at| at.map_or(0, |at| survey.artifacts[at].allocated)).collect();
        let kept = vec![false; files.len()];
        Self { summaries, files, allocated, kept }
    }

    fn of(&self, revision: &Marked<'_>) -> impl Iterator<Item = usize> + use<'a> {
        self.summaries.edges(revision.content).iter().map(|at| *at as usize)
    }

    /// Marks the artifacts of a revision; returns the bytes of those that nothing else had marked.
    fn keep(&mut self, revision: &Marked<'_>) -> u64 {
        let mut more = 0;
        for at in self.of(revision) {
            if !std::mem::replace(&mut self.kept[at], true) {
                more += self.allocated[at];
            }
        }
        more
    }
}

/// Finds what goes. `roots` are the revisions that something keeps, in any order; `continued` the snapshots that machines
/// continue.
pub(crate) fn mark(
    survey: &Survey,
    roots: Vec<Digest>,
    continued: &HashSet<Digest>,
    policy: &CollectPolicy,
    now_unix_ms: u64,
) -> Collection {
    let young = u64::try_from(policy.older_than.as_millis()).unwrap_or(u64::MAX);
    let mut plan = Collection::default();
    let roots: HashSet<Digest, BuildHasherDefault<Uniform>> = roots.into_iter().collect();
    let mut revisions = Vec::with_capacity(survey.summaries.revisions.len());
    for summary in &survey.summaries.revisions {
        let rooted = roots.contains(&summary.id);
        let Ok(content) = &summary.content else {
            plan.unreadable.push(summary.id);
            continue;
        };
        let built_unix_ms = summary.built_unix_ms;
        let kept = built_unix_ms.is_some_and(|built| now_unix_ms.saturating_sub(built) < young) || rooted;
        revisions.push(Marked { summary, content, kept });
    }
    let mut artifacts = Artifacts::new(survey);
    let mut used = 0;
    for revision in revisions.iter().filter(|revision| revision.kept) {
        used += artifacts.keep(revision);
    }
    if let Some(budget) = policy.budget {
        fit_budget(budget.bytes(), used, &mut revisions, &mut artifacts);
    }
    let snapshot_files = mark_snapshots(&mut plan, survey, continued, &revisions);
    tell_snapshots(&mut plan, survey, &snapshot_files);
    tell(&mut plan, survey, &revisions, &artifacts, &snapshot_files);
    plan
}

/// Keeps the youngest unused revisions that fit the budget. `used` are the bytes of what is kept anyway.
fn fit_budget(budget: u64, mut used: u64, revisions: &mut [Marked<'_>], artifacts: &mut Artifacts<'_>) {
    let mut unused: Vec<usize> = (0..revisions.len()).filter(|at| !revisions[*at].kept).collect();
    unused.sort_unstable_by_key(|at| (revisions[*at].summary.built_unix_ms, revisions[*at].summary.id));
    for at in unused.into_iter().rev() {
        let own = artifacts.of(&revisions[at]).filter(|at| !artifacts.kept[*at]);
        let more: u64 = own.map(|at| artifacts.allocated[at]).sum();
        if used + more > budget {
            // What is older goes too: a smaller one that fits would outlive a younger one.
            break;
        }
        used += more;
        artifacts.keep(&revisions[at]);
        revisions[at].kept = true;
    }
}

/// Finds the snapshots that go; returns the files of those that stay.
fn mark_snapshots(
    plan: &mut Collection,
    survey: &Survey,
    continued: &HashSet<Digest>,
    revisions: &[Marked<'_>],
) -> HashSet<Digest> {
    let mut files = HashSet::new();
    if survey.snapshots.is_empty() {
        return files;
    }
    let kept: HashSet<&Digest, BuildHasherDefault<Uniform>> =
        revisions.iter().filter(|revision| revision.kept).map(|revision| &revision.summary.id).collect();
    for snapshot in &survey.snapshots {
        let Some(content) = &snapshot.content else {
            plan.unreadable_snapshots.push(snapshot.id);
            continue;
        };
        let stays = match content.keep {
            SnapshotKeep::Always => true,
            SnapshotKeep::Machines => false,
            _ => kept.contains(&content.subject),
        };
        if stays || continued.contains(&snapshot.id) {
            files.extend(content.files.iter().copied());
        } else {
            plan.snapshots.push(DeadSnapshot {
                id: snapshot.id,
                subject: content.subject,
                created_unix_ms: content.created_unix_ms,
                exclusive: ByteSize::default(),
            });
        }
    }
    plan.snapshots.sort_unstable_by_key(|dead| (dead.created_unix_ms, dead.id));
    files
}

/// Says what only the snapshots that go take up, each by itself. `kept` are the files of those that stay.
fn tell_snapshots(plan: &mut Collection, survey: &Survey, kept: &HashSet<Digest>) {
    if plan.snapshots.is_empty() {
        return;
    }
    let named: HashSet<&Digest> = survey.summaries.artifacts.iter().chain(kept).collect();
    let contents: HashMap<Digest, &SnapshotContent> =
        survey.snapshots.iter().filter_map(|of| Some((of.id, of.content.as_ref()?))).collect();
    let files = |id: &Digest| contents.get(id).map(|content| content.files.as_slice()).unwrap_or_default();
    let mut users: HashMap<Digest, HashSet<Digest>> = HashMap::new();
    for dead in &plan.snapshots {
        for file in files(&dead.id).iter().filter(|file| !named.contains(*file)) {
            users.entry(*file).or_default().insert(dead.id);
        }
    }
    let mut own: HashMap<Digest, u64> = HashMap::new();
    for file in &survey.artifacts {
        let Some(of) = users.get(&file.digest).filter(|of| of.len() == 1) else { continue };
        for id in of {
            *own.entry(*id).or_default() += file.allocated;
        }
    }
    for dead in &mut plan.snapshots {
        dead.exclusive = ByteSize::from_bytes(own.get(&dead.id).copied().unwrap_or_default());
    }
}

fn tell(
    plan: &mut Collection,
    survey: &Survey,
    revisions: &[Marked<'_>],
    artifacts: &Artifacts<'_>,
    snapshot_files: &HashSet<Digest>,
) {
    plan.kept_revisions = revisions.iter().filter(|revision| revision.kept).count();
    let mut dead_users = vec![0_u32; artifacts.kept.len()];
    for revision in revisions.iter().filter(|revision| !revision.kept) {
        for at in artifacts.of(revision) {
            dead_users[at] += 1;
        }
    }
    for revision in revisions.iter().filter(|revision| !revision.kept) {
        let own = artifacts.of(revision).filter(|at| {
            !artifacts.kept[*at]
                && dead_users[*at] == 1
                && !snapshot_files.contains(&artifacts.summaries.artifacts[*at])
        });
        plan.revisions.push(DeadRevision {
            id: revision.summary.id,
            built_unix_ms: revision.summary.built_unix_ms,
            exclusive: ByteSize::from_bytes(own.map(|at| artifacts.allocated[at]).sum()),
        });
    }
    plan.revisions.sort_unstable_by_key(|dead| (dead.built_unix_ms, dead.id));
    let unreadable = !plan.unreadable.is_empty() || !plan.unreadable_snapshots.is_empty();
    let mut stays = vec![unreadable; survey.artifacts.len()];
    for (file, kept) in artifacts.files.iter().zip(&artifacts.kept) {
        if let (Some(file), true) = (file, kept) {
            stays[*file] = true;
        }
    }
    let mut kept = 0;
    for (file, stays) in survey.artifacts.iter().zip(stays) {
        if stays || snapshot_files.contains(&file.digest) {
            kept += file.allocated;
        } else {
            plan.artifacts.push((file.digest, ByteSize::from_bytes(file.allocated)));
        }
    }
    plan.kept = ByteSize::from_bytes(kept);
}
