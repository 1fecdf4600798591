use crate::options::{Rate, RateLimits};
use mortise_types::{Error, Result};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Clients that are remembered at once. Beyond that, those whose buckets are
/// full again are forgotten; if that is none, all new ones share a bucket.
const MAX_CLIENTS: usize = 10_000;

/// The token buckets of one endpoint. Time is an argument.
#[derive(Default)]
pub(crate) struct RateLimiter(Mutex<Buckets>);

#[derive(Default)]
struct Buckets {
    endpoint: Option<TokenBucket>,
    clients: HashMap<String, TokenBucket>,
}

#[derive(Clone, Copy)]
struct TokenBucket {
    tokens: f64,
    at: Instant,
}

impl RateLimiter {
    /// Takes one request from the buckets that `limits` asks for.
    ///
    /// # Errors
    /// `RateLimited`, with the time after which there is room again.
    pub(crate) fn check(
        &self,
        now: Instant,
        limits: &RateLimits,
        client_key: Option<&str>,
    ) -> Result<()> {
        if limits.endpoint.is_none() && limits.client.is_none() {
            return Ok(());
        }
        let mut buckets = self.0.lock();
        // The client first: one that is over its rate must not use up what is
        // there for all.
        if let Some(rate) = &limits.client {
            let bucket = buckets.client(client_key.unwrap_or(""), now, rate);
            bucket.take(now, rate).map_err(|wait| over("client", wait))?;
        }
        if let Some(rate) = &limits.endpoint {
            let bucket = buckets.endpoint.get_or_insert_with(|| TokenBucket::full(now, rate));
            bucket.take(now, rate).map_err(|wait| over("endpoint", wait))?;
        }
        Ok(())
    }
}

impl Buckets {
    fn client(&mut self, key: &str, now: Instant, rate: &Rate) -> &mut TokenBucket {
        if !self.clients.contains_key(key) && self.clients.len() >= MAX_CLIENTS {
            self.clients.retain(|_, bucket| !bucket.is_full(now, rate));
        }
        let key = if self.clients.len() >= MAX_CLIENTS && !self.clients.contains_key(key) {
            ""
        } else {
            key
        };
        self.clients.entry(key.to_string()).or_insert_with(|| TokenBucket::full(now, rate))
    }
}

impl TokenBucket {
    fn full(now: Instant, rate: &Rate) -> Self {
        Self { tokens: rate.burst, at: now }
    }

    /// `Err` with the time until there is a token.
    fn take(&mut self, now: Instant, rate: &Rate) -> Result<(), Duration> {
        let tokens = self.tokens_at(now, rate);
        if tokens < 1.0 {
            let seconds = (1.0 - tokens) / rate.requests_per_second;
            return Err(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
        }
        *self = Self { tokens: tokens - 1.0, at: now };
        Ok(())
    }

    fn is_full(&self, now: Instant, rate: &Rate) -> bool {
        self.tokens_at(now, rate) >= rate.burst
    }

    fn tokens_at(&self, now: Instant, rate: &Rate) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        (self.tokens + passed * rate.requests_per_second).min(rate.burst)
    }
}

fn over(whose: &str, wait: Duration) -> Error {
    let message = format!("the {whose} is over its rate limit; try again later");
    Error::rate_limited(message).with_retry_after(wait)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortise_types::ErrorKind;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let limiter = RateLimiter::default();
        let rate = Rate { requests_per_second: 10.0, burst: 2.0 };
        let limits = RateLimits { endpoint: Some(rate), client: None };
        let start = Instant::now();
        let at = |ms| limiter.check(start + Duration::from_millis(ms), &limits, None);
        assert!(at(0).is_ok() && at(0).is_ok());
        let refused = at(0).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::RateLimited);
        assert_eq!(refused.retry_after(), Some(Duration::from_millis(100)));
        assert!(at(99).is_err() && at(101).is_ok() && at(150).is_err());
    }

    #[test]
    fn clients_do_not_pay_for_each_other() {
        let limiter = RateLimiter::default();
        let rate = |requests_per_second| Some(Rate { requests_per_second, burst: 1.0 });
        let limits = RateLimits { endpoint: rate(1_000.0), client: rate(1.0) };
        let now = Instant::now();
        assert!(limiter.check(now, &limits, Some("a")).is_ok());
        for _ in 0..5 {
            let refused = limiter.check(now, &limits, Some("a")).unwrap_err();
            assert!(refused.message().contains("the client is over"), "{refused}");
        }
        let later = now + Duration::from_millis(2);
        assert!(limiter.check(later, &limits, Some("b")).is_ok());
    }

    #[test]
    fn the_number_of_clients_is_bounded() {
        let limiter = RateLimiter::default();
        let limits = RateLimits {
            endpoint: None,
            client: Some(Rate { requests_per_second: 0.001, burst: 1.0 }),
        };
        let now = Instant::now();
        for index in 0..MAX_CLIENTS + 10 {
            // The tenth of the newcomers finds the shared bucket empty.
            let _ = limiter.check(now, &limits, Some(&index.to_string()));
        }
        assert!(limiter.0.lock().clients.len() <= MAX_CLIENTS + 1);
        assert!(limiter.check(now, &limits, Some("another newcomer")).is_err());
    }
}
