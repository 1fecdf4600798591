use mortise_types::{Error, Result};
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

/// The niceness that lasts: about a tenth of a contended core. Much less, and a
/// large model would hit its time limits on a busy machine and never go live.
const LOW_PRIORITY: libc::c_int = 10;

/// How often the waiting thread looks at the CPU time of the working one.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Runs `work` on a thread of its own and waits for it. Once it has used
/// `ordinary_cpu` of CPU time, the thread gets a low priority: short work
/// is not starved by the requests of a busy machine, and long work does not
/// slow them. A process cannot raise a priority that it lowered, hence a thread
/// for each piece of work.
///
/// # Errors
/// What `work` returns, or `Internal` when it panics or no thread can start.
pub(crate) fn run<T: Send>(
    name: &str,
    ordinary_cpu: Duration,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let (ended, wait) = sync_channel::<()>(0);
    let worker = Mutex::new(None);
    std::thread::scope(|scope| {
        let body = || {
            // Moved in, and dropped last: ends the wait below.
            let _ended = ended;
            *worker.lock() = Some(Worker::current());
            let result = catch_unwind(AssertUnwindSafe(work));
            *worker.lock() = None;
            result.unwrap_or_else(|panic| Err(panicked(&*panic)))
        };
        let thread = std::thread::Builder::new()
            .name(name.to_string())
            .spawn_scoped(scope, body)
            .map_err(|error| Error::internal(format!("cannot start a thread: {error}")))?;
        supervise(&worker, ordinary_cpu, &wait);
        thread.join().unwrap_or_else(|panic| Err(panicked(&*panic)))
    })
}

/// Waits for the worker to end, and on the way lowers its priority once it has
/// had its share.
fn supervise(worker: &Mutex<Option<Worker>>, ordinary_cpu: Duration, ended: &Receiver<()>) {
    while ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
        // The lock keeps the worker from ending, and its number from being
        // given to another thread, while its priority is set.
        let worker = worker.lock();
        if worker.as_ref().is_some_and(|worker| worker.cpu_time() >= ordinary_cpu) {
            worker.iter().for_each(Worker::lower_priority);
            break;
        }
    }
    // Nothing is ever sent: this returns when the worker ends.
    let _ = ended.recv();
}

/// A running thread, as the kernel knows it.
struct Worker {
    thread_id: libc::id_t,
    cpu_clock: libc::clockid_t,
}

impl Worker {
    fn current() -> Self {
        let mut cpu_clock = libc::CLOCK_THREAD_CPUTIME_ID;
        // SAFETY: the calling thread exists, and the clock id is written to a
        // local of the right type.
        unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut cpu_clock) };
        // SAFETY: takes and touches nothing.
        let thread_id = unsafe { libc::gettid() };
        Self { thread_id: thread_id.unsigned_abs(), cpu_clock }
    }

    fn cpu_time(&self) -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes to a local of the right type; a clock of a thread that
        // ended is an error, which leaves zero.
        unsafe { libc::clock_gettime(self.cpu_clock, &mut time) };
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
    }

    fn lower_priority(&self) {
        // SAFETY: no pointers; on Linux this sets the niceness of one thread.
        let failed =
            unsafe { libc::setpriority(libc::PRIO_PROCESS, self.thread_id, LOW_PRIORITY) } != 0;
        if failed {
            tracing::debug!("the priority of a background thread could not be lowered");
        }
    }
}

/// Lowers the priority of the calling thread for good: for work that is known
/// to be long before it begins, and for threads that never serve.
pub fn lower_priority() {
    Worker::current().lower_priority();
}

/// Lets the calling thread run only when a core has nothing else to do: not
/// even a thread that wakes up waits for it. For work that nobody waits for.
pub fn only_when_idle() {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: 0 means the calling thread, and the parameters outlive the call.
        let failed = unsafe {
            let none = libc::sched_param { sched_priority: 0 };
            libc::sched_setscheduler(0, libc::SCHED_IDLE, &none)
        } != 0;
        if !failed {
            return;
        }
    }
    lower_priority();
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    tracing::error!(panic = text, "a deployment panicked");
    Error::internal("the runtime failed while deploying; the server's log has the details")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn niceness() -> libc::c_int {
        // SAFETY: no pointers; 0 stands for the calling thread on Linux.
        unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
    }

    fn burn(cpu: Duration) {
        let worker = Worker::current();
        let until = worker.cpu_time() + cpu;
        while worker.cpu_time() < until {
            std::hint::spin_loop();
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn idle_threads_yield_to_all_others() {
        let policy = std::thread::spawn(|| {
            only_when_idle();
            // SAFETY: takes a plain number; 0 stands for the calling thread.
            unsafe { libc::sched_getscheduler(0) }
        });
        assert_eq!(policy.join().unwrap(), libc::SCHED_IDLE);
    }

    #[test]
    fn short_work_keeps_its_priority_and_long_work_loses_it() {
        let before = niceness();
        let after = |cpu| {
            let work = || {
                burn(cpu);
                Ok(niceness())
            };
            run("test", Duration::from_millis(20), work).unwrap()
        };
        assert_eq!(after(Duration::ZERO), before);
        assert_eq!(after(Duration::from_millis(200)), LOW_PRIORITY);
        assert_eq!(niceness(), before);
    }

    #[test]
    fn a_panic_is_an_error() {
        let started = Instant::now();
        let error = run::<()>("test", Duration::from_secs(60), || panic!("no")).unwrap_err();
        assert_eq!(error.kind(), mortise_types::ErrorKind::Internal);
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}
