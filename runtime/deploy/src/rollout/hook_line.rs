//! A rollout's line to its hook: events go out on a thread of their own, in
//! their order, so that no rollout waits for a service, and no lock is held
//! meanwhile.

use super::info::{HookEvent, Hooks, RolloutHook};
use mortise_types::{Error, Result};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

/// Events that wait for a slow service; further ones are dropped with a
/// warning.
const MAX_WAITING: usize = 64;

/// Dropping it lets what waits go out, and ends the thread.
pub(crate) struct HookLine {
    confirm: bool,
    calls: SyncSender<Call>,
    /// The step that the service was asked about.
    asked: Option<Asked>,
}

struct Call {
    event: HookEvent,
    /// Where the answer goes, if anybody waits for one.
    answer: Option<SyncSender<Result<()>>>,
}

struct Asked {
    action: &'static str,
    next_weight_percent: f64,
    answer: Receiver<Result<()>>,
}

impl HookLine {
    /// # Errors
    /// When the operating system refuses the thread.
    pub(crate) fn new(hooks: Arc<dyn Hooks>, hook: &RolloutHook) -> Result<Self> {
        let (calls, inbox) = sync_channel::<Call>(MAX_WAITING);
        let url = hook.url.clone();
        let work = move || inbox.iter().for_each(|call| carry(&*hooks, &url, call));
        std::thread::Builder::new()
            .name("mortise-hook".to_string())
            .spawn(work)
            .map_err(|error| Error::internal(format!("cannot start a thread: {error}")))?;
        Ok(Self { confirm: hook.confirm, calls, asked: None })
    }

    /// Tells the service; one that fails changes nothing.
    pub(crate) fn tell(&self, event: HookEvent) {
        self.send(Call { event, answer: None });
    }

    /// Whether a step may be taken. The first call asks, the ones after it look
    /// for the answer; a consent is used up by saying so.
    ///
    /// # Errors
    /// When the service does not agree or cannot be reached. The next call asks
    /// again.
    pub(crate) fn agrees(&mut self, action: &'static str, event: HookEvent) -> Result<bool> {
        if !self.confirm {
            return Ok(true);
        }
        let next_weight_percent = event.next_weight_percent;
        let is_this = |asked: &Asked| {
            asked.action == action && asked.next_weight_percent == next_weight_percent
        };
        let Some(asked) = self.asked.take().filter(is_this) else {
            let (sender, answer) = sync_channel(1);
            self.send(Call { event, answer: Some(sender) });
            self.asked = Some(Asked { action, next_weight_percent, answer });
            return Ok(false);
        };
        match asked.answer.try_recv() {
            Ok(answer) => answer.map(|()| true),
            Err(TryRecvError::Empty) => {
                self.asked = Some(asked);
                Ok(false)
            }
            Err(TryRecvError::Disconnected) => {
                Err(Error::overloaded("too many events wait for the hook"))
            }
        }
    }

    fn send(&self, call: Call) {
        if let Err(refused) = self.calls.try_send(call) {
            tracing::warn!("a hook is too slow; an event is dropped: {refused}");
        }
    }
}

fn carry(hooks: &dyn Hooks, url: &str, call: Call) {
    let outcome = hooks.call(url, &call.event);
    match call.answer {
        // Whoever asked may have changed its mind.
        Some(answer) => drop(answer.send(outcome)),
        None => {
            if let Err(error) = outcome {
                let endpoint = call.event.endpoint;
                tracing::warn!(endpoint, %error, "a rollout's hook failed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    /// Answers what the test hands it, when it does.
    struct Scripted {
        answers: Mutex<Receiver<Result<()>>>,
        seen: Mutex<std::sync::mpsc::Sender<HookEvent>>,
    }

    impl Hooks for Scripted {
        fn call(&self, _url: &str, event: &HookEvent) -> Result<()> {
            self.seen.lock().unwrap().send(event.clone()).unwrap();
            self.answers.lock().unwrap().recv().unwrap()
        }
    }

    fn step(next: f64) -> HookEvent {
        HookEvent { next_weight_percent: next, ..HookEvent::default() }
    }

    fn line(confirm: bool) -> (HookLine, std::sync::mpsc::Sender<Result<()>>, Receiver<HookEvent>) {
        let (answers, script) = channel();
        let (sender, seen) = channel();
        let hooks = Scripted { answers: Mutex::new(script), seen: Mutex::new(sender) };
        let hook = RolloutHook { url: String::new(), confirm };
        (HookLine::new(Arc::new(hooks), &hook).unwrap(), answers, seen)
    }

    /// The answer to a question that was asked before.
    fn answered(line: &mut HookLine, next: f64) -> Result<()> {
        loop {
            match line.agrees("set_weight", step(next)) {
                Ok(false) => std::thread::yield_now(),
                Ok(true) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    #[test]
    fn a_step_waits_for_its_own_consent_and_blocks_nobody() {
        let (mut line, answers, seen) = line(true);
        assert!(!line.agrees("set_weight", step(5.0)).unwrap());
        seen.recv().unwrap();
        // The service has it and is silent.
        assert!(!line.agrees("set_weight", step(5.0)).unwrap());
        answers.send(Err(Error::conflict("not now"))).unwrap();
        assert!(answered(&mut line, 5.0).is_err());
        assert!(!line.agrees("set_weight", step(5.0)).unwrap(), "it is asked again");
        answers.send(Ok(())).unwrap();
        answered(&mut line, 5.0).unwrap();
        assert!(!line.agrees("set_weight", step(25.0)).unwrap(), "a consent is for one step");
        // Another step is another question, whatever becomes of this one.
        assert!(!line.agrees("promote", step(100.0)).unwrap());
    }

    #[test]
    fn whoever_is_only_told_is_not_asked() {
        let (mut line, answers, seen) = line(false);
        assert!(line.agrees("set_weight", step(5.0)).unwrap());
        line.tell(step(5.0));
        assert_eq!(seen.recv().unwrap().next_weight_percent, 5.0);
        answers.send(Ok(())).unwrap();
        drop(line);
        assert!(seen.recv().is_err(), "the thread ends with the line");
    }
}
