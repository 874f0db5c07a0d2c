use super::*;
use kiln_sys::tool::ScratchDir;
use std::io::Write as _;

/// A module's ELF file: a name table and the `.modinfo` section.
fn module(depends: &str) -> Vec<u8> {
    let names = b"\0.modinfo\0.shstrtab\0";
    let info = format!("license=GPL\0depends={depends}\0retpoline=Y\0");
    let (names_at, info_at) = (64, 64 + names.len());
    let table_at = info_at + info.len();
    let mut bytes = vec![0; 64];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[40..48].copy_from_slice(&(table_at as u64).to_le_bytes());
    bytes[58] = 64;
    bytes[60] = 3;
    bytes[62] = 2;
    bytes.extend(names);
    bytes.extend(info.as_bytes());
    let section = |name: u32, at: usize, len: usize| {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(len as u64).to_le_bytes());
        header
    };
    bytes.extend(section(0, 0, 0));
    bytes.extend(section(1, info_at, info.len()));
    bytes.extend(section(10, names_at, names.len()));
    bytes
}

fn kernel(files: &[(&str, Vec<u8>)], builtin: &str) -> ScratchDir {
    let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
    fs::create_dir_all(&dir.path().join("kernel/drivers")).unwrap();
    for (name, bytes) in files {
        fs::create_new(&dir.path().join("kernel/drivers").join(name)).unwrap().write_all(bytes).unwrap();
    }
    fs::create_new(&dir.path().join("modules.builtin")).unwrap().write_all(builtin.as_bytes()).unwrap();
    dir
}

fn always(name: &str) -> Wanted<'_> {
    Wanted { name, when: When::Always, optional: false }
}

fn on(name: &str, device: u32) -> Wanted<'_> {
    Wanted { name, when: When::Device(device), optional: false }
}

fn device(when: When) -> Option<u32> {
    match when {
        When::Device(device) => Some(device),
        _ => None,
    }
}

fn names(loaded: &[LoadedModule]) -> Vec<(&str, Option<u32>)> {
    loaded.iter().map(|module| (module.name.as_str(), device(module.when))).collect()
}

#[test]
fn dependencies_come_first_and_built_in_drivers_not_at_all() {
    let dir = kernel(
        &[
            ("virtio.ko", module("virtio_ring")),
            ("virtio_ring.ko", module("")),
            ("virtio_net.ko", module("net-failover,virtio")),
            ("net_failover.ko", module("failover")),
            ("failover.ko", module("")),
            ("virtio-rng.ko", module("virtio,rng-core")),
        ],
        "kernel/fs/ext4/ext4.ko\nkernel/drivers/char/rng-core.ko\n",
    );
    let modules = ModuleDir::open(dir.path()).unwrap();
    let wanted = [always("virtio"), on("virtio_net", 1), on("virtio_rng", 4), always("ext4")];
    let loaded = modules.resolve(&wanted).unwrap();
    assert_eq!(
        names(&loaded),
        [
            ("virtio_ring", None),
            ("virtio", None),
            ("failover", Some(1)),
            ("net_failover", Some(1)),
            ("virtio_net", Some(1)),
            ("virtio_rng", Some(4)),
        ]
    );
}

#[test]
fn what_two_devices_need_is_always_loaded() {
    let dir =
        kernel(&[("a.ko", module("common")), ("b.ko", module("common")), ("common.ko", module(""))], "");
    let loaded = ModuleDir::open(dir.path()).unwrap().resolve(&[on("a", 1), on("b", 2)]).unwrap();
    assert_eq!(names(&loaded), [("common", None), ("a", Some(1)), ("b", Some(2))]);
}

#[test]
fn a_missing_module_is_named_with_what_needs_it() {
    let dir = kernel(&[("a.ko", module("gone"))], "");
    let modules = ModuleDir::open(dir.path()).unwrap();
    let error = modules.resolve(&[always("a")]).unwrap_err().to_string();
    assert!(error.ends_with("lack `gone`, which `a` needs"), "{error}");
    assert!(modules.resolve(&[always("b")]).unwrap_err().to_string().ends_with("lack `b`"));
    let spare = Wanted { optional: true, ..always("b") };
    assert_eq!(modules.resolve(&[spare]).unwrap(), []);
}

#[test]
fn a_circle_is_an_error() {
    let dir = kernel(&[("a.ko", module("b")), ("b.ko", module("a"))], "");
    let error = ModuleDir::open(dir.path()).unwrap().resolve(&[always("a")]).unwrap_err();
    assert!(matches!(error, ModuleError::Cycle(name) if name == "a"));
}

#[test]
fn compressed_modules_are_opened_or_refused_by_name() {
    let zstd =
        ruzstd::encoding::compress_to_vec(&module("")[..], ruzstd::encoding::CompressionLevel::Fastest);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&module("")).unwrap();
    let xz = vec![0xfd, b'7', b'z', b'X', b'Z', 0, 0];
    let dir = kernel(
        &[
            ("a.ko.zst", zstd),
            ("b.ko.gz", gzip.finish().unwrap()),
            ("c.ko.xz", xz),
            ("d.ko", b"text".to_vec()),
        ],
        "",
    );
    let modules = ModuleDir::open(dir.path()).unwrap();
    let loaded = modules.resolve(&[always("a"), always("b")]).unwrap();
    assert!(loaded.iter().all(|loaded| loaded.bytes == module("")));
    let error = modules.resolve(&[always("c")]).unwrap_err().to_string();
    assert!(error.ends_with("c.ko.xz is compressed with xz; plain, gzip and zstd can be read"), "{error}");
    let error = modules.resolve(&[always("d")]).unwrap_err().to_string();
    assert!(error.ends_with("d.ko is not a kernel module: it has no `.modinfo` section"), "{error}");
}

#[test]
fn a_directory_without_modules_is_none() {
    let dir = kernel(&[], "");
    assert!(matches!(ModuleDir::open(dir.path()), Err(ModuleError::Empty(_))));
}

#[test]
fn the_modules_of_a_kernel_are_limited() {
    let path = Path::new("/lib/modules/6.1.0");
    check_files(20_000, path).unwrap();
    let error = check_files(20_001, path).unwrap_err().to_string();
    assert_eq!(error, "/lib/modules/6.1.0 holds more than 20000 modules");
}

#[test]
fn a_module_has_a_largest_size_packed_or_not() {
    let dir = ScratchDir::new(&std::env::temp_dir()).unwrap();
    let (plain, packed) = (dir.path().join("a.ko"), dir.path().join("a.ko.gz"));
    fs::create_new(&plain).unwrap().set_len(MODULE_BYTES_MAX + 1).unwrap();
    let ModuleError::Io(error) = read(&plain).unwrap_err() else { panic!("it was read") };
    assert_eq!((error.path, error.source.to_string()), (plain, "more than 67108864 bytes".to_owned()));
    // Zeros, in pieces that are each a whole file to gzip: what uncompresses them reads them as one.
    let mut piece = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    piece.write_all(&vec![0; 1 << 20]).unwrap();
    let piece = piece.finish().unwrap();
    let mut file = fs::create_new(&packed).unwrap();
    for _ in 0..64 {
        file.write_all(&piece).unwrap();
    }
    assert_eq!(read(&packed).unwrap().len() as u64, MODULE_BYTES_MAX);
    file.write_all(&piece).unwrap();
    let error = read(&packed).unwrap_err().to_string();
    assert!(error.contains("a.ko.gz") && error.contains("more than 64 MiB"), "{error}");
}
