use mortise_types::{Error, Result};

/// What the hold-out is scored with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Metric {
    Accuracy,
    Auc,
    Mae,
    Rmse,
}

/// One entry of `limits`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limit {
    pub(super) metric: Metric,
    pub(super) bound: Bound,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// By no more than this.
    NoWorseThanLive(f64),
}

impl Metric {
    const ALL: [Metric; 4] = [Metric::Accuracy, Metric::Auc, Metric::Mae, Metric::Rmse];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::Auc => "auc",
            Self::Mae => "mae",
            Self::Rmse => "rmse",
        }
    }

    /// By how much `value` is worse than `other`; negative when it is better.
    fn loss(self, value: f64, other: f64) -> f64 {
        match self {
            Self::Accuracy | Self::Auc => other - value,
            Self::Mae | Self::Rmse => value - other,
        }
    }
}

impl Limit {
    /// # Errors
    /// When `text` is none of the documented forms.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid(format!(
                "\"{text}\" is no limit; write \"accuracy >= 0.95\", \"rmse <= 3\", \
                 \"accuracy no worse than live\" or \"… than live by 0.01\", with one of {:?}",
                Metric::ALL.map(Metric::name)
            ))
        };
        let mut words = text.split_whitespace();
        let name = words.next().unwrap_or_default();
        let metric = Metric::ALL.into_iter().find(|metric| metric.name() == name);
        let metric = metric.ok_or_else(wrong)?;
        let number = |text: &str| text.parse().ok().filter(|value: &f64| value.is_finite());
        let bound = match words.collect::<Vec<_>>().as_slice() {
            [">=", value] => number(value).map(Bound::AtLeast),
            ["<=", value] => number(value).map(Bound::AtMost),
            ["no", "worse", "than", "live"] => Some(Bound::NoWorseThanLive(0.0)),
            ["no", "worse", "than", "live", "by", slack] => {
                number(slack).map(Bound::NoWorseThanLive)
            }
            _ => None,
        };
        Ok(Self { metric, bound: bound.ok_or_else(wrong)? })
    }

    pub(super) fn needs_live(&self) -> bool {
        matches!(self.bound, Bound::NoWorseThanLive(_))
    }

    /// # Errors
    /// When `value` breaks the limit. `live` is the metric of what is live,
    /// without which a comparison passes.
    pub(super) fn check(&self, value: f64, live: Option<f64>) -> Result<()> {
        // Written so that NaN fails.
        let (passes, wanted) = match self.bound {
            Bound::AtLeast(least) => (value >= least, format!("at least {least}")),
            Bound::AtMost(most) => (value <= most, format!("at most {most}")),
            Bound::NoWorseThanLive(slack) => match live {
                Some(live) => {
                    let passes = self.metric.loss(value, live) <= slack;
                    (passes, format!("no worse than live, which has {live}, by more than {slack}"))
                }
                None => return Ok(()),
            },
        };
        match passes {
            true => Ok(()),
            false => Err(Error::invalid(format!(
                "{} on the hold-out is {value}, and must be {wanted}",
                self.metric.name()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        let cases = [
            ("accuracy >= 0.95", Metric::Accuracy, Bound::AtLeast(0.95)),
            ("rmse <= 3", Metric::Rmse, Bound::AtMost(3.0)),
            ("auc no worse than live", Metric::Auc, Bound::NoWorseThanLive(0.0)),
            ("mae no worse than live by 0.5", Metric::Mae, Bound::NoWorseThanLive(0.5)),
        ];
        for (text, metric, bound) in cases {
            assert_eq!(Limit::parse(text).unwrap(), Limit { metric, bound }, "{text}");
        }
        for text in ["", "accuracy", "f1 >= 1", "accuracy > 0.9", "accuracy >= high", "auc >= nan"]
        {
            assert!(Limit::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn limits_hold_or_break() {
        let cases = [
            ("accuracy >= 0.5", 0.5, None, true),
            ("accuracy >= 0.5", 0.49, None, false),
            ("accuracy >= 0.5", f64::NAN, None, false),
            ("mae <= 2", 2.1, None, false),
            ("accuracy no worse than live", 0.9, Some(0.9), true),
            ("accuracy no worse than live", 0.8, Some(0.9), false),
            ("accuracy no worse than live", 0.1, None, true),
            ("rmse no worse than live by 0.5", 1.4, Some(1.0), true),
            ("rmse no worse than live by 0.5", 1.6, Some(1.0), false),
        ];
        for (text, value, live, passes) in cases {
            let limit = Limit::parse(text).unwrap();
            assert_eq!(limit.check(value, live).is_ok(), passes, "{text} with {value}");
        }
    }
}
