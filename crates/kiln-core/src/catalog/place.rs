//! Where catalogs that were added are from, what they are called, and addresses of local files.

use super::{URL_BYTES_MAX, is_word};
use crate::text::clip;
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What addresses of local files begin with.
const FILE: &str = "file://";
/// What stands for the catalog that comes with kiln, and names no other.
pub const BUILT_IN_NAME: &str = "built-in";

/// The name of a catalog that was added: a word, as names of distributions are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CatalogName(String);

/// A text that names no added catalog.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` names no catalog: 1 to {max} of a-z, 0-9, `.`, `_` and `-` are wanted, beginning with a letter or digit, and not `{BUILT_IN_NAME}`",
    max = super::WORD_BYTES_MAX
)]
pub struct InvalidCatalogName(String);

/// Where a catalog is from. A relative `url` in it counts from the directory of that place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CatalogPlace {
    /// An address of the web: http or https, without a name, a password or a query.
    Web(String),
    /// A file of this host. Only such a catalog may send to other local files.
    File(PathBuf),
}

/// A text that is no place of a catalog.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no place of a catalog: a file, or the `http://` or `https://` address of one, of at most {URL_BYTES_MAX} visible ASCII characters, without `@`, `?` and `#`"
)]
pub struct InvalidCatalogPlace(String);

impl CatalogName {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CatalogName {
    type Err = InvalidCatalogName;

    fn from_str(text: &str) -> Result<Self, InvalidCatalogName> {
        if !is_word(text) || text == BUILT_IN_NAME {
            return Err(InvalidCatalogName(clip(text)));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for CatalogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl CatalogPlace {
    /// Returns whether what comes from there is somebody else's.
    pub fn is_web(&self) -> bool {
        matches!(self, Self::Web(_))
    }

    /// Returns the address: of a file, `file://` and its path.
    pub fn address(&self) -> String {
        match self {
            Self::Web(address) => address.clone(),
            Self::File(path) => local_address(path),
        }
    }

    /// Returns what the catalog is called where nobody names it: its file without the ending, in lower case.
    pub fn default_name(&self) -> Result<CatalogName, InvalidCatalogName> {
        let address = self.address();
        let file = address.rsplit('/').next().unwrap_or_default();
        file.rsplit_once('.').map_or(file, |(stem, _)| stem).to_ascii_lowercase().parse()
    }

    /// Returns the address of the directory it is in, with a slash at its end.
    pub(super) fn directory(&self) -> String {
        let address = self.address();
        let end = address.rfind('/').map_or(0, |slash| slash + 1);
        address[..end].to_owned()
    }
}

impl FromStr for CatalogPlace {
    type Err = InvalidCatalogPlace;

    /// What is no address is the path of a file, which may be relative.
    fn from_str(text: &str) -> Result<Self, InvalidCatalogPlace> {
        let invalid = || InvalidCatalogPlace(clip(text));
        if let Some(rest) = ["https://", "http://"].iter().find_map(|scheme| text.strip_prefix(scheme)) {
            let plain = text.len() <= URL_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
            // The address is shown, kept, and what lies beside it is named by it.
            let whole = rest.split_once('/').is_some_and(|(host, path)| !host.is_empty() && !path.is_empty());
            if !plain || !whole || text.ends_with('/') || text.contains(['@', '?', '#', '\\']) {
                return Err(invalid());
            }
            return Ok(Self::Web(text.to_owned()));
        }
        if text.starts_with(FILE) {
            return local_path(text).map(Self::File).ok_or_else(invalid);
        }
        if text.is_empty() || text.contains("://") { Err(invalid()) } else { Ok(Self::File(text.into())) }
    }
}

/// Returns the address of a local file: `file://` and its path, in which everything but visible ASCII is written as `%`
/// and two digits.
pub fn local_address(path: &Path) -> String {
    let mut address = FILE.to_owned();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'%' | b'?' | b'#' | b'\\' | b'{' | b'}' => address.push_str(&format!("%{byte:02X}")),
            byte if byte.is_ascii_graphic() => address.push(char::from(*byte)),
            byte => address.push_str(&format!("%{byte:02X}")),
        }
    }
    address
}

/// Returns the path that [`local_address`] was made of; none of another address, of one with a host, and of one that
/// leads upwards or hides a slash.
pub fn local_path(address: &str) -> Option<PathBuf> {
    let path = address.strip_prefix(FILE).filter(|path| path.starts_with('/'))?;
    let mut bytes = Vec::new();
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                let digits = std::str::from_utf8(&digits).ok().filter(|text| text.is_ascii())?;
                u8::from_str_radix(digits, 16).ok().filter(|byte| ![0, b'/'].contains(byte))?
            }
            b'?' | b'#' | 0 => return None,
            byte => byte,
        });
    }
    let upwards = bytes.split(|byte| *byte == b'/').any(|part| [&b"."[..], b".."].contains(&part));
    (!upwards).then(|| PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_files_or_plain_addresses_of_the_web() {
        let place = |text: &str| text.parse::<CatalogPlace>();
        let web = place("https://e.example/kiln/Site.toml").unwrap();
        assert!(web.is_web());
        assert_eq!(web.directory(), "https://e.example/kiln/");
        assert_eq!(web.default_name().unwrap().as_str(), "site");
        let file = place("file:///srv/a%20b/c.toml").unwrap();
        assert_eq!(file, place("/srv/a b/c.toml").unwrap());
        assert_eq!(file.address(), "file:///srv/a%20b/c.toml");
        assert_eq!(place("rel/c.toml"), Ok(CatalogPlace::File("rel/c.toml".into())));
        let long = format!("https://e/{}", "a".repeat(URL_BYTES_MAX));
        for text in [
            "",
            "https://e",
            "https://e/",
            "https:///a",
            "https://me:x@e/a",
            "https://e/a?b",
            "https://e/a#b",
            "https://e/a b",
            "ftp://e/a",
            "file://host/a",
            "file:///a%0",
            "file:///a%00",
            "file:///a?b",
            "file:///a/../b",
            "file:///a/%2e%2E/b",
            "file:///a%2fb",
            &long,
        ] {
            assert!(place(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_local_path_is_its_address_and_back() {
        for path in ["/", "/srv/x", "/a b/{c}/d%20?#\\", "/\u{e4}/\u{1}"] {
            let address = local_address(Path::new(path));
            assert!(address.bytes().all(|byte| byte.is_ascii_graphic()), "{address}");
            assert_eq!(local_path(&address).as_deref(), Some(Path::new(path)));
        }
    }

    #[test]
    fn names_of_catalogs_are_words() {
        assert_eq!("site-1".parse::<CatalogName>().unwrap().to_string(), "site-1");
        for text in ["", "Site", ".site", "a/b", "built-in", &"a".repeat(64)] {
            assert!(text.parse::<CatalogName>().is_err(), "{text}");
        }
    }
}
