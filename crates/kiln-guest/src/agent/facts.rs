//! What a hook says on stdout: lines that are JSON objects with an `event` are facts, anything else is just output.

use serde_json::{Map, Value};

use crate::hook::{Fact, HookReport};
use crate::limits::{FACT_LINE_BYTES_MAX, FACTS_BYTES_MAX, FACTS_MAX};
use crate::message::to_json;
use crate::token::{EventName, HookName};

/// Cuts one hook's stdout into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    /// The line has more bytes than are kept.
    long: bool,
}

impl Lines {
    /// Takes output; calls back for every line, with `None` for one that is too long.
    pub(super) fn take(&mut self, bytes: &[u8], line: &mut dyn FnMut(Option<&[u8]>)) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            if self.line.len() + text.len() > FACT_LINE_BYTES_MAX {
                // Its beginning tells whether it was to be a fact.
                self.line.extend(text.first().filter(|_| self.line.is_empty()));
                self.long = true;
            } else if !self.long {
                self.line.extend_from_slice(text);
            }
            if ended {
                self.end(line);
            }
        }
    }

    /// Ends the last line, which need not have an end of its own.
    pub(super) fn end(&mut self, line: &mut dyn FnMut(Option<&[u8]>)) {
        let text = std::mem::take(&mut self.line);
        let long = std::mem::take(&mut self.long);
        if !long {
            line(Some(&text));
        } else if text.first() == Some(&b'{') {
            line(None);
        }
    }
}

/// Adds the facts of one stage to its report, within the limits.
#[derive(Debug, Default)]
pub(super) struct Facts {
    bytes: usize,
}

impl Facts {
    /// Takes one line; `None` is a fact that was too long.
    pub(super) fn take(&mut self, hook: &HookName, line: Option<&[u8]>, report: &mut HookReport) {
        let Some(line) = line else {
            report.facts_dropped = report.facts_dropped.saturating_add(1);
            return;
        };
        let Ok(mut fields) = serde_json::from_slice::<Map<String, Value>>(line) else { return };
        let Some(Value::String(event)) = fields.remove("event") else { return };
        let fact = EventName::new(event).ok().map(|event| Fact { hook: hook.clone(), event, fields });
        // Counted as it is sent: a number may be longer than it was written.
        let size = fact.as_ref().map_or(0, |fact| to_json(fact).len());
        match fact {
            Some(fact) if report.facts.len() < FACTS_MAX && self.bytes + size <= FACTS_BYTES_MAX => {
                self.bytes += size;
                report.facts.push(fact);
            }
            _ => report.facts_dropped = report.facts_dropped.saturating_add(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn report(chunks: &[&[u8]]) -> HookReport {
        let (mut lines, mut facts, mut report) = (Lines::default(), Facts::default(), HookReport::default());
        let hook = HookName::new("10-x").unwrap();
        for chunk in chunks {
            lines.take(chunk, &mut |line| facts.take(&hook, line, &mut report));
        }
        lines.end(&mut |line| facts.take(&hook, line, &mut report));
        report
    }

    #[test]
    fn objects_with_an_event_are_facts() {
        let text = b"starting\n{\"event\":\"flushed\",\"pages\":3}\n{\"other\":1}\n[1]\n{\"event\":7}\n{\"event\":\"end\"}";
        let report = report(&[text]);
        let events: Vec<_> = report.facts.iter().map(|fact| fact.event.as_str()).collect();
        assert_eq!(events, ["flushed", "end"]);
        assert_eq!(report.facts.first().unwrap().fields.get("pages"), Some(&Value::from(3)));
        assert_eq!(report.facts_dropped, 0);
    }

    #[test]
    fn limits_hold_and_are_told() {
        let many = "{\"event\":\"e\"}\n".repeat(FACTS_MAX + 5);
        let told = report(&[many.as_bytes()]);
        assert_eq!((told.facts.len(), told.facts_dropped), (FACTS_MAX, 5));
        let long = format!(
            "{{\"event\":\"e\",\"x\":\"{}\"}}\n{{\"event\":\"f\"}}\n",
            "y".repeat(FACT_LINE_BYTES_MAX)
        );
        for chunk in [1, 7, 4096, long.len()] {
            let chunks: Vec<&[u8]> = long.as_bytes().chunks(chunk).collect();
            let told = report(&chunks);
            assert_eq!((told.facts.len(), told.facts_dropped), (1, 1), "in pieces of {chunk}");
        }
        let plain = "z".repeat(FACT_LINE_BYTES_MAX * 3);
        assert_eq!(report(&[plain.as_bytes()]), HookReport::default());
        let big =
            format!("{{\"event\":\"e\",\"x\":\"{}\"}}\n", "y".repeat(FACT_LINE_BYTES_MAX - 100)).repeat(20);
        let told = report(&[big.as_bytes()]);
        assert!(to_json(&told.facts).len() <= FACTS_BYTES_MAX + FACTS_MAX + 2, "{}", told.facts.len());
        assert_eq!(told.facts.len() + usize::try_from(told.facts_dropped).unwrap(), 20);
        assert_eq!(report(&[b"{\"event\":\"a b\"}\n"]).facts_dropped, 1);
    }

    proptest! {
        #[test]
        fn any_output_in_any_pieces_is_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..600), piece in 1_usize..50) {
            let pieces: Vec<&[u8]> = bytes.chunks(piece).collect();
            prop_assert_eq!(report(&pieces), report(&[&bytes]));
        }
    }
}
