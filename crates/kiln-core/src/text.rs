//! Showing words from outside inside messages: bounded, and without control characters.

/// The longest piece of foreign text that a message repeats, in characters.
pub const CLIP_CHARS_MAX: usize = 80;

/// Returns `text` fit for a one-line message: control characters escaped, cut at [`CLIP_CHARS_MAX`].
pub fn clip(text: &str) -> String {
    let mut out = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == CLIP_CHARS_MAX {
            out.push('…');
            break;
        }
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Returns the end of `text` fit for a one-line message: control characters escaped, at most `chars` of what it becomes
/// and a mark of what was left out.
pub fn tail(text: &str, chars: usize) -> String {
    let mut kept = std::collections::VecDeque::new();
    for c in text.chars().rev() {
        let shown: Vec<char> = if c.is_control() { c.escape_default().collect() } else { vec![c] };
        if kept.len() + shown.len() > chars {
            kept.push_front('…');
            break;
        }
        for c in shown.into_iter().rev() {
            kept.push_front(c);
        }
    }
    kept.into_iter().collect()
}

/// Returns a number with what it counts, in the singular for 1. `noun` is an English one whose plural is regular.
pub fn count(number: impl TryInto<u64>, noun: &str) -> String {
    // What does not fit is no 1, and no count of things that are there.
    let number = number.try_into().unwrap_or(u64::MAX);
    match (number, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        _ => format!("{number} {noun}s"),
    }
}

/// Returns an error with its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Returns the candidate nearest to `typed`, when it is near enough to be a likely slip.
pub fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(typed, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.chars().count() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Reads so many bytes from their hexadecimal digits, of either case; none for other texts.
pub fn hex_bytes<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let digits = hex.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(out)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_and_nothing_else() {
        assert_eq!(nearest("memroy", ["vcpus", "memory"]), Some("memory"));
        assert_eq!(nearest("vcpu", ["vcpus", "memory"]), Some("vcpus"));
        assert_eq!(nearest("kernel", ["vcpus", "memory"]), None);
    }

    #[test]
    fn one_is_singular_and_none_is_not() {
        assert_eq!(count(0_u64, "revision"), "0 revisions");
        assert_eq!(count(1_usize, "revision"), "1 revision");
        assert_eq!(count(2_u32, "revision"), "2 revisions");
        assert_eq!(count(1_u8, "entry") + ", " + &count(7_usize, "entry"), "1 entry, 7 entries");
    }

    #[test]
    fn tail_keeps_the_end_and_no_half_of_an_escape() {
        assert_eq!(tail("a\nb", 4), "a\\nb");
        assert_eq!(tail("a\nb", 3), "…\\nb");
        assert_eq!(tail("a\nb", 2), "…b");
        assert_eq!(tail("", 2), "");
    }

    #[test]
    fn clip_escapes_and_cuts() {
        assert_eq!(clip("a\nb"), "a\\nb");
        assert_eq!(clip(&"x".repeat(100)).chars().count(), CLIP_CHARS_MAX + 1);
    }
}
