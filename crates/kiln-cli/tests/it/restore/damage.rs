//! Snapshots whose files are not what they were.

use super::Lab;
use kiln_core::snapshot::SnapshotFile;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;

/// Lets a file be written to, and changed in place.
fn writable(path: &Path) -> std::fs::File {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::File::options().read(true).write(true).open(path).unwrap()
}

fn parts(lab: &Lab) -> [SnapshotFile; 3] {
    let manifest = lab.snapshot().manifest;
    let memory = manifest.memory.unwrap();
    [memory.ram.unwrap(), memory.state, manifest.disk]
}

/// Flips one bit and lets the file look as if nobody had written to it.
fn flip(path: &Path, at: u64) {
    let before = std::fs::metadata(path).unwrap();
    let file = writable(path);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    std::fs::set_permissions(path, before.permissions()).unwrap();
}

#[test]
fn boot_memory_that_was_cut_is_not_restored() {
    let lab = Lab::captured("");
    let [ram, ..] = parts(&lab);
    writable(&lab.path(&ram)).set_len(ram.size.bytes() / 2).unwrap();
    lab.boots_because(&[], "is damaged");
}

#[test]
fn boot_a_flipped_bit_is_found_whatever_the_files_times_say() {
    let lab = Lab::captured("");
    for file in parts(&lab) {
        let at = file.size.bytes() / 2;
        flip(&lab.path(&file), at);
        lab.boots_because(&[], "its content has another digest");
        let found = lab.context.kiln(["verify", "--all", "-q"]);
        assert_eq!(found.code, 1, "{}", found.stdout);
        let segment = at / 65536 * 65536;
        assert!(found.stdout.contains(&format!("1 segment differs (bytes {segment}-")), "{}", found.stdout);
        // It was put aside; with the bit flipped back it is what it was.
        let aside = lab.context.home().join("quarantine");
        let found = std::fs::read_dir(&aside).unwrap().next().unwrap().unwrap();
        std::fs::rename(found.path(), lab.path(&file)).unwrap();
        flip(&lab.path(&file), at);
    }
    assert_eq!(lab.run(&["--restore", "require"], "echo whole").ok(), "whole\n");
    lab.assert_whole();
}

#[test]
fn boot_a_machine_above_a_damaged_disk_is_not_started() {
    let lab = Lab::captured("");
    let [_, _, disk] = parts(&lab);
    lab.restore("w", &["--clone", "overlay"]);
    lab.exec("w", "echo kept > /kept; sync");
    lab.context.kiln(["stop", "w"]).ok();
    flip(&lab.path(&disk), disk.size.bytes() / 2);
    let refused = lab.context.kiln(["start", "w"]).fails(1);
    assert!(refused.contains("its content has another digest"), "{refused}");
    flip(&lab.path(&disk), disk.size.bytes() / 2);
    lab.context.kiln(["start", "w"]).ok();
    assert_eq!(lab.exec("w", "cat /kept"), "kept\n");
    lab.context.kiln(["rm", "-f", "w"]).ok();
    lab.assert_whole();
}

#[test]
fn boot_a_state_that_is_not_its_own_is_not_restored() {
    let lab = Lab::new("");
    lab.context.kiln(["snapshot", "create", "--name", "other", "-m", "192M", "web"]).ok();
    let other = std::fs::read(lab.path(&parts(&lab)[1])).unwrap();
    lab.context.kiln(["snapshot", "rm", "other"]).ok();
    lab.build().ok();
    let state = lab.path(&parts(&lab)[1]);
    let own = std::fs::read(&state).unwrap();
    let garbage: Vec<u8> = (0..=250).cycle().take(own.len()).collect();
    for wrong in [other, garbage, Vec::new()] {
        drop(writable(&state));
        std::fs::write(&state, wrong).unwrap();
        lab.boots_because(&[], "is damaged");
    }
    std::fs::remove_file(&state).unwrap();
    lab.boots_because(&[], "not found");
}

#[test]
fn boot_without_its_disk_a_snapshot_is_not_restored() {
    let lab = Lab::captured("");
    let [_, _, disk] = parts(&lab);
    std::fs::remove_file(lab.path(&disk)).unwrap();
    lab.boots_because(&[], "not found");
    // Without the template's disk there is nothing to boot either.
    let rootfs = lab.store().revision(&lab.revision).unwrap().manifest;
    let rootfs = rootfs.artifact(&kiln_core::ArtifactRole::rootfs()).unwrap().digest;
    std::fs::remove_file(lab.context.home().join("artifacts").join(rootfs.hex())).unwrap();
    let refused = lab.run(&[], "true").fails(1);
    assert!(refused.contains(&rootfs.hex()[..12]), "{refused}");
    lab.assert_nothing_left();
}

#[test]
fn boot_a_disk_of_another_revision_is_not_restored() {
    let lab = Lab::captured("");
    // Published as a revision of its own, its disk has the length of the captured one.
    std::fs::write(lab.context.work().join("rootfs/etc/other"), "other").unwrap();
    let other: kiln_core::Digest = lab.context.kiln(["build", "web"]).ok().trim().parse().unwrap();
    let manifest = lab.store().revision(&other).unwrap().manifest;
    let rootfs = manifest.artifact(&kiln_core::ArtifactRole::rootfs()).unwrap();
    let [_, _, disk] = parts(&lab);
    assert_eq!(rootfs.size, disk.size);
    lab.context.kiln(["tag", &lab.revision.to_string(), "web:old"]).ok();
    std::fs::copy(lab.context.home().join("artifacts").join(rootfs.digest.hex()), {
        let path = lab.path(&disk);
        drop(writable(&path));
        path
    })
    .unwrap();
    let refused = lab.context.kiln(["run", "--rm", "--restore", "require", "web:old", "--", "true"]).fails(1);
    assert!(refused.contains("its content has another digest"), "{refused}");
    // The new revision has no snapshot, and the old one's is not for it.
    let output = lab.run(&[], "cat /etc/other");
    assert_eq!(output.ok(), "other");
    lab.assert_nothing_left();
}

#[test]
fn boot_a_damaged_manifest_is_told() {
    let lab = Lab::captured("");
    let id = lab.snapshot().id;
    let path = lab.context.home().join("snapshots").join(format!("{}.json", id.hex()));
    let bytes = std::fs::read(&path).unwrap();
    drop(writable(&path));
    for wrong in [&b"{}"[..], &bytes[..bytes.len() / 2], b""] {
        std::fs::write(&path, wrong).unwrap();
        lab.boots_because(&[], "is damaged: its content has another digest");
    }
    lab.context.kiln(["snapshot", "rm", &id.to_string()]).ok();
    lab.build().ok();
    lab.assert_whole();
}

#[test]
fn boot_a_state_that_loads_and_is_of_other_memory_ends_in_time() {
    // Nobody but its maker can make such a manifest; its machine must end all the same.
    let lab = Lab::captured("");
    let [ram, ..] = parts(&lab);
    lab.context
        .kiln(["snapshot", "create", "--name", "other", "web", "--", "sh", "-c", "echo x > /run/x"])
        .ok();
    let other = lab.store().find_snapshot("other").unwrap().manifest.memory.unwrap().ram.unwrap();
    assert_ne!(ram.digest, other.digest);
    let first = lab.store().snapshots_of(&lab.revision).unwrap().into_iter().find(|s| s.label() != "other");
    let first = first.unwrap();
    let mut manifest = first.manifest.clone();
    manifest.memory.as_mut().unwrap().ram = Some(other);
    lab.store().commit_snapshot(&manifest, &first.record.unwrap()).unwrap();
    for id in [first.id.to_string(), "other".to_owned()] {
        lab.context.kiln(["snapshot", "rm", &id]).ok();
    }
    let output = lab.run(&["--restore", "require"], "echo up");
    assert!(output.code == 1 || output.stdout == "up\n", "{}\n{}", output.stdout, output.stderr);
    lab.assert_nothing_left();
}
