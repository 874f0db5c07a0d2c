//! References: how people name a revision, `name[/variant][:tag][@sha256:…]`, or a bare digest or its first digits.

use crate::digest::Digest;
use crate::name::{InvalidName, Tag, TemplateName, VariantName};
use std::fmt;
use std::str::FromStr;

/// The longest reference, in bytes.
pub const REFERENCE_BYTES_MAX: usize = 512;
/// The fewest hexadecimal digits that stand for a digest.
pub const DIGEST_PREFIX_CHARS_MIN: usize = 6;

/// A parsed reference to a revision and perhaps to one of its variants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Which revision.
    pub revision: RevisionSelector,
    /// Which variant of it; none means the template's own shape.
    pub variant: Option<VariantName>,
}

/// How a reference picks its revision.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RevisionSelector {
    /// By template and tag, and when a digest is given the tag is only a comment.
    Tagged {
        /// The template.
        template: TemplateName,
        /// The tag, `latest` where none was written.
        tag: Tag,
        /// The digest that pins the revision.
        digest: Option<Digest>,
    },
    /// By the whole digest.
    Digest(Digest),
    /// By the first digits of a digest, at least [`DIGEST_PREFIX_CHARS_MIN`], after `sha256:`.
    DigestPrefix(String),
}

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidReference {
    /// Longer than [`REFERENCE_BYTES_MAX`].
    #[error("reference `{0}` is longer than {REFERENCE_BYTES_MAX} bytes")]
    TooLong(String),
    /// A part is not a name.
    #[error("reference `{text}` has a bad part")]
    Part {
        /// The reference.
        text: String,
        /// What is wrong with the part.
        #[source]
        source: InvalidName,
    },
    /// The part after `@` or `sha256:` is no digest.
    #[error(
        "reference `{0}` has a bad digest: `sha256:` and 64 lower-case hexadecimal digits are wanted (or, without a name, at least {DIGEST_PREFIX_CHARS_MIN} of them)"
    )]
    Digest(String),
}

impl Reference {
    /// Refers to a revision by its digest.
    pub fn of_digest(id: Digest) -> Self {
        Self { revision: RevisionSelector::Digest(id), variant: None }
    }

    /// Returns the template the reference names, where it names one.
    pub fn template(&self) -> Option<&TemplateName> {
        match &self.revision {
            RevisionSelector::Tagged { template, .. } => Some(template),
            _ => None,
        }
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let shown = || crate::text::clip(text);
        if text.len() > REFERENCE_BYTES_MAX {
            return Err(InvalidReference::TooLong(shown()));
        }
        let part = |source| InvalidReference::Part { text: shown(), source };
        if let Some(hex) = text.strip_prefix("sha256:") {
            let hex_digits = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            return match hex.len() {
                64 => Digest::from_hex(hex)
                    .map(|digest| Self { revision: RevisionSelector::Digest(digest), variant: None })
                    .map_err(|_| InvalidReference::Digest(shown())),
                DIGEST_PREFIX_CHARS_MIN..64 if hex_digits => {
                    Ok(Self { revision: RevisionSelector::DigestPrefix(hex.to_owned()), variant: None })
                }
                _ => Err(InvalidReference::Digest(shown())),
            };
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(digest.parse::<Digest>().map_err(|_| InvalidReference::Digest(shown()))?))
            }
            None => (text, None),
        };
        let (rest, tag) = match rest.split_once(':') {
            Some((rest, tag)) => (rest, tag.parse::<Tag>().map_err(part)?),
            None => (rest, Tag::latest()),
        };
        let (template, variant) = match rest.split_once('/') {
            Some((template, variant)) => (template, Some(variant.parse::<VariantName>().map_err(part)?)),
            None => (rest, None),
        };
        let template = template.parse::<TemplateName>().map_err(part)?;
        Ok(Self { revision: RevisionSelector::Tagged { template, tag, digest }, variant })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            RevisionSelector::Tagged { template, tag, digest } => {
                write!(f, "{template}")?;
                if let Some(variant) = &self.variant {
                    write!(f, "/{variant}")?;
                }
                write!(f, ":{tag}")?;
                match digest {
                    Some(digest) => write!(f, "@{digest}"),
                    None => Ok(()),
                }
            }
            RevisionSelector::Digest(digest) => write!(f, "{digest}"),
            RevisionSelector::DigestPrefix(hex) => write!(f, "sha256:{hex}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_prints_back() {
        let digest = Digest::of(b"x");
        for text in [
            "web:latest".to_owned(),
            "web/big:v1.2".to_owned(),
            format!("web:v1@{digest}"),
            digest.to_string(),
            "sha256:abcdef".to_owned(),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
        }
        assert_eq!("web".parse::<Reference>().unwrap().to_string(), "web:latest");
    }

    #[test]
    fn bad_forms_are_refused() {
        for text in
            ["", "Web", "../web", "web:", "web/", "web/:x", "web@", "web@sha256:12", "sha256:12", "a:b:c"]
        {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_reference_has_a_longest_form() {
        let longest = format!("{0}/{0}:{1}@{2}", "a".repeat(63), "t".repeat(128), Digest::of(b"x"))
            .parse::<Reference>();
        assert!(longest.is_ok(), "every whole reference fits");
        let other = "a".repeat(REFERENCE_BYTES_MAX).parse::<Reference>().unwrap_err();
        assert!(matches!(other, InvalidReference::Part { .. }), "{other}");
        let error = "a".repeat(REFERENCE_BYTES_MAX + 1).parse::<Reference>().unwrap_err().to_string();
        assert!(
            error.starts_with("reference `aaa") && error.ends_with("is longer than 512 bytes"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_prints_back(text in "[a-z0-9:@/._-]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
