//! Images that nobody should make.

use super::*;

/// Returns a small image of two compressed, two plain and two zero clusters of 4 KiB.
fn image(bench: &Bench, options: &str) -> Vec<u8> {
    bench.raw("raw", 32 << 10, &[(0, 8192, 2), (8192, 8192, 3)]);
    bench.run(&format!("qemu-img convert -f raw -O qcow2 {options} @raw @image"));
    let bytes = fs::read_limited(&bench.path("image"), 1 << 22).unwrap();
    fs::remove_file(&bench.path("raw")).unwrap();
    fs::remove_file(&bench.path("image")).unwrap();
    bytes
}

fn told(bench: &Bench, bytes: &[u8]) -> String {
    let path = bench.path("damaged");
    fs::create_new(&path).unwrap().write_all_at(bytes, 0).unwrap();
    let told = why(&path, BackingFiles::Flatten);
    fs::remove_file(&path).unwrap();
    told
}

fn put(bytes: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + value.len()].copy_from_slice(value);
    bytes
}

#[test]
fn every_field_of_the_header_is_checked() {
    let bench = Bench::new();
    let good = image(&bench, "-o cluster_size=4k");
    let file = good.len();
    let u32 = |at, value: u32| told(&bench, &put(&good, at, &value.to_be_bytes()));
    let u64 = |at, value: u64| told(&bench, &put(&good, at, &value.to_be_bytes()));
    assert_eq!(u32(0, 1), "it is not a qcow2 image");
    assert_eq!(u32(4, 1), "it is qcow version 1; versions 2 and 3 can be read");
    assert_eq!(u32(4, 4), "it is qcow version 4; versions 2 and 3 can be read");
    assert_eq!(u32(20, 8), "its header is damaged: cluster_bits is 8");
    assert_eq!(u32(20, 22), "its header is damaged: cluster_bits is 22");
    assert_eq!(u64(24, 1 << 50), "its virtual size is 1125899906842624, more than 70368744177664");
    assert_eq!(u64(24, 1 << 46), "its header is damaged: l1_size is 1");
    assert_eq!(u32(32, 1), "it uses AES encryption, which kiln does not read");
    assert_eq!(u32(32, 2), "it uses LUKS encryption, which kiln does not read");
    assert_eq!(u32(32, 3), "its header is damaged: crypt_method is 3");
    assert_eq!(u32(36, 1 << 30), "its first-level table is 8589934592, more than 33554432");
    assert_eq!(u32(36, 0), "its header is damaged: l1_size is 0");
    let table = |name: &str, offset: u64, len: u64| {
        format!(
            "its {name} at {offset} with {len} bytes is not aligned or not inside the file of {file} bytes"
        )
    };
    assert_eq!(u32(36, 1 << 20), table("first-level table", u64_at(&good, 40).unwrap(), 8 << 20));
    assert_eq!(u64(40, 7), table("first-level table", 7, 8));
    assert_eq!(u64(40, 0), table("first-level table", 0, 8));
    assert_eq!(u64(40, 1 << 40), table("first-level table", 1 << 40, 8));
    assert_eq!(u64(40, u64::MAX - 4095), table("first-level table", u64::MAX - 4095, 8));
    assert_eq!(u64(48, 1 << 40), table("reference count table", 1 << 40, 4096));
    assert_eq!(u32(56, 0), "its header is damaged: refcount_table_clusters is 0");
    assert_eq!(u32(56, u32::MAX), table("reference count table", 4096, u64::from(u32::MAX) << 12));
    assert_eq!(u32(60, 70_000), "its header is damaged: nb_snapshots is 70000");
    assert_eq!(u32(60, 1), table("snapshot table", 0, 40));
    assert_eq!(u64(72, 2), "it uses the mark of a corrupt image, which kiln does not read");
    assert_eq!(u64(72, 4), "it uses an external data file, which kiln does not read");
    assert_eq!(u64(72, 8), "its header is damaged: compression_type is 0");
    assert_eq!(u64(72, 16), "its header is damaged: cluster_bits of an image with subclusters is 12");
    assert_eq!(u64(72, 1 << 40), "it has incompatible features that kiln does not know: 0x10000000000");
    assert_eq!(u32(96, 7), "its header is damaged: refcount_order is 7");
    assert_eq!(u32(100, 100), "its header is damaged: header_length is 100");
    assert_eq!(u32(100, 8192), "its header is damaged: header_length is 8192");
    assert_eq!(u64(104, 2 << 56), "its header is damaged: compression_type is 2");
    assert_eq!(u64(112, 1 << 32 | 5000), "its header is damaged: the length of a header extension is 5000");
    let named = put(&good, 8, &1024_u64.to_be_bytes());
    assert_eq!(
        told(&bench, &put(&named, 16, &1024_u32.to_be_bytes())),
        "its backing file's name is 1024, more than 1023"
    );
    let named = put(&good, 8, &4090_u64.to_be_bytes());
    let damaged = "its header is damaged: backing_file_offset is 4090";
    assert_eq!(told(&bench, &put(&named, 16, &100_u32.to_be_bytes())), damaged);
    assert_eq!(told(&bench, &good[..60]), "its header is damaged: the length of the file is 60");
    // Its reference counts are not to be trusted, and nothing needs them.
    let path = bench.path("dirty");
    fs::create_new(&path).unwrap().write_all_at(&put(&good, 72, &1_u64.to_be_bytes()), 0).unwrap();
    convert(&path, &bench.path("out"), BackingFiles::Refuse).unwrap();
}

#[test]
fn entries_of_tables_are_checked() {
    let bench = Bench::new();
    let good = image(&bench, "-o cluster_size=4k");
    let file = good.len() as u64;
    let l1 = usize::try_from(u64_at(&good, 40).unwrap()).unwrap();
    let l2 = usize::try_from(u64_at(&good, l1).unwrap() & 0xff_ffff).unwrap();
    let entry = |at: usize, value: u64| told(&bench, &put(&good, at, &value.to_be_bytes()));
    let outside = |guest: u64, host: u64| {
        format!(
            "the data of guest offset {guest} should be at {host}, which is not aligned or beyond the file's end at {file}: the file is cut off or damaged"
        )
    };
    assert_eq!(
        entry(l1, 512),
        format!(
            "its second-level table at 512 with 4096 bytes is not aligned or not inside the file of {file} bytes"
        )
    );
    assert!(entry(l1, 1 << 50).starts_with("its second-level table at 1125899906842624"));
    assert_eq!(entry(l2, 512), outside(0, 512));
    assert_eq!(entry(l2 + 8, 1 << 50), outside(4096, 1 << 50));
    let compressed = 1 << 62 | file;
    assert_eq!(entry(l2, compressed), outside(0, file));
    assert_eq!(entry(l2, 1 << 62 | 8192), "the zlib data of guest offset 0 does not uncompress");

    let old = image(&bench, "-o cluster_size=4k,compat=0.10");
    let l1 = usize::try_from(u64_at(&old, 40).unwrap()).unwrap();
    let l2 = usize::try_from(u64_at(&old, l1).unwrap() & 0xff_ffff).unwrap();
    let zero = told(&bench, &put(&old, l2, &1_u64.to_be_bytes()));
    assert_eq!(zero, "its table entry for guest offset 0 is damaged: zero clusters are not of version 2");

    let parts = image(&bench, "-o cluster_size=16k,extended_l2=on");
    let l1 = usize::try_from(u64_at(&parts, 40).unwrap()).unwrap();
    let l2 = usize::try_from(u64_at(&parts, l1).unwrap() & 0xff_ffff).unwrap();
    let bitmap = |value: u64| told(&bench, &put(&parts, l2 + 8, &value.to_be_bytes()));
    let damaged = |reason| format!("its table entry for guest offset 0 is damaged: {reason}");
    assert_eq!(bitmap(1 << 32 | 1), damaged("a subcluster is both zeros and data"));
    let both = [&0_u64.to_be_bytes()[..], &1_u64.to_be_bytes()].concat();
    let why = told(&bench, &put(&parts, l2, &both));
    assert_eq!(why, damaged("subclusters have data, and the cluster has no place"));
    let why = told(&bench, &put(&parts, l2, &1_u64.to_be_bytes()));
    assert_eq!(why, damaged("the zero flag is not of images with subclusters"));
}

#[test]
fn tables_that_say_the_same_again_and_again_are_refused() {
    let bench = Bench::new();
    let good = image(&bench, "-o cluster_size=4k");
    let l1 = usize::try_from(u64_at(&good, 40).unwrap()).unwrap();
    let table = u64_at(&good, l1).unwrap();
    let l2 = usize::try_from(table & 0xff_ffff).unwrap();
    let first = u64_at(&good, l2).unwrap();
    // A disk of 1 GiB, each of whose 512 tables is the one there is.
    let mut many = put(&good, 24, &(1_u64 << 30).to_be_bytes());
    many[36..40].copy_from_slice(&512_u32.to_be_bytes());
    for number in 0..512 {
        many[l1 + number * 8..][..8].copy_from_slice(&table.to_be_bytes());
    }
    let mut again = put(&good, 24, &(2_u64 << 20).to_be_bytes());
    for number in 0..512 {
        again[l2 + number * 8..][..8].copy_from_slice(&first.to_be_bytes());
    }
    // What stands behind the tables is overwritten; it does not matter.
    assert_eq!(told(&bench, &again), "its tables refer to more clusters than its file can hold");
    let why = told(&bench, &many);
    assert!(why.ends_with("than its file can hold") || why.contains("damaged"), "{why}");
}

#[test]
fn files_that_are_cut_off_are_refused() {
    let bench = Bench::new();
    for options in
        ["-o cluster_size=4k", "-c -o cluster_size=4k", "-c -o compression_type=zstd,cluster_size=4k"]
    {
        let good = image(&bench, options);
        for len in (0..good.len()).step_by(1000) {
            told(&bench, &good[..len]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever bytes say, there is an error or a file, and no more work than the file is worth.
    #[test]
    fn damage_gives_an_error_or_a_file(
        kind in 0_usize..4,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0_u8..4), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = samples()[kind].clone();
        let l1 = usize::try_from(u64_at(&bytes, 40).unwrap()).unwrap();
        let l2 = usize::try_from(u64_at(&bytes, l1).unwrap() & 0xff_ffff).unwrap();
        for (index, value, region) in changes {
            let at = match region {
                0 => index.index(120),
                1 => l1 + index.index(8),
                2 => l2 + index.index(128),
                _ => index.index(bytes.len()),
            };
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
        let (path, raw) = (dir.path().join("image"), dir.path().join("raw"));
        fs::create_new(&path).unwrap().write_all_at(&bytes, 0).unwrap();
        if convert(&path, &raw, BackingFiles::Flatten).is_ok() {
            let allocated = copy::allocated_bytes(&raw).unwrap();
            prop_assert!(allocated <= bytes.len() as u64 * 1032 + (4 << 20), "{allocated} bytes");
        }
    }
}

/// The images that are damaged, made once.
fn samples() -> &'static [Vec<u8>] {
    static SAMPLES: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    SAMPLES.get_or_init(|| {
        let bench = Bench::new();
        let kinds = [
            "-o cluster_size=4k",
            "-c -o cluster_size=4k",
            "-c -o compression_type=zstd,cluster_size=4k",
            "-o cluster_size=16k,extended_l2=on",
        ];
        kinds.iter().map(|options| image(&bench, options)).collect()
    })
}

#[test]
fn a_window_has_a_largest_size() {
    use super::super::cluster::Decoder;
    use super::super::header::Compression;
    use std::io::Write as _;
    let frame = |log| {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.set_parameter(zstd::stream::raw::CParameter::WindowLog(log)).unwrap();
        encoder.write_all(&[7; 4096]).unwrap();
        encoder.flush().unwrap();
        encoder.write_all(&[8; 4096]).unwrap();
        encoder.finish().unwrap()
    };
    let mut decoder = Decoder::new(Compression::Zstd).unwrap();
    let mut cluster = vec![0; 8192];
    assert!(decoder.fill(&frame(22), &mut cluster) && cluster[4095..4097] == [7, 8]);
    assert!(!decoder.fill(&frame(23), &mut cluster));
    assert!(decoder.fill(&frame(20), &mut cluster), "a refused frame does not spoil the next");
}

#[test]
fn buffers_of_threads_stay_within_the_memory() {
    use super::super::convert::{MEMORY_BYTES_MAX, THREADS_MAX, buffer_bytes, threads};
    for bits in 9..=21 {
        let threads = threads(1 << bits, 1000);
        assert!((1..=THREADS_MAX).contains(&threads));
        assert!(threads as u64 * buffer_bytes(1 << bits) <= MEMORY_BYTES_MAX / 2, "{bits}");
    }
    assert_eq!(threads(1 << 16, 2), 2);
    assert_eq!(threads(1 << 16, 0), 1);
}
