//! Clear-signed text.

use super::error::ClearSignedError;

/// A clear-signed text taken apart.
pub(super) struct Parts<'a> {
    /// The signed lines, without their dashes and ends.
    lines: Vec<&'a [u8]>,
    /// The armoured signatures, to the end of the input.
    pub(super) signatures: &'a [u8],
}

impl Parts<'_> {
    /// Returns the text as it is hashed: lines end with carriage return and line feed, the last without.
    pub(super) fn canonical(&self) -> Vec<u8> {
        self.lines.join(&b"\r\n"[..])
    }

    /// Returns the text as it is used: lines end with a line feed, the last without.
    pub(super) fn body(&self) -> Vec<u8> {
        self.lines.join(&b"\n"[..])
    }
}

/// Lines with their numbers, each with all of the text from its start.
struct Lines<'a> {
    rest: &'a [u8],
    number: usize,
}

impl<'a> Iterator for Lines<'a> {
    type Item = (usize, &'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let from = self.rest;
        if from.is_empty() {
            return None;
        }
        let end = from.iter().position(|byte| *byte == b'\n');
        let (line, after) = end.map_or((from, &from[from.len()..]), |end| (&from[..end], &from[end + 1..]));
        self.rest = after;
        self.number += 1;
        Some((self.number, line, from))
    }
}

/// Takes a clear-signed text apart. Nothing but white space may stand before it; what stands behind its signed lines is
/// returned whole, for the reader of the signatures to judge.
pub(super) fn parse(text: &[u8]) -> Result<Parts<'_>, ClearSignedError> {
    let mut lines = Lines { rest: text, number: 0 };
    let mut next = || lines.next();
    loop {
        let (line, text, _) = next().ok_or(ClearSignedError::Unsigned)?;
        match text.trim_ascii() {
            [] => {}
            b"-----BEGIN PGP SIGNED MESSAGE-----" if text[0] == b'-' => break,
            _ => return Err(ClearSignedError::Before { line }),
        }
    }
    loop {
        let (line, text, _) = next().ok_or(ClearSignedError::Unfinished)?;
        let header = text.trim_ascii_end();
        if header.is_empty() {
            break;
        }
        // The only header that may stand here: any other would be text that looks signed and is not.
        let known = header.strip_prefix(b"Hash: ").is_some_and(|names| {
            names.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b',' | b' '))
        });
        if !known {
            return Err(ClearSignedError::Header { line });
        }
    }
    let mut signed = Vec::new();
    loop {
        let (line, text, from) = next().ok_or(ClearSignedError::Unfinished)?;
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        // Programs differ in what a lone carriage return or a zero byte is to them.
        if text.iter().any(|byte| matches!(byte, b'\r' | 0)) {
            return Err(ClearSignedError::Control { line });
        }
        let content = match text {
            [b'-', b' ', content @ ..] => content,
            b"-----BEGIN PGP SIGNATURE-----" => return Ok(Parts { lines: signed, signatures: from }),
            [b'-', ..] => return Err(ClearSignedError::Dash { line }),
            content => content,
        };
        let end = content.iter().rposition(|byte| !matches!(byte, b' ' | b'\t')).map_or(0, |last| last + 1);
        signed.push(&content[..end]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &str) -> Result<String, ClearSignedError> {
        parse(text.as_bytes()).map(|parts| String::from_utf8(parts.body()).unwrap())
    }

    const TEXT: &str = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\none \n- -two\n- - three\n\n-----BEGIN PGP SIGNATURE-----\n\nAAAA";

    #[test]
    fn lines_lose_their_dashes_and_the_blanks_at_their_ends() {
        assert_eq!(body(TEXT).unwrap(), "one\n-two\n- three\n");
        assert_eq!(body(&TEXT.replace('\n', "\r\n")).unwrap(), "one\n-two\n- three\n");
        assert_eq!(parse(TEXT.as_bytes()).unwrap().canonical(), b"one\r\n-two\r\n- three\r\n");
        assert_eq!(parse(TEXT.as_bytes()).unwrap().signatures, b"-----BEGIN PGP SIGNATURE-----\n\nAAAA");
        assert_eq!(body(&format!("\n \r\n{TEXT}")).unwrap(), "one\n-two\n- three\n");
    }

    #[test]
    fn nothing_unsigned_gets_in() {
        for text in [
            String::new(),
            "hello\n".to_owned(),
            format!("hello\n{TEXT}"),
            format!(" {TEXT}"),
            TEXT.replace("Hash: SHA256", "Hash: SHA256\nComment: x"),
            TEXT.replace("Hash: SHA256", "Hash: SHA256\u{b}x"),
            TEXT.replace("Hash: SHA256", "abc  file"),
            TEXT.replace("- -two", "-two"),
            TEXT.replace("- -two", "-----BEGIN PGP SIGNED MESSAGE-----"),
            TEXT.replace("one", "o\rne"),
            TEXT.replace("one", "o\0ne"),
            TEXT.replace("-----BEGIN PGP SIGNATURE-----\n\nAAAA", ""),
            TEXT.replace("\n-----BEGIN PGP SIGNATURE-----", "\n -----BEGIN PGP SIGNATURE-----"),
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
