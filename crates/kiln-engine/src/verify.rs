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
}

/// What was found of an artifact.
#[derive(Debug)]
pub struct ArtifactReport {
    /// The artifact.
    pub digest: Digest,
    /// What has it: `web:latest rootfs`, a revision where no tag names it; none for what nothing refers to.
    pub users: Vec<String>,
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
        self.revisions.is_empty() && self.artifacts.iter().all(ArtifactReport::is_whole)
    }
}

impl ArtifactReport {
    /// Whether the artifact is whole, at the end.
    pub fn is_whole(&self) -> bool {
        matches!(self.verdict, Verdict::Intact { .. }) || matches!(self.repair, Some(Repair::Rebuilt { .. }))
    }
}

impl Engine {
    /// Reads and checks the artifacts of one revision, or all there are. Damaged ones are set aside; with `repair`,
    /// they are built again from the recipe their revision was built from.
    pub fn verify(
        &self,
        reference: Option<&Reference>,
        repair: bool,
        reporter: &dyn Reporter,
    ) -> EngineResult<VerifyReport> {
        let mut report = VerifyReport::default();
        let mut waiting = waiting(reporter);
        let store = self.store.lock(Share::Shared, "verifying", &self.cancel, &mut waiting)?;
        let mut users: BTreeMap<Digest, Vec<(Digest, String)>> = BTreeMap::new();
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
                        let user = (id, format!("{name} {}", artifact.role));
                        users.entry(artifact.digest).or_default().push(user);
                    }
                }
                Err(error @ (StoreError::Damaged { .. } | StoreError::BadManifest { .. })) => {
                    report.revisions.push((id, chain(&error)));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let mut digests: BTreeSet<Digest> = users.keys().copied().collect();
        if reference.is_none() {
            digests.extend(self.store.artifact_ids()?);
        }
        for digest in digests {
            let users = users.remove(&digest).unwrap_or_default();
            let name = users.first().map_or_else(|| digest.short(), |(_, user)| user.clone());
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
                users: users.iter().map(|(_, user)| user.clone()).collect(),
                protection: self.store.protection(&digest)?,
                repair: None,
                verdict,
            });
        }
        // A build takes the lock itself.
        drop(store);
        for artifact in report.artifacts.iter_mut().filter(|artifact| repair && !artifact.is_whole()) {
            artifact.repair = Some(self.rebuild(&artifact.digest, reporter));
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
