//! Keys of those who sign.

use std::sync::Arc;

/// The longest armoured key in a catalog, in bytes.
pub const KEY_BYTES_MAX: usize = 64 << 10;

/// How an armoured key begins.
const BEGIN: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
/// How it ends.
const END: &str = "-----END PGP PUBLIC KEY BLOCK-----";

/// Where the keys of those who sign are. That a key is one of a signature's `signers` is what counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// They are published at this address.
    Address(String),
    /// The keys themselves, armoured, at most [`KEY_BYTES_MAX`]. Shared, since all images of a distribution have them.
    Armoured(Arc<str>),
}

/// An item of `keys` as written: nothing is filled in into an armoured key.
#[derive(serde::Deserialize, serde::Serialize, Debug, Clone, PartialEq, Eq)]
#[serde(from = "String", into = "String")]
pub(super) enum Item {
    /// An address or a file below `url`.
    Place(String),
    /// An armoured key.
    Armoured(Arc<str>),
}

impl From<String> for Item {
    fn from(text: String) -> Self {
        if text.starts_with(BEGIN) { Self::Armoured(text.into()) } else { Self::Place(text) }
    }
}

impl From<Item> for String {
    fn from(item: Item) -> Self {
        match item {
            Item::Place(text) => text,
            Item::Armoured(text) => text.as_ref().to_owned(),
        }
    }
}

/// Returns why an armoured text can be no key, if so. Whether it is one is for those who read keys.
pub(super) fn wrong(text: &str) -> Option<String> {
    if text.len() > KEY_BYTES_MAX {
        return Some(format!("the armoured key has {} bytes, more than {KEY_BYTES_MAX}", text.len()));
    }
    if !text.trim_end().ends_with(END) || !text.is_ascii() {
        return Some(format!("the armoured key is ASCII and ends with `{END}`"));
    }
    None
}
