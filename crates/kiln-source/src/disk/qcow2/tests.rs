//! What QEMU writes is read as QEMU reads it, and what nobody should write is refused.

use super::*;
use crate::disk::Reading;
use kiln_core::recipe::BackingFiles;
use kiln_sys::tool::ScratchDir;
use kiln_sys::{Toolbox, copy};
use proptest::prelude::*;
use std::path::Path;

mod damage;
mod images;

/// A directory with images.
pub(super) struct Bench {
    dir: ScratchDir,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self { dir: ScratchDir::new(&std::env::temp_dir()).unwrap() }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a program with words; `@name` is a file here.
    pub(super) fn run(&self, line: &str) {
        let mut words = line.split_whitespace();
        let toolbox = Toolbox::new(vec!["/usr/bin".into(), "/usr/sbin".into()], Vec::new());
        let mut tool = toolbox.find(words.next().unwrap()).unwrap().current_dir(self.dir.path());
        for word in words {
            tool = tool.arg(word.replace('@', &format!("{}/", self.dir.path().display())));
        }
        tool.run(&Cancel::new().unwrap(), &mut |_| ()).unwrap();
    }

    /// Converts an image and has QEMU compare the two.
    pub(super) fn same(&self, image: &str, backing: BackingFiles) {
        let raw = self.path("raw.out");
        convert(&self.path(image), &raw, backing).unwrap();
        self.run(&format!("qemu-img compare -f qcow2 -F raw @{image} @raw.out"));
        let size = Qcow2::open(&self.path(image)).unwrap().header.virtual_bytes;
        assert_eq!(fs::metadata(&raw).unwrap().len(), size);
        fs::remove_file(&raw).unwrap();
    }

    /// Makes the raw file `name` of pieces: offset, length and a seed; seed 0 is zeros, an even one compresses.
    pub(super) fn raw(&self, name: &str, size: u64, pieces: &[(u64, u64, u8)]) {
        let file = fs::create_new(&self.path(name)).unwrap();
        file.set_len(size).unwrap();
        for (at, len, seed) in pieces {
            let at = at % size.max(1);
            let len = usize::try_from((*len).min(size - at)).unwrap();
            let mut state = u64::from(*seed);
            let bytes: Vec<u8> = (0..len)
                .map(|index| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    match seed {
                        0 => 0,
                        seed if seed % 2 == 0 => (index / 700).to_le_bytes()[0] ^ seed,
                        _ => (state >> 33).to_le_bytes()[0],
                    }
                })
                .collect();
            file.write_all_at(&bytes, at).unwrap();
        }
    }
}

pub(super) fn convert(image: &Path, raw: &Path, backing: BackingFiles) -> DiskResult<()> {
    let cancel = Cancel::new().unwrap();
    let chain = Chain::open(image, backing)?;
    let most = chain.data_bytes(&cancel)?;
    let toolbox = Toolbox::default();
    let reading = Reading { toolbox: &toolbox, threads: 2, kept: true, cancel: &cancel };
    chain.write(&fs::create_new(raw)?, raw, &reading)?;
    // What a file system needs to find many pieces again comes on top.
    let took = copy::allocated_bytes(raw)?;
    assert!(took <= most + most / 8 + (64 << 10), "{took} bytes where {most} were told");
    Ok(())
}

/// Returns why an image is not read.
pub(super) fn why(image: &Path, backing: BackingFiles) -> String {
    let raw = image.with_extension("refused");
    let error = convert(image, &raw, backing).unwrap_err();
    let _ = fs::remove_file(&raw);
    let DiskError::Qcow2 { source, .. } = error else { panic!("{error}") };
    source.to_string()
}
