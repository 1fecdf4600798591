//! A rollout's line to its hook: events go out on a thread of their own, in
//! their order, so that no rollout waits for a service, and no lock is held
//! meanwhile.

use super::info::{HookEvent, Hooks, RolloutHook};
use mortise_types::{Error, Result};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

/// Events that wait for a slow service; further ones are dropped with a
/// warning.
const MAX_WAITING: usize = 64;

/// How long a service is left alone after it refused a step the first time. Twice
/// as long each time after that, up to the other one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Dropping it lets what waits go out, and ends the thread.
pub(crate) struct HookLine {
    confirm: bool,
    calls: SyncSender<Call>,
    /// The step that the service was asked about.
    asked: Option<Asked>,
    refused: Option<Refused>,
    failure: Arc<Mutex<Option<String>>>,
}

struct Call {
    event: HookEvent,
    /// Where the answer goes, if anybody waits for one.
    answer: Option<SyncSender<Result<()>>>,
}

struct Asked {
    step: Step,
    answer: Receiver<Result<()>>,
}

/// A step that the service did not agree to.
struct Refused {
    step: Step,
    wait: Duration,
    ask_again_at: Instant,
}

/// What a consent is for.
#[derive(Clone, Copy, PartialEq)]
struct Step {
    action: &'static str,
    next_weight_percent: f64,
}

impl HookLine {
    /// # Errors
    /// When the operating system refuses the thread.
    pub(crate) fn new(hooks: Arc<dyn Hooks>, hook: &RolloutHook) -> Result<Self> {
        let (calls, inbox) = sync_channel::<Call>(MAX_WAITING);
        let url = hook.url.clone();
        let failure = Arc::<Mutex<Option<String>>>::default();
        let noted = failure.clone();
        let work = move || inbox.iter().for_each(|call| carry(&*hooks, &url, call, &noted));
        std::thread::Builder::new()
            .name("mortise-hook".to_string())
            .spawn(work)
            .map_err(|error| Error::internal(format!("cannot start a thread: {error}")))?;
        Ok(Self { confirm: hook.confirm, calls, asked: None, refused: None, failure })
    }

    /// Why the service could not be told of the newest event, if it could not.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    /// Tells the service; one that fails changes nothing.
    pub(crate) fn tell(&self, event: HookEvent) {
        self.send(Call { event, answer: None });
    }

    /// Whether a step may be taken. A service that is only told is told, and the
    /// step may. Otherwise the first call asks, the ones after it look for the
    /// answer; a consent is used up by saying so. A refused step is asked about
    /// again after a while.
    ///
    /// # Errors
    /// When the service does not agree or cannot be reached.
    pub(crate) fn agrees(&mut self, event: HookEvent, now: Instant) -> Result<bool> {
        if !self.confirm {
            self.tell(event);
            return Ok(true);
        }
        let HookEvent { action, next_weight_percent, .. } = event;
        let step = Step { action, next_weight_percent };
        let Some(asked) = self.asked.take().filter(|asked| asked.step == step) else {
            if !self.waits(step, now) {
                self.ask(step, event);
            }
            return Ok(false);
        };
        match asked.answer.try_recv() {
            Ok(Ok(())) => {
                self.refused = None;
                Ok(true)
            }
            Ok(Err(error)) => Err(self.refuse(step, error, now)),
            Err(TryRecvError::Empty) => {
                self.asked = Some(asked);
                Ok(false)
            }
            Err(TryRecvError::Disconnected) => {
                Err(self.refuse(step, Error::overloaded("too many events wait for the hook"), now))
            }
        }
    }

    fn ask(&mut self, step: Step, event: HookEvent) {
        let (sender, answer) = sync_channel(1);
        self.send(Call { event, answer: Some(sender) });
        self.asked = Some(Asked { step, answer });
    }

    fn waits(&self, step: Step, now: Instant) -> bool {
        self.refused.as_ref().is_some_and(|it| it.step == step && now < it.ask_again_at)
    }

    fn refuse(&mut self, step: Step, error: Error, now: Instant) -> Error {
        let before = self.refused.take().filter(|refused| refused.step == step);
        let wait = before.map_or(FIRST_WAIT, |refused| (refused.wait * 2).min(LONGEST_WAIT));
        self.refused = Some(Refused { step, wait, ask_again_at: now + wait });
        error
    }

    fn send(&self, call: Call) {
        if let Err(refused) = self.calls.try_send(call) {
            tracing::warn!("a hook is too slow; an event is dropped: {refused}");
        }
    }
}

fn carry(hooks: &dyn Hooks, url: &str, call: Call, failure: &Mutex<Option<String>>) {
    let outcome = hooks.call(url, &call.event);
    match call.answer {
        // Whoever asked may have changed its mind.
        Some(answer) => drop(answer.send(outcome)),
        None => {
            let error = outcome.err();
            if let Some(error) = &error {
                let endpoint = call.event.endpoint;
                tracing::warn!(endpoint, %error, "a rollout's hook failed");
            }
            *failure.lock() = error.map(|error| format!("{url}: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    /// Answers what the test hands it, when it does.
    struct Scripted {
        answers: Mutex<Receiver<Result<()>>>,
        seen: Mutex<std::sync::mpsc::Sender<HookEvent>>,
    }

    impl Hooks for Scripted {
        fn check(&self, _url: &str) -> Result<()> {
            Ok(())
        }

        fn call(&self, _url: &str, event: &HookEvent) -> Result<()> {
            self.seen.lock().send(event.clone()).unwrap();
            self.answers.lock().recv().unwrap()
        }
    }

    fn step(action: &'static str, next: f64) -> HookEvent {
        HookEvent { action, next_weight_percent: next, ..HookEvent::default() }
    }

    fn line(confirm: bool) -> (HookLine, std::sync::mpsc::Sender<Result<()>>, Receiver<HookEvent>) {
        let (answers, script) = channel();
        let (sender, seen) = channel();
        let hooks = Scripted { answers: Mutex::new(script), seen: Mutex::new(sender) };
        let hook = RolloutHook { url: String::new(), confirm };
        (HookLine::new(Arc::new(hooks), &hook).unwrap(), answers, seen)
    }

    /// The answer to a question that was asked before.
    fn answered(line: &mut HookLine, next: f64, now: Instant) -> Result<()> {
        loop {
            match line.agrees(step("set_weight", next), now) {
                Ok(false) => std::thread::yield_now(),
                Ok(true) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    #[test]
    fn a_step_waits_for_its_own_consent_and_blocks_nobody() {
        let (mut line, answers, seen) = line(true);
        let mut now = Instant::now();
        assert!(!line.agrees(step("set_weight", 5.0), now).unwrap());
        seen.recv().unwrap();
        // The service has it and is silent.
        assert!(!line.agrees(step("set_weight", 5.0), now).unwrap());
        answers.send(Err(Error::conflict("not now"))).unwrap();
        assert!(answered(&mut line, 5.0, now).is_err());
        now += FIRST_WAIT;
        assert!(!line.agrees(step("set_weight", 5.0), now).unwrap(), "it is asked again");
        seen.recv().unwrap();
        answers.send(Ok(())).unwrap();
        answered(&mut line, 5.0, now).unwrap();
        assert!(!line.agrees(step("set_weight", 25.0), now).unwrap(), "a consent is for one step");
        // Another step is another question, whatever becomes of this one.
        assert!(!line.agrees(step("promote", 100.0), now).unwrap());
    }

    #[test]
    fn a_service_that_refuses_is_asked_less_and_less_often() {
        let (mut line, answers, seen) = line(true);
        let (mut now, mut waits) = (Instant::now(), Vec::new());
        for _ in 0..8 {
            assert!(!line.agrees(step("set_weight", 5.0), now).unwrap());
            seen.recv().unwrap();
            answers.send(Err(Error::conflict("not now"))).unwrap();
            answered(&mut line, 5.0, now).unwrap_err();
            let wait = line.refused.as_ref().unwrap().wait;
            now += wait - Duration::from_millis(1);
            assert!(!line.agrees(step("set_weight", 5.0), now).unwrap());
            assert!(line.asked.is_none(), "it is left alone");
            now += Duration::from_millis(1);
            waits.push(wait.as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn whoever_is_only_told_is_told_before_and_after_and_not_asked() {
        let (mut line, answers, seen) = line(false);
        assert!(line.agrees(step("set_weight", 5.0), Instant::now()).unwrap());
        line.tell(step("set_weight", 5.0));
        answers.send(Ok(())).unwrap();
        answers.send(Err(Error::not_ready("it is gone"))).unwrap();
        assert_eq!(seen.recv().unwrap().next_weight_percent, 5.0);
        assert_eq!(seen.recv().unwrap().next_weight_percent, 5.0);
        while line.failure().is_none() {
            std::thread::yield_now();
        }
        assert!(line.failure().unwrap().ends_with("it is gone"));
        drop(line);
        assert!(seen.recv().is_err(), "the thread ends with the line");
    }
}
