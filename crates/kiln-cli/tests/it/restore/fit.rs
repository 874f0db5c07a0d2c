//! Which snapshot a machine begins as, and the reasons for none.

use super::Lab;

#[test]
fn boot_another_shape_boots_and_says_why() {
    let lab = Lab::captured("");
    lab.boots_because(&["-m", "192M"], "memory is 128M in the snapshot and 192M here");
    // Nothing else is told in the foreground, and not even that where nothing is to be told.
    let told = lab.run(&["-m", "192M"], "true").stderr;
    assert_eq!(told.lines().count(), 1, "{told}");
    let silent = ["--progress", "none", "run", "--rm", "-m", "192M", "web", "--", "true"];
    assert_eq!(lab.context.kiln(silent).stderr, "");
    lab.boots_because(&["--vcpus", "2"], "vcpus is 1 in the snapshot and 2 here");
    lab.boots_because(&["--board", "q35"], "board is pc in the snapshot and q35 here");
    lab.boots_because(&["--disk", "1G"], "disk is ");
    // The board cannot restore at all, and that is not what is told.
    lab.boots_because(&["--board", "microvm"], "board is pc in the snapshot and microvm here");
    assert_eq!(lab.run(&["--restore", "require"], "echo fits").ok(), "fits\n");
}

#[test]
fn boot_another_fact_boots_and_is_named() {
    let lab = Lab::captured("");
    let accelerator = "accelerator is kvm in the snapshot and tcg here";
    for (name, value, reason) in [
        ("new_fact", "1", "new_fact is 1 in the snapshot and "),
        // From here on each comes before those above.
        ("agent_protocol", "0", "agent_protocol is 0 in the snapshot and "),
        ("cpu", "Nehalem-v0", "cpu is Nehalem-v0 in the snapshot and Nehalem-v1"),
        ("accelerator", "kvm", accelerator),
        ("vmm_version", "6.0.0", "vmm_version is 6.0.0 in the snapshot and "),
    ] {
        lab.change_fact(name, value);
        let refused = lab.run(&["--restore", "require"], "echo up").fails(1);
        assert!(refused.contains(reason), "{name}: {refused}");
    }
    lab.boots_because(&[], "vmm_version is 6.0.0 in the snapshot and ");
}

#[test]
fn boot_the_snapshot_that_fits_is_taken() {
    let lab = Lab::new("");
    let create = |name: &str, memory: &str| {
        let words = ["snapshot", "create", "--name", name, "-m", memory, "web", "--", "touch", "/run/warm"];
        lab.context.kiln(words).ok();
    };
    create("small", "128M");
    create("large", "256M");
    let total = "free -m | head -2 | tail -1; test -e /run/warm && echo warm";
    for (memory, range) in [("128M", 60..=128), ("256M", 180..=256)] {
        let said = lab.run(&["--restore", "require", "-m", memory], total).ok();
        let total: u32 = said.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(range.contains(&total) && said.ends_with("warm\n"), "{said}");
    }
    // The template's own size fits the older one.
    assert!(lab.run(&[], total).ok().ends_with("warm\n"));
    // The youngest is the one whose reason is told.
    lab.boots_because(&["-m", "192M"], "snapshot large: memory is 256M in the snapshot and 192M here");
    assert!(!lab.run(&["--restore", "never"], total).stdout.contains("warm"));
    lab.assert_whole();
}

#[test]
fn boot_a_template_without_a_snapshot_boots_without_a_word() {
    let lab = Lab::new("");
    let output = lab.run(&[], "echo up");
    assert!(!output.stderr.contains("restored"), "{}", output.stderr);
    assert_eq!(output.ok(), "up\n");
    let refused = lab.run(&["--restore", "require"], "echo up").fails(1);
    assert!(refused.contains("there is no snapshot with memory"), "{refused}");
    lab.assert_nothing_left();
}
