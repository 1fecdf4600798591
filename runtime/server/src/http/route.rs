use std::borrow::Cow;

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    Live,
    Ready,
    Server,
    Model {
        name: Cow<'a, str>,
        version: Option<Cow<'a, str>>,
        what: ModelRoute,
    },
    Index,
    Load(Cow<'a, str>),
    Unload(Cow<'a, str>),
    /// Statistics of all models.
    Statistics,
    /// Trace settings, of the server or of a model.
    Trace(Option<Cow<'a, str>>),
    Logging,
    /// System shared memory: one region, or all of them.
    Region {
        name: Option<Cow<'a, str>>,
        what: RegionRoute,
    },
}

/// What is asked of a shared-memory region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RegionRoute {
    Status,
    Register,
    Unregister,
}

/// How a generated answer goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Generate {
    /// As one JSON object.
    Whole,
    /// As server-sent events.
    Stream,
}

/// What is asked about a model, or of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ModelRoute {
    Metadata,
    Ready,
    Config,
    Infer,
    Statistics,
    Generate(Generate),
}

impl<'a> Route<'a> {
    /// The route of a path, `None` when there is none.
    pub(super) fn parse(path: &'a str) -> Option<Self> {
        let rest = match path.strip_prefix("/v2")? {
            "" | "/" => return Some(Self::Server),
            "/health/live" => return Some(Self::Live),
            "/health/ready" => return Some(Self::Ready),
            "/repository/index" => return Some(Self::Index),
            "/models/stats" => return Some(Self::Statistics),
            "/trace/setting" => return Some(Self::Trace(None)),
            "/logging" => return Some(Self::Logging),
            rest => rest,
        };
        if let Some(rest) = rest.strip_prefix("/systemsharedmemory/") {
            return Self::region(rest);
        }
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

    fn region(rest: &'a str) -> Option<Self> {
        let (name, action) = match rest.strip_prefix("region/") {
            None => (None, rest),
            Some(rest) => {
                let (name, action) = rest.split_once('/')?;
                (Some(segment(name)?), action)
            }
        };
        let what = match action {
            "status" => RegionRoute::Status,
            "register" if name.is_some() => RegionRoute::Register,
            "unregister" => RegionRoute::Unregister,
            _ => return None,
        };
        Some(Self::Region { name, what })
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
            "stats" => ModelRoute::Statistics,
            "generate" => ModelRoute::Generate(Generate::Whole),
            "generate_stream" => ModelRoute::Generate(Generate::Stream),
            "trace/setting" if version.is_none() => return Some(Self::Trace(Some(segment(name)?))),
            _ => return None,
        };
        Some(Self::Model { name: segment(name)?, version, what })
    }

    /// Whether it answers GET and HEAD.
    pub(super) fn answers_get(&self) -> bool {
        match self {
            Self::Live | Self::Ready | Self::Server | Self::Statistics => true,
            Self::Trace(_) | Self::Logging => true,
            Self::Model { what, .. } => {
                !matches!(what, ModelRoute::Infer | ModelRoute::Generate(_))
            }
            Self::Region { what, .. } => *what == RegionRoute::Status,
            Self::Index | Self::Load(_) | Self::Unload(_) => false,
        }
    }

    pub(super) fn answers_post(&self) -> bool {
        !self.answers_get() || matches!(self, Self::Trace(_) | Self::Logging)
    }

    /// Whether it is answered without an API key: probes have none.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Live | Self::Ready)
    }

    /// The value of `Allow`.
    pub(super) fn allow(&self) -> &'static str {
        match (self.answers_get(), self.answers_post()) {
            (true, true) => "GET, HEAD, POST",
            (true, false) => "GET, HEAD",
            (false, _) => "POST",
        }
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
        let region = |name, what| Route::Region { name: Option::map(name, Cow::Borrowed), what };
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
            ("/v2/models/m/stats", model("m", None, ModelRoute::Statistics)),
            ("/v2/models/stats", Some(Route::Statistics)),
            ("/v2/models/m/generate", model("m", None, ModelRoute::Generate(Generate::Whole))),
            (
                "/v2/models/m/versions/2/generate_stream",
                model("m", Some("2"), ModelRoute::Generate(Generate::Stream)),
            ),
            ("/v2/trace/setting", Some(Route::Trace(None))),
            ("/v2/models/m/trace/setting", Some(Route::Trace(Some("m".into())))),
            ("/v2/models/m/versions/1/trace/setting", None),
            ("/v2/logging", Some(Route::Logging)),
            ("/v2/systemsharedmemory/status", Some(region(None, RegionRoute::Status))),
            (
                "/v2/systemsharedmemory/region/r/register",
                Some(region(Some("r"), RegionRoute::Register)),
            ),
            ("/v2/systemsharedmemory/unregister", Some(region(None, RegionRoute::Unregister))),
            ("/v2/systemsharedmemory/register", None),
            ("/v2/systemsharedmemory/region//status", None),
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
