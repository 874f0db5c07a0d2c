//! Compressed streams, told apart by their first bytes. Callers bound what they take from a stream: none of these
//! formats says beforehand how large it becomes.

use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use std::io::{self, BufRead, Read};

/// The bytes at the beginning of a stream that tell its format.
pub(crate) const MAGIC_BYTES: usize = 6;

/// The format of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Gzip,
    Zstd,
    Lz4Legacy,
    Xz,
    Bzip2,
    Lzma,
    Lzo,
}

impl Compression {
    /// Returns the format of a stream that begins so; none means that it is not compressed in a known one.
    pub(crate) fn detect(head: &[u8]) -> Option<Self> {
        let known: [(&[u8], Self); 8] = [
            (&[0x1f, 0x8b], Self::Gzip),
            (&[0x28, 0xb5, 0x2f, 0xfd], Self::Zstd),
            (&[0x02, 0x21, 0x4c, 0x18], Self::Lz4Legacy),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Self::Xz),
            (b"BZh", Self::Bzip2),
            (&[0x5d, 0, 0], Self::Lzma),
            (&[0x89, b'L', b'Z', b'O'], Self::Lzo),
            (&[0x50, 0x2a, 0x4d, 0x18], Self::Zstd),
        ];
        known.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, format)| *format)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Lz4Legacy => "lz4",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Lzo => "lzo",
        }
    }

    /// Returns a reader of the uncompressed bytes; none for a format kiln does not read.
    pub(crate) fn reader<'a, R: BufRead + Send + 'a>(self, input: R) -> Option<Box<dyn Read + Send + 'a>> {
        match self {
            Self::Gzip => Some(Box::new(flate2::bufread::MultiGzDecoder::new(input))),
            Self::Zstd => Some(Box::new(ZstdFrames { input, decoder: FrameDecoder::new(), within: false })),
            Self::Lz4Legacy => Some(Box::new(lz4_flex::frame::FrameDecoder::new(input))),
            Self::Xz | Self::Bzip2 | Self::Lzma | Self::Lzo => None,
        }
    }
}

/// Zstd frames one after another, skippable ones left out.
struct ZstdFrames<R: BufRead> {
    input: R,
    decoder: FrameDecoder,
    within: bool,
}

const ZSTD_SKIPPABLE: u32 = 0x184d_2a50;

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

impl<R: BufRead> ZstdFrames<R> {
    /// Opens the next frame; false at the end of the input.
    fn next_frame(&mut self) -> io::Result<bool> {
        if self.input.fill_buf()?.is_empty() {
            return Ok(false);
        }
        let mut magic = [0; 4];
        self.input.read_exact(&mut magic)?;
        if u32::from_le_bytes(magic) & 0xffff_fff0 == ZSTD_SKIPPABLE {
            let mut len = [0; 4];
            self.input.read_exact(&mut len)?;
            let len = u64::from(u32::from_le_bytes(len));
            if io::copy(&mut self.input.by_ref().take(len), &mut io::sink())? < len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            return Ok(true);
        }
        self.decoder.reset(Read::chain(&magic[..], &mut self.input)).map_err(invalid)?;
        self.within = true;
        Ok(true)
    }
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() {
            if self.within {
                let read = self.decoder.read(buffer)?;
                if read > 0 {
                    return Ok(read);
                }
                if self.decoder.is_finished() {
                    self.within = false;
                } else {
                    self.decoder
                        .decode_blocks(&mut self.input, BlockDecodingStrategy::UptoBlocks(1))
                        .map_err(invalid)?;
                }
            } else if !self.next_frame()? {
                return Ok(0);
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn unzstd(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let format = Compression::detect(bytes).unwrap_or(Compression::Zstd);
        format.reader(bytes).unwrap().take(1 << 20).read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn zstd_frames_follow_one_another_and_skippable_ones_are_left_out() {
        let mut bytes = [&0x184d_2a53_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), b"xyz"].concat();
        bytes.extend(zstd(b"one"));
        bytes.extend(zstd(&[7; 300_000]));
        let out = unzstd(&bytes[11..]).unwrap();
        assert_eq!(out.len(), 300_003);
        assert_eq!(&out[..4], b"one\x07");
        let mut all = Vec::new();
        let mut frames = ZstdFrames { input: &bytes[..], decoder: FrameDecoder::new(), within: false };
        frames.read_to_end(&mut all).unwrap();
        assert_eq!(all, out);
        assert!(unzstd(&bytes[11..bytes.len() - 3]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(head in 0_usize..3, tail: Vec<u8>) {
            let heads: [&[u8]; 3] = [&[0x1f, 0x8b, 8], &[0x28, 0xb5, 0x2f, 0xfd], &[0x02, 0x21, 0x4c, 0x18]];
            let _ = unzstd(&[heads[head], &tail].concat());
        }
    }
}
