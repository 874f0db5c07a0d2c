//! Platforms, as images name them.

use crate::arch::Arch;
use std::fmt;
use std::str::FromStr;

/// The platform an image is for: its system is `linux`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Platform {
    architecture: String,
    variant: Option<String>,
}

/// A text that is no platform kiln runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a platform: linux/ARCH or linux/ARCH/VARIANT is, such as linux/amd64")]
pub struct InvalidPlatform(String);

impl Platform {
    /// Returns the platform of a guest of this architecture.
    pub fn of(arch: Arch) -> Self {
        Self { architecture: arch.debian().to_owned(), variant: None }
    }

    /// Returns the architecture, as Go names it.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Returns the variant of the architecture.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// Returns whether a guest of this architecture runs programs of the platform: its own, or the narrower ones.
    pub fn runs_on(&self, arch: Arch) -> bool {
        match arch {
            Arch::X86_64 => matches!(self.architecture.as_str(), "amd64" | "386"),
            Arch::Aarch64 => matches!(self.architecture.as_str(), "arm64" | "arm"),
        }
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let word = |text: &str| {
            !text.is_empty()
                && text.len() <= 32
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("linux"), Some(arch), variant, None) if word(arch) && variant.is_none_or(word) => {
                Ok(Self { architecture: arch.to_owned(), variant: variant.map(str::to_owned) })
            }
            _ => Err(InvalidPlatform(crate::text::clip(text))),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}
