//! Why Nix gave nothing that kiln can use.

use super::output::FOUND_MAX;
use kiln_core::recipe::InvalidFlake;
use kiln_sys::ToolError;
use std::path::PathBuf;

/// Why a flake gave no revision.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NixError {
    /// A directory that is no flake.
    #[error("{} is no flake: it has no flake.nix", path.display())]
    NoFlake {
        /// The directory.
        path: PathBuf,
    },
    /// A reference that Nix or a lock gave and that is none.
    #[error("flake `{}` is not one kiln takes", kiln_core::text::clip(text))]
    Reference {
        /// The reference.
        text: String,
        /// Why.
        #[source]
        source: InvalidFlake,
    },
    /// A flake that Nix fetches and that stands for no fixed content.
    #[error("flake `{flake}` is at no revision: it has changes that are not committed")]
    NotLocked {
        /// The flake.
        flake: String,
    },
    /// Nix could not say what a reference stands for.
    #[error("flake `{flake}` cannot be looked up")]
    Lookup {
        /// The flake.
        flake: String,
        /// Nix's words.
        #[source]
        source: ToolError,
    },
    /// Nix did not build the attribute.
    #[error("`{attribute}` of flake `{flake}` was not built")]
    Build {
        /// The flake.
        flake: String,
        /// The attribute.
        attribute: String,
        /// Nix's words.
        #[source]
        source: ToolError,
    },
    /// What Nix printed is not what it should be.
    #[error("Nix answered `{command}` in a way that is not understood: {problem}")]
    Answer {
        /// The command.
        command: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The attribute stands for several packages, or none.
    #[error("the attribute stands for {count} packages, one is wanted")]
    Packages {
        /// How many.
        count: usize,
    },
    /// An output is a file where a directory is wanted.
    #[error("{} is a file, a directory with kernel and root file system is wanted", path.display())]
    OutputKind {
        /// The output.
        path: PathBuf,
    },
    /// A file of an output is a link that leads out of Nix's store.
    #[error("{} leads to {}, which is not in Nix's store", path.display(), target.display())]
    Outside {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// The output lacks something.
    #[error("{} has no {what}; it holds {}", path.display(), held(found))]
    Missing {
        /// The output.
        path: PathBuf,
        /// What is missing, and by which names it is looked for.
        what: String,
        /// What there is.
        found: Vec<String>,
    },
    /// Two files could be what there is one of.
    #[error("two files could be the {what}: {} and {}", one.display(), other.display())]
    Twice {
        /// What.
        what: &'static str,
        /// The first.
        one: PathBuf,
        /// The second.
        other: PathBuf,
    },
    /// A root file system that machines could not write to.
    #[error("{} is {format}, a file system that is only read; machines need ext4", path.display())]
    ReadOnlyRoot {
        /// The file.
        path: PathBuf,
        /// The file system.
        format: &'static str,
    },
    /// A root file system that is none.
    #[error("{} is no ext4 file system", path.display())]
    NotExt4 {
        /// The file.
        path: PathBuf,
    },
}

fn held(found: &[String]) -> String {
    match found {
        [] => "nothing".to_owned(),
        names if names.len() > FOUND_MAX => format!("{}, and more", names[..FOUND_MAX].join(", ")),
        names => names.join(", "),
    }
}

impl NixError {
    /// Returns the words of the program that failed, where one did.
    pub(crate) fn tool(&self) -> Option<&ToolError> {
        match self {
            Self::Lookup { source, .. } | Self::Build { source, .. } => Some(source),
            _ => None,
        }
    }
}
