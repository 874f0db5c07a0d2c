//! Template files of mvm, written as recipes beside them.

use crate::{EngineError, EngineResult};
use kiln_core::TemplateName;
use kiln_core::recipe::{self, RECIPE_BYTES_MAX, from_mvm};
use kiln_sys::commit::{Existing, write_file};
use kiln_sys::fs;
use std::path::{Path, PathBuf};

/// The mode of a recipe.
const FILE_MODE: u32 = 0o644;

/// A recipe that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenRecipe {
    /// The template it is for.
    pub template: TemplateName,
    /// Its file.
    pub path: PathBuf,
    /// How many variants it has.
    pub variants: usize,
}

/// Writes the recipes of a template file into its directory, where its relative flake is still the same: `kiln.toml`, or
/// with several profiles a `PROFILE.kiln.toml` for each. Nothing is overwritten.
pub fn write_recipes(file: &Path, name: Option<&TemplateName>) -> EngineResult<Vec<WrittenRecipe>> {
    let text = fs::read_text_limited(file, RECIPE_BYTES_MAX)?;
    let recipes = from_mvm(&text, name)
        .map_err(|source| EngineError::TemplateFile { path: file.to_owned(), source })?;
    let several = recipes.len() > 1;
    let path = |recipe: &recipe::MvmRecipe| {
        let name = recipe::FILE_NAME;
        file.with_file_name(if several { format!("{}.{name}", recipe.profile) } else { name.to_owned() })
    };
    for recipe in &recipes {
        let path = path(recipe);
        if fs::exists(&path)? {
            return Err(EngineError::Exists { path });
        }
    }
    let mut written = Vec::new();
    for recipe in recipes {
        let path = path(&recipe);
        write_file(&path, recipe.text.as_bytes(), FILE_MODE, Existing::Refuse)?;
        let (template, variants) = (recipe.recipe.name, recipe.recipe.variants.len());
        written.push(WrittenRecipe { template, path, variants });
    }
    Ok(written)
}
