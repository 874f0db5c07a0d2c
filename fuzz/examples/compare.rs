//! Converts disk images with kiln and with `qemu-img`, and compares where both take an image.
//!
//! `compare PROGRAM DIRECTORY`: the path of `qemu-img`, and a directory of images. What differs is named and copied nowhere; the
//! program then ends with 1.

use kiln_core::recipe::{BackingFiles, DiskFormat};
use kiln_fuzz::{Bench, INPUT_BYTES_MAX, qcow2};
use kiln_source::disk::Image;
use kiln_sys::fs;
use kiln_sys::tool::Tool;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// How long `qemu-img` may take over an image.
const DEADLINE: Duration = Duration::from_secs(30);
/// The unit that disks are measured in by QEMU, which leaves out what is no whole one.
const SECTOR: usize = 512;

#[derive(Default)]
struct Count {
    images: u32,
    same: u32,
    only_kiln: u32,
    only_qemu: u32,
    neither: u32,
    different: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let words: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [program, directory] = words.as_slice() else {
        eprintln!("compare PROGRAM DIRECTORY");
        return ExitCode::from(2);
    };
    let bench = Bench::new();
    qcow2::make_bases(&bench);
    let mut count = Count::default();
    for name in fs::list_dir(directory).expect("the directory can be read") {
        let path = directory.join(name);
        let data = fs::read_limited(&path, INPUT_BYTES_MAX).expect("the image can be read");
        if data.starts_with(b"QFI\xfb") && qcow2::is_small(&data) {
            one(&bench, program, &path, &data, &mut count);
        }
    }
    let Count { images, same, only_kiln, only_qemu, neither, different } = &count;
    println!(
        "{images} images opened: {same} the same, {only_kiln} read by kiln alone, {only_qemu} by qemu-img alone, {neither} by neither, {} different",
        different.len()
    );
    for path in different {
        println!("different: {}", path.display());
    }
    if different.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(bench: &Bench, program: &Path, path: &Path, data: &[u8], count: &mut Count) {
    let (_, image) = bench.write("image", data);
    // One that kiln does not open may make QEMU read any file of this machine.
    if Image::open(&image, Some(DiskFormat::Qcow2), BackingFiles::Flatten).is_err() {
        return;
    }
    count.images += 1;
    let (ours, theirs) = (bench.path("ours"), bench.path("theirs"));
    let kiln = qcow2::convert(bench, &image, &ours);
    let tool = Tool::new("qemu-img", program.to_owned(), Vec::new()).deadline(DEADLINE);
    let tool = tool.args(["convert", "-f", "qcow2", "-O", "raw"]).arg(&image).arg(&theirs);
    let qemu = tool.run(&bench.cancel, &mut |_| ());
    match (&kiln, &qemu) {
        (Ok(_), Ok(_)) if is_same(&ours, &theirs) => count.same += 1,
        (Ok(_), Ok(_)) => count.different.push(path.to_owned()),
        (Ok(_), Err(error)) => {
            count.only_kiln += 1;
            println!("kiln alone reads {}: {error}", path.display());
        }
        (Err(error), Ok(_)) => {
            count.only_qemu += 1;
            let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            println!("qemu-img alone reads {}: {error}: {source}", path.display());
        }
        (Err(_), Err(_)) => count.neither += 1,
    }
    for name in ["ours", "theirs"] {
        bench.remove(name);
    }
}

/// Compares as far as QEMU has it: whole sectors.
fn is_same(ours: &Path, theirs: &Path) -> bool {
    let read = |path| fs::read_limited(path, qcow2::DISK_BYTES_MAX as usize).expect("it was written");
    let (ours, theirs) = (read(ours), read(theirs));
    ours.len() / SECTOR == theirs.len() / SECTOR && ours[..theirs.len().min(ours.len())] == theirs
}
