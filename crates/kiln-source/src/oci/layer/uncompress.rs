//! Layers made plain tar files, all at once on the cores there are, their digests checked on the way.

use super::super::error::{LayerError, OciError};
use super::super::image::{Layer, Place};
use super::super::limits::{LAYER_BYTES_FREE, LAYER_RATIO_MAX};
use crate::hash::{Hasher, Hashing};
use kiln_core::image::{Algorithm, ContentDigest};
use kiln_sys::{Cancel, IoResultExt, fs};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Bytes handled at a time.
const STEP_BYTES: usize = 256 << 10;

/// How layers are uncompressed.
#[derive(Debug, Clone, Copy)]
pub struct UncompressOptions<'a> {
    /// An existing directory, of the caller's alone.
    pub directory: &'a Path,
    /// The most bytes all of them may become together, such as the room there is.
    pub bytes_max: u64,
    /// Ends the work early.
    pub cancel: &'a Cancel,
}

/// A layer as a plain tar file.
#[derive(Debug)]
pub struct Uncompressed {
    pub(super) file: File,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// Uncompresses the layers of an image.
pub fn uncompress(layers: &[Layer], options: &UncompressOptions<'_>) -> Result<Vec<Uncompressed>, OciError> {
    let (next, used) = (AtomicUsize::new(0), AtomicU64::new(0));
    let done: Mutex<Vec<(usize, Uncompressed)>> = Mutex::new(Vec::new());
    let failed: Mutex<Option<(usize, OciError)>> = Mutex::new(None);
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(layers.len());
    let lock = "no holder of the lock panics";
    #[expect(clippy::expect_used, reason = "a poisoned lock is a bug")]
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(layer) = layers.get(index) else { return };
                    match one(layer, index, options, &used) {
                        Ok(plain) => done.lock().expect(lock).push((index, plain)),
                        Err(error) => {
                            // Nobody begins another.
                            next.store(layers.len(), Ordering::Relaxed);
                            let mut failed = failed.lock().expect(lock);
                            if failed.as_ref().is_none_or(|(first, _)| index < *first) {
                                *failed = Some((index, error));
                            }
                        }
                    }
                }
            });
        }
    });
    #[expect(clippy::expect_used, reason = "a poisoned lock is a bug")]
    let (mut done, failed) = (done.into_inner().expect(lock), failed.into_inner().expect(lock));
    if let Some((_, error)) = failed {
        return Err(error);
    }
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, plain)| plain).collect())
}

fn one(
    layer: &Layer,
    index: usize,
    options: &UncompressOptions<'_>,
    used: &AtomicU64,
) -> Result<Uncompressed, OciError> {
    let refuse = |source| OciError::Layer { number: index + 1, source };
    let Place { path, offset, len } = &layer.blob.place;
    let algorithm = layer.blob.digest.as_ref().map_or(Algorithm::Sha256, |digest| digest.algorithm());
    let mut file = fs::open(path)?;
    io::Seek::seek(&mut file, io::SeekFrom::Start(*offset)).at("read", path)?;
    let mut stored = BufReader::with_capacity(STEP_BYTES, Hashing::new((&file).take(*len), algorithm));
    let plain = plain(&mut stored, layer, index, options, used);
    // Whatever is wrong with what it becomes: other bytes than the image names are the reason, if that is what they are.
    let what = || format!("layer {} of the image,", index + 1);
    if !matches!(plain, Err(OciError::Cancelled | OciError::Io(_) | OciError::NoRoom { .. })) {
        drain(&mut stored, path, options.cancel)?;
        let stored = stored.into_inner();
        if stored.count != *len {
            return Err(refuse(LayerError::Truncated("its file".to_owned())));
        }
        if let Some(expected) = &layer.blob.digest {
            let actual = stored.hasher.finish();
            if actual != *expected {
                return Err(OciError::Digest { what: what(), expected: expected.clone(), actual });
            }
        }
    }
    let Plain { sink, len: total, digest: actual } = plain?;
    if actual != layer.diff_id {
        let what = format!("{} uncompressed,", what());
        return Err(OciError::Digest { what, expected: layer.diff_id.clone(), actual });
    }
    Ok(match sink {
        Some((plain, path)) => {
            // Its name is not needed any more.
            fs::remove_file(&path)?;
            Uncompressed { file: plain, offset: 0, len: total }
        }
        None => Uncompressed { file, offset: *offset, len: total },
    })
}

/// What a layer became.
struct Plain {
    /// The file it was written to, where it was compressed.
    sink: Option<(File, PathBuf)>,
    len: u64,
    digest: ContentDigest,
}

/// Uncompresses a layer as far as its format goes.
fn plain(
    stored: &mut impl BufRead,
    layer: &Layer,
    index: usize,
    options: &UncompressOptions<'_>,
    used: &AtomicU64,
) -> Result<Plain, OciError> {
    let refuse = |source| OciError::Layer { number: index + 1, source };
    let Place { path, len, .. } = &layer.blob.place;
    let format = Compression::detect(stored.fill_buf().at("read", path)?).map_err(refuse)?;
    let max = LAYER_BYTES_FREE.saturating_add(len.saturating_mul(LAYER_RATIO_MAX));
    let mut hasher = Hasher::new(layer.diff_id.algorithm());
    let mut sink = match format {
        Compression::None => None,
        _ => {
            let path = options.directory.join(format!("layer-{index}.tar"));
            Some((fs::create_new(&path)?, path))
        }
    };
    let mut total = 0_u64;
    let mut input: Box<dyn Read + '_> = match format {
        Compression::None => Box::new(stored),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(stored)),
        Compression::Zstd => Box::new(
            zstd::stream::read::Decoder::with_buffer(stored).map_err(LayerError::Damaged).map_err(refuse)?,
        ),
    };
    let mut buffer = vec![0; STEP_BYTES];
    loop {
        options.cancel.check()?;
        let read = input.read(&mut buffer).map_err(LayerError::Damaged).map_err(refuse)?;
        if read == 0 {
            break;
        }
        total += read as u64;
        if total > max {
            return Err(refuse(LayerError::Bomb { stored: *len, max }));
        }
        if let Some((file, path)) = &mut sink {
            let all = used.fetch_add(read as u64, Ordering::Relaxed) + read as u64;
            if all > options.bytes_max {
                return Err(OciError::NoRoom { room: options.bytes_max });
            }
            file.write_all(&buffer[..read]).at("write", path)?;
        }
        hasher.update(&buffer[..read]);
    }
    drop(input);
    Ok(Plain { sink, len: total, digest: hasher.finish() })
}

/// Reads what a decompressor left: it belongs to the digest as well.
fn drain(stored: &mut impl BufRead, path: &Path, cancel: &Cancel) -> Result<(), OciError> {
    loop {
        cancel.check()?;
        match stored.fill_buf().at("read", path)?.len() {
            0 => return Ok(()),
            read => stored.consume(read),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Tells the format by its first bytes: media types are often wrong.
    fn detect(head: &[u8]) -> Result<Self, LayerError> {
        let known: [(&[u8], Result<Self, &'static str>); 6] = [
            (&[0x1f, 0x8b], Ok(Self::Gzip)),
            (&[0x28, 0xb5, 0x2f, 0xfd], Ok(Self::Zstd)),
            (&[0x50, 0x2a, 0x4d, 0x18], Ok(Self::Zstd)),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Err("xz")),
            (b"BZh", Err("bzip2")),
            (&[0x04, 0x22, 0x4d, 0x18], Err("lz4")),
        ];
        // A tar file may begin with any name.
        if head.get(257..262) == Some(b"ustar") {
            return Ok(Self::None);
        }
        match known.iter().find(|(magic, _)| head.starts_with(magic)) {
            None => Ok(Self::None),
            Some((_, known)) => known.map_err(LayerError::Compression),
        }
    }
}
