//! Disk images of other formats made raw, beside the program that everybody does it with.

use super::contest::{Arena, Sample, Target};
use super::host::Host;
use super::material::Material;
use super::report::{Level, Row};
use super::{BenchReport, BenchRequest, SIZE_MIB_MAX, host};
use crate::progress::Reporter;
use crate::{EngineResult, Settings};
use kiln_build::BuildError;
use kiln_core::ByteSize;
use kiln_core::recipe::BackingFiles;
use kiln_source::disk::{Image, Reading};
use kiln_sys::tool::ScratchDir;
use kiln_sys::{Cancel, IoResultExt as _, Toolbox, copy, fs};
use std::path::{Path, PathBuf};

/// The verb by which kiln runs itself to make an image raw, and does nothing else.
pub const DISK_COMMAND: &str = "__disk";
/// Times its data that the benchmark needs as space.
const SPACE_FACTOR: u64 = 6;
/// The programs and libraries of the host: what cloud images are full of.
const CONTENT: &str = "/usr";
/// The largest file that is taken of them, in bytes.
const FILE_BYTES_MAX: u64 = 32 << 20;
/// What has the peer end only when what it wrote is kept.
const SYNCED: &[&str] = &["-t", "writeback"];
/// Wanted: processor time of the peer over kiln's, where everything has to be uncompressed.
const CPU_TARGET: f64 = 2.2;
/// Wanted: time of the peer over kiln's, where blocks are shared.
const SHARED_TARGET: f64 = 25.0;
/// Wanted: time of the peer over kiln's, where blocks are copied.
const COPIED_TARGET: f64 = 0.9;

/// Makes an image raw, and has the file system keep it where `sync` says so: kiln's part of a comparison of programs.
///
/// # Errors
/// When the image cannot be read, when the file exists.
pub fn raw_of_image(
    toolbox: &Toolbox,
    from: &Path,
    to: &Path,
    sync: bool,
    cancel: &Cancel,
) -> EngineResult<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let reading = Reading { toolbox, threads, kept: false, cancel };
    let written =
        Image::open(from, None, BackingFiles::Refuse).and_then(|image| image.write_raw(to, &reading));
    written.map_err(BuildError::from)?;
    if sync {
        fs::open(to)?.sync_all().at("sync", to)?;
    }
    Ok(())
}

/// Measures how disk images become raw beside `qemu-img`, which has to be installed: it makes the images too.
///
/// # Errors
/// When the directory has too little space, when a program fails, when what came out is not the same.
pub fn bench_disk(
    settings: &Settings,
    request: &BenchRequest<'_>,
    cancel: &Cancel,
    reporter: &dyn Reporter,
) -> EngineResult<BenchReport> {
    let scratch = ScratchDir::new(&fs::canonicalize(request.dir)?)?;
    let host = Host::gather(&settings.toolbox, scratch.path(), cancel)?;
    let mib = u64::from(request.size_mib.clamp(1, SIZE_MIB_MAX));
    let material = Material::new(scratch.path(), mib, cancel)?;
    material.store.need_space((mib << 20) * SPACE_FACTOR)?;
    let arena = Arena { settings, cancel, reporter, material: &material, rounds: request.rounds };
    let raw = file_system(&arena)?;
    let plain = if host.reflink { SHARED_TARGET } else { COPIED_TARGET };
    let mut rows = Vec::new();
    let many: &[&str] = &["-m", "16", "-W"];
    let zstd: &[&str] = &["-c", "-o", "compression_type=zstd"];
    for (name, options, best, target) in [
        ("zlib qcow2 to raw", &["-c"][..], many, Target::Cpu(CPU_TARGET)),
        ("zstd qcow2 to raw", zstd, many, Target::Cpu(1.0)),
        ("plain qcow2 to raw", &[], &[], Target::Wall(plain)),
        // By default `qemu-img` has nothing kept.
        ("plain qcow2 to raw, synced", &[], SYNCED, Target::Wall(plain)),
    ] {
        let image = material.work.join("image.qcow2");
        let make = ["convert", "-f", "raw", "-O", "qcow2"].into_iter().chain(options.iter().copied());
        let tool = settings.toolbox.find("qemu-img")?.args(make).arg(&raw).arg(&image);
        tool.run(cancel, &mut |_| ())?;
        rows.push(row(&arena, name, &raw, &image, best, target)?);
        material.settle(&image)?;
    }
    Ok(BenchReport { load_after: host::load()?, host, size: ByteSize::from_bytes(mib << 20), rows })
}

fn row(
    arena: &Arena<'_>,
    name: &'static str,
    raw: &Path,
    image: &Path,
    best: &[&str],
    target: Target,
) -> EngineResult<Row> {
    let material = arena.material;
    let done = |usage, to: &Path| {
        let allocated = Some(copy::allocated_bytes(to)?);
        material.settle(to)?;
        Ok(Sample { usage, allocated })
    };
    let (ours, theirs) = (material.work.join("ours.raw"), material.work.join("theirs.raw"));
    let synced = best == SYNCED;
    let kiln = || {
        let tool = arena.kiln([DISK_COMMAND.as_ref(), image.as_os_str(), ours.as_os_str()]);
        if synced { tool.arg("--sync") } else { tool }
    };
    let convert = ["convert"].into_iter().chain(best.iter().copied()).chain(["-f", "qcow2", "-O", "raw"]);
    let convert: Vec<&str> = convert.collect();
    // What is faster and wrong is no result.
    kiln().run(arena.cancel, &mut |_| ())?;
    let tool = arena.settings.toolbox.find("qemu-img")?;
    let tool = tool.args(["compare", "-q", "-f", "qcow2", "-F", "raw"]).arg(image).arg(&ours);
    tool.run(arena.cancel, &mut |_| ())?;
    material.settle(&ours)?;
    arena
        .contest(name, Level::Programs, "kiln", || done(kiln().measure(arena.cancel)?, &ours))
        .peer(format!("qemu-img {}", convert.join(" ")), Some(target), || {
            let tool = arena.settings.toolbox.find("qemu-img")?.args(&convert).arg(image).arg(&theirs);
            done(tool.measure(arena.cancel)?, &theirs)
        })
        .floor("cp --sparse=always, of the raw disk", || {
            let copy = material.work.join("copy");
            let args = ["--sparse=always".as_ref(), raw.as_os_str(), copy.as_os_str()];
            done(arena.run("cp", args)?, &copy)
        })
        .note(if synced {
            "the same bytes by qemu-img compare; both end when what they wrote is kept"
        } else {
            "the same bytes by qemu-img compare; neither syncs what it writes"
        })
        .hold()
}

/// Makes a file system of the host's own programs and libraries, as far as the size goes.
fn file_system(arena: &Arena<'_>) -> EngineResult<PathBuf> {
    let material = arena.material;
    let tree = material.work.join("tree");
    fs::create_dir(&tree)?;
    let (mut left, mut number) = (material.mib << 20, 0_u32);
    let mut dirs = vec![PathBuf::from(CONTENT)];
    'all: while let Some(dir) = dirs.pop() {
        let Ok(mut names) = fs::list_dir(&dir) else { continue };
        names.sort();
        for name in names {
            let path = dir.join(&name);
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.is_dir() {
                dirs.push(path);
                continue;
            }
            if !meta.is_file() || meta.len() == 0 || meta.len() > FILE_BYTES_MAX {
                continue;
            }
            let Ok(from) = fs::open(&path) else { continue };
            arena.cancel.check().map_err(BuildError::from)?;
            let to = tree.join(number.to_string());
            copy::compacting_copy(&from, &fs::create_new(&to)?, &to, Some(arena.cancel))?;
            number += 1;
            left = left.saturating_sub(meta.len());
            if left == 0 {
                break 'all;
            }
        }
    }
    let raw = material.work.join("content.raw");
    let size = format!("{}M", material.mib * 2 + 16);
    let tool = arena.settings.toolbox.find("mke2fs")?.args(["-q", "-F", "-t", "ext4", "-d"]);
    tool.arg(&tree).arg(&raw).arg(&size).run(arena.cancel, &mut |_| ())?;
    fs::remove_tree(&tree)?;
    Ok(raw)
}
