//! Seeds: what a guest's cloud-init reads at its first start, from a small disk beside the others.

use crate::ssh::LoginName;
use crate::text::clip;
use serde::{Deserialize, Serialize};

/// The most bytes of user data.
pub const USER_DATA_BYTES_MAX: usize = 64 << 10;

/// How user data begins that cloud-init takes: whatever else it gets, it only warns of in a log of the guest.
/// Source: cloud-init's documentation, "User-data formats".
const USER_DATA_BEGINS: [&str; 9] = [
    "#cloud-config",
    "#!",
    "#include",
    "#cloud-boothook",
    "#part-handler",
    "## template: jinja",
    "Content-Type:",
    "MIME-Version:",
    "From nobody ",
];

/// What machines of a template tell their guest's cloud-init. Part of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seed {
    /// The form it comes in.
    #[serde(rename = "type")]
    pub kind: SeedKind,
    /// What cloud-init is to do, in one of its own formats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// Who logs in with the machine's SSH keys, where not the superuser.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<LoginName>,
}

/// The form of a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SeedKind {
    /// A file system labelled `cidata`, as cloud-init's data source `NoCloud` wants it.
    NoCloud,
}

/// Why a text is no user data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSeed {
    /// More than [`USER_DATA_BYTES_MAX`].
    #[error("user data has {0} bytes, more than {USER_DATA_BYTES_MAX}")]
    TooLong(usize),
    /// In none of the formats that cloud-init knows.
    #[error("user data begins with `{0}`; cloud-init takes {list}", list = USER_DATA_BEGINS.map(|it| format!("`{}`", it.trim_end())).join(", "))]
    Format(String),
}

impl SeedKind {
    /// Returns the word used in recipes and manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoCloud => "nocloud",
        }
    }
}

impl Seed {
    /// Returns a seed that tells who a machine is and nothing else.
    pub fn identity() -> Self {
        Self { kind: SeedKind::NoCloud, user_data: None, user: None }
    }

    /// Checks the user data's length and how it begins.
    ///
    /// # Errors
    /// When cloud-init would not take it.
    pub fn check(&self) -> Result<(), InvalidSeed> {
        let Some(text) = &self.user_data else { return Ok(()) };
        if text.len() > USER_DATA_BYTES_MAX {
            return Err(InvalidSeed::TooLong(text.len()));
        }
        if !USER_DATA_BEGINS.iter().any(|begin| text.starts_with(begin)) {
            return Err(InvalidSeed::Format(clip(text.lines().next().unwrap_or_default())));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> Seed {
        Seed { user_data: Some(text.to_owned()), ..Seed::identity() }
    }

    #[test]
    fn what_cloud_init_would_not_take_is_refused() {
        for text in ["#cloud-config\n{}\n", "#!/bin/sh\ntrue\n", "Content-Type: multipart/mixed\n\n"] {
            with(text).check().unwrap();
        }
        Seed::identity().check().unwrap();
        let refused = with("packages: [nginx]\n").check().unwrap_err().to_string();
        assert!(refused.starts_with(
            "user data begins with `packages: [nginx]`; cloud-init takes `#cloud-config`, `#!`"
        ));
        assert!(with("").check().is_err());
    }

    #[test]
    fn user_data_is_limited() {
        let of = |bytes: usize| with(&format!("#!{}", "x".repeat(bytes - 2))).check();
        of(USER_DATA_BYTES_MAX).unwrap();
        assert_eq!(of(USER_DATA_BYTES_MAX + 1), Err(InvalidSeed::TooLong(65537)));
    }

    #[test]
    fn each_form_has_pinned_bytes() {
        for (seed, text) in [
            (Seed::identity(), r#"{"type":"nocloud"}"#),
            (
                Seed { user: Some(LoginName::root()), ..Seed::identity() },
                r#"{"type":"nocloud","user":"root"}"#,
            ),
            (with("#!/bin/sh\n"), r##"{"type":"nocloud","user_data":"#!/bin/sh\n"}"##),
        ] {
            assert_eq!(serde_json::to_string(&seed).unwrap(), text);
            assert_eq!(serde_json::from_str::<Seed>(text).unwrap(), seed);
        }
    }
}
