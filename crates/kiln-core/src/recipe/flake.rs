//! Flakes of Nix, as recipes name them: a reference and an attribute, each parsed once.

use crate::arch::Arch;
use crate::text::clip;
use std::fmt;
use std::str::FromStr;

/// The longest reference of a flake, in bytes.
pub const FLAKE_BYTES_MAX: usize = 2048;
/// The longest path of an attribute, in bytes.
pub const ATTRIBUTE_BYTES_MAX: usize = 256;

/// The schemes of flakes that lie elsewhere, without the `:`.
const SCHEMES: [&str; 19] = [
    "flake",
    "git+file",
    "git+git",
    "git+http",
    "git+https",
    "git+ssh",
    "github",
    "gitlab",
    "hg+file",
    "hg+http",
    "hg+https",
    "hg+ssh",
    "http",
    "https",
    "sourcehut",
    "tarball+file",
    "tarball+http",
    "tarball+https",
    "file",
];

/// Why a text names no flake or no attribute of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidFlake {
    /// Nothing, or nothing behind the scheme.
    #[error("a flake is wanted, such as `.`, `path:../image` or `github:owner/repository`")]
    Empty,
    /// Longer than [`FLAKE_BYTES_MAX`] or [`ATTRIBUTE_BYTES_MAX`].
    #[error("{bytes} bytes, more than {max}")]
    TooLong {
        /// The bytes there are.
        bytes: usize,
        /// The bytes there may be.
        max: usize,
    },
    /// Text that a program would take for an option.
    #[error("`{0}` begins with `-`")]
    Option(String),
    /// A reference with an attribute in it.
    #[error("`{0}` holds a `#`: the attribute has a key of its own, `attribute`")]
    Attribute(String),
    /// A character that has no place in it: white space, quotes, control characters, and what shells take apart.
    #[error("`{text}` holds {character:?}")]
    Character {
        /// The text, clipped.
        text: String,
        /// The first such character.
        character: char,
    },
    /// A reference that is neither a path nor of a known scheme.
    #[error(
        "`{0}` is no flake: a path begins with `path:`, `.` or `/`, others with a scheme such as `github:` or `git+https:`"
    )]
    Scheme(String),
    /// A path with parameters.
    #[error("`{0}` is a path, and a path takes no parameters")]
    Parameters(String),
    /// Not an attribute's path.
    #[error("`{0}` is no attribute: names of letters, digits, `_` and `-`, with `.` between them")]
    NotAttribute(String),
}

/// A flake: a directory of the host, or one that Nix fetches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FlakeRef {
    text: String,
    /// Where the path begins, in a reference that is one.
    path_at: Option<usize>,
}

impl FlakeRef {
    /// Returns the reference as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the path of a flake on this host, relative to the recipe where it is not absolute; none for a flake that
    /// Nix fetches.
    pub fn path(&self) -> Option<&std::path::Path> {
        Some(std::path::Path::new(self.text.get(self.path_at?..)?))
    }
}

impl FromStr for FlakeRef {
    type Err = InvalidFlake;

    fn from_str(text: &str) -> Result<Self, InvalidFlake> {
        check_text(text, FLAKE_BYTES_MAX)?;
        let shown = || clip(text);
        if text.contains('#') {
            return Err(InvalidFlake::Attribute(shown()));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._~:/?@!&+,;=%".contains(c);
        if let Some(character) = text.chars().find(|c| !plain(*c)) {
            return Err(InvalidFlake::Character { text: shown(), character });
        }
        let path_at = if text.starts_with(['.', '/']) {
            Some(0)
        } else {
            text.starts_with("path:").then_some("path:".len())
        };
        match path_at.map(|at| &text[at..]) {
            Some("") => Err(InvalidFlake::Empty),
            Some(path) if path.contains('?') => Err(InvalidFlake::Parameters(shown())),
            Some(_) => Ok(Self { text: text.to_owned(), path_at }),
            None => match text.split_once(':') {
                Some((scheme, rest)) if SCHEMES.contains(&scheme) && !rest.is_empty() => {
                    Ok(Self { text: text.to_owned(), path_at })
                }
                _ => Err(InvalidFlake::Scheme(shown())),
            },
        }
    }
}

impl fmt::Display for FlakeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// An attribute of a flake: one name of a package, or a path of names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FlakeAttribute(String);

impl FlakeAttribute {
    /// Returns the attribute that stands where a recipe names none: the tenant image of a profile, else the default package.
    pub fn of_profile(profile: Option<&str>) -> Result<Self, InvalidFlake> {
        match profile {
            // The layout this comes from calls a build without a profile by this name.
            None => Ok(Self("default".to_owned())),
            Some(profile) if profile.contains('.') => Err(InvalidFlake::NotAttribute(clip(profile))),
            Some(profile) => format!("tenant-{profile}").parse(),
        }
    }

    /// Returns the whole path for a system of Nix: one name is a package of that system.
    pub fn resolve(&self, system: &str) -> String {
        if self.0.contains('.') { self.0.clone() } else { format!("packages.{system}.{}", self.0) }
    }

    /// Returns the attribute as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FlakeAttribute {
    type Err = InvalidFlake;

    fn from_str(text: &str) -> Result<Self, InvalidFlake> {
        check_text(text, ATTRIBUTE_BYTES_MAX)?;
        let name = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
        };
        if text.split('.').all(name) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidFlake::NotAttribute(clip(text)))
        }
    }
}

impl fmt::Display for FlakeAttribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns Nix's name of what an architecture's guests run on.
pub fn nix_system(arch: Arch) -> String {
    format!("{}-linux", arch.as_str())
}

/// Checks what holds of all that becomes an argument of a program.
fn check_text(text: &str, max: usize) -> Result<(), InvalidFlake> {
    match text {
        "" => Err(InvalidFlake::Empty),
        _ if text.len() > max => Err(InvalidFlake::TooLong { bytes: text.len(), max }),
        _ if text.starts_with('-') => Err(InvalidFlake::Option(clip(text))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn path(text: &str) -> Option<String> {
        text.parse::<FlakeRef>().unwrap().path().map(|path| path.display().to_string())
    }

    #[test]
    fn flakes_are_paths_or_fetched() {
        for (text, want) in
            [(".", "."), ("./a", "./a"), ("../a", "../a"), ("/a/b", "/a/b"), ("path:a", "a"), ("path:.", ".")]
        {
            assert_eq!(path(text).as_deref(), Some(want), "{text}");
        }
        for text in [
            "github:NixOS/nixpkgs/nixos-24.05",
            "git+https://example.org/a.git?ref=main&dir=x",
            "git+file:///srv/a?rev=58c18918f9afcfbad107fcc7033d589cba006f0e",
            "https://example.org/a.tar.gz?narHash=sha256-0Gglm+8y%2fPOkZmIcjJAieQBUD2a%2f5fKNs9FwD9AjqlI=",
            "flake:nixpkgs",
            "git+ssh://git@example.org/~me/a",
        ] {
            assert_eq!(path(text), None, "{text}");
        }
    }

    #[test]
    fn what_could_be_an_option_a_list_or_a_script_is_no_flake() {
        let refused = |text: &str| text.parse::<FlakeRef>().unwrap_err().to_string();
        for text in [
            ". --impure",
            "a b",
            "path:a'b",
            "path:\"x\"",
            "path:a\nb",
            "path:a\\b",
            "path:*",
            "path:$x",
            "./日本",
        ] {
            assert!(refused(text).contains(" holds "), "{text}: {}", refused(text));
        }
        assert_eq!(refused("--impure"), "`--impure` begins with `-`");
        assert_eq!(refused(".#x"), "`.#x` holds a `#`: the attribute has a key of its own, `attribute`");
        for text in ["", "path:"] {
            assert_eq!(refused(text), InvalidFlake::Empty.to_string(), "{text:?}");
        }
        for text in ["nixpkgs", "github:", "ssh://x/y", "~/x", "C:x"] {
            assert!(refused(text).contains("is no flake"), "{text}: {}", refused(text));
        }
        assert!(refused("./x?dir=y").contains("takes no parameters"));
    }

    #[test]
    fn a_reference_and_an_attribute_have_a_longest_length() {
        let flake = |bytes: usize| format!("./{}", "a".repeat(bytes - 2)).parse::<FlakeRef>();
        assert!(flake(FLAKE_BYTES_MAX).is_ok());
        assert_eq!(flake(FLAKE_BYTES_MAX + 1).unwrap_err().to_string(), "2049 bytes, more than 2048");
        let attribute = |bytes: usize| "a".repeat(bytes).parse::<FlakeAttribute>();
        assert!(attribute(ATTRIBUTE_BYTES_MAX).is_ok());
        assert_eq!(attribute(ATTRIBUTE_BYTES_MAX + 1).unwrap_err().to_string(), "257 bytes, more than 256");
        assert_eq!(Path::new("."), ".".parse::<FlakeRef>().unwrap().path().unwrap());
    }

    #[test]
    fn attributes_are_packages_of_the_system_or_whole_paths() {
        let resolve = |text: &str| text.parse::<FlakeAttribute>().unwrap().resolve("x86_64-linux");
        assert_eq!(resolve("image"), "packages.x86_64-linux.image");
        assert_eq!(resolve("legacyPackages.x86_64-linux.a-b"), "legacyPackages.x86_64-linux.a-b");
        for text in ["", "-a", "a..b", ".a", "a.", "a b", "a^out", "a.\"b\"", "a.-b", "a/b"] {
            assert!(text.parse::<FlakeAttribute>().is_err(), "{text}");
        }
        let of = |profile| FlakeAttribute::of_profile(profile).map(|attribute| attribute.to_string());
        assert_eq!(of(None).unwrap(), "default");
        assert_eq!(of(Some("minimal")).unwrap(), "tenant-minimal");
        assert!(of(Some("a.b")).is_err(), "it would be a path");
    }
}
