//! Names. Each kind is a type of its own; a text becomes one through a check that refuses, and never repairs.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The longest template, variant and machine name, in bytes.
pub const NAME_BYTES_MAX: usize = 63;
/// The longest tag, in bytes.
pub const TAG_BYTES_MAX: usize = 128;

/// Why a text is not a name of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a valid {kind}: {rule}")]
pub struct InvalidName {
    /// What the text should have named.
    pub kind: &'static str,
    /// The offending text, clipped.
    pub text: String,
    /// The rule it breaks.
    pub rule: &'static str,
}

/// `[a-z0-9]([a-z0-9._-]{0,62})`
const NAME_RULE: &str = "1 to 63 of a-z, 0-9, `.`, `_` and `-`, beginning with a letter or digit";
/// `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`
const TAG_RULE: &str = "1 to 128 of A-Z, a-z, 0-9, `.`, `_` and `-`, not beginning with `.` or `-`";
const ID_RULE: &str = "12 lower-case hexadecimal digits";
const ROLE_RULE: &str = "1 to 32 of a-z, 0-9 and `-`, beginning with a letter";

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= NAME_BYTES_MAX
        && bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
}

fn is_tag(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= TAG_BYTES_MAX
        && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn is_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_role(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= 32
        && bytes.next().is_some_and(|b| b.is_ascii_lowercase())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:ident, $check:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                if $check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidName { kind: $kind, text: crate::text::clip(text), rule: $rule })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// The name of a template: `[a-z0-9]([a-z0-9._-]{0,62})`.
    TemplateName, "template name", NAME_RULE, is_name
);
name_type!(
    /// The name of a variant of a template, same grammar as a template's.
    VariantName, "variant name", NAME_RULE, is_name
);
name_type!(
    /// The name a person gives a machine, same grammar as a template's.
    MachineName, "machine name", NAME_RULE, is_name
);
name_type!(
    /// Who a private disk outside the machines belongs to, same grammar as a machine's name.
    DiskOwner, "disk owner", NAME_RULE, is_name
);
name_type!(
    /// A movable name of a revision within a template.
    Tag, "tag", TAG_RULE, is_tag
);
name_type!(
    /// The identity of a machine: drawn at random, never reused.
    MachineId, "machine id", ID_RULE, is_id
);
name_type!(
    /// What an artifact is to its revision: `kernel`, `initrd`, `rootfs`, ….
    ArtifactRole, "artifact role", ROLE_RULE, is_role
);

impl Tag {
    /// Returns the tag meant when a reference names none.
    pub fn latest() -> Self {
        Self("latest".to_owned())
    }
}

impl ArtifactRole {
    /// The kernel that the machine monitor loads.
    pub fn kernel() -> Self {
        Self("kernel".to_owned())
    }
    /// The initramfs that holds the guest agent.
    pub fn initrd() -> Self {
        Self("initrd".to_owned())
    }
    /// The root file system, the disk that machines clone, or share where it is only read.
    pub fn rootfs() -> Self {
        Self("rootfs".to_owned())
    }
    /// The firmware that starts the boot loader of a root that is a whole disk.
    pub fn firmware() -> Self {
        Self("firmware".to_owned())
    }
    /// The blank file system that machines clone for what they write over a root that is only read.
    pub fn scratch() -> Self {
        Self("scratch".to_owned())
    }
}

impl MachineId {
    /// Makes an id from six random bytes.
    pub fn from_random(bytes: [u8; 6]) -> Self {
        Self(bytes.iter().map(|b| format!("{b:02x}")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_would_leave_a_directory_are_refused() {
        for text in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/a",
            "-a",
            ".a",
            "A",
            "a b",
            "日本",
            "a\n",
            "a\0",
            &"a".repeat(64),
        ] {
            assert!(text.parse::<TemplateName>().is_err(), "{text:?}");
            assert!(text.parse::<MachineName>().is_err(), "{text:?}");
            assert!(text.parse::<DiskOwner>().is_err(), "{text:?}");
        }
        for text in ["a", "0", "a.b", "a_b", "a-b", &"a".repeat(63)] {
            assert_eq!(text.parse::<TemplateName>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn a_tag_has_a_longest_form() {
        assert_eq!("t".repeat(TAG_BYTES_MAX).parse::<Tag>().unwrap().as_str().len(), TAG_BYTES_MAX);
        let error = "t".repeat(TAG_BYTES_MAX + 1).parse::<Tag>().unwrap_err().to_string();
        assert!(error.starts_with("`ttt") && error.contains("is not a valid tag: 1 to 128 of"), "{error}");
    }

    #[test]
    fn names_that_look_alike_stay_apart() {
        let names: Vec<TemplateName> = ["a.b", "a_b", "a-b"].iter().map(|t| t.parse().unwrap()).collect();
        assert!(names[0] != names[1] && names[1] != names[2] && names[0] != names[2]);
    }

    proptest! {
        #[test]
        fn an_accepted_name_is_one_plain_path_component(text in "\\PC{0,70}") {
            if let Ok(name) = text.parse::<TemplateName>() {
                prop_assert_eq!(name.as_str(), &text);
                let mut parts = std::path::Path::new(&text).components();
                prop_assert!(matches!(parts.next(), Some(std::path::Component::Normal(_))));
                prop_assert!(parts.next().is_none());
            }
        }
    }
}
