//! Images as QEMU makes them.

use super::*;

const MIB: u64 = 1 << 20;

#[test]
fn kinds_of_images() {
    let bench = Bench::new();
    let pieces =
        [(0, 300_000, 2), (400_000, 70_000, 3), (5 * MIB - 4096, 9000, 5), (7 * MIB + 100, 900_000, 4)];
    bench.raw("raw", 9 * MIB + 512 * 7, &pieces);
    for (number, options) in [
        "-o compat=0.10",
        "-o compat=v3",
        "-o cluster_size=512",
        "-o cluster_size=2M",
        "-o cluster_size=4k,lazy_refcounts=on",
        "-o refcount_bits=1",
        "-o extended_l2=on,cluster_size=128k",
        "-o preallocation=metadata",
        "-o preallocation=full",
        "-c",
        "-c -o cluster_size=2M",
        "-c -o cluster_size=512",
        "-c -o compat=0.10",
        "-c -o compression_type=zstd",
        "-c -o compression_type=zstd,cluster_size=2M",
        "-c -o extended_l2=on",
        "-S 0",
        "-c -o compression_type=zstd,extended_l2=on,cluster_size=16k",
    ]
    .into_iter()
    .enumerate()
    {
        bench.run(&format!("qemu-img convert -f raw -O qcow2 {options} @raw @{number}.qcow2"));
        bench.same(&format!("{number}.qcow2"), BackingFiles::Refuse);
    }
}

#[test]
fn holes_stay_holes_and_zeros_become_holes() {
    let bench = Bench::new();
    bench.raw("raw", 64 * MIB, &[(0, 100, 3), (10 * MIB, 4 * MIB, 0), (40 * MIB, 200, 4)]);
    for options in ["", "-c", "-S 0", "-o preallocation=full", "-o cluster_size=2M -c"] {
        bench.run(&format!("qemu-img convert -f raw -O qcow2 {options} @raw @image"));
        convert(&bench.path("image"), &bench.path("out"), BackingFiles::Refuse).unwrap();
        let allocated = copy::allocated_bytes(&bench.path("out")).unwrap();
        // A file system that shares blocks shares those that are zeros too.
        let shares = copy::reflink(
            &fs::open(&bench.path("raw")).unwrap(),
            &fs::create_new(&bench.path("probe")).unwrap(),
            &bench.path("probe"),
        );
        assert!(allocated <= 64 << 10 || shares.unwrap(), "{options}: {allocated} bytes");
        for name in ["image", "out", "probe"] {
            fs::remove_file(&bench.path(name)).unwrap();
        }
    }
}

#[test]
fn an_image_without_anything_is_a_hole() {
    let bench = Bench::new();
    for (name, size) in [("none", "0"), ("sector", "512"), ("odd", "1000448"), ("tera", "2T")] {
        bench.run(&format!("qemu-img create -q -f qcow2 @{name} {size}"));
        bench.same(name, BackingFiles::Refuse);
    }
}

#[test]
fn what_a_guest_wrote_into_parts_of_clusters() {
    let bench = Bench::new();
    for options in
        ["cluster_size=64k", "cluster_size=128k,extended_l2=on", "cluster_size=64k,lazy_refcounts=on"]
    {
        bench.run(&format!("qemu-img create -q -f qcow2 -o {options} @image 3000320"));
        let mut commands = String::from("qemu-io -f qcow2 @image");
        for (what, at, len) in [
            ("write_-P_7", 4096, 8192),
            ("write_-P_9", 2_990_080, 10_240),
            ("write_-z", 1 << 20, 4096),
            ("write_-P_3", 131_072, 512),
            ("discard", 131_072, 65_536),
            ("write_-z_-u", 262_144, 131_072),
        ] {
            commands.push_str(&format!(" -c {what}_{at}_{len}"));
        }
        run_io(&bench, &commands);
        bench.same("image", BackingFiles::Refuse);
        fs::remove_file(&bench.path("image")).unwrap();
    }
}

/// Runs `qemu-io`, in whose commands spaces are written as `_`.
fn run_io(bench: &Bench, line: &str) {
    let toolbox = Toolbox::new(vec!["/usr/bin".into()], Vec::new());
    let mut tool = toolbox.find("qemu-io").unwrap();
    for word in line.split(' ').skip(1) {
        let word = match word.strip_prefix('@') {
            Some(name) => bench.path(name).display().to_string(),
            None => word.replace('_', " "),
        };
        tool = tool.arg(word);
    }
    tool.run(&Cancel::new().unwrap(), &mut |_| ()).unwrap();
}

#[test]
fn snapshots_inside_are_not_what_is_read() {
    let bench = Bench::new();
    bench.raw("raw", 2 * MIB, &[(0, MIB, 3)]);
    bench.run("qemu-img convert -f raw -O qcow2 @raw @image");
    bench.run("qemu-img snapshot -c before @image");
    run_io(&bench, "qemu-io -f qcow2 @image -c write_-P_8_65536_131072");
    assert_eq!(Qcow2::open(&bench.path("image")).unwrap().header.snapshots, 1);
    bench.same("image", BackingFiles::Refuse);
}

#[test]
fn backing_files_are_read_only_where_that_is_said() {
    let bench = Bench::new();
    bench.raw("base.raw", 3 * MIB, &[(0, 3 * MIB, 3)]);
    bench.run("qemu-img create -q -f qcow2 -F raw -b base.raw @middle 1M");
    bench.run("qemu-img create -q -f qcow2 -F qcow2 -b middle @top 4M");
    run_io(&bench, "qemu-io -f qcow2 @top -c write_-z_65536_65536 -c write_-P_8_300000_70000");
    assert_eq!(why(&bench.path("top"), BackingFiles::Refuse), "it is based on `middle`, a backing file");
    bench.same("top", BackingFiles::Flatten);
    let files: Vec<_> = Chain::open(&bench.path("top"), BackingFiles::Flatten).unwrap().files();
    let names: Vec<_> = files.iter().map(|path| path.file_name().unwrap()).collect();
    assert_eq!(names, ["base.raw", "middle", "top"]);
}

#[test]
fn backing_files_that_are_never_read() {
    let bench = Bench::new();
    bench.run("qemu-img create -q -f qcow2 @base 1M");
    let refused = |name: &str, format: &str| {
        let image = bench.path("image");
        bench.run("qemu-img create -q -f qcow2 -F raw -b base @image 1M");
        let mut bytes = fs::read_limited(&image, 1 << 22).unwrap();
        let at = bytes.len();
        // The name stands behind the extensions.
        let place = 1024;
        bytes.resize(at.max(place + name.len()), 0);
        bytes[place..place + name.len()].copy_from_slice(name.as_bytes());
        bytes[8..16].copy_from_slice(&(place as u64).to_be_bytes());
        bytes[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
        let extension = 112;
        assert_eq!(bytes[extension..extension + 4], 0xe279_2aca_u32.to_be_bytes());
        bytes[extension + 4..extension + 8]
            .copy_from_slice(&u32::try_from(format.len()).unwrap().to_be_bytes());
        bytes[extension + 8..extension + 16].fill(0);
        bytes[extension + 8..extension + 8 + format.len()].copy_from_slice(format.as_bytes());
        fs::remove_file(&image).unwrap();
        fs::create_new(&image).unwrap().write_all_at(&bytes, 0).unwrap();
        let why = why(&image, BackingFiles::Flatten);
        fs::remove_file(&image).unwrap();
        why
    };
    let mut told = String::new();
    for (name, format) in [
        ("/etc/passwd", "raw"),
        ("../base", "raw"),
        ("json:{}", "raw"),
        ("nbd:base", "raw"),
        ("nowhere", "raw"),
        ("base", "vmdk"),
        ("image", "qcow2"),
        ("base\0x", "qcow2"),
    ] {
        let dir = format!("{}/", fs::canonicalize(bench.path("").as_path()).unwrap().display());
        told.push_str(&refused(name, format).replace(&dir, "").replace('\0', "%"));
        told.push('\n');
    }
    assert_eq!(
        told,
        "its backing file `/etc/passwd` lies outside the image's directory\n\
         its backing file `../base` lies outside the image's directory\n\
         its backing file `json:{}` is not a file\n\
         its backing file `nbd:base` is not a file\n\
         its backing file `nowhere` does not exist\n\
         its backing file `base` is neither raw nor qcow2\n\
         its backing files lead back to image\n\
         its backing file `base%x` is no name of a file\n"
    );
}

#[test]
fn a_link_does_not_lead_a_backing_file_out_of_the_directory() {
    let bench = Bench::new();
    fs::create_dir(&bench.path("in")).unwrap();
    bench.raw("base", MIB, &[(0, 100, 3)]);
    std::os::unix::fs::symlink("../base", bench.path("in/link")).unwrap();
    bench.run("qemu-img create -q -f qcow2 -F raw -b link @in/image 1M");
    let told = why(&bench.path("in/image"), BackingFiles::Flatten);
    assert_eq!(told, "its backing file `link` lies outside the image's directory");
}

#[test]
fn a_chain_has_an_end() {
    let bench = Bench::new();
    bench.run("qemu-img create -q -f qcow2 @0 1M");
    for number in 1..=BACKING_FILES_MAX + 1 {
        bench.run(&format!("qemu-img create -q -u -f qcow2 -F qcow2 -b {} @{number} 1M", number - 1));
    }
    let path = |number: usize| bench.path(&number.to_string());
    assert_eq!(Chain::open(&path(BACKING_FILES_MAX), BackingFiles::Flatten).unwrap().files().len(), 17);
    assert_eq!(why(&path(17), BackingFiles::Flatten), "it has more than 16 backing files");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_image_reads_as_qemu_reads_it(
        bits in 9_u32..=21,
        sectors in 0_u64..6000,
        pieces in prop::collection::vec((0_u64..3_000_000, 1_u64..400_000, 0_u8..9), 0..6),
        kind in 0_u8..4,
        extended in any::<bool>(),
        sparse in any::<bool>(),
    ) {
        let bench = Bench::new();
        bench.raw("raw", sectors * 512, &pieces);
        let mut options = format!("cluster_size={}", 1 << bits);
        if extended && bits >= 14 {
            options.push_str(",extended_l2=on");
        }
        let compress = match kind {
            0 => "",
            1 => "-c",
            2 => { options.push_str(",compression_type=zstd"); "-c" }
            _ => "-S 0",
        };
        let compress = if sparse { compress } else { compress.trim_end_matches("-S 0") };
        bench.run(&format!("qemu-img convert -f raw -O qcow2 {compress} -o {options} @raw @image"));
        bench.same("image", BackingFiles::Refuse);
    }
}
