use super::*;
use kiln_sys::tool::ScratchDir;
use kiln_sys::{Cancel, Toolbox, fs};
use std::path::PathBuf;

const MIB: u64 = 1 << 20;

/// Makes a disk of 32 MiB with a table that `sfdisk` writes, and marks of file systems at places.
fn disk(script: &str, marks: &[(u64, &[u8])]) -> (ScratchDir, PathBuf) {
    let scratch = ScratchDir::new(&std::env::temp_dir()).unwrap();
    let (path, input) = (scratch.path().join("disk"), scratch.path().join("script"));
    let file = fs::create_new(&path).unwrap();
    file.set_len(32 * MIB).unwrap();
    fs::create_new(&input).unwrap().write_all_at(script.as_bytes(), 0).unwrap();
    if !script.is_empty() {
        let tool = Toolbox::new(vec!["/usr/sbin".into(), "/sbin".into()], Vec::new()).find("sfdisk").unwrap();
        let tool = tool.arg("-q").arg(&path).stdin_file(fs::open(&input).unwrap());
        tool.run(&Cancel::new().unwrap(), &mut |_| ()).unwrap();
    }
    for (at, bytes) in marks {
        file.write_all_at(bytes, *at).unwrap();
    }
    (scratch, path)
}

fn read_all(path: &Path) -> DiskResult<Option<Vec<Partition>>> {
    partitions(&fs::open(path).unwrap(), path)
}

const EXT4: &[u8] = &[0x53, 0xef];

#[test]
fn a_guid_table_is_read_and_its_root_chosen() {
    let script = "label: gpt\nstart=2048,size=4096,type=U\nstart=8192,size=8192\nstart=20480,size=8192,type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n";
    let (_scratch, path) =
        disk(script, &[(4 * MIB + 1080, EXT4), (10 * MIB + 1080, EXT4), (MIB + 82, b"FAT32")]);
    let all = read_all(&path).unwrap().unwrap();
    assert_eq!(describe(&all), "1 (FAT, 2.0 MiB), 2 (ext4, 4.0 MiB), 3 (ext4, 4.0 MiB)");
    assert_eq!((all[2].start, all[2].len), (10 * MIB, 4 * MIB));
    let root = |wanted, arch| choose_root(&all, wanted, arch, &path).map(|root| root.number);
    assert_eq!(root(None, Arch::X86_64).unwrap(), 3);
    assert_eq!(root(Some(2), Arch::X86_64).unwrap(), 2);
    let error = root(Some(4), Arch::X86_64).unwrap_err().to_string();
    assert!(
        error.ends_with("has no partition 4; it has 1 (FAT, 2.0 MiB), 2 (ext4, 4.0 MiB), 3 (ext4, 4.0 MiB)"),
        "{error}"
    );
    // For another architecture the type says nothing, and there are two.
    assert!(matches!(root(None, Arch::Aarch64), Err(DiskError::WhichPartition { .. })));
}

#[test]
fn the_only_ext4_is_the_root() {
    let (_scratch, path) = disk("label: gpt\nsize=4096\nsize=8192\n", &[(3 * MIB + 1080, EXT4)]);
    let all = read_all(&path).unwrap().unwrap();
    assert_eq!(choose_root(&all, None, Arch::X86_64, &path).unwrap().number, 2);
    // Beside a root of another kind it is what is mounted at /boot.
    let (_scratch, path) =
        disk("label: gpt\nsize=4096\nsize=8192\n", &[(MIB + 1080, EXT4), (3 * MIB, b"XFSB")]);
    let all = read_all(&path).unwrap().unwrap();
    let error = choose_root(&all, None, Arch::X86_64, &path).unwrap_err().to_string();
    assert!(error.ends_with("it has 1 (ext4, 2.0 MiB), 2 (XFS, 4.0 MiB)"), "{error}");
}

#[test]
fn one_other_ext4_is_looked_into_for_a_kernel_up_to_a_largest_size() {
    let part = |number, len, content| Partition { number, start: MIB, len, content, kind: None };
    let ext4 = Some(FileSystem::Ext4);
    let root = part(3, MIB, ext4);
    let chosen = |others: &[Partition]| {
        let all: Vec<Partition> = others.iter().chain([&root]).cloned().collect();
        choose_boot(&all, &root).map(|boot| boot.number)
    };
    assert_eq!(chosen(&[]), None);
    assert_eq!(chosen(&[part(1, MIB, None), part(2, BOOT_BYTES_MAX, ext4)]), Some(2));
    assert_eq!(chosen(&[part(2, BOOT_BYTES_MAX + 1, ext4)]), None);
    assert_eq!(chosen(&[part(1, MIB, ext4), part(2, MIB, ext4)]), None);
}

#[test]
fn an_old_table_is_read_with_its_logical_partitions() {
    let script = "label: dos\nstart=2048,size=4096,type=83\nstart=8192,size=40960,type=5\nstart=10240,size=2048,type=83\nstart=16384,size=8192,type=83\n";
    let (_scratch, path) = disk(script, &[]);
    let all = read_all(&path).unwrap().unwrap();
    let places: Vec<_> = all.iter().map(|it| (it.number, it.start, it.len)).collect();
    assert_eq!(places, [(1, MIB, 2 * MIB), (5, 5 * MIB, MIB), (6, 8 * MIB, 4 * MIB)]);
    assert!(matches!(choose_root(&all, None, Arch::X86_64, &path), Err(DiskError::WhichPartition { .. })));
}

#[test]
fn a_disk_without_a_table_has_none() {
    let (_scratch, path) = disk("", &[(1080, EXT4)]);
    assert_eq!(read_all(&path).unwrap(), None);
    let (_scratch, path) = disk("", &[(510, &[0x55, 0xaa]), (0, &[0xeb; 500])]);
    assert_eq!(read_all(&path).unwrap(), None);
}

#[test]
fn tables_that_lie_are_refused() {
    let gpt = "label: gpt\nsize=4096\n";
    let old = "label: dos\nstart=2048,size=4096,type=5\nstart=4096,size=1024,type=83\n";
    let beyond = [0x00, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0xff, 0xff, 0xff, 0x0f];
    let back = [0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    for (script, at, bytes, want) in [
        (gpt, 512, &b"NO"[..], "announces a GUID partition table that is not there"),
        (gpt, 512 + 40, &[9], "check sum of its header"),
        (gpt, 512 + 12, &[0xff; 4], "its header has"),
        (gpt, 1024 + 40, &[9], "check sum of its entries"),
        ("label: dos\nstart=2048,size=4096,type=83\n", 446, &beyond, "beyond the disk's end"),
        (old, MIB + 462, &back, "leads back"),
        (old, MIB + 510, &[0], "breaks off"),
    ] {
        let (_scratch, path) = disk(script, &[(at, bytes)]);
        let error = read_all(&path).unwrap_err().to_string();
        assert!(error.contains(want), "{want}: {error}");
    }
}

#[test]
fn damaged_tables_give_an_error_or_partitions_on_the_disk() {
    let scripts = [
        "label: gpt\nsize=4096\nsize=4096\n",
        "label: dos\nstart=2048,size=8192,type=5\nstart=4096,size=1024,type=83\n",
    ];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below).unwrap()
    };
    for script in scripts {
        let (_scratch, path) = disk(script, &[]);
        let mut whole = vec![0; 2 << 20];
        fs::open(&path).unwrap().read_exact_at(&mut whole, 0).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        for _ in 0..300 {
            let mib = 1 << 20;
            let at = [446 + random(66), 512 + random(600), mib + 446 + random(66)][random(3)];
            file.write_all_at(&[u8::try_from(random(256)).unwrap()], at as u64).unwrap();
            if let Ok(Some(all)) = read_all(&path) {
                assert!(all.iter().all(|it| it.start + it.len <= 32 * MIB), "{all:?}");
            }
            file.write_all_at(&whole[at..=at], at as u64).unwrap();
        }
    }
}
