//! The store in a few maps: what an operation does to it, step by visible step.

use super::op::{CONTENTS, Op, Outcome, Sources, key, machine_id, template, v1};
use kiln_core::machine::{CloneMethod, Phase};
use kiln_core::{Digest, Tag};
use kiln_store::Store;
use std::collections::{BTreeMap, BTreeSet};

/// The moves of a tag: from where, to where.
type Moves = Vec<(Option<u8>, u8)>;

/// Everything that operations can see, contents and names by their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Twin {
    /// Artifacts, also those that no revision has.
    pub(crate) artifacts: BTreeSet<Digest>,
    /// Revisions.
    pub(crate) revisions: BTreeSet<u8>,
    /// Snapshots, by the content of their revisions.
    pub(crate) snapshots: BTreeSet<u8>,
    /// Cache entries, also those whose revision is gone.
    pub(crate) cached: BTreeSet<u8>,
    /// Templates with a recipe.
    pub(crate) recipes: BTreeSet<u8>,
    /// Tags and their moves; the last one says where a tag points.
    pub(crate) tags: BTreeMap<(u8, Tag), Moves>,
    /// Machines: their content, and whether they ended.
    pub(crate) machines: BTreeMap<u8, (u8, bool)>,
}

impl Twin {
    /// Reads a store.
    pub(crate) fn of(store: &Store, sources: &Sources) -> Self {
        let mut twin = Self::default();
        let names = |dir: &str| kiln_sys::fs::list_dir(&store.root().join(dir)).unwrap();
        let digests = |dir: &str| -> BTreeSet<Digest> {
            names(dir).iter().filter_map(|name| Digest::from_hex(name.to_str()?).ok()).collect()
        };
        twin.artifacts = digests("artifacts");
        let content = |id: &Digest| sources.content(id).unwrap();
        twin.revisions = store.revision_ids().unwrap().iter().map(content).collect();
        let snapshots = store.snapshot_ids().unwrap();
        let of = |id: &Digest| (0..CONTENTS).find(|content| sources.snapshot(*content) == *id).unwrap();
        twin.snapshots = snapshots.iter().map(of).collect();
        let entries = digests("cache/v1/builds");
        twin.cached = (0..CONTENTS).filter(|content| entries.contains(&key(*content))).collect();
        for content in &twin.cached {
            let hit = store.cached_build(&key(*content), &kiln_sys::Cancel::new().unwrap()).unwrap();
            assert_eq!(hit.is_some(), twin.revisions.contains(content), "the cache says what is there");
        }
        for number in 0..2 {
            let name = template(number);
            if store.recipe_text(&name).unwrap().is_some() {
                twin.recipes.insert(number);
            }
            for (tag, record) in store.template(&name).unwrap().into_iter().flat_map(|entry| entry.tags) {
                let log: Moves = record
                    .log
                    .iter()
                    .map(|step| (step.from.as_ref().map(content), content(&step.to)))
                    .collect();
                assert_eq!(log.last().map(|step| step.1), Some(content(&record.revision)));
                twin.tags.insert((number, tag), log);
            }
        }
        for (id, entry) in store.machines().unwrap() {
            let entry = entry.unwrap();
            let slot = (0..=u8::MAX).find(|slot| machine_id(*slot) == id).unwrap();
            twin.machines
                .insert(slot, (content(&entry.record.revision), entry.status.phase == Phase::Stopped));
        }
        twin
    }

    /// Returns the states an operation passes, the first as it is and the last as it ends, and how it ends.
    pub(crate) fn steps(&self, op: Op, sources: &Sources) -> (Vec<Self>, Outcome) {
        let mut steps = vec![self.clone()];
        let mut step = |change: &dyn Fn(&mut Self)| {
            let mut next = steps.last().unwrap().clone();
            change(&mut next);
            steps.push(next);
        };
        let outcome = match op {
            Op::Open | Op::Sweep => Outcome::Ok,
            Op::Build { content, template } => {
                for digest in sources.artifacts(content) {
                    step(&|twin| _ = twin.artifacts.insert(digest));
                }
                step(&|twin| _ = twin.revisions.insert(content));
                step(&|twin| _ = twin.cached.insert(content));
                step(&|twin| _ = twin.recipes.insert(template));
                step(&|twin| twin.point((template, Tag::latest()), content));
                Outcome::Ok
            }
            Op::Tag { content, .. } if !self.revisions.contains(&content) => Outcome::NotFound,
            Op::Tag { content, template } => {
                step(&|twin| twin.point((template, v1()), content));
                Outcome::Ok
            }
            Op::Untag { template } => {
                step(&|twin| _ = twin.tags.remove(&(template, v1())));
                Outcome::Ok
            }
            Op::Remove { content } if !self.revisions.contains(&content) => Outcome::NotFound,
            Op::Remove { content } if self.machines.values().any(|machine| machine.0 == content) => {
                Outcome::InUse
            }
            Op::Remove { content } => {
                let tags = self.tags.iter().filter(|(_, log)| log.last().unwrap().1 == content);
                for (name, _) in tags {
                    step(&|twin| _ = twin.tags.remove(name));
                }
                let mut gone = BTreeSet::from(sources.artifacts(content));
                if self.snapshots.contains(&content) {
                    gone.extend(sources.snapshot_files(content));
                    step(&|twin| _ = twin.snapshots.remove(&content));
                }
                step(&|twin| _ = twin.revisions.remove(&content));
                let others = self.revisions.iter().filter(|other| **other != content);
                let kept: BTreeSet<Digest> = others.flat_map(|other| sources.artifacts(*other)).collect();
                for digest in gone {
                    if !kept.contains(&digest) {
                        step(&|twin| _ = twin.artifacts.remove(&digest));
                    }
                }
                Outcome::Ok
            }
            Op::Snapshot { content } if !self.revisions.contains(&content) => Outcome::NotFound,
            Op::Snapshot { content } => {
                for digest in sources.snapshot_files(content) {
                    step(&|twin| _ = twin.artifacts.insert(digest));
                }
                step(&|twin| _ = twin.snapshots.insert(content));
                Outcome::Ok
            }
            Op::Forget { content } if !self.snapshots.contains(&content) => Outcome::NotFound,
            Op::Forget { content } => {
                step(&|twin| _ = twin.snapshots.remove(&content));
                for digest in BTreeSet::from(sources.snapshot_files(content)) {
                    step(&|twin| _ = twin.artifacts.remove(&digest));
                }
                Outcome::Ok
            }
            Op::Machine { content, .. } | Op::Grown { content, .. } if !self.revisions.contains(&content) => {
                Outcome::NotFound
            }
            // What benches are on has no shared extents.
            Op::Machine { method: Some(CloneMethod::Reflink), .. }
            | Op::Grown { method: Some(CloneMethod::Reflink), .. } => Outcome::Unsupported,
            Op::Machine { slot, .. } | Op::Grown { slot, .. } if self.machines.contains_key(&slot) => {
                Outcome::Exists
            }
            Op::Machine { slot, content, .. } | Op::Grown { slot, content, .. } => {
                step(&|twin| _ = twin.machines.insert(slot, (content, false)));
                Outcome::Ok
            }
            Op::Status { slot } if !self.machines.contains_key(&slot) => Outcome::NotFound,
            Op::Status { slot } => {
                step(&|twin| twin.machines.get_mut(&slot).unwrap().1 = true);
                Outcome::Ok
            }
            Op::Discard { slot } => {
                step(&|twin| _ = twin.machines.remove(&slot));
                Outcome::Ok
            }
        };
        (steps, outcome)
    }

    /// Does an operation.
    pub(crate) fn run(&mut self, op: Op, sources: &Sources) -> Outcome {
        let (steps, outcome) = self.steps(op, sources);
        *self = steps.into_iter().next_back().unwrap();
        outcome
    }

    fn point(&mut self, name: (u8, Tag), content: u8) {
        let log = self.tags.entry(name).or_default();
        let from = log.last().map(|step| step.1);
        if from != Some(content) {
            log.push((from, content));
        }
    }
}
