//! Processor architectures a template can be built for.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A guest architecture that kiln supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Arch {
    /// 64-bit x86, `x86_64` to the kernel and `amd64` to Debian.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit Arm, `aarch64` to the kernel and `arm64` to Debian.
    #[serde(rename = "aarch64")]
    Aarch64,
}

impl Arch {
    /// Returns the architecture this program was compiled for, where kiln supports it.
    pub fn host() -> Option<Self> {
        std::env::consts::ARCH.parse().ok()
    }

    /// Returns Debian's name of the architecture.
    pub fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// Returns the kernel's name of the architecture.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An architecture kiln does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown architecture `{0}`: known are x86_64 (amd64) and aarch64 (arm64)")]
pub struct UnknownArch(pub String);

impl FromStr for Arch {
    type Err = UnknownArch;

    fn from_str(text: &str) -> Result<Self, UnknownArch> {
        match text {
            "x86_64" | "amd64" => Ok(Self::X86_64),
            "aarch64" | "arm64" => Ok(Self::Aarch64),
            other => Err(UnknownArch(text::clip(other))),
        }
    }
}

use crate::text;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_architecture_that_is_not_known_is_an_error() {
        for text in ["riscv64", "s390x", "x86_64/../arm64", "X86_64", ""] {
            assert_eq!(text.parse::<Arch>(), Err(UnknownArch(text.to_owned())), "{text}");
        }
        for arch in [Arch::X86_64, Arch::Aarch64] {
            assert_eq!((arch.as_str().parse(), arch.debian().parse()), (Ok(arch), Ok(arch)));
        }
    }
}
