//! Decodes what archives and layers are compressed with.

use std::io::{self, BufRead, BufReader, Read};

use super::archive_error::ArchiveError;

/// Bytes read at a time.
const BUFFER: usize = 256 << 10;
/// Memory that an xz decoder may take; `xz -9` needs 65 MiB.
const XZ_MEMORY_KIB: u32 = 256 << 10;

/// A compression, told by the first bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Compression {
    None,
    Gzip,
    Xz,
    Zstd,
}

impl Compression {
    /// Judges by the first bytes; fewer than six are fine.
    pub(super) fn of(first: &[u8]) -> Result<Self, ArchiveError> {
        Ok(match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [b'B', b'Z', b'h', ..] => return Err(ArchiveError::Compression { format: "bzip2" }),
            [0x04, 0x22, 0x4d, 0x18, ..] => {
                return Err(ArchiveError::Compression { format: "lz4" });
            }
            _ => Self::None,
        })
    }
}

/// The decoded data of a source.
pub(super) fn decode<'a>(source: impl Read + 'a) -> Result<Box<dyn Read + 'a>, ArchiveError> {
    let mut source = BufReader::with_capacity(BUFFER, source);
    let compression = Compression::of(source.fill_buf()?)?;
    Ok(match compression {
        Compression::None => Box::new(source),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        Compression::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(
            source,
            true,
            XZ_MEMORY_KIB,
        )),
        Compression::Zstd => Box::new(zstd_decoder(source)?),
    })
}

fn zstd_decoder<R: BufRead>(source: R) -> io::Result<zstd::Decoder<'static, R>> {
    let mut decoder = zstd::Decoder::with_buffer(source)?;
    // What `zstd --long=27` and `--ultra -22` write; more must be allowed
    // explicitly with the zstd tool as well.
    decoder.window_log_max(27)?;
    Ok(decoder)
}
