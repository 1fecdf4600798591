use super::turns::{begin_turn, take_short_turns};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

/// Blocking work that all threads together may have under way, and that each
/// may have at least.
const BLOCKING_THREADS: usize = 512;
const MIN_BLOCKING_THREADS: usize = 16;

/// How long blocking work may go on when the threads end.
const PATIENCE: Duration = Duration::from_secs(1);

/// The threads that serve connections. Each has a runtime and an event queue of
/// its own, and a connection stays on one: a thread that steals work from
/// others is woken for every event that it might find, and moves requests away
/// from the caches that know them.
pub(crate) struct Workers {
    workers: Vec<Worker>,
}

struct Worker {
    handle: Handle,
    open: Arc<AtomicUsize>,
    /// The thread ends when this is dropped.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Workers {
    /// # Errors
    /// When the system gives no thread or no event queue.
    pub(crate) fn start(count: usize) -> io::Result<Arc<Self>> {
        let count = count.max(1);
        let blocking = (BLOCKING_THREADS / count).max(MIN_BLOCKING_THREADS);
        let start = |number| Worker::start(number, blocking);
        let workers = (0..count).map(start).collect::<io::Result<_>>()?;
        Ok(Arc::new(Self { workers }))
    }

    /// Serves a connection on the thread that has the fewest. `connection` is
    /// called there: what it registers for events is told to that thread.
    pub(crate) fn serve<F: Future<Output = ()> + Send>(
        &self,
        connection: impl FnOnce() -> F + Send + 'static,
    ) {
        let Some(worker) = self.workers.iter().min_by_key(|worker| worker.open()) else { return };
        let counted = Counted::new(&worker.open);
        worker.handle.spawn(async move {
            connection().await;
            drop(counted);
        });
    }
}

impl Worker {
    fn start(number: usize, blocking_threads: usize) -> io::Result<Self> {
        let name = format!("mortise-io-{number}");
        let runtime = Builder::new_current_thread()
            .thread_name(name.clone())
            .max_blocking_threads(blocking_threads)
            .on_thread_unpark(begin_turn)
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name(name).spawn(move || run(runtime, stopped))?;
        Ok(Self { handle, open: Arc::default(), stop: Some(stop), thread: Some(thread) })
    }

    /// Connections that it serves.
    fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

fn run(runtime: Runtime, stopped: oneshot::Receiver<()>) {
    take_short_turns();
    // An error says that the other end is gone, which means the same.
    let _ = runtime.block_on(stopped);
    runtime.shutdown_timeout(PATIENCE);
}

impl Drop for Workers {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            worker.stop = None;
        }
        for thread in self.workers.iter_mut().filter_map(|worker| worker.thread.take()) {
            // It panics for no connection's sake: tasks catch what they do.
            let _ = thread.join();
        }
    }
}

/// A connection that counts for its thread until it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(open.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn name() -> String {
        std::thread::current().name().unwrap_or_default().to_owned()
    }

    #[test]
    fn connections_go_where_there_are_fewest_and_stay() {
        let workers = Workers::start(2).unwrap();
        let (sender, seen) = mpsc::channel();
        let mut open = Vec::new();
        let mut connect = || {
            let (close, closed) = oneshot::channel::<()>();
            open.push(close);
            let sender = sender.clone();
            workers.serve(move || {
                let first = name();
                async move {
                    tokio::task::yield_now().await;
                    sender.send((first, name())).unwrap();
                    let _ = closed.await;
                }
            });
            let (first, later) = seen.recv().unwrap();
            assert_eq!(first, later);
            first
        };
        let mut names = [connect(), connect(), connect(), connect()];
        names.sort();
        assert_eq!(names, ["mortise-io-0", "mortise-io-0", "mortise-io-1", "mortise-io-1"]);
    }

    #[test]
    fn what_is_left_when_the_threads_end_is_dropped() {
        let workers = Workers::start(1).unwrap();
        let (sender, seen) = mpsc::channel::<()>();
        workers.serve(move || async move {
            std::future::pending::<()>().await;
            drop(sender);
        });
        drop(workers);
        assert_eq!(seen.recv(), Err(mpsc::RecvError));
    }

    #[test]
    fn a_connection_that_panics_takes_no_other_with_it() {
        let workers = Workers::start(1).unwrap();
        let (sender, seen) = mpsc::channel();
        workers.serve(|| async { panic!("on purpose") });
        workers.serve(move || async move { sender.send(()).unwrap() });
        assert_eq!(seen.recv(), Ok(()));
        while workers.workers[0].open() > 0 {
            std::thread::yield_now();
        }
    }
}
