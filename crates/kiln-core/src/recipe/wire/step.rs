//! The tables `[[step]]` as written, and the checks that make them [`BuildStep`]s.

use super::{command, duration_ms, value};
use crate::recipe::{BuildStep, RecipeError, STEP_COMMAND_BYTES_MAX, STEPS_MAX};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Time a command may take where its step does not say.
const TIMEOUT: &str = "30m";

/// A step: exactly one of `run`, `copy`, `env`, `user` and `workdir`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StepTable {
    /// A command: a text for `/bin/sh -c`, or a list of program and arguments.
    run: Option<RunValue>,
    /// Time `run` may take, up to 24 hours. Default: `"30m"`.
    timeout: Option<String>,
    /// A file or directory, relative to the recipe, that is copied to `to`.
    copy: Option<PathBuf>,
    /// Where `copy` goes in the guest: an absolute path, of a directory where it ends with `/` or is one.
    to: Option<String>,
    /// Variables for the steps that follow and for the entrypoint.
    env: Option<BTreeMap<String, String>>,
    /// Who runs the steps that follow, and the entrypoint.
    user: Option<String>,
    /// The directory they run in.
    workdir: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "`run` is a text for the shell, or a list of program and arguments")]
enum RunValue {
    /// For `/bin/sh -c`.
    Shell(String),
    /// Program and arguments.
    Command(Vec<String>),
}

pub(super) fn checked(tables: Vec<StepTable>) -> Result<Vec<BuildStep>, RecipeError> {
    if tables.len() > STEPS_MAX {
        return Err(value("step", format_args!("{} steps, more than {STEPS_MAX}", tables.len())));
    }
    tables.into_iter().enumerate().map(|(index, table)| step(index + 1, table)).collect()
}

fn step(number: usize, table: StepTable) -> Result<BuildStep, RecipeError> {
    let field = |name: &str| format!("step.{number}.{name}");
    let absolute = |name: &str, path: &str| {
        let ok = path.starts_with('/') && !path.contains('\0');
        if ok { Ok(()) } else { Err(value(&field(name), "an absolute path in the guest is wanted")) }
    };
    let StepTable { run, timeout, copy, to, env, user, workdir } = table;
    if to.is_some() != copy.is_some() {
        return Err(value(&format!("step.{number}"), "`copy` and `to` belong together"));
    }
    if timeout.is_some() && run.is_none() {
        return Err(value(&field("timeout"), "only `run` has one"));
    }
    match (run, copy.zip(to), env, user, workdir) {
        (Some(run), None, None, None, None) => {
            let words = match run {
                RunValue::Shell(text) => vec!["/bin/sh".to_owned(), "-c".to_owned(), text],
                RunValue::Command(words) => words,
            };
            let command = command(&field("run"), words)?;
            let bytes: usize = command.iter().map(|word| word.len() + 1).sum();
            if bytes > STEP_COMMAND_BYTES_MAX {
                let reason = format!("{bytes} bytes, more than {STEP_COMMAND_BYTES_MAX}");
                return Err(value(&field("run"), reason));
            }
            let timeout_ms = duration_ms(&field("timeout"), timeout.as_deref().unwrap_or(TIMEOUT))?;
            Ok(BuildStep::Run { command, timeout_ms })
        }
        (None, Some((from, to)), None, None, None) => {
            absolute("to", &to)?;
            Ok(BuildStep::Copy { from, to })
        }
        (None, None, Some(env), None, None) => {
            let plain = |name: &String, to: &String| {
                !name.is_empty() && !name.contains(['=', '\0']) && !to.contains('\0')
            };
            match env.iter().find(|(name, to)| !plain(name, to)) {
                Some((name, _)) => {
                    Err(value(&field("env"), format_args!("`{}` is not a variable", crate::text::clip(name))))
                }
                None => Ok(BuildStep::Env(env)),
            }
        }
        (None, None, None, Some(user), None) if !user.is_empty() => Ok(BuildStep::User(user)),
        (None, None, None, None, Some(workdir)) => {
            absolute("workdir", &workdir)?;
            Ok(BuildStep::Workdir(workdir))
        }
        _ => Err(value(
            &format!("step.{number}"),
            "exactly one of `run`, `copy`, `env`, `user` and `workdir` is wanted",
        )),
    }
}
