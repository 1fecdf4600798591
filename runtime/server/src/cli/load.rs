//! `mortise load NAME --rps N`: steady traffic from sample data, to try things
//! with.

mod tally;

use super::CliError;
use super::args::LoadArgs;
use super::predict::Model;
use super::show::print_json;
use crate::embedded::DEMOS;
use anyhow::{Context, Result, bail};
use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tally::Tally;

/// Connections that send; each waits for its answers.
const THREADS: u64 = 16;

/// Rows of a sample file that are used.
const MAX_ROWS: usize = 10_000;

/// What each user is called in the header of the sticky key.
const USERS: u64 = 1_000;

/// # Errors
/// When there is nothing to send, or the server cannot be reached.
pub(super) fn run(args: &LoadArgs, rps: f64) -> Result<()> {
    if !(rps > 0.0 && rps <= 100_000.0) {
        bail!("--rps must lie above 0 and up to 100000");
    }
    let error_rate = share(args.error_rate)?;
    let until = args.seconds.map(length).transpose()?;
    let model = Model::of(&args.name, args.url.as_deref(), args.admin.store.as_deref())?;
    let requests = requests(args, &model)?;
    let plan = Plan { requests, rps, error_rate, until, key_header: args.key_header.as_deref() };
    let course = Course::default();
    let started = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (model, plan, course) = (&model, &plan, &course);
            scope.spawn(move || send_share(model, plan, course, started, thread));
        }
        scope.spawn(|| report(&plan, &course, started));
    });
    let (mut tally, took) = (course.tally(), started.elapsed());
    match args.admin.json {
        true => print_json(&tally.json(took)),
        false => {
            println!("{}", tally.summary(took));
            Ok(())
        }
    }
}

/// A share of the requests, which is easily mistaken for a percentage.
fn share(rate: f64) -> Result<f64> {
    if (0.0..=1.0).contains(&rate) {
        return Ok(rate);
    }
    let percent = if (1.0..=100.0).contains(&rate) { rate } else { 5.0 };
    let message = format!("{rate} is no share of requests");
    let hint = format!("write --error-rate {} for {percent} %", percent / 100.0);
    Err(CliError::new(message, hint).into())
}

fn length(seconds: f64) -> Result<Duration> {
    let length = Duration::try_from_secs_f64(seconds).ok().filter(|length| !length.is_zero());
    length.ok_or_else(|| {
        let message = format!("{seconds} seconds is no time to send requests in");
        CliError::new(message, "give --seconds a number above 0, or leave it out to go on").into()
    })
}

struct Plan<'a> {
    requests: Vec<String>,
    rps: f64,
    error_rate: f64,
    until: Option<Duration>,
    key_header: Option<&'a str>,
}

/// What the threads tell each other.
#[derive(Default)]
struct Course {
    tally: Mutex<Tally>,
    is_over: AtomicBool,
}

impl Course {
    /// No thread panics while it holds the lock.
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every [`THREADS`]-th request, each at its own time.
fn send_share(model: &Model, plan: &Plan<'_>, course: &Course, started: Instant, thread: u64) {
    for index in (thread..).step_by(THREADS as usize) {
        let due = Duration::from_secs_f64(index as f64 / plan.rps);
        if plan.until.is_some_and(|until| due >= until) {
            break;
        }
        match due.checked_sub(started.elapsed()) {
            Some(early) => std::thread::sleep(early),
            // The first of a thread waited for no answer.
            None if index == thread => {}
            None => course.tally().late += 1,
        }
        let at = index as usize % plan.requests.len();
        let spoilt = unit(index) < plan.error_rate;
        let body = if spoilt { "{\"inputs\": []}" } else { plan.requests[at].as_str() };
        let user = format!("user-{}", index % USERS);
        let header = plan.key_header.map(|name| (name, user.as_str()));
        let sent = Instant::now();
        let answer = model.ask(body, header);
        let took = sent.elapsed();
        course.tally().count(spoilt, &answer, took);
    }
    if thread == 0 {
        course.is_over.store(true, Ordering::Relaxed);
    }
}

fn report(plan: &Plan<'_>, course: &Course, started: Instant) {
    while !course.is_over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(500));
        let is_over = plan.until.is_some_and(|until| started.elapsed() >= until);
        if std::io::stderr().is_terminal() && !is_over {
            eprint!("\r\x1b[K{}", course.tally().line());
        }
    }
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}

/// Bodies to send in turn.
fn requests(args: &LoadArgs, model: &Model) -> Result<Vec<String>> {
    if let Some(path) = &args.csv {
        return from_csv(path, args.shift.as_deref(), model);
    }
    if args.shift.is_some() {
        let hint = "name a file of rows with --csv; the shift is measured on its column";
        return Err(CliError::new("--shift needs rows", hint).into());
    }
    if let Some(path) = &args.sample {
        return Ok(vec![model.request_from_json(path)?]);
    }
    let demo = DEMOS.iter().find(|demo| demo.name == args.name);
    let sample = demo.and_then(|demo| demo.files.iter().find(|file| file.name == "request.json"));
    let sample = sample.ok_or_else(|| {
        CliError::new("there is no sample to send", "pass --sample request.json or --csv rows.csv")
    })?;
    Ok(vec![String::from_utf8(sample.bytes.to_vec())?])
}

/// A request for each row; columns that are no input are left out.
fn from_csv(path: &Path, shift: Option<&str>, model: &Model) -> Result<Vec<String>> {
    let mut reader =
        csv::Reader::from_path(path).with_context(|| format!("cannot read {}", path.display()))?;
    let header: Vec<String> = reader.headers()?.iter().map(String::from).collect();
    let mut rows: Vec<Vec<String>> = Vec::new();
    for record in reader.records().take(MAX_ROWS) {
        rows.push(record?.iter().map(String::from).collect());
    }
    if rows.is_empty() {
        bail!("{} has no rows", path.display());
    }
    if let Some(shift) = shift {
        shift_column(&header, &mut rows, shift)?;
    }
    rows.iter().map(|row| model.request_of_row(&header, row)).collect()
}

/// `COLUMN=+2sd` or `COLUMN=-0.5`: adds that to every value of a column.
fn shift_column(header: &[String], rows: &mut [Vec<String>], shift: &str) -> Result<()> {
    let (name, amount) = shift.split_once('=').unwrap_or((shift, ""));
    let column = header.iter().position(|column| column == name).ok_or_else(|| {
        CliError::new(format!("there is no column \"{name}\""), "write --shift COLUMN=+2sd")
    })?;
    let numbers: Option<Vec<f64>> = rows.iter().map(|row| row[column].parse().ok()).collect();
    let numbers = numbers
        .ok_or_else(|| CliError::new(format!("\"{name}\" is not numeric"), "shift a number"))?;
    let (number, unit) = match amount.strip_suffix("sd") {
        Some(number) => (number, deviation(&numbers)),
        None => (amount, 1.0),
    };
    let by: f64 = number.parse().map_err(|_| {
        CliError::new(format!("\"{amount}\" is no shift"), "write +2sd, -1sd or a number")
    })?;
    for (row, number) in rows.iter_mut().zip(numbers) {
        row[column] = (number + by * unit).to_string();
    }
    Ok(())
}

fn deviation(numbers: &[f64]) -> f64 {
    let count = numbers.len().max(1) as f64;
    let mean = numbers.iter().sum::<f64>() / count;
    (numbers.iter().map(|number| (number - mean).powi(2)).sum::<f64>() / count).sqrt()
}

/// Spreads the spoilt requests evenly: splitmix64 of their number.
fn unit(index: u64) -> f64 {
    let mut value = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((value ^ (value >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_no_percentages_and_times_are_not_nothing() {
        for right in [0.0, 0.3, 1.0] {
            assert_eq!(share(right).unwrap(), right);
        }
        for (wrong, hint) in [(30.0, "0.3 for 30 %"), (-0.1, "0.05 for 5 %"), (f64::NAN, "0.05")] {
            let error = share(wrong).unwrap_err();
            let error = error.downcast_ref::<CliError>().unwrap();
            assert!(error.hint.as_deref().unwrap_or_default().contains(hint), "{wrong}: {error:?}");
        }
        assert_eq!(length(0.5).unwrap(), Duration::from_millis(500));
        for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(length(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn columns_are_shifted_by_deviations_or_numbers() {
        let header = ["a".to_string(), "b".to_string()];
        let rows = || vec![vec!["1".to_string(), "x".into()], vec!["3".to_string(), "y".into()]];
        for (shift, want) in [("a=+2sd", ["3", "5"]), ("a=-1", ["0", "2"])] {
            let mut shifted = rows();
            shift_column(&header, &mut shifted, shift).unwrap();
            assert_eq!([&*shifted[0][0], &*shifted[1][0]], want, "{shift}");
        }
        for wrong in ["c=1", "b=1", "a=much"] {
            assert!(shift_column(&header, &mut rows(), wrong).is_err(), "{wrong}");
        }
    }
}
