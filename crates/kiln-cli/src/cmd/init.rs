//! `kiln init`: a commented recipe to begin with, or a store that is set up.

use super::Context;
use crate::args::Global;
use crate::error::CliResult;
use crate::output;
use clap::Args;
use kiln_core::{TemplateName, recipe};
use kiln_engine::{EngineError, Protect};
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const TEMPLATE: &str = include_str!("init.toml");

#[derive(Debug, Args)]
#[command(after_help = "\
An existing kiln.toml is never overwritten.

--protect writes no recipe. It makes the store where there is none, and says what keeps its
artifacts as they are:
  auto        fs-verity where the file system has it, for artifacts of at most 16 GiB
  none        nothing; what was touched is still noticed, and read before use
  verity      fs-verity, or nothing can be stored
  immutable   the immutable flag (chattr +i), or nothing can be stored; needs root, and stops
              rm -rf of the store
New artifacts get it; those that are there get or lose it with the next kiln verify.

Examples:
  kiln init
  kiln init --name web images/web
  kiln init --protect verity")]
pub(crate) struct InitArgs {
    /// The directory, made if it is not there
    #[arg(default_value = ".")]
    path: PathBuf,
    /// The template's name [default: the directory's]
    #[arg(long)]
    name: Option<TemplateName>,
    /// Set up the store instead: auto, none, verity or immutable
    #[arg(long, value_name = "HOW", conflicts_with_all = ["path", "name"])]
    protect: Option<Protect>,
}

pub(crate) fn run(args: &InitArgs, global: Global) -> CliResult {
    match args.protect {
        Some(protect) => set_up(protect, global),
        None => write_recipe(args),
    }
}

fn set_up(protect: Protect, global: Global) -> CliResult {
    let mut context = Context::open(global)?;
    let reporter = context.reporter(false);
    context.engine.set_protect(protect, &reporter)?;
    drop(reporter);
    let root = context.engine.store().root().display();
    output::tell(&format!("artifacts in {root} are protected by the setting {protect}"));
    Ok(ExitCode::SUCCESS)
}

fn write_recipe(args: &InitArgs) -> CliResult {
    fs::create_dir_all(&args.path)?;
    let directory = fs::canonicalize(&args.path)?;
    let file = directory.join(recipe::FILE_NAME);
    let name = args.name.clone().unwrap_or_else(|| name_of(&directory));
    let text = TEMPLATE.replace("@NAME@", name.as_str());
    if fs::exists(&file)? {
        return Err(EngineError::Exists { path: file }.into());
    }
    // Should somebody make the file in this moment, theirs is kept.
    write_file(&file, text.as_bytes(), 0o644, Existing::Keep)?;
    output::tell(&format!("wrote {}", file.display()));
    output::tell("next: edit it, then `kiln build`");
    Ok(ExitCode::SUCCESS)
}

/// Makes a name of a directory's; one that has nothing usable gives `template`.
fn name_of(directory: &Path) -> TemplateName {
    let text = directory.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let kept: String = text
        .chars()
        .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-'))
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .take(kiln_core::name::NAME_BYTES_MAX)
        .collect();
    #[expect(clippy::unwrap_used, reason = "the fallback is a valid name")]
    kept.parse().or_else(|_| "template".parse()).unwrap()
}
