//! gzip and deflate, both ways.

use super::reply::Body;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use http::header::{self, HeaderMap, HeaderValue};
use mortise_types::{Error, Result};
use std::io::{self, Read, Write};

/// Replies shorter than this go out as they are, whatever the client accepts:
/// they fit one packet anyway.
pub(super) const MIN_COMPRESSED_BYTES: usize = 1024;

/// A content coding that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    /// The zlib format, as HTTP defines the name.
    Deflate,
}

impl Coding {
    fn parse(name: &str) -> Option<Self> {
        if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            Some(Self::Gzip)
        } else if name.eq_ignore_ascii_case("deflate") {
            Some(Self::Deflate)
        } else {
            None
        }
    }

    pub(super) fn header_value(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        })
    }
}

/// How a request's body is compressed.
///
/// # Errors
/// `Unsupported` for another coding.
pub(super) fn of_request(headers: &HeaderMap) -> Result<Option<Coding>> {
    let Some(value) = headers.get(header::CONTENT_ENCODING) else { return Ok(None) };
    let name = value.to_str().unwrap_or_default().trim();
    if name.is_empty() || name.eq_ignore_ascii_case("identity") {
        return Ok(None);
    }
    let coding = Coding::parse(name);
    coding.map(Some).ok_or_else(|| {
        let name: String = name.chars().take(32).collect();
        Error::unsupported(format!(
            "Content-Encoding {name:?} is not served; send gzip, deflate or none"
        ))
    })
}

/// The coding that a client likes best among those served; `None` when it
/// named neither.
pub(super) fn accepted(headers: &HeaderMap) -> Option<Coding> {
    let value = headers.get(header::ACCEPT_ENCODING)?.to_str().ok()?;
    let mut best: Option<(Coding, f32)> = None;
    for item in value.split(',') {
        let (name, weight) = item.split_once(';').unwrap_or((item, ""));
        let weight = weight.trim().strip_prefix("q=").and_then(|q| q.parse().ok()).unwrap_or(1.0);
        let Some(coding) = Coding::parse(name.trim()) else { continue };
        if weight > best.map_or(0.0, |(_, best)| best) {
            best = Some((coding, weight));
        }
    }
    best.map(|(coding, _)| coding)
}

/// # Errors
/// `TooLarge` beyond `max_bytes`, `InvalidInput` when the data is damaged.
pub(super) fn decompress(coding: Coding, bytes: &[u8], max_bytes: usize) -> Result<Bytes> {
    match coding {
        Coding::Gzip => inflate(MultiGzDecoder::new(bytes), "gzip", max_bytes),
        // Some clients send bare deflate data under this name.
        Coding::Deflate if !has_zlib_header(bytes) => {
            inflate(DeflateDecoder::new(bytes), "deflate", max_bytes)
        }
        Coding::Deflate => inflate(ZlibDecoder::new(bytes), "deflate", max_bytes),
    }
}

/// RFC 1950: method 8, and the two bytes as one number divisible by 31.
fn has_zlib_header(bytes: &[u8]) -> bool {
    match bytes {
        [method, flags, ..] => {
            method & 0xf == 8 && (u16::from(*method) << 8 | u16::from(*flags)).is_multiple_of(31)
        }
        _ => true,
    }
}

fn inflate(decoder: impl Read, name: &str, max_bytes: usize) -> Result<Bytes> {
    let mut out = Vec::new();
    decoder
        .take(max_bytes as u64 + 1)
        .read_to_end(&mut out)
        .map_err(|error| Error::invalid(format!("the body is not valid {name} data: {error}")))?;
    if out.len() > max_bytes {
        return Err(Error::too_large(format!(
            "the request's body is larger than max_body_bytes = {max_bytes} when decompressed"
        )));
    }
    Ok(out.into())
}

/// # Errors
/// Never in practice: memory is the only sink.
pub(super) fn compress(coding: Coding, body: Body) -> Result<Bytes> {
    let written = match coding {
        Coding::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            write_all(&mut encoder, body).and_then(|()| encoder.finish())
        }
        Coding::Deflate => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            write_all(&mut encoder, body).and_then(|()| encoder.finish())
        }
    };
    written
        .map(Bytes::from)
        .map_err(|error| Error::internal(format!("cannot compress the reply: {error}")))
}

fn write_all(encoder: &mut impl Write, body: Body) -> io::Result<()> {
    body.into_segments().try_for_each(|segment| encoder.write_all(&segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_coding_is_chosen() {
        for (value, want) in [
            ("gzip", Some(Coding::Gzip)),
            ("deflate", Some(Coding::Deflate)),
            ("gzip, deflate, br", Some(Coding::Gzip)),
            ("gzip;q=0.5, deflate;q=0.9", Some(Coding::Deflate)),
            ("gzip;q=0", None),
            ("br, zstd", None),
            ("identity", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
            assert_eq!(accepted(&headers), want, "{value}");
        }
        assert_eq!(accepted(&HeaderMap::new()), None);
    }

    #[test]
    fn bodies_come_back_and_bombs_do_not() {
        let text = Bytes::from(vec![b'x'; 10_000]);
        for coding in [Coding::Gzip, Coding::Deflate] {
            let packed = compress(coding, text.clone().into()).unwrap();
            assert!(packed.len() < 1_000);
            assert_eq!(decompress(coding, &packed, 10_000).unwrap(), text);
            let error = decompress(coding, &packed, 9_999).unwrap_err();
            assert_eq!(
                error.message(),
                "the request's body is larger than max_body_bytes = 9999 when decompressed"
            );
            assert!(decompress(coding, b"nonsense", 9_999).is_err());
        }
        let mut bare = flate2::write::DeflateEncoder::new(Vec::new(), Compression::fast());
        bare.write_all(&text).unwrap();
        let bare = bare.finish().unwrap();
        assert_eq!(decompress(Coding::Deflate, &bare, 10_000).unwrap(), text);
    }
}
