//! Settings of two manifests, as text.

use super::report::SettingChange;
use kiln_core::Digest;
use kiln_core::VariantName;
use kiln_core::capture::CapturePlan;
use kiln_core::ready::{ReadyCheck, ReadyProbe};
use kiln_core::revision::Manifest;
use kiln_core::variant::{MachineShape, Variant};
use std::collections::BTreeSet;

/// A manifest, and the variant whose settings count where one was named.
pub(super) type Chosen<'a> = (&'a Manifest, Option<&'a VariantName>);

/// Returns the settings that differ.
pub(super) fn compare(chosen_a: Chosen<'_>, chosen_b: Chosen<'_>) -> Vec<SettingChange> {
    let (a, b) = (chosen_a.0, chosen_b.0);
    let mut changes = Vec::new();
    let mut compare = |name: &str, before: Option<String>, after: Option<String>| {
        if before != after {
            changes.push(SettingChange { name: name.to_owned(), before, after });
        }
    };
    let some = |value: &dyn std::fmt::Display| Some(value.to_string());
    compare("arch", some(&a.arch), some(&b.arch));
    let (before, after) = (shape(chosen_a), shape(chosen_b));
    compare("vcpus", some(&before.vcpus), some(&after.vcpus));
    compare("memory", some(&before.memory), some(&after.memory));
    let disk = |size: Option<kiln_core::ByteSize>| size.map(|size| size.to_string());
    compare("data_disk", disk(before.data_disk), disk(after.data_disk));
    compare("board", some(&before.board.as_str()), some(&after.board.as_str()));
    compare("boot_args", words(boot_args(chosen_a)), words(boot_args(chosen_b)));
    compare("ready", a.ready.as_ref().map(ready), b.ready.as_ref().map(ready));
    let captures = |manifest: &Manifest| manifest.snapshot.as_ref().map(capture);
    compare("snapshot", captures(a), captures(b));
    let seed = |manifest: &Manifest| {
        let seed = manifest.seed.as_ref()?;
        let user_data = seed
            .user_data
            .as_deref()
            .map(|text| format!(" with user data {}", Digest::of(text.as_bytes()).short()));
        Some(format!("{}{}", seed.kind.as_str(), user_data.unwrap_or_default()))
    };
    compare("seed", seed(a), seed(b));
    let names: BTreeSet<_> = a.variants.iter().chain(&b.variants).map(|variant| &variant.name).collect();
    for name in names {
        let (before, after) = (a.variant(name).map(variant), b.variant(name).map(variant));
        compare(&format!("variant {name}"), before, after);
    }
    changes
}

fn named<'a>((manifest, name): Chosen<'a>) -> Option<&'a Variant> {
    name.and_then(|name| manifest.variant(name))
}

fn shape(chosen: Chosen<'_>) -> MachineShape {
    let base = &chosen.0.machine;
    named(chosen).map_or_else(|| base.clone(), |variant| variant.shape(base))
}

fn boot_args<'a>(chosen: Chosen<'a>) -> &'a [String] {
    named(chosen).and_then(|variant| variant.boot_args.as_deref()).unwrap_or(&chosen.0.boot_args)
}

/// Returns words in one text: quoted where one could be taken for several or none.
fn words(words: &[String]) -> Option<String> {
    let quoted = |word: &String| {
        let is_plain = !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || c == '"');
        if is_plain { word.clone() } else { format!("{word:?}") }
    };
    (!words.is_empty()).then(|| words.iter().map(quoted).collect::<Vec<_>>().join(" "))
}

fn ready(probe: &ReadyProbe) -> String {
    let check = match &probe.check {
        ReadyCheck::Command(command) => words(command).unwrap_or_default(),
        check => check.to_string(),
    };
    let mut text = format!("{check} every {} ms within {} ms", probe.interval_ms, probe.timeout_ms);
    if let Some(ms) = probe.start_period_ms {
        text.push_str(&format!(" after {ms} ms"));
    }
    if let Some(retries) = probe.retries {
        text.push_str(&format!(" at most {retries} failures"));
    }
    text
}

fn capture(plan: &CapturePlan) -> String {
    let warm_up = plan.warm_up.iter().map(|command| words(command).unwrap_or_default());
    warm_up.chain(plan.drop_caches.then(|| "drop caches".to_owned())).collect::<Vec<_>>().join("; ")
}

fn variant(variant: &Variant) -> String {
    let mut parts = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            parts.push(format!("{name}={value}"));
        }
    };
    add("role", variant.role.as_ref().map(ToString::to_string));
    add("profile", variant.profile.as_ref().map(ToString::to_string));
    add("vcpus", variant.vcpus.map(|count| count.to_string()));
    add("memory", variant.memory.map(|size| size.to_string()));
    add("data_disk", variant.data_disk.map(|size| size.to_string()));
    add("board", variant.board.map(|board| board.as_str().to_owned()));
    add("boot_args", variant.boot_args.as_ref().map(|args| format!("[{}]", words(args).unwrap_or_default())));
    if parts.is_empty() { "as the template".to_owned() } else { parts.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_of_captures_are_told_in_one_text() {
        let command = |text: &str| text.split('|').map(str::to_owned).collect();
        let plan = CapturePlan { warm_up: vec![command("sh|-c|a b"), command("true")], drop_caches: true };
        assert_eq!(capture(&plan), "sh -c \"a b\"; true; drop caches");
    }
}
