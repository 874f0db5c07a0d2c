//! ASCII armour.
//!
//! Blocks of one kind follow one another with nothing but white space between them. The check sum at a block's end must have its
//! form and is otherwise ignored: it guards against noise, and the signature is what is checked.

use super::error::ArmorError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The kind of block that holds signatures.
pub(super) const SIGNATURE: &str = "PGP SIGNATURE";

/// The kind of block that holds certificates.
pub(super) const PUBLIC_KEY: &str = "PGP PUBLIC KEY BLOCK";

/// The digits of a line that is written.
const LINE_DIGITS: usize = 64;

/// Returns the packets of `input`: of all its blocks, or itself when it is binary, which the first byte tells.
pub(super) fn decode(input: &[u8], kind: &'static str) -> Result<Vec<u8>, ArmorError> {
    match input.first() {
        None => return Err(ArmorError::Empty),
        Some(byte) if byte & 0x80 != 0 => return Ok(input.to_vec()),
        Some(_) => {}
    }
    let (begin, end) = (format!("-----BEGIN {kind}-----"), format!("-----END {kind}-----"));
    let mut lines = input.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end).enumerate();
    let mut packets = Vec::new();
    let mut blocks = 0_usize;
    while let Some((index, line)) = lines.next() {
        if line.is_empty() {
            continue;
        }
        if line != begin.as_bytes() {
            return Err(ArmorError::Outside { line: index + 1, kind });
        }
        // Headers (Version, Comment) say nothing that is believed; a blank line ends them.
        for (index, line) in lines.by_ref() {
            if line.is_empty() {
                break;
            }
            if !line.windows(2).any(|pair| pair == b": ") && !line.ends_with(b":") {
                return Err(ArmorError::Line { line: index + 1 });
            }
        }
        let block = block(&mut lines, end.as_bytes())?;
        packets.extend(block);
        blocks += 1;
    }
    if blocks == 0 { Err(ArmorError::Empty) } else { Ok(packets) }
}

/// Returns packets as a block, which [`decode`] reads.
pub(super) fn encode(packets: &[u8], kind: &'static str) -> String {
    let text = STANDARD.encode(packets);
    let mut armoured = format!("-----BEGIN {kind}-----\n\n");
    for (index, digit) in text.chars().enumerate() {
        armoured.push(digit);
        if index % LINE_DIGITS == LINE_DIGITS - 1 {
            armoured.push('\n');
        }
    }
    if !armoured.ends_with('\n') {
        armoured.push('\n');
    }
    armoured + &format!("-----END {kind}-----\n")
}

/// Decodes the lines of a block up to its end.
fn block<'a>(lines: &mut impl Iterator<Item = (usize, &'a [u8])>, end: &[u8]) -> Result<Vec<u8>, ArmorError> {
    let mut text = Vec::new();
    let mut summed = false;
    let mut last = 0;
    for (index, line) in lines {
        last = index + 1;
        if line == end {
            return STANDARD.decode(&text).map_err(|_| ArmorError::Base64 { line: last });
        }
        match line.strip_prefix(b"=") {
            Some(sum) if !summed && sum.len() == 4 && STANDARD.decode(sum).is_ok() => summed = true,
            Some(_) => return Err(ArmorError::Line { line: last }),
            None if summed || line.is_empty() => return Err(ArmorError::Line { line: last }),
            None => text.extend_from_slice(line),
        }
    }
    Err(ArmorError::Unfinished { line: last })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: &str = "-----BEGIN PGP SIGNATURE-----\n\niQEz\nBBAB\n=abcd\n-----END PGP SIGNATURE-----\n";

    #[test]
    fn what_is_armoured_is_decoded_to_the_same() {
        for length in [1, 2, 3, 47, 48, 49, 96, 1000] {
            let packets: Vec<u8> =
                (0..length).map(|index| u8::try_from(index % 251).unwrap() | 0x80).collect();
            let armoured = encode(&packets, PUBLIC_KEY);
            assert!(armoured.lines().all(|line| line.len() <= LINE_DIGITS), "{armoured}");
            assert_eq!(decode(armoured.as_bytes(), PUBLIC_KEY).unwrap(), packets);
        }
    }

    #[test]
    fn blocks_are_decoded_one_behind_another() {
        let one = decode(BLOCK.as_bytes(), SIGNATURE).unwrap();
        assert_eq!(one.len(), 6);
        let two =
            decode(format!("\r\n{BLOCK}\n \n{}", BLOCK.replace('\n', "\r\n")).as_bytes(), SIGNATURE).unwrap();
        assert_eq!(two, [one.clone(), one.clone()].concat());
        let headed = BLOCK.replacen("\n\n", "\nVersion: GnuPG v1\nComment: \n\n", 1);
        assert_eq!(decode(headed.as_bytes(), SIGNATURE).unwrap(), one);
        assert_eq!(decode(&[0x99, 1], SIGNATURE).unwrap(), [0x99, 1]);
    }

    #[test]
    fn what_is_no_block_is_refused() {
        for text in [
            String::new(),
            "\n \n".to_owned(),
            format!("hello\n{BLOCK}"),
            format!("{BLOCK}hello\n"),
            BLOCK.replace("SIGNATURE", "MESSAGE"),
            BLOCK.replace("iQEz", "iQE"),
            BLOCK.replace("iQEz", "i=Ez"),
            BLOCK.replace("=abcd", "=abc"),
            BLOCK.replace("=abcd", "=abcd\nAAAA"),
            BLOCK.replace("-----END PGP SIGNATURE-----\n", ""),
            BLOCK.replace("-----BEGIN PGP SIGNATURE-----\n\n", "-----BEGIN PGP SIGNATURE-----\n"),
        ] {
            assert!(decode(text.as_bytes(), SIGNATURE).is_err(), "{text}");
        }
    }
}
