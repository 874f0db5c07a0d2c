//! `kiln import mvm` and `kiln export mvm`: templates of mvm, in and out.

use super::Context;
use crate::error::{CliError, CliResult};
use crate::{env, output};
use clap::Args;
use kiln_core::{Digest, Reference, TemplateName};
use kiln_engine::adopt::mvm::{ExportMvm, ImportMvm, ImportedMvm, WrittenRecipe, write_recipes};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "\
Each revision becomes one of the store, under its name as a tag; `latest` points to the one that
`current` names. Machines boot its kernel and root file system with kiln's own initramfs. A
template that is damaged is told, and the others come. A file of a template in TOML becomes a
recipe beside it, one for each profile in it.

Examples:
  kiln import mvm
  kiln import mvm /srv/mvm --modules /lib/modules/6.1.0-9-cloud-amd64
  kiln import mvm web.toml && kiln build")]
pub(super) struct ImportMvmArgs {
    /// A data directory, a directory of templates, one template, or a template file (.toml) [default: $MVM_DATA_DIR, else ~/.mvm]
    path: Option<PathBuf>,
    /// The directory of the kernels' modules, where they need some to boot
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// The template's name, for a template file without an id
    #[arg(long)]
    name: Option<TemplateName>,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
    /// Print references or paths only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct Shown {
    templates: Vec<ShownTemplate>,
    failed: Vec<ShownFailure>,
}

#[derive(Serialize)]
struct ShownTemplate {
    template: String,
    revisions: Vec<ShownRevision>,
    current: Option<Digest>,
    size_bytes: u64,
}

#[derive(Serialize)]
struct ShownRevision {
    tag: String,
    revision: Digest,
}

#[derive(Serialize)]
struct ShownFailure {
    template: String,
    reason: String,
}

#[derive(Serialize)]
struct ShownRecipes {
    recipes: Vec<ShownRecipe>,
}

#[derive(Serialize)]
struct ShownRecipe {
    template: String,
    path: PathBuf,
    variants: usize,
}

pub(super) fn import(context: &Context, args: &ImportMvmArgs) -> CliResult {
    let path = args.path.clone().map_or_else(env::mvm_data, Ok)?;
    if path.extension().is_some_and(|extension| extension == "toml") {
        if args.modules.is_some() {
            let text = "--modules is for templates that are built; a template file becomes a recipe";
            return Err(CliError::Usage(text.to_owned()));
        }
        return recipes(args, &path);
    }
    if args.name.is_some() {
        return Err(CliError::Usage("--name is for a template file; templates have names".to_owned()));
    }
    let request = ImportMvm { dir: &path, modules: args.modules.as_deref() };
    let reporter = context.reporter(args.quiet);
    let imported = context.engine.import_mvm(&request, &reporter)?;
    drop(reporter);
    render(args, &imported);
    for failure in &imported.failed {
        output::tell(&format!("{}: {}", failure.name, failure.reason));
    }
    let (failed, all) = (imported.failed.len(), imported.failed.len() + imported.templates.len());
    if failed == 0 { Ok(ExitCode::SUCCESS) } else { Err(CliError::Some { failed, all }) }
}

fn render(args: &ImportMvmArgs, imported: &ImportedMvm) {
    if args.json {
        let templates = imported.templates.iter().map(|template| ShownTemplate {
            template: template.template.to_string(),
            revisions: template
                .revisions
                .iter()
                .map(|(tag, revision)| ShownRevision { tag: tag.to_string(), revision: *revision })
                .collect(),
            current: template.current,
            size_bytes: template.size.bytes(),
        });
        let failed = imported
            .failed
            .iter()
            .map(|failure| ShownFailure { template: failure.name.clone(), reason: failure.reason.clone() });
        output::json(Shown { templates: templates.collect(), failed: failed.collect() });
        return;
    }
    for template in &imported.templates {
        for (tag, revision) in &template.revisions {
            let name = format!("{}:{tag}", template.template);
            let latest = if template.current == Some(*revision) { ", and latest" } else { "" };
            output::line(&if args.quiet { name } else { format!("{name} is {revision}{latest}") });
        }
    }
}

/// Writes a template file's recipes.
fn recipes(args: &ImportMvmArgs, file: &Path) -> CliResult {
    let written = write_recipes(file, args.name.as_ref())?;
    let shown = |recipe: WrittenRecipe| ShownRecipe {
        template: recipe.template.to_string(),
        path: recipe.path,
        variants: recipe.variants,
    };
    let recipes: Vec<ShownRecipe> = written.into_iter().map(shown).collect();
    if args.json {
        output::json(ShownRecipes { recipes });
        return Ok(ExitCode::SUCCESS);
    }
    for recipe in recipes {
        let path = recipe.path.display();
        let variants = kiln_core::text::count(recipe.variants, "variant");
        let line = format!("{path}: template {} with {variants}", recipe.template);
        output::line(&if args.quiet { path.to_string() } else { line });
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each reference becomes a template below DIR/templates, one with a variant under the name
TEMPLATE-VARIANT. Nothing is overwritten; what cannot be written is refused with the whole list
before anything is.

Examples:
  kiln export mvm ~/.mvm web
  kiln export mvm /srv/mvm web:v1 web/big")]
pub(super) struct ExportMvmArgs {
    /// The data directory, made where it is missing
    dir: PathBuf,
    /// What to write, one of each template or variant [default: every template's latest]
    references: Vec<Reference>,
    /// Print an object of JSON
    #[arg(long)]
    json: bool,
    /// Print paths only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct ShownExport {
    templates: Vec<ShownExported>,
}

#[derive(Serialize)]
struct ShownExported {
    template: String,
    revision: Digest,
    name: String,
    path: PathBuf,
    size_bytes: u64,
}

pub(super) fn export(context: &Context, args: &ExportMvmArgs) -> CliResult {
    let request = ExportMvm { dir: &args.dir, references: &args.references };
    let reporter = context.reporter(args.quiet);
    let exported = context.engine.export_mvm(&request, &reporter)?;
    drop(reporter);
    let templates = exported.into_iter().map(|template| ShownExported {
        template: template.template,
        revision: template.revision,
        name: template.name,
        path: template.path,
        size_bytes: template.size.bytes(),
    });
    if args.json {
        output::json(ShownExport { templates: templates.collect() });
        return Ok(ExitCode::SUCCESS);
    }
    for template in templates {
        let path = template.path.display();
        let line = format!("{path}: {} as {}", template.revision.short(), template.name);
        output::line(&if args.quiet { path.to_string() } else { line });
    }
    Ok(ExitCode::SUCCESS)
}
