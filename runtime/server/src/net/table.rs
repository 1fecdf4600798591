use http::Extensions;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How often timeouts are looked at. A timeout is late by at most this.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// A connection that has been quiet for less is never closed to make room, nor
/// before its first request when the server ends.
const SPARED: Duration = Duration::from_secs(1);

/// The share of all connections that is closed at once to make room, so that
/// looking for them is rare.
const EVICTED_SHARE: usize = 16;

/// How long a connection may do nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// From accepting to the end of the first head, and from the first byte of
    /// a later head to its end.
    pub(crate) header: Duration,
    /// Between requests, and while a reply is not taken.
    pub(crate) idle: Duration,
}

/// Every open connection of one listener. Requests touch only their own entry,
/// with plain atomics; the table's lock is for opening, closing and the tick.
pub(crate) struct Table {
    entries: Mutex<HashMap<u64, Arc<Activity>>>,
    next_id: AtomicU64,
    started: Instant,
    /// Milliseconds since `started`, at the last tick: reading the clock for
    /// each request would cost more than the tenth of a second is worth.
    now_ms: AtomicU64,
    timeouts: Timeouts,
    /// Told whenever the table becomes empty.
    empty: Notify,
}

/// What one connection is doing.
pub(crate) struct Activity {
    phase: AtomicU8,
    in_flight: AtomicU32,
    /// When the phase began, or bytes last moved in it.
    since_ms: AtomicU64,
    /// When the last request ended, or the connection was accepted.
    quiet_since_ms: AtomicU64,
    ending: AtomicU8,
    waker: Mutex<Option<Waker>>,
    table: Arc<Table>,
    id: u64,
}

/// Nothing has come yet.
const FRESH: u8 = 0;
/// Part of a head has come.
const HEAD: u8 = 1;
/// A request has come; between requests or in one.
const SERVED: u8 = 2;
/// HTTP/2, where frames come at any time and pings show that the peer lives.
const MULTIPLEXED: u8 = 3;

/// Nobody asked for an end.
pub(super) const OPEN: u8 = 0;
/// Finish the requests under way, take no more.
pub(super) const FINISH: u8 = 1;
/// Drop it now.
pub(super) const CLOSE: u8 = 2;

impl Table {
    pub(crate) fn new(timeouts: Timeouts) -> Arc<Self> {
        Arc::new(Self {
            entries: Mutex::default(),
            next_id: AtomicU64::new(0),
            started: Instant::now(),
            now_ms: AtomicU64::new(0),
            timeouts,
            empty: Notify::new(),
        })
    }

    /// Adds a connection, which leaves the table when the guard is dropped.
    pub(crate) fn open(self: &Arc<Self>) -> Registered {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let activity = Arc::new(Activity {
            phase: AtomicU8::new(FRESH),
            in_flight: AtomicU32::new(0),
            since_ms: AtomicU64::new(self.now_ms()),
            quiet_since_ms: AtomicU64::new(self.now_ms()),
            ending: AtomicU8::new(OPEN),
            waker: Mutex::default(),
            table: self.clone(),
            id,
        });
        self.entries.lock().insert(id, activity.clone());
        Registered(activity)
    }

    /// Open connections.
    pub(crate) fn len(&self) -> usize {
        self.entries.lock().len()
    }

    /// Returns when no connection is open.
    pub(crate) async fn emptied(&self) {
        while self.len() > 0 {
            self.empty.notified().await;
        }
    }

    /// Ends connections whose time is over, every [`TICK`], for as long as it
    /// is polled. `on_timeout` is told how many.
    pub(crate) async fn watch(&self, on_timeout: impl Fn(u64)) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.advance(self.started.elapsed());
            match self.close_late() {
                0 => {}
                count => on_timeout(count),
            }
        }
    }

    fn advance(&self, elapsed: Duration) {
        self.now_ms.store(millis(elapsed), Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    fn close_late(&self) -> u64 {
        let now_ms = self.now_ms();
        let late = self.select(|activity| activity.is_late(now_ms, self.timeouts));
        late.iter().for_each(|activity| activity.end(CLOSE));
        late.len() as u64
    }

    /// Closes the connections that have been quiet the longest; returns how
    /// many. 0 when all are at work or were a moment ago.
    pub(crate) fn make_room(&self) -> u64 {
        let Some(before_ms) = self.now_ms().checked_sub(millis(SPARED)) else { return 0 };
        let mut quiet = self.select(|activity| activity.is_quiet_since(before_ms));
        let count = quiet.len().min(self.len() / EVICTED_SHARE + 1);
        quiet.sort_by_key(|activity| activity.quiet_since_ms.load(Ordering::Relaxed));
        quiet.iter().take(count).for_each(|activity| activity.end(CLOSE));
        count as u64
    }

    /// Asks every connection to finish what it is doing. One that was opened a
    /// moment ago has its first request under way, most likely, and is left
    /// the time to send it: closing it would lose the request. Needs
    /// [`Table::watch`] beside it.
    pub(crate) async fn finish_all(&self) {
        while !self.finish_touched() {
            tokio::time::sleep(TICK).await;
        }
    }

    /// Whether that was every connection.
    fn finish_touched(&self) -> bool {
        let young_ms = self.now_ms().checked_sub(millis(SPARED));
        let is_touched = |activity: &Activity| {
            !activity.is_untouched() || young_ms.is_some_and(|ms| activity.is_quiet_since(ms))
        };
        let mut is_all = true;
        self.select(|activity| {
            let is_told = is_touched(activity);
            is_all &= is_told;
            is_told
        })
        .iter()
        .for_each(|activity| activity.end(FINISH));
        is_all
    }

    fn select(&self, mut wanted: impl FnMut(&Activity) -> bool) -> Vec<Arc<Activity>> {
        let entries = self.entries.lock();
        entries.values().filter(|activity| wanted(activity)).cloned().collect()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Activity {
    /// Bytes came from the client.
    #[inline]
    pub(crate) fn received(&self) {
        match self.phase.load(Ordering::Relaxed) {
            // A head has one deadline, however many pieces it comes in.
            HEAD => return,
            MULTIPLEXED => {}
            _ if self.in_flight.load(Ordering::Relaxed) > 0 => return,
            _ => self.phase.store(HEAD, Ordering::Relaxed),
        }
        self.since_ms.store(self.table.now_ms(), Ordering::Relaxed);
    }

    /// The connection speaks HTTP/2.
    pub(crate) fn set_multiplexed(&self) {
        self.phase.store(MULTIPLEXED, Ordering::Relaxed);
        self.since_ms.store(self.table.now_ms(), Ordering::Relaxed);
    }

    /// Bytes went to the client.
    #[inline]
    pub(crate) fn sent(&self) {
        if self.phase.load(Ordering::Relaxed) >= SERVED {
            self.since_ms.store(self.table.now_ms(), Ordering::Relaxed);
        }
    }

    /// A request's head is complete. The request is under way until the guard
    /// is dropped.
    #[inline]
    pub(crate) fn request(self: &Arc<Self>) -> RequestUnderWay {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        if self.phase.load(Ordering::Relaxed) != MULTIPLEXED {
            self.phase.store(SERVED, Ordering::Relaxed);
        }
        RequestUnderWay(self.clone())
    }

    /// The same for a connection that carries several at once: marks a request
    /// that came while others were under way. A stream counts as long as it is
    /// open.
    pub(crate) fn request_among_others(
        self: &Arc<Self>,
        extensions: &mut Extensions,
    ) -> RequestUnderWay {
        let under_way = self.request();
        if self.in_flight.load(Ordering::Relaxed) > 1 {
            extensions.insert(Crowded);
        }
        under_way
    }

    /// Whether closing it now would cut off nothing that has begun.
    pub(super) fn is_untouched(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0 && self.phase.load(Ordering::Relaxed) == FRESH
    }

    fn is_quiet_since(&self, before_ms: u64) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0
            && self.quiet_since_ms.load(Ordering::Relaxed) <= before_ms
    }

    fn is_late(&self, now_ms: u64, timeouts: Timeouts) -> bool {
        if self.in_flight.load(Ordering::Relaxed) > 0 {
            // The request has a deadline of its own.
            return false;
        }
        let limit = match self.phase.load(Ordering::Relaxed) {
            FRESH | HEAD => timeouts.header,
            _ => timeouts.idle,
        };
        now_ms.saturating_sub(self.since_ms.load(Ordering::Relaxed)) > millis(limit)
    }

    /// Asks for an end; the strongest request wins.
    fn end(&self, how: u8) {
        self.ending.fetch_max(how, Ordering::SeqCst);
        let waker = self.waker.lock().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Names the task that [`Activity::ending`] wakes.
    pub(super) fn set_waker(&self, waker: &Waker) {
        *self.waker.lock() = Some(waker.clone());
    }

    /// Waits for what comes before the first request; `None` when the connection
    /// is to end instead.
    pub(crate) async fn unless_ended<F: Future>(&self, before: F) -> Option<F::Output> {
        let mut before = pin!(before);
        poll_fn(|cx| {
            self.set_waker(cx.waker());
            match self.ending() {
                OPEN => before.as_mut().poll(cx).map(Some),
                _ => Poll::Ready(None),
            }
        })
        .await
    }

    /// How the connection was asked to end.
    #[inline]
    pub(super) fn ending(&self) -> u8 {
        self.ending.load(Ordering::Acquire)
    }
}

/// The mark of [`Activity::request_among_others`].
#[derive(Clone, Copy)]
pub(crate) struct Crowded;

impl Crowded {
    pub(crate) fn is_in(extensions: &Extensions) -> bool {
        extensions.get::<Self>().is_some()
    }
}

/// A connection in the table.
pub(crate) struct Registered(Arc<Activity>);

impl Registered {
    pub(crate) fn activity(&self) -> &Arc<Activity> {
        &self.0
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut entries = self.0.table.entries.lock();
        entries.remove(&self.0.id);
        if entries.is_empty() {
            self.0.table.empty.notify_one();
        }
    }
}

/// A request between its head and its reply.
pub(crate) struct RequestUnderWay(Arc<Activity>);

impl Drop for RequestUnderWay {
    fn drop(&mut self) {
        let now_ms = self.0.table.now_ms();
        self.0.since_ms.store(now_ms, Ordering::Relaxed);
        self.0.quiet_since_ms.store(now_ms, Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Timeouts =
        Timeouts { header: Duration::from_secs(10), idle: Duration::from_secs(100) };

    fn at(table: &Table, seconds: u64) {
        table.advance(Duration::from_secs(seconds));
        table.close_late();
    }

    #[test]
    fn slow_heads_and_silence_end_but_requests_do_not() {
        let table = Table::new(LIMITS);
        let (fresh, slow, idle, busy) = (table.open(), table.open(), table.open(), table.open());
        drop(idle.activity().request());
        let under_way = busy.activity().request();
        at(&table, 5);
        slow.activity().received();
        at(&table, 11);
        let endings = || [&fresh, &slow, &idle, &busy].map(|one| one.activity().ending());
        assert_eq!(endings(), [CLOSE, OPEN, OPEN, OPEN]);
        // More bytes of the same head do not move its deadline.
        slow.activity().received();
        at(&table, 16);
        assert_eq!(endings(), [CLOSE, CLOSE, OPEN, OPEN]);
        at(&table, 101);
        assert_eq!(endings(), [CLOSE, CLOSE, CLOSE, OPEN]);
        drop(under_way);
        at(&table, 202);
        assert_eq!(endings(), [CLOSE, CLOSE, CLOSE, CLOSE]);
    }

    #[test]
    fn a_reply_that_is_taken_slowly_is_not_idle() {
        let table = Table::new(LIMITS);
        let connection = table.open();
        drop(connection.activity().request());
        for seconds in [60, 120, 180] {
            at(&table, seconds);
            connection.activity().sent();
        }
        at(&table, 279);
        assert_eq!(connection.activity().ending(), OPEN);
        at(&table, 281);
        assert_eq!(connection.activity().ending(), CLOSE);
    }

    #[test]
    fn room_is_made_by_the_quietest() {
        let table = Table::new(LIMITS);
        let old = table.open();
        let busy = table.open();
        let _under_way = busy.activity().request();
        table.advance(Duration::from_secs(3));
        let young = table.open();
        assert_eq!(table.make_room(), 1);
        let endings = [&old, &busy, &young].map(|one| one.activity().ending());
        assert_eq!(endings, [CLOSE, OPEN, OPEN]);
        drop(old);
        assert_eq!((table.len(), table.make_room()), (2, 0));
    }

    #[test]
    fn a_request_beside_another_is_marked() {
        let table = Table::new(LIMITS);
        let connection = table.open();
        let marked = || {
            let mut extensions = Extensions::new();
            let under_way = connection.activity().request_among_others(&mut extensions);
            (Crowded::is_in(&extensions), under_way)
        };
        let (first, _under_way) = marked();
        assert_eq!((first, marked().0, marked().0), (false, true, true));
        drop(_under_way);
        assert!(!marked().0);
    }

    #[test]
    fn an_end_cannot_be_taken_back() {
        let table = Table::new(LIMITS);
        let connection = table.open();
        connection.activity().end(CLOSE);
        drop(connection.activity().request());
        assert!(table.finish_touched());
        assert_eq!(connection.activity().ending(), CLOSE);
    }

    #[test]
    fn a_first_request_may_still_come_for_a_moment() {
        let table = Table::new(LIMITS);
        let (old, served) = (table.open(), table.open());
        drop(served.activity().request());
        table.advance(Duration::from_secs(3));
        let young = table.open();
        let endings = || [&old, &served, &young].map(|one| one.activity().ending());
        assert!(!table.finish_touched());
        assert_eq!(endings(), [FINISH, FINISH, OPEN]);
        table.advance(Duration::from_secs(4));
        assert!(table.finish_touched());
        assert_eq!(endings(), [FINISH, FINISH, FINISH]);
    }
}
