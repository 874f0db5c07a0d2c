//! Compressed clusters.

use super::header::Compression;
use zstd::stream::raw::{DParameter, InBuffer, Operation as _, OutBuffer};

/// The largest window a zstd frame may ask memory for, as a power of two: twice the largest cluster.
const WINDOW_LOG_MAX: u32 = 22;

/// Uncompresses clusters, one after the other. Each thread has its own.
pub(crate) enum Decoder {
    Deflate(libdeflater::Decompressor),
    Zstd(Box<zstd::stream::raw::Decoder<'static>>),
}

impl Decoder {
    pub(crate) fn new(compression: Compression) -> std::io::Result<Self> {
        Ok(match compression {
            Compression::Deflate => Self::Deflate(libdeflater::Decompressor::new()),
            Compression::Zstd => {
                let mut decoder = zstd::stream::raw::Decoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }

    /// Returns the format's name.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Deflate(_) => "zlib",
            Self::Zstd(_) => "zstd",
        }
    }

    /// Fills `cluster` with what `data` holds; false where it does not hold that. What follows in `data` is ignored:
    /// clusters are measured in sectors.
    pub(crate) fn fill(&mut self, data: &[u8], cluster: &mut [u8]) -> bool {
        match self {
            Self::Deflate(decoder) => {
                decoder.deflate_decompress(data, cluster).is_ok_and(|len| len == cluster.len())
            }
            Self::Zstd(decoder) => unzstd(decoder, data, cluster).unwrap_or(false),
        }
    }
}

fn unzstd(
    decoder: &mut zstd::stream::raw::Decoder<'static>,
    data: &[u8],
    cluster: &mut [u8],
) -> std::io::Result<bool> {
    decoder.reinit()?;
    let wanted = cluster.len();
    let (mut from, mut to) = (InBuffer::around(data), OutBuffer::around(cluster));
    while to.pos() < wanted {
        let before = (from.pos(), to.pos());
        decoder.run(&mut from, &mut to)?;
        if (from.pos(), to.pos()) == before {
            return Ok(false);
        }
    }
    Ok(true)
}
