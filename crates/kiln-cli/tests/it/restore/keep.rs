//! What a restored machine runs from stays as long as it runs.

use super::Lab;

#[test]
fn boot_what_a_restored_machine_needs_stays() {
    let lab = Lab::captured("");
    let snapshot = lab.snapshot();
    let id = snapshot.id.to_string();
    lab.restore("w", &[]);
    let refused = lab.context.kiln(["snapshot", "rm", &id]).fails(1);
    assert!(refused.contains("w"), "{refused}");
    let refused = lab.context.kiln(["rm", "--template", "web"]).fails(1);
    assert!(refused.contains("is in use by w"), "{refused}");
    // Its revision has no name any more, and only the machine keeps it.
    std::fs::write(lab.context.work().join("rootfs/etc/other"), "other").unwrap();
    lab.context.kiln(["build", "web"]).ok();
    let before = lab.artifacts();
    lab.context.kiln(["gc", "--keep-last", "1", "--grace", "0s"]).ok();
    assert_eq!(lab.artifacts(), before);
    assert_eq!(lab.snapshot().id, snapshot.id);
    assert_eq!(lab.exec("w", "echo up"), "up\n");
    // A machine that boots by now may have its disk above the snapshot's.
    lab.context.kiln(["stop", "w"]).ok();
    lab.context.kiln(["gc", "--keep-last", "1", "--grace", "0s"]).ok();
    lab.context.kiln(["start", "w"]).ok();
    assert_eq!(lab.exec("w", "echo up"), "up\n");
    lab.context.kiln(["rm", "-f", "w"]).ok();
    lab.context.kiln(["gc", "--keep-last", "1", "--grace", "0s"]).ok();
    assert_eq!(lab.store().snapshot_ids().unwrap(), []);
    let left = lab.artifacts();
    for file in snapshot.manifest.files() {
        assert!(!left.contains(&file.digest.hex()), "{left:?}");
    }
    lab.assert_whole();
}

#[test]
fn boot_a_snapshot_goes_when_its_machine_has() {
    let lab = Lab::new("");
    let artifacts = lab.artifacts();
    lab.context.kiln(["snapshot", "create", "--name", "warm", "web"]).ok();
    lab.restore("w", &["--clone", "overlay"]);
    assert!(lab.context.kiln(["snapshot", "rm", "warm"]).fails(1).contains("w"));
    lab.context.kiln(["stop", "w"]).ok();
    assert!(lab.context.kiln(["snapshot", "rm", "warm"]).fails(1).contains("w"));
    lab.context.kiln(["rm", "w"]).ok();
    lab.context.kiln(["snapshot", "rm", "warm"]).ok();
    assert_eq!(lab.artifacts(), artifacts);
    lab.assert_whole();
}
