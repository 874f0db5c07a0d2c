//! One line of a checksum manifest.

use super::{ChecksumError, NAME_BYTES_MAX};
use kiln_core::image::ContentDigest;
use kiln_core::text::clip;

/// What a line says of a file.
pub(super) struct Line<'a> {
    pub(super) name: &'a str,
    pub(super) found: Found,
}

pub(super) enum Found {
    Digest(ContentDigest),
    /// A digest of a known algorithm that is not computed here.
    Other(&'static str),
    Size(u64),
}

/// Known algorithms that are not computed here: how a tagged line calls them, and how many digits their digests have.
const OTHERS: [(&str, usize); 14] = [
    ("MD5", 32),
    ("SHA1", 40),
    ("RMD160", 40),
    ("RIPEMD160", 40),
    ("SHA224", 56),
    ("SHA384", 96),
    ("BLAKE2s", 64),
    ("BLAKE2b", 128),
    ("BLAKE2b-256", 64),
    ("BLAKE2b-512", 128),
    ("SHA3-256", 64),
    ("SHA3-512", 128),
    ("SHA512/256", 64),
    ("SM3", 64),
];

/// Reads a line; none when it says nothing. `only` is the name of the file that a digest without a name is of.
pub(super) fn parse<'a>(
    number: usize,
    line: &'a str,
    only: Option<&'a str>,
) -> Result<Option<Line<'a>>, ChecksumError> {
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.bytes().all(|byte| matches!(byte, b' ' | b'\t')) {
        return Ok(None);
    }
    if let Some(comment) = line.strip_prefix('#') {
        return Ok(size(comment));
    }
    if let Some(escaped) = line.strip_prefix('\\') {
        let name = escaped.split_once(' ').map_or(escaped, |(_, name)| name.trim_start());
        return Err(ChecksumError::Escaped { line: number, name: clip(name) });
    }
    let malformed = || ChecksumError::Malformed { line: number, text: clip(line) };
    let end = line.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(line.len());
    let (hex, rest) = line.split_at(end);
    let (name, found) = if let Some((word, name, hex)) = tagged(line) {
        if hex.is_empty() || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(malformed());
        }
        (name, by_word(number, word, hex)?)
    } else if hex.is_empty() {
        return Err(malformed());
    } else if rest.bytes().all(|byte| byte == b' ') {
        let found = by_length(number, hex)?;
        (only.ok_or(ChecksumError::NoName { line: number })?, found)
    } else {
        let name = rest.strip_prefix("  ").or_else(|| rest.strip_prefix(" *")).ok_or_else(malformed)?;
        (name.strip_prefix("./").unwrap_or(name), by_length(number, hex)?)
    };
    if name.len() > NAME_BYTES_MAX {
        return Err(ChecksumError::NameTooLong { line: number });
    }
    if !is_name(name) {
        return Err(malformed());
    }
    Ok(Some(Line { name, found }))
}

/// Takes a line of the tagged form apart: algorithm, name and digest.
fn tagged(line: &str) -> Option<(&str, &str, &str)> {
    let (word, rest) = line.split_once(" (")?;
    let plain =
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-/_".contains(&byte));
    // The last separator ends the name: what follows it is a digest and holds none.
    let (name, hex) = rest.rsplit_once(") = ")?;
    plain.then_some((word, name.strip_prefix("./").unwrap_or(name), hex))
}

fn by_word(number: usize, word: &str, hex: &str) -> Result<Found, ChecksumError> {
    let wrong = ChecksumError::Length { line: number, digits: hex.len() };
    match word {
        "SHA256" | "SHA512" => {
            let digits = if word == "SHA256" { 64 } else { 128 };
            let digest = ContentDigest::from_hex(hex).filter(|_| hex.len() == digits);
            digest.map(Found::Digest).ok_or(wrong)
        }
        _ => match OTHERS.iter().find(|(known, _)| *known == word) {
            Some((known, digits)) if *digits == hex.len() => Ok(Found::Other(known)),
            Some(_) => Err(wrong),
            None => Err(ChecksumError::UnknownAlgorithm { line: number, algorithm: clip(word) }),
        },
    }
}

fn by_length(number: usize, hex: &str) -> Result<Found, ChecksumError> {
    if let Some(digest) = ContentDigest::from_hex(hex) {
        return Ok(Found::Digest(digest));
    }
    let other = OTHERS.iter().find(|(_, digits)| *digits == hex.len());
    other
        .map(|(known, _)| Found::Other(known))
        .ok_or(ChecksumError::Length { line: number, digits: hex.len() })
}

/// Reads ` NAME: N bytes`; a comment that is anything else says nothing.
fn size(comment: &str) -> Option<Line<'_>> {
    let (name, count) = comment.strip_prefix(' ')?.strip_suffix(" bytes")?.rsplit_once(": ")?;
    let plain = !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit());
    let name = name.strip_prefix("./").unwrap_or(name);
    if !plain || name.len() > NAME_BYTES_MAX || !is_name(name) {
        return None;
    }
    Some(Line { name, found: Found::Size(count.parse().ok()?) })
}

/// Tells whether `name` can be a file's: not empty, nothing that a terminal obeys, no space around it.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.trim() == name && !name.chars().any(char::is_control)
}
