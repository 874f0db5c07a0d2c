//! The little of ELF that tells a kernel from other programs.

use super::first_word;

const MACHINE_X86_64: u16 = 62;
const PROGRAM_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: where a machine monitor enters the kernel.
const NOTE_PVH_ENTRY: u32 = 18;
/// The most program headers looked at.
const PROGRAMS_MAX: u16 = 256;
/// What stands before the release in a kernel's data.
const BANNER: &[u8] = b"Linux version ";

/// Checks that the bytes are a kernel with a PVH entry.
pub(super) fn check(bytes: &[u8]) -> Result<(), &'static str> {
    const SHORT: &str = "it is shorter than its headers say";
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return Err("not a 64-bit one in little-endian order");
    }
    if u16_at(bytes, 18).ok_or(SHORT)? != MACHINE_X86_64 {
        return Err("not for x86-64");
    }
    let table = u64_at(bytes, 32).ok_or(SHORT)?;
    let (entry_size, count) = (u16_at(bytes, 54).ok_or(SHORT)?, u16_at(bytes, 56).ok_or(SHORT)?);
    if count == 0 || count > PROGRAMS_MAX || entry_size < 56 {
        return Err("it has no segments to load");
    }
    let mut found = false;
    for index in 0..usize::from(count) {
        let at = table.checked_add(index * usize::from(entry_size)).ok_or(SHORT)?;
        let kind = u32_at(bytes, at).ok_or(SHORT)?;
        let (offset, len) = (u64_at(bytes, at + 8).ok_or(SHORT)?, u64_at(bytes, at + 32).ok_or(SHORT)?);
        let segment = bytes.get(offset..offset.checked_add(len).ok_or(SHORT)?).ok_or(SHORT)?;
        found |= kind == PROGRAM_NOTE && has_pvh_entry(segment);
    }
    if found { Ok(()) } else { Err("it has no PVH note (a kernel with CONFIG_PVH has one)") }
}

fn has_pvh_entry(mut notes: &[u8]) -> bool {
    while let (Some(name_len), Some(data_len), Some(kind)) =
        (u32_at(notes, 0), u32_at(notes, 4), u32_at(notes, 8))
    {
        let (Ok(name_len), Ok(data_len)) = (usize::try_from(name_len), usize::try_from(data_len)) else {
            return false;
        };
        let name = notes.get(12..12_usize.saturating_add(name_len));
        if kind == NOTE_PVH_ENTRY && name == Some(b"Xen\0") {
            return true;
        }
        let aligned = |len: usize| len.saturating_add(3) / 4 * 4;
        let next = 12_usize.saturating_add(aligned(name_len)).saturating_add(aligned(data_len));
        match notes.get(next..) {
            Some(rest) => notes = rest,
            None => return false,
        }
    }
    false
}

/// Returns the release a kernel tells in its banner.
pub(super) fn release(bytes: &[u8]) -> Option<String> {
    let mut rest = bytes;
    loop {
        let at = rest.iter().position(|byte| *byte == BANNER[0])?;
        rest = &rest[at..];
        match rest.strip_prefix(BANNER) {
            // The format string of the same banner stands elsewhere in the data.
            Some(after) => match first_word(after) {
                Some(word) => return Some(word),
                None => rest = after,
            },
            None => rest = &rest[1..],
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?).map(|b| u16::from_le_bytes([b[0], b[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<usize> {
    let field = <[u8; 8]>::try_from(bytes.get(at..at.checked_add(8)?)?).ok()?;
    usize::try_from(u64::from_le_bytes(field)).ok()
}
