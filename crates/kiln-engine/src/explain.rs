//! Why a build is one: what differs from the last build of the template, and whether a forced build gave the same again.

use crate::build::{BuildOptions, FoundRecipe};
use crate::diff::{DiffRequest, FileList};
use crate::{Engine, EngineResult, Silent};
use kiln_build::{BuildPlan, HostFacts};
use kiln_core::{Digest, Reference, TemplateName};
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::fs;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The directory of the cache for the inputs of the last builds.
const INPUTS: &str = "inputs";
/// The largest file of inputs that is read, in bytes.
const INPUTS_BYTES_MAX: usize = 8 << 20;

/// What goes into a build, and what does not as the last time.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The cache key.
    pub key: Digest,
    /// What the cache knows for this key: a build would do nothing.
    pub cached: Option<Digest>,
    /// The revision of the template's last build, where that is known.
    pub last: Option<Digest>,
    /// Every input, in the key's order; then those of the last build that are none any more.
    pub inputs: Vec<ExplainedInput>,
}

/// An input of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedInput {
    /// What it is.
    pub name: String,
    /// Its value as JSON; none where it was one of the last build only.
    pub value: Option<String>,
    /// Its value at the last build; none where it was none, or nothing is known of a last build.
    pub before: Option<String>,
    /// Whether the two differ; false where nothing is known of a last build.
    pub changed: bool,
}

/// How the result of a forced build compares with that of the same inputs before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reproduced {
    /// What was built of the same inputs before.
    pub before: Digest,
    /// The first thing that differs; none where every byte is the same.
    pub first_difference: Option<String>,
}

/// What went into the last build of a template. A cache: one that cannot be read is none.
#[derive(Serialize, Deserialize)]
struct LastInputs {
    version: u32,
    revision: Digest,
    inputs: BTreeMap<String, String>,
}

impl Engine {
    /// Returns what goes into a build of the recipe, what changed since the last one, and whether the cache knows the
    /// result. Nothing is built.
    ///
    /// # Errors
    /// When an input cannot be looked at, or the lock does not fit.
    pub fn explain(&self, found: &FoundRecipe, options: BuildOptions) -> EngineResult<Explanation> {
        let host = HostFacts::gather(&self.settings.toolbox, &self.cancel)?;
        let plan = self.plan_on(found, &host, options, &Silent)?;
        let cached = self.store.cached_build(&plan.key, &self.cancel)?.map(|revision| revision.id);
        let last = self.last_inputs(&found.recipe.name)?;
        let known = last.is_some();
        let mut before = last.as_ref().map(|last| last.inputs.clone()).unwrap_or_default();
        let mut inputs = Vec::new();
        for part in &plan.explanation {
            let was = before.remove(&part.name);
            inputs.push(ExplainedInput {
                changed: known && was.as_ref() != Some(&part.value),
                name: part.name.clone(),
                value: Some(part.value.clone()),
                before: was,
            });
        }
        let gone = before.into_iter();
        inputs.extend(gone.map(|(name, was)| ExplainedInput {
            name,
            value: None,
            before: Some(was),
            changed: true,
        }));
        Ok(Explanation { key: plan.key, cached, last: last.map(|last| last.revision), inputs })
    }

    fn last_inputs(&self, template: &TemplateName) -> EngineResult<Option<LastInputs>> {
        let path = self.store.cache_dir(INPUTS)?.join(format!("{template}.json"));
        let bytes = match fs::read_optional(&path, INPUTS_BYTES_MAX) {
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => None,
            read => read?,
        };
        let last = bytes.and_then(|bytes| serde_json::from_slice::<LastInputs>(&bytes).ok());
        Ok(last.filter(|last| last.version == 1))
    }

    /// Remembers what went into a build.
    pub(crate) fn keep_inputs(
        &self,
        template: &TemplateName,
        plan: &BuildPlan,
        revision: &Digest,
    ) -> EngineResult<()> {
        let inputs = plan.explanation.iter().map(|part| (part.name.clone(), part.value.clone())).collect();
        let last = LastInputs { version: 1, revision: *revision, inputs };
        #[expect(clippy::unwrap_used, reason = "plain data always serializes")]
        let bytes = serde_json::to_vec(&last).unwrap();
        let path = self.store.cache_dir(INPUTS)?.join(format!("{template}.json"));
        Ok(write_file(&path, &bytes, 0o644, Existing::Replace)?)
    }

    /// Compares what a forced build made with what the same inputs gave before.
    pub(crate) fn compare_again(&self, before: &Digest, after: &Digest) -> EngineResult<Reproduced> {
        if before == after {
            return Ok(Reproduced { before: *before, first_difference: None });
        }
        let (a, b) = (Reference::of_digest(*before), Reference::of_digest(*after));
        let report = self.diff(&DiffRequest { a, b, files: FileList::All })?;
        let setting = report.settings.first().map(|setting| format!("setting {}", setting.name));
        let file = report.files.as_ref().and_then(|files| files.changes.first());
        let file = file.map(|file| format!("{} of the root file system", file.path));
        let artifact = || {
            let roles = report.artifacts.iter().filter(|artifact| {
                artifact.before.as_ref().map(|side| side.digest)
                    != artifact.after.as_ref().map(|side| side.digest)
            });
            // The root disk comes last: what differs in it is told by its files.
            let role = roles.map(|artifact| artifact.role.to_string()).min_by_key(|role| role == "rootfs");
            role.map(|role| format!("artifact {role}, in bytes that belong to no file"))
        };
        let first = setting.or(file).or_else(artifact).unwrap_or_else(|| "the manifest".to_owned());
        Ok(Reproduced { before: *before, first_difference: Some(first) })
    }
}
