//! Template files of mvm, as recipes: what they say of flake, profile and variants.

use super::{FlakeRef, RECIPE_BYTES_MAX, Recipe, RecipeError, explain, parse};
use crate::name::{TemplateName, VariantName};
use crate::revision::VARIANTS_MAX;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The profile of a template file that says none.
const PROFILE_DEFAULT: &str = "minimal";

#[derive(Debug, Deserialize)]
struct TemplateFile {
    #[serde(default)]
    template_id: String,
    flake_ref: String,
    profile: Option<String>,
    #[serde(default)]
    variants: Vec<VariantEntry>,
}

#[derive(Debug, Deserialize)]
struct VariantEntry {
    name: Option<String>,
    role: Option<String>,
    /// Without one the file's: what is left out comes from the template.
    profile: Option<String>,
    vcpus: Option<u32>,
    mem_mib: Option<u32>,
    #[serde(default)]
    data_disk_mib: u32,
}

/// A recipe that says what a template file says of one profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MvmRecipe {
    /// The profile.
    pub profile: VariantName,
    /// The text of the recipe.
    pub text: String,
    /// The same, parsed.
    pub recipe: Recipe,
}

fn value(field: &str, reason: impl ToString) -> RecipeError {
    RecipeError::Value { field: field.to_owned(), reason: reason.to_string() }
}

/// Reads a template file of mvm and returns a recipe for each profile in it: a revision holds one set of files. With
/// several, each is named by its profile too. `name` stands for an id that the file does not give.
pub fn from_mvm(text: &str, name: Option<&TemplateName>) -> Result<Vec<MvmRecipe>, RecipeError> {
    if text.len() > RECIPE_BYTES_MAX {
        return Err(RecipeError::TooLarge(text.len()));
    }
    let file: TemplateFile = toml::from_str(text).map_err(|error| explain(text, &error))?;
    let id: TemplateName = match name {
        Some(name) => name.clone(),
        None => file.template_id.parse().map_err(|error| value("template_id", error))?,
    };
    let flake: FlakeRef = file.flake_ref.parse().map_err(|error| value("flake_ref", error))?;
    if file.variants.len() > VARIANTS_MAX {
        return Err(value("variants", format!("{} of them, more than {VARIANTS_MAX}", file.variants.len())));
    }
    let profile = |text: Option<&str>| -> Result<VariantName, RecipeError> {
        let text = text.filter(|text| !text.is_empty());
        text.unwrap_or(PROFILE_DEFAULT).parse().map_err(|error| value("profile", error))
    };
    let own = profile(file.profile.as_deref())?;
    let mut profiles: BTreeMap<VariantName, String> = BTreeMap::new();
    for variant in &file.variants {
        let profile = match variant.profile.as_deref() {
            None | Some("") => own.clone(),
            text => profile(text)?,
        };
        let text = profiles.entry(profile).or_default();
        entry(text, variant, &id)?;
    }
    if profiles.is_empty() {
        profiles.insert(own, String::new());
    }
    let several = profiles.len() > 1;
    let recipe = |(profile, variants): (VariantName, String)| {
        let name = if several { format!("{id}-{profile}") } else { id.to_string() };
        let text = format!(
            "name = \"{name}\"\nprofile = \"{profile}\"\n\n[source]\ntype = \"nix\"\nflake = \"{flake}\"\n{variants}"
        );
        let recipe = parse(&text)?;
        Ok(MvmRecipe { profile, text, recipe })
    };
    profiles.into_iter().map(recipe).collect()
}

fn entry(text: &mut String, variant: &VariantEntry, id: &TemplateName) -> Result<(), RecipeError> {
    let role = variant.role.as_deref().filter(|role| !role.is_empty());
    let role: Option<VariantName> =
        role.map(|role| role.parse().map_err(|error| value("variants.role", error))).transpose()?;
    let name = match (&variant.name, &role) {
        (Some(name), _) if !name.is_empty() => name.clone(),
        (_, Some(role)) => format!("{id}-{role}"),
        _ => return Err(value("variants", "a variant has neither name nor role")),
    };
    let name: VariantName = name.parse().map_err(|error| value("variants.name", error))?;
    let mut line = |line: String| {
        // Writing to a text cannot fail.
        let _ = writeln!(text, "{line}");
    };
    line(format!("\n[[variant]]\nname = \"{name}\""));
    role.into_iter().for_each(|role| line(format!("role = \"{role}\"")));
    variant.vcpus.into_iter().for_each(|vcpus| line(format!("vcpus = {vcpus}")));
    variant.mem_mib.into_iter().for_each(|mib| line(format!("memory = \"{mib}M\"")));
    if variant.data_disk_mib > 0 {
        line(format!("data_disk = \"{}M\"", variant.data_disk_mib));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::ByteSize;

    const FILE: &str = r#"
template_id = "web"
flake_ref = "path:../image"
profile = "python"

[[variants]]
role = "worker"
vcpus = 2
mem_mib = 1024
data_disk_mib = 0

[[variants]]
name = "gate"
role = "gateway"
vcpus = 1
mem_mib = 512
data_disk_mib = 64
"#;

    #[test]
    fn a_template_file_becomes_a_recipe_with_variants() {
        let recipes = from_mvm(FILE, None).unwrap();
        let [one] = recipes.as_slice() else { panic!("{recipes:?}") };
        assert_eq!(one.recipe.name.as_str(), "web");
        assert_eq!(one.profile.as_str(), "python", "the file's, not a profile of its own");
        assert_eq!(parse(&one.text).unwrap(), one.recipe);
        let [gate, worker] = one.recipe.variants.as_slice() else { panic!() };
        assert_eq!((gate.name.as_str(), gate.data_disk), ("gate", Some(ByteSize::from_mib(64))));
        assert_eq!((worker.name.as_str(), worker.memory), ("web-worker", Some(ByteSize::from_mib(1024))));
        assert_eq!(worker.role.as_ref().unwrap().as_str(), "worker");
    }

    #[test]
    fn profiles_are_recipes_of_their_own() {
        let text = FILE.replace("role = \"worker\"", "role = \"worker\"\nprofile = \"minimal\"");
        let recipes = from_mvm(&text, None).unwrap();
        let names: Vec<&str> = recipes.iter().map(|it| it.recipe.name.as_str()).collect();
        assert_eq!(names, ["web-minimal", "web-python"]);
        assert!(recipes.iter().all(|it| it.recipe.variants.len() == 1));
    }

    #[test]
    fn what_is_absent_has_a_meaning_and_what_cannot_be_is_refused() {
        let name: TemplateName = "given".parse().unwrap();
        let least = "flake_ref = \".\"";
        let recipes = from_mvm(least, Some(&name)).unwrap();
        assert_eq!((recipes[0].recipe.name.as_str(), recipes[0].profile.as_str()), ("given", "minimal"));
        let error = |text: &str| from_mvm(text, None).unwrap_err().to_string();
        assert!(error(least).starts_with("`template_id`: `` is not a valid template name"));
        assert!(error(&FILE.replace("path:../image", ". --impure")).starts_with("`flake_ref`"));
        assert!(error(&FILE.replace("vcpus = 2", "vcpus = 200")).contains("vcpus is 200"));
        assert!(error(&FILE.replace("\"gate\"", "\"../x\"")).contains("is not a valid variant name"));
        assert!(error(&FILE.replace("role = \"worker\"", "")).contains("neither name nor role"));
        assert!(matches!(from_mvm(&" ".repeat(RECIPE_BYTES_MAX + 1), None), Err(RecipeError::TooLarge(_))));
    }
}
