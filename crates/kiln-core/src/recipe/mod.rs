//! Recipes: what `kiln.toml` says, checked. `docs/formats/recipe.md` describes the file.
//!
//! [`parse`] takes the file's text; paths in a recipe stay as written, the caller knows which folder they are relative to.

mod flake;
mod mvm;
mod source;
mod wire;

pub use flake::{ATTRIBUTE_BYTES_MAX, FLAKE_BYTES_MAX, FlakeAttribute, FlakeRef, InvalidFlake, nix_system};
pub use mvm::{MvmRecipe, from_mvm};
pub use source::{
    BackingFiles, BuildStep, CatalogSource, DebianSource, DiskBoot, DiskFormat, DiskSource, DockerfileSource,
    KernelSource, NixSource, OciSource, PathSource, Source, TemplateSource,
};

use crate::capture::CapturePlan;
use crate::name::{TemplateName, VariantName};
use crate::ready::ReadyProbe;
use crate::size::ByteSize;
use crate::ssh::LoginName;
use crate::variant::{MachineShape, Variant};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The name of the file that holds a recipe.
pub const FILE_NAME: &str = "kiln.toml";
/// The largest recipe that is read, in bytes.
pub const RECIPE_BYTES_MAX: usize = 1 << 20;
/// The most entries a list of packages, components or modules may have.
pub const PACKAGES_MAX: usize = 4096;
/// The most steps of a recipe.
pub const STEPS_MAX: usize = 256;
/// The most bytes of a step's command, each word with a zero byte after it.
pub const STEP_COMMAND_BYTES_MAX: usize = crate::capture::WARM_UP_COMMAND_BYTES_MAX;
/// The most bytes of kernel arguments, each with the space that ends it: the kernel reads 2,048 in all.
pub const BOOT_ARGS_BYTES_MAX: usize = crate::variant::BOOT_ARGS_BYTES_MAX;

/// A checked recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The template's name.
    pub name: TemplateName,
    /// Where the content comes from.
    pub source: Source,
    /// The shape of a machine where no variant says otherwise.
    pub machine: MachineShape,
    /// The least size of the root disk; none means content and slack.
    pub disk_size_min: Option<ByteSize>,
    /// The build profile, a label handed to sources that know profiles.
    pub profile: Option<VariantName>,
    /// Kernel arguments added to those kiln needs.
    pub boot_args: Vec<String>,
    /// When a machine is ready; none means when its agent answers.
    pub ready: Option<ReadyProbe>,
    /// How snapshots are made of it.
    pub snapshot: SnapshotOptions,
    /// What machines tell the guest's cloud-init.
    pub seed: SeedOptions,
    /// How the guest starts.
    pub agent: AgentOptions,
    /// The variants, sorted by name.
    pub variants: Vec<Variant>,
}

/// How snapshots of a template are made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotOptions {
    /// Whether each build makes one. Not part of the revision.
    pub auto: bool,
    /// What happens before a capture. Part of the revision, where it says something.
    pub plan: CapturePlan,
}

impl SnapshotOptions {
    /// Returns the plan as a revision has it: none that says nothing.
    pub fn of_revision(&self) -> Option<&CapturePlan> {
        Some(&self.plan).filter(|plan| !plan.is_empty())
    }
}

/// Whether machines have a disk with a seed for the guest's cloud-init.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SeedOptions {
    /// Where the root file system has cloud-init, or where the template has one that this one is made of.
    #[default]
    Auto,
    /// None.
    Never,
    /// In the form of `NoCloud`.
    NoCloud {
        /// The file of the user data.
        user_data: Option<PathBuf>,
        /// Who logs in by SSH.
        user: Option<LoginName>,
    },
}

/// How the guest starts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AgentOptions {
    /// Which program is process 1.
    pub init: Init,
    /// The command started as the machine's purpose.
    pub entrypoint: Option<Entrypoint>,
    /// Modules loaded besides those kiln needs.
    pub modules: Vec<String>,
    /// What the root file system is.
    pub root: RootFormat,
}

/// What the root file system of a template is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RootFormat {
    /// ext4, of which every machine has a private clone.
    #[default]
    Ext4,
    /// EROFS, which all machines read; each has a scratch disk for what it writes.
    Erofs,
    /// SquashFS, likewise.
    Squashfs,
}

impl RootFormat {
    /// Returns the word used in recipes, which is the kernel's too.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Erofs => "erofs",
            Self::Squashfs => "squashfs",
        }
    }
}

/// Which program is process 1 of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Init {
    /// The image's init where it has one, else the agent.
    #[default]
    Auto,
    /// The agent.
    Agent,
    /// The image's, at this path.
    Image(String),
}

/// A command that the guest starts as its purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entrypoint {
    /// Program and arguments; empty where those of the source's image are meant.
    pub command: Vec<String>,
    /// Its environment, besides the usual.
    pub env: BTreeMap<String, String>,
    /// Its working directory.
    pub workdir: Option<String>,
    /// Who runs it.
    pub user: Option<String>,
}

/// Why a text is not a recipe.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// Larger than [`RECIPE_BYTES_MAX`].
    #[error("recipe has {0} bytes, more than {RECIPE_BYTES_MAX}")]
    TooLarge(usize),
    /// Not TOML, or a value of the wrong kind.
    #[error("line {line}, column {column}: {message}")]
    Syntax {
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// The parser's words.
        message: String,
    },
    /// A key that means nothing.
    #[error("line {line}: unknown key `{key}`{}", suggest(suggestion.as_deref(), known))]
    UnknownKey {
        /// The line, from 1.
        line: usize,
        /// The key as written.
        key: String,
        /// The known key nearest to it.
        suggestion: Option<String>,
        /// The keys that mean something there.
        known: Vec<String>,
    },
    /// A value that cannot be.
    #[error("`{field}`: {reason}")]
    Value {
        /// The dotted path of the value.
        field: String,
        /// Why it cannot be.
        reason: String,
    },
}

fn suggest(suggestion: Option<&str>, known: &[String]) -> String {
    match suggestion {
        Some(key) => format!(", did you mean `{key}`?"),
        None => format!(", known here are {}", known.join(", ")),
    }
}

/// Parses and checks the text of a recipe.
pub fn parse(text: &str) -> Result<Recipe, RecipeError> {
    if text.len() > RECIPE_BYTES_MAX {
        return Err(RecipeError::TooLarge(text.len()));
    }
    let file: wire::RecipeFile = toml::from_str(text).map_err(|error| explain(text, &error))?;
    file.try_into()
}

/// Returns the JSON Schema of the recipe.
pub fn json_schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(wire::RecipeFile).to_value();
    if let Some(object) = schema.as_object_mut() {
        object.insert("title".to_owned(), "kiln.toml".into());
    }
    schema
}

/// Turns the parser's error into ours: a place in the text, and for unknown keys the nearest known one.
fn explain(text: &str, error: &toml::de::Error) -> RecipeError {
    let start = error.span().map_or(0, |span| span.start).min(text.len());
    let before = text.get(..start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    let message = error.message().to_owned();
    let mut quoted = message.split('`').skip(1).step_by(2).map(str::to_owned);
    if message.starts_with("unknown field") {
        let key = quoted.next().unwrap_or_default();
        let known: Vec<String> = quoted.collect();
        let line = find_key(text, line, &key);
        let suggestion = crate::text::nearest(&key, known.iter().map(String::as_str)).map(str::to_owned);
        return RecipeError::UnknownKey { line, key: crate::text::clip(&key), suggestion, known };
    }
    RecipeError::Syntax { line, column, message }
}

/// Returns the line of `key`: the parser names only the table that holds it where tables are tagged.
fn find_key(text: &str, from_line: usize, key: &str) -> usize {
    let names_key = |line: &str| {
        let line = line.trim_start().trim_start_matches(['[', '"', '\'']);
        line.strip_prefix(key).is_some_and(|rest| {
            rest.trim_start_matches(['"', '\'']).trim_start().starts_with(['=', '.', ']'])
        })
    };
    text.lines()
        .enumerate()
        .skip(from_line - 1)
        .find(|(_, line)| names_key(line))
        .map_or(from_line, |(index, _)| index + 1)
}

#[cfg(test)]
mod tests;
