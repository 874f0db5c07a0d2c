//! Disks longer than their template: what lies on them, checked with the tools that others use.

use crate::Fixture;
use gptman::{GPT, GPTPartitionEntry};
use kiln_core::machine::CloneMethod;
use kiln_core::{ByteSize, DiskOwner, Reference};
use kiln_store::{CannotGrow, CloneChoice, CloneOptions, CopyOut, GrownContent, StoreError};
use std::io::Cursor;
use std::path::Path;
use std::process::Command;

const MIB: u64 = 1 << 20;
/// The type of a partition with a Linux file system.
pub(crate) const LINUX: [u8; 16] =
    [0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4];
/// That of one for swap.
const SWAP: [u8; 16] =
    [0x6d, 0xfd, 0x57, 0x06, 0xab, 0xa4, 0xc4, 0x43, 0x84, 0xe5, 0x09, 0x33, 0xc8, 0x4b, 0x4f, 0x4f];

/// A disk with these partitions, of sectors of 512 bytes: type, first and last sector.
pub(crate) fn disk(bytes: usize, partitions: &[([u8; 16], u64, u64)]) -> Vec<u8> {
    let mut image = vec![0; bytes];
    let mut gpt = GPT::new_from(&mut Cursor::new(&mut image), 512, [7; 16]).unwrap();
    for ((kind, starting_lba, ending_lba), number) in partitions.iter().zip(1_u8..) {
        gpt[u32::from(number)] = GPTPartitionEntry {
            partition_type_guid: *kind,
            unique_partition_guid: [number; 16],
            starting_lba: *starting_lba,
            ending_lba: *ending_lba,
            attribute_bits: 0,
            partition_name: "root".into(),
        };
    }
    gpt.write_into(&mut Cursor::new(&mut image)).unwrap();
    GPT::write_protective_mbr_into(&mut Cursor::new(&mut image), 512).unwrap();
    image
}

fn web() -> Reference {
    "web".parse().unwrap()
}

fn owner(name: &str) -> DiskOwner {
    name.parse().unwrap()
}

/// A store whose `web` has this root file system.
fn with_web(rootfs: &[u8]) -> Fixture {
    let fixture = Fixture::new();
    let id = fixture.revision(b"kernel", rootfs);
    fixture.store.set_tag(&"web".parse().unwrap(), &"latest".parse().unwrap(), &id, "test").unwrap();
    fixture
}

fn options(method: CloneMethod, mib: u32) -> CloneOptions {
    CloneOptions { choice: CloneChoice::Exactly(method), disk: Some(ByteSize::from_mib(mib)) }
}

/// Runs a tool on a disk; says so where the tool is not there.
#[expect(clippy::print_stderr, reason = "a skipped check is told")]
fn checked(tool: &str, args: &[&str], disk: &Path) -> Option<String> {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    match Command::new(tool).args(args).arg(disk).env("PATH", path).env("LC_ALL", "C").output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: {tool} is not installed");
            None
        }
        output => {
            let output = output.unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{tool} {args:?}: {text}{errors}");
            Some(text)
        }
    }
}

/// Checks a raw disk with the table that [`disk`] makes, grown.
fn check_table(disk: &Path) {
    if let Some(told) = checked("sgdisk", &["-v"], disk) {
        assert!(told.contains("No problems found"), "{told}");
    }
    if let Some(told) = checked("sfdisk", &["--verify"], disk) {
        assert!(told.contains("No errors detected"), "{told}");
    }
}

#[test]
fn a_grown_table_is_valid_in_every_way_of_making_the_disk() {
    let image = disk(4 << 20, &[(SWAP, 40, 2047), (LINUX, 2048, 8000)]);
    let fixture = with_web(&image);
    let disks = fixture.store.disks(&fixture.cancel);
    // The tables lie in one, two and three clusters of an overlay, below one and below several level 2 tables.
    for (number, mib) in [(0, 5), (1, 100), (2, 3000)] {
        let vm = owner(&format!("copy{number}"));
        let overlay_options = options(CloneMethod::Overlay, mib);
        let made = disks.clone_for(&vm, &web(), options(CloneMethod::Copy, mib)).unwrap();
        let growth = made.growth.unwrap();
        let mib = u64::from(mib);
        assert_eq!((growth.from.bytes(), growth.to.bytes()), (4 * MIB, mib * MIB));
        assert_eq!(growth.content, GrownContent::Partition { number: 2 });
        assert_eq!(made.disk.record().size, growth.to);
        let raw = made.disk.path();
        let gpt = GPT::read_from(&mut std::fs::File::open(&raw).unwrap(), 512).unwrap();
        assert_eq!(gpt[2].ending_lba, mib * MIB / 512 - 34);
        assert_eq!(gpt[2].starting_lba, 2048);
        check_table(&raw);

        let vm = owner(&format!("overlay{number}"));
        let made = disks.clone_for(&vm, &web(), overlay_options).unwrap();
        assert_eq!(made.growth, Some(growth));
        let overlay = made.disk.path();
        let allocated = kiln_sys::copy::allocated_bytes(&overlay).unwrap();
        assert!(allocated <= 128 << 10, "{allocated} bytes");
        if checked("qemu-img", &["check", "-q"], &overlay).is_some() {
            let raw = raw.to_str().unwrap();
            checked("qemu-img", &["compare", "-q", "-f", "raw", "-F", "qcow2", raw], &overlay);
        }
        assert!(disks.get(&vm).unwrap().is_some(), "as it is recorded");
    }
    let artifact = disks.template(&web()).unwrap().1;
    let artifact = fixture.store.artifact_path(&artifact.digest);
    assert!(std::fs::read(artifact).unwrap() == image, "the template is untouched");
}

#[test]
fn a_table_of_another_tool_is_grown() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("theirs");
    std::fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
    // As the disks of distributions are: the root first in the table and last on the disk.
    let parts = ["-n14:2048:+1M", "-t14:ef02", "-n15:0:+2M", "-t15:ef00", "-n1:0:0", "-t1:8304"];
    if checked("sgdisk", &parts, &path).is_none() {
        return;
    }
    let fixture = with_web(&std::fs::read(&path).unwrap());
    let disks = fixture.store.disks(&fixture.cancel);
    let made = disks.clone_for(&owner("vm"), &web(), options(CloneMethod::Copy, 64)).unwrap();
    assert_eq!(made.growth.unwrap().content, GrownContent::Partition { number: 1 });
    check_table(&made.disk.path());
}

#[test]
fn another_length_for_the_same_owner_is_refused_with_both() {
    let fixture = with_web(&[5; 8192]);
    let disks = fixture.store.disks(&fixture.cancel);
    let vm = owner("vm");
    let made = disks.clone_for(&vm, &web(), options(CloneMethod::Copy, 2)).unwrap();
    assert_eq!(made.growth.unwrap().content, GrownContent::Other);
    assert_eq!(std::fs::metadata(made.disk.path()).unwrap().len(), 2 * MIB);
    assert!(disks.clone_for(&vm, &web(), options(CloneMethod::Overlay, 2)).unwrap().existed);
    let as_it_is = disks.clone_for(&vm, &web(), CloneChoice::Auto).unwrap();
    assert!(as_it_is.existed && as_it_is.disk == made.disk && as_it_is.growth.is_none());
    match disks.clone_for(&vm, &web(), options(CloneMethod::Copy, 3)) {
        Err(StoreError::SizeMismatch { owner, have, want }) => {
            assert_eq!((owner, have.mib(), want.mib()), (vm, 2, 3));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_length_that_cannot_be_is_refused_and_leaves_nothing() {
    let fixture = with_web(&disk(4 << 20, &[(LINUX, 64, 2047), (SWAP, 2048, 8000)]));
    let disks = fixture.store.disks(&fixture.cancel);
    let (vm, dest) = (owner("vm"), fixture.dir.path().join("out.raw"));
    let (_, rootfs) = disks.template(&web()).unwrap();
    for method in [CloneMethod::Copy, CloneMethod::Overlay] {
        match disks.clone_for(&vm, &web(), options(method, 8)) {
            Err(StoreError::CannotGrow { artifact, wanted, source }) => {
                assert_eq!((artifact, wanted.mib()), (rootfs.digest, 8));
                assert!(matches!(source, CannotGrow::LastPartition { number: 2, .. }));
            }
            other => panic!("{other:?}"),
        }
        let shrunk = disks.clone_for(&vm, &web(), options(method, 1));
        let Err(StoreError::Shrink { wanted, least }) = shrunk else { panic!("{shrunk:?}") };
        assert_eq!((wanted.mib(), least.mib()), (1, 4));
        let choice = CloneChoice::Exactly(method);
        let request = CopyOut { digest: rootfs.digest, size: rootfs.size, dest: &dest, mode: 0o600, choice };
        let refused = fixture.store.copy_aside(&request, Some(ByteSize::from_mib(8)), &fixture.cancel);
        assert!(matches!(refused, Err(StoreError::CannotGrow { .. })));
    }
    assert!(disks.list().unwrap().is_empty() && !dest.exists());
    let staged = fixture.store.root().join("staging");
    assert_eq!(std::fs::read_dir(staged).unwrap().count(), 0);
    // The template's own length needs no growth.
    assert!(disks.clone_for(&vm, &web(), options(CloneMethod::Copy, 4)).unwrap().growth.is_none());
}

#[test]
fn a_disk_outside_may_be_worked_on_before_it_has_its_name() {
    let fixture = with_web(&[5; 8192]);
    let (_, rootfs) = fixture.store.disks(&fixture.cancel).template(&web()).unwrap();
    let dest = fixture.dir.path().join("out.raw");
    let choice = CloneChoice::Exactly(CloneMethod::Copy);
    let request = CopyOut { digest: rootfs.digest, size: rootfs.size, dest: &dest, mode: 0o600, choice };
    let aside = || fixture.store.copy_aside(&request, Some(ByteSize::from_mib(1)), &fixture.cancel).unwrap();
    let dropped = aside();
    let path = dropped.path().to_owned();
    assert!(path.exists() && !dest.exists());
    drop(dropped);
    assert!(!path.exists());
    let kept = aside();
    assert_eq!(kept.growth().unwrap().content, GrownContent::Other);
    let path = kept.path().to_owned();
    std::fs::write(&path, b"worked on").unwrap();
    assert_eq!(kept.commit(&fixture.cancel).unwrap().size.mib(), 1);
    assert!(!path.exists() && std::fs::read(&dest).unwrap() == b"worked on");
}
