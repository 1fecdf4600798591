use crate::number::{self, Number};
use mortise_types::{Error, Result};
use std::borrow::Cow;

/// A pull reader over one JSON text. It builds no tree: callers take the next
/// token or skip it. Beyond RFC 8259 it reads the number tokens `NaN`,
/// `Infinity` and `-Infinity`, which Python's `json` writes.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    max_depth: usize,
}

/// What the next value is, by its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Object,
    Array,
    String,
    Bool,
    Null,
    Number,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Object => "an object",
            Self::Array => "an array",
            Self::String => "a string",
            Self::Bool => "a boolean",
            Self::Null => "null",
            Self::Number => "a number",
        }
    }
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], max_depth: usize) -> Self {
        Self { bytes, at: 0, depth: 0, max_depth }
    }

    /// A second reader of the same text, at `position`.
    pub(crate) fn at(&self, position: usize) -> Self {
        Self { bytes: self.bytes, at: position, depth: self.depth, max_depth: self.max_depth }
    }

    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// Bytes not read yet.
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Reads an object, calling `field` at each value with its key.
    pub(crate) fn object(
        &mut self,
        mut field: impl FnMut(&mut Self, &str) -> Result<()>,
    ) -> Result<()> {
        self.open(b'{')?;
        if !self.take(b'}') {
            loop {
                let key = self.string()?;
                self.expect(b':', "':'")?;
                field(self, &key)?;
                if !self.take(b',') {
                    break;
                }
            }
            self.expect(b'}', "',' or '}'")?;
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads an array, calling `element` at each value.
    pub(crate) fn array(&mut self, mut element: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.open(b'[')?;
        if !self.take(b']') {
            loop {
                element(self)?;
                if !self.take(b',') {
                    break;
                }
            }
            self.expect(b']', "',' or ']'")?;
        }
        self.depth -= 1;
        Ok(())
    }

    /// Kind of the next value; reads only white space.
    pub(crate) fn kind(&mut self) -> Result<Kind> {
        match self.peek() {
            Some(b'{') => Ok(Kind::Object),
            Some(b'[') => Ok(Kind::Array),
            Some(b'"') => Ok(Kind::String),
            Some(b't' | b'f') => Ok(Kind::Bool),
            Some(b'n') => Ok(Kind::Null),
            Some(b'-' | b'0'..=b'9' | b'N' | b'I') => Ok(Kind::Number),
            _ => Err(self.wanted("a value")),
        }
    }

    /// Reads a number; [`Reader::kind`] said that one is next.
    pub(crate) fn number(&mut self) -> Result<Number<'a>> {
        self.skip_space();
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let (number, length) = number::scan(rest).ok_or_else(|| self.wanted("a number"))?;
        self.at += length;
        Ok(number)
    }

    pub(crate) fn bool(&mut self) -> Result<bool> {
        self.skip_space();
        if self.take_word(b"true") {
            Ok(true)
        } else if self.take_word(b"false") {
            Ok(false)
        } else {
            Err(self.wanted("true or false"))
        }
    }

    /// Reads `null` when it is next.
    pub(crate) fn take_null(&mut self) -> Result<bool> {
        if self.peek() != Some(b'n') {
            return Ok(false);
        }
        match self.take_word(b"null") {
            true => Ok(true),
            false => Err(self.wanted("null")),
        }
    }

    /// Reads a string; borrowed from the text when it holds no escapes.
    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>> {
        self.expect(b'"', "a string")?;
        let start = self.at;
        let length = self.plain_length();
        self.at += length;
        let plain = self.utf8(start, self.at)?;
        match self.bytes.get(self.at) {
            Some(b'"') => {
                self.at += 1;
                Ok(Cow::Borrowed(plain))
            }
            Some(b'\\') => self.escaped_string(plain.to_owned()).map(Cow::Owned),
            Some(_) => Err(self.wanted("no control character in a string")),
            None => Err(self.wanted("the end of a string")),
        }
    }

    /// Reads one value of any kind and forgets it.
    pub(crate) fn skip_value(&mut self) -> Result<()> {
        match self.kind()? {
            Kind::Object => self.object(|reader, _| reader.skip_value()),
            Kind::Array => self.array(Self::skip_value),
            Kind::String => self.string().map(drop),
            Kind::Bool => self.bool().map(drop),
            Kind::Null => self.take_null().map(drop),
            Kind::Number => self.number().map(drop),
        }
    }

    /// # Errors
    /// When anything but white space is left.
    pub(crate) fn finish(&mut self) -> Result<()> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.wanted("the end of the JSON")),
        }
    }

    /// The next byte that is not white space, unread.
    #[inline]
    pub(crate) fn peek(&mut self) -> Option<u8> {
        self.skip_space();
        self.bytes.get(self.at).copied()
    }

    /// Reads `byte` when it is the next one that is not white space.
    #[inline]
    pub(crate) fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    pub(crate) fn expect(&mut self, byte: u8, what: &str) -> Result<()> {
        match self.take(byte) {
            true => Ok(()),
            false => Err(self.wanted(what)),
        }
    }

    fn open(&mut self, byte: u8) -> Result<()> {
        self.expect(byte, if byte == b'{' { "an object" } else { "an array" })?;
        self.depth += 1;
        if self.depth > self.max_depth {
            return Err(Error::invalid(format!(
                "the request's JSON is nested deeper than {} levels",
                self.max_depth
            )));
        }
        Ok(())
    }

    #[inline]
    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.bytes.get(self.at) {
            self.at += 1;
        }
    }

    fn take_word(&mut self, word: &[u8]) -> bool {
        let found = self.bytes.get(self.at..).is_some_and(|rest| rest.starts_with(word));
        self.at += if found { word.len() } else { 0 };
        found
    }

    /// Bytes up to the next quote, backslash or control character.
    fn plain_length(&self) -> usize {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let special = |&byte: &u8| byte == b'"' || byte == b'\\' || byte < 0x20;
        rest.iter().position(special).unwrap_or(rest.len())
    }

    fn utf8(&self, start: usize, end: usize) -> Result<&'a str> {
        let bytes = self.bytes.get(start..end).unwrap_or_default();
        std::str::from_utf8(bytes).map_err(|_| {
            Error::invalid(format!(
                "the request is not valid JSON: the string at byte {start} is not UTF-8"
            ))
        })
    }

    fn escaped_string(&mut self, mut text: String) -> Result<String> {
        loop {
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(text);
                }
                Some(b'\\') => {
                    self.at += 1;
                    text.push(self.escape()?);
                }
                Some(0x20..) => {
                    let start = self.at;
                    self.at += self.plain_length();
                    text.push_str(self.utf8(start, self.at)?);
                }
                Some(_) => return Err(self.wanted("no control character in a string")),
                None => return Err(self.wanted("the end of a string")),
            }
        }
    }

    fn escape(&mut self) -> Result<char> {
        let byte = self.bytes.get(self.at).copied();
        self.at += 1;
        Ok(match byte {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(),
            _ => {
                self.at -= 1;
                return Err(self.wanted("an escape that JSON knows"));
            }
        })
    }

    fn unicode_escape(&mut self) -> Result<char> {
        let first = self.hex4()?;
        let code = match first {
            0xD800..=0xDBFF => {
                if !self.take_word(b"\\u") {
                    return Err(self.wanted("the second half of a surrogate pair"));
                }
                let low = self.hex4()?;
                if !(0xDC00..=0xDFFF).contains(&low) {
                    return Err(self.wanted("the second half of a surrogate pair"));
                }
                0x10000 + ((first - 0xD800) << 10) + (low - 0xDC00)
            }
            code => code,
        };
        char::from_u32(code).ok_or_else(|| self.wanted("no lone surrogate"))
    }

    fn hex4(&mut self) -> Result<u32> {
        let digits = self.bytes.get(self.at..self.at + 4).unwrap_or_default();
        let mut code = 0;
        for &digit in digits {
            let value = (digit as char).to_digit(16);
            code = code * 16 + value.ok_or_else(|| self.wanted("four hexadecimal digits"))?;
        }
        if digits.len() < 4 {
            return Err(self.wanted("four hexadecimal digits"));
        }
        self.at += 4;
        Ok(code)
    }

    fn wanted(&self, what: &str) -> Error {
        let at = self.at.min(self.bytes.len());
        if at == self.bytes.len() {
            return Error::invalid(format!(
                "the request is not valid JSON: expected {what}, but it ends at byte {at}"
            ));
        }
        Error::invalid(format!("the request is not valid JSON: expected {what} at byte {at}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skip(text: &[u8]) -> Result<()> {
        let mut reader = Reader::new(text, 100);
        reader.skip_value()?;
        reader.finish()
    }

    /// Pieces that make texts which are nearly JSON, so that both verdicts occur.
    const PIECES: [&str; 34] = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"a\"",
        "\"\\n\"",
        "\"\\u00e9\"",
        "\"\\ud83d\\ude00\"",
        "\"\\ud83d\"",
        "\"\\x\"",
        "\"é\"",
        "\"",
        "true",
        "false",
        "null",
        "nul",
        "0",
        "-0",
        "01",
        "1.5",
        "1.",
        ".5",
        "1e5",
        "1E+5",
        "1e",
        "-",
        "+1",
        "123456789012345678901234567890",
        " ",
        "\t",
        "\n",
        "[1,2]",
    ];

    #[test]
    fn accepts_exactly_what_serde_json_accepts() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut accepted = 0;
        for _ in 0..200_000 {
            let count = random.usize(1..9);
            let text: String = (0..count).map(|_| PIECES[random.usize(..PIECES.len())]).collect();
            let want = match serde_json::from_str::<serde_json::Value>(&text) {
                Ok(_) => true,
                // Its own limit: whether a number is in range depends on its use.
                Err(error) if error.to_string().contains("out of range") => continue,
                Err(_) => false,
            };
            assert_eq!(skip(text.as_bytes()).is_ok(), want, "{text:?}");
            accepted += usize::from(want);
        }
        assert!(accepted > 5_000, "the generator makes too few valid texts: {accepted}");
    }

    #[test]
    fn strings_decode_as_serde_json_decodes_them() {
        for text in [
            r#""""#,
            r#""plain""#,
            r#""é€😀""#,
            r#""\"\\\/\b\f\n\r\t""#,
            r#""a\u0041\ud83d\ude00z""#,
            r#""\u0000""#,
        ] {
            let want: String = serde_json::from_str(text).unwrap();
            assert_eq!(Reader::new(text.as_bytes(), 1).string().unwrap(), want);
        }
    }

    #[test]
    fn depth_is_bounded() {
        let text = "[".repeat(101);
        let error = skip(text.as_bytes()).unwrap_err();
        assert_eq!(error.message(), "the request's JSON is nested deeper than 100 levels");
    }

    #[test]
    fn python_number_tokens_are_read() {
        for text in ["NaN", "Infinity", "-Infinity", "[NaN, -Infinity]"] {
            assert!(skip(text.as_bytes()).is_ok(), "{text}");
        }
        for text in ["-NaN", "Nan", "Inf", "+Infinity"] {
            assert!(skip(text.as_bytes()).is_err(), "{text}");
        }
    }
}
