//! Templates made of others: what a plan of one is made of. The steps are done in a machine, by who can boot one.

use super::input_of_any_kind;
use crate::error::BuildError;
use crate::fingerprint::FileIdentity;
use crate::key::Parts;
use crate::plan::PlanContext;
use crate::tree;
use kiln_core::lock::PinKind;
use kiln_core::recipe::{BuildStep, TemplateSource};
use serde::Serialize;
use std::path::PathBuf;

/// Another template, and what is done to it.
#[derive(Debug, Clone)]
pub(crate) struct TemplatePlan {
    pub(crate) steps: Vec<PlannedStep>,
}

/// A step, with its paths resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedStep {
    /// The step; a copy's path is absolute.
    pub step: BuildStep,
    /// All that tells it from others, as JSON.
    pub key: String,
}

/// What stands for a step in a key.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum StepKey<'a> {
    Run { command: &'a [String] },
    CopyFile { to: &'a str, name: Option<String>, content: FileIdentity },
    CopyTree { to: &'a str, name: Option<String>, content: kiln_core::Digest },
    Env(&'a std::collections::BTreeMap<String, String>),
    User(&'a str),
    Workdir(&'a str),
}

impl TemplatePlan {
    pub(super) fn plan(
        source: &TemplateSource,
        cx: &PlanContext<'_>,
        parts: &mut Parts,
    ) -> Result<Self, BuildError> {
        parts.ask("source", "template");
        let from = source.from.to_string();
        parts.ask("from", &from);
        let Some(id) = cx.pins.get(PinKind::Template, &from) else {
            return Err(BuildError::NotPinned { kind: PinKind::Template, name: from });
        };
        parts.pin(PinKind::Template, &from, id);
        parts.add("network", source.network);
        let mut steps = Vec::new();
        for (index, step) in source.steps.iter().enumerate() {
            let (step, key) = planned(step, cx)?;
            parts.add_json(format!("step {}", index + 1), key.clone());
            steps.push(PlannedStep { step, key });
        }
        Ok(Self { steps })
    }
}

fn planned(step: &BuildStep, cx: &PlanContext<'_>) -> Result<(BuildStep, String), BuildError> {
    let json = |key: &StepKey<'_>| {
        #[expect(clippy::expect_used, reason = "plain structs, lists and text always have a JSON form")]
        serde_json::to_string(key).expect("a step has a JSON form")
    };
    let key = match step {
        BuildStep::Run { command, .. } => json(&StepKey::Run { command }),
        BuildStep::Env(env) => json(&StepKey::Env(env)),
        BuildStep::User(user) => json(&StepKey::User(user)),
        BuildStep::Workdir(dir) => json(&StepKey::Workdir(dir)),
        BuildStep::Copy { from, to } => {
            let (path, is_dir): (PathBuf, bool) = input_of_any_kind("step.copy", cx.base, from)?;
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            let key = if is_dir {
                json(&StepKey::CopyTree { to, name, content: tree::walk(&path, None, false)?.identity })
            } else {
                json(&StepKey::CopyFile { to, name, content: FileIdentity::at(&path)? })
            };
            return Ok((BuildStep::Copy { from: path, to: to.clone() }, key));
        }
    };
    Ok((step.clone(), key))
}
