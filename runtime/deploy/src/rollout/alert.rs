use std::time::{Duration, Instant};

/// How long operators are left alone after they were told that a router fails,
/// even when it fails in another way: its messages may differ each time.
const QUIET: Duration = Duration::from_secs(60);

/// Tells operators that a router fails, without telling them on and on.
#[derive(Default)]
pub(crate) struct RouterAlert {
    told: Option<(String, Instant)>,
}

impl RouterAlert {
    /// The failure, when operators are to be told of it.
    pub(crate) fn news(&mut self, failure: Option<String>, now: Instant) -> Option<String> {
        let failure = failure?;
        let is_known = self.told.as_ref().is_some_and(|(told, at)| {
            *told == failure || now.saturating_duration_since(*at) < QUIET
        });
        if is_known {
            return None;
        }
        self.told = Some((failure.clone(), now));
        Some(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_news_once_and_another_one_after_a_while() {
        let (mut alert, start) = (RouterAlert::default(), Instant::now());
        let mut told = |failure: Option<&str>, after_s| {
            alert.news(failure.map(str::to_owned), start + Duration::from_secs(after_s)).is_some()
        };
        assert!(!told(None, 0));
        assert!(told(Some("trap at 1"), 1));
        assert!(!told(Some("trap at 1"), 600));
        assert!(told(Some("trap at 2"), 601));
        assert!(!told(Some("trap at 3"), 602));
    }
}
