use std::borrow::Cow;

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    Live,
    Ready,
    Server,
    Model { name: Cow<'a, str>, version: Option<Cow<'a, str>>, what: ModelRoute },
    Index,
    Load(Cow<'a, str>),
    Unload(Cow<'a, str>),
}

/// What is asked about a model, or of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ModelRoute {
    Metadata,
    Ready,
    Config,
    Infer,
}

impl<'a> Route<'a> {
    /// The route of a path, `None` when there is none.
    pub(super) fn parse(path: &'a str) -> Option<Self> {
        let rest = match path.strip_prefix("/v2")? {
            "" | "/" => return Some(Self::Server),
            "/health/live" => return Some(Self::Live),
            "/health/ready" => return Some(Self::Ready),
            "/repository/index" => return Some(Self::Index),
            rest => rest,
        };
        if let Some(rest) = rest.strip_prefix("/models/") {
            return Self::model(rest);
        }
        let (name, action) = rest.strip_prefix("/repository/models/")?.split_once('/')?;
        match action {
            "load" => Some(Self::Load(segment(name)?)),
            "unload" => Some(Self::Unload(segment(name)?)),
            _ => None,
        }
    }

    fn model(rest: &'a str) -> Option<Self> {
        let (name, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let (version, rest) = match rest.strip_prefix("versions/") {
            None => (None, rest),
            Some(rest) => {
                let (version, rest) = rest.split_once('/').unwrap_or((rest, ""));
                (Some(segment(version)?), rest)
            }
        };
        let what = match rest {
            "" => ModelRoute::Metadata,
            "ready" => ModelRoute::Ready,
            "config" => ModelRoute::Config,
            "infer" => ModelRoute::Infer,
            _ => return None,
        };
        Some(Self::Model { name: segment(name)?, version, what })
    }

    /// Whether it answers GET and HEAD; the others answer POST.
    pub(super) fn is_get(&self) -> bool {
        match self {
            Self::Live | Self::Ready | Self::Server => true,
            Self::Model { what, .. } => *what != ModelRoute::Infer,
            Self::Index | Self::Load(_) | Self::Unload(_) => false,
        }
    }

    /// Whether it is answered without an API key: probes have none.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Live | Self::Ready)
    }

    /// The value of `Allow`.
    pub(super) fn allow(&self) -> &'static str {
        if self.is_get() { "GET, HEAD" } else { "POST" }
    }
}

/// One segment of a path, percent-decoded; `None` when it is empty or not
/// UTF-8.
fn segment(text: &str) -> Option<Cow<'_, str>> {
    if text.is_empty() {
        return None;
    }
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        let byte = match (byte, tail) {
            (b'%', [high, low, tail @ ..]) => {
                rest = tail;
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                u8::try_from(digit(high)? * 16 + digit(low)?).ok()?
            }
            (b'%', _) => return None,
            (byte, _) => *byte,
        };
        decoded.push(byte);
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let model = |name, version, what| {
            let version = Option::map(version, Cow::Borrowed);
            Some(Route::Model { name: Cow::Borrowed(name), version, what })
        };
        for (path, want) in [
            ("/v2", Some(Route::Server)),
            ("/v2/", Some(Route::Server)),
            ("/v2/health/live", Some(Route::Live)),
            ("/v2/health/ready", Some(Route::Ready)),
            ("/v2/models/m", model("m", None, ModelRoute::Metadata)),
            ("/v2/models/m/ready", model("m", None, ModelRoute::Ready)),
            ("/v2/models/m/versions/3", model("m", Some("3"), ModelRoute::Metadata)),
            ("/v2/models/m/versions/3/config", model("m", Some("3"), ModelRoute::Config)),
            ("/v2/models/m/infer", model("m", None, ModelRoute::Infer)),
            ("/v2/models/a%20b%2Fc/infer", model("a b/c", None, ModelRoute::Infer)),
            ("/v2/repository/index", Some(Route::Index)),
            ("/v2/repository/models/m/load", Some(Route::Load("m".into()))),
            ("/v2/repository/models/m/unload", Some(Route::Unload("m".into()))),
            ("/", None),
            ("/v1/models/m", None),
            ("/v2x", None),
            ("/v2/models/", None),
            ("/v2/models//infer", None),
            ("/v2/models/m/versions//infer", None),
            ("/v2/models/m/stats", None),
            ("/v2/models/m%2/infer", None),
            ("/v2/models/m%zz/infer", None),
            ("/v2/models/m%ff/infer", None),
            ("/v2/models/m/infer/more", None),
            ("/v2/repository/models/m", None),
        ] {
            assert_eq!(Route::parse(path), want, "{path}");
        }
    }
}
