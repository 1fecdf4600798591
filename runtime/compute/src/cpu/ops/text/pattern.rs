//! Regular expressions as RE2 reads them, which is what ONNX means.

use mortise_types::{Error, Result};
use regex::{Regex, RegexBuilder};

/// Memory a compiled pattern may take.
const MAX_PATTERN_BYTES: usize = 4 << 20;

/// # Errors
/// When the pattern is malformed or too large.
pub(super) fn compile(pattern: &str) -> Result<Regex> {
    RegexBuilder::new(&with_ascii_classes(pattern))
        .size_limit(MAX_PATTERN_BYTES)
        .dfa_size_limit(MAX_PATTERN_BYTES)
        .build()
        .map_err(|error| Error::invalid(format!("pattern \"{pattern}\": {error}")))
}

/// In RE2 `\w`, `\d`, `\s` and `\b` know only ASCII, while `.` is any
/// character; here the two go by one switch, so the classes are spelt out.
fn with_ascii_classes(pattern: &str) -> String {
    let mut output = String::with_capacity(pattern.len());
    let mut in_class = false;
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some('w') => output.push_str("[0-9A-Za-z_]"),
                Some('W') => output.push_str("[^0-9A-Za-z_]"),
                Some('d') => output.push_str("[0-9]"),
                Some('D') => output.push_str("[^0-9]"),
                Some('s') => output.push_str("[\\t\\n\\f\\r ]"),
                Some('S') => output.push_str("[^\\t\\n\\f\\r ]"),
                Some('b') if !in_class => output.push_str("(?-u:\\b)"),
                Some(other) => output.extend(['\\', other]),
                None => output.push('\\'),
            },
            '[' if in_class => output.push_str("\\["),
            '[' => {
                in_class = true;
                output.push('[');
            }
            ']' => {
                in_class = false;
                output.push(']');
            }
            // Here `&&`, `--` and `~~` are set operations inside a class.
            '&' | '~' if in_class => output.extend(['\\', letter]),
            other => output.push(other),
        }
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_know_ascii_only() {
        let cases = [("\\w+", "ü", false), ("\\w+", "u_1", true), (".", "ü", true)];
        for (pattern, text, want) in cases {
            let regex = compile(&format!("\\A(?:{pattern})\\z")).unwrap();
            assert_eq!(regex.is_match(text), want, "{pattern} on {text}");
        }
        assert!(compile("(").is_err());
        assert!(compile("(a{1000}){1000}").is_err());
    }
}
