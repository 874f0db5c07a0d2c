//! Verification of what the store holds, and its repair where the source is known.

use crate::build::find_recipe;
use crate::progress::{Reporter, step, waiting};
use crate::{Engine, EngineResult};
use kiln_core::text::chain;
use kiln_core::{Digest, Reference};
use kiln_store::{StoreError, TagEntry, Verdict};
use kiln_sys::lock::Share;
use kiln_sys::protect::Protection;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

/// The fact of a build record that names the recipe's file.
pub(crate) const RECIPE_FACT: &str = "recipe";

/// What a verification found.
#[derive(Debug, Default)]
pub struct VerifyReport {
    /// Each artifact, in order of its digest.
    pub artifacts: Vec<ArtifactReport>,
    /// Revisions that cannot be read, with the reason.
    pub revisions: Vec<(Digest, String)>,
    /// Snapshots that cannot be read, with the reason.
    pub snapshots: Vec<(Digest, String)>,
}

/// What was found of an artifact.
#[derive(Debug)]
pub struct ArtifactReport {
    /// The artifact.
    pub digest: Digest,
    /// What has it: `web:latest rootfs`, a revision where no tag names it, `snapshot warm disk`; none for what nothing
    /// refers to.
    pub users: Vec<String>,
    /// The snapshots that have it, by name or the beginning of their ids.
    pub snapshots: Vec<String>,
    /// Whether only snapshots have it: nothing builds it again.
    pub captured_only: bool,
    /// What was found.
    pub verdict: Verdict,
    /// What protects its file, at the end; nothing where there is none.
    pub protection: Protection,
    /// What a repair came to, where one was asked for and needed.
    pub repair: Option<Repair>,
}

/// What a repair came to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Repair {
    /// The artifact is there again.
    Rebuilt {
        /// The recipe it was built from.
        recipe: PathBuf,
    },
    /// It is not.
    Failed {
        /// Why.
        reason: String,
    },
}

impl VerifyReport {
    /// Whether everything is whole, at the end.
    pub fn is_whole(&self) -> bool {
        self.revisions.is_empty()
            && self.snapshots.is_empty()
            && self.artifacts.iter().all(ArtifactReport::is_whole)
    }
}

impl ArtifactReport {
    /// Whether the artifact is whole, at the end.
    pub fn is_whole(&self) -> bool {
        matches!(self.verdict, Verdict::Intact { .. }) || matches!(self.repair, Some(Repair::Rebuilt { .. }))
    }
}

impl Engine {
    /// Reads and checks the artifacts of one revision, or all there are, files of snapshots among them. Damaged ones are
    /// set aside; with `repair`, they are built again from the recipe their revision was built from. What a snapshot
    /// captured is not made again.
    pub fn verify(
        &self,
        reference: Option<&Reference>,
        repair: bool,
        reporter: &dyn Reporter,
    ) -> EngineResult<VerifyReport> {
        let mut report = VerifyReport::default();
        let mut waiting = waiting(reporter);
        let store = self.store.lock(Share::Shared, "verifying", &self.cancel, &mut waiting)?;
        let mut users: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
        let revisions = match reference {
            Some(reference) => vec![self.store.resolve(reference)?.id],
            None => self.store.revision_ids()?,
        };
        let mut names: HashMap<Digest, String> = HashMap::new();
        for TagEntry { template, tag, record } in self.store.tags()? {
            // What cannot be read names nothing here; whoever lists the tags is told.
            if let Ok(record) = record {
                names.entry(record.revision).or_insert_with(|| format!("{template}:{tag}"));
            }
        }
        for id in revisions {
            match self.store.revision(&id) {
                Ok(revision) => {
                    let name = names.get(&id).cloned().unwrap_or_else(|| id.short());
                    for artifact in &revision.manifest.artifacts {
                        let user = format!("{name} {}", artifact.role);
                        users.entry(artifact.digest).or_default().push(user);
                    }
                }
                Err(error @ (StoreError::Damaged { .. } | StoreError::BadManifest { .. })) => {
                    report.revisions.push((id, chain(&error)));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let mut of_snapshots: HashMap<Digest, Vec<(String, &'static str)>> = HashMap::new();
        for (id, snapshot) in if reference.is_none() { self.store.snapshots()? } else { Vec::new() } {
            match snapshot {
                Ok(snapshot) => {
                    for (role, file) in snapshot.manifest.parts() {
                        of_snapshots.entry(file.digest).or_default().push((snapshot.label(), role));
                    }
                }
                Err(error @ (StoreError::Damaged { .. } | StoreError::BadSnapshot { .. })) => {
                    report.snapshots.push((id, chain(&error)));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let mut digests: BTreeSet<Digest> = users.keys().chain(of_snapshots.keys()).copied().collect();
        if reference.is_none() {
            digests.extend(self.store.artifact_ids()?);
        }
        for digest in digests {
            let mut users = users.remove(&digest).unwrap_or_default();
            let captured = of_snapshots.remove(&digest).unwrap_or_default();
            let captured_only = users.is_empty() && !captured.is_empty();
            users.extend(captured.iter().map(|(name, role)| format!("snapshot {name} {role}")));
            let mut snapshots: Vec<String> = captured.into_iter().map(|(name, _)| name).collect();
            snapshots.dedup();
            let name = users.first().cloned().unwrap_or_else(|| digest.short());
            let verdict = step(reporter, &format!("verify {name}"), || {
                let verdict = self.store.verify_artifact(&digest, &self.cancel)?;
                let result = match &verdict {
                    Verdict::Intact { size, data, .. } => {
                        format!("{} of data in {}", data.human(), size.human())
                    }
                    Verdict::Damaged(damage) => format!("DAMAGED: {}", damage.reason),
                    _ => "MISSING".to_owned(),
                };
                EngineResult::Ok((verdict, result))
            })?;
            report.artifacts.push(ArtifactReport {
                digest,
                users,
                snapshots,
                captured_only,
                protection: self.store.protection(&digest)?,
                repair: None,
                verdict,
            });
        }
        // A build takes the lock itself.
        drop(store);
        for artifact in report.artifacts.iter_mut().filter(|artifact| repair && !artifact.is_whole()) {
            artifact.repair = Some(if artifact.captured_only {
                Repair::Failed { reason: "what a snapshot captured cannot be made again".to_owned() }
            } else {
                self.rebuild(&artifact.digest, reporter)
            });
            artifact.protection = self.store.protection(&artifact.digest)?;
        }
        Ok(report)
    }

    /// Builds an artifact again from a recipe that made it.
    fn rebuild(&self, digest: &Digest, reporter: &dyn Reporter) -> Repair {
        let failed = |reason: String| Repair::Failed { reason };
        if self.store.has_artifact(digest).unwrap_or(false) {
            // A repair before this one brought it back.
            return self.recipe_of(digest).map_or_else(failed, |recipe| Repair::Rebuilt { recipe });
        }
        let recipe = match self.recipe_of(digest) {
            Ok(recipe) => recipe,
            Err(reason) => return failed(reason),
        };
        match find_recipe(&recipe).and_then(|found| self.bake_again(&found, reporter)) {
            Err(error) => failed(format!("{} does not build: {}", recipe.display(), chain(&error))),
            Ok(_) if self.store.has_artifact(digest).unwrap_or(false) => Repair::Rebuilt { recipe },
            Ok(built) => {
                let made = built.short();
                failed(format!("{} now makes another revision, {made}", recipe.display()))
            }
        }
    }

    fn recipe_of(&self, digest: &Digest) -> Result<PathBuf, String> {
        let ids = self.store.revision_ids().map_err(|error| chain(&error))?;
        for id in ids {
            let Ok(revision) = self.store.revision(&id) else { continue };
            if !revision.manifest.artifacts.iter().any(|artifact| artifact.digest == *digest) {
                continue;
            }
            let record = self.store.build_record(&id).ok().flatten();
            if let Some(recipe) = record.and_then(|record| record.facts.get(RECIPE_FACT).map(PathBuf::from)) {
                return Ok(recipe);
            }
        }
        Err("no recipe is known that makes it".to_owned())
    }
}
