//! Requests through a router. A record is an infer request of the protocol, of
//! which only the parameters and inputs matter, with its `headers` beside them.

use super::{Policy, Records, Subject, print, read};
use crate::cli::CliError;
use crate::cli::args::ReplayArgs;
use anyhow::{Context, Result};
use mortise_host::{RouteChoice, RouteVariant, RouterPlugin};
use mortise_serve::{KeySource, RequestFacts, Routing, Variant};
use mortise_types::Tensor;
use mortise_wire::{WireLimits, decode_infer};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

#[derive(Deserialize)]
struct Record {
    /// In lower case, as routers ask for them.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    parameters: Map<String, Value>,
    inputs: Option<Value>,
}

impl RequestFacts for Record {
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.get(name).map(String::as_bytes)
    }

    fn parameter(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        Some(match self.parameters.get(name)? {
            Value::String(text) => Cow::Borrowed(text.as_bytes()),
            other => Cow::Owned(other.to_string().into_bytes()),
        })
    }
}

impl Record {
    /// In lower case, and with what keys of the form `input:…` need.
    fn prepare(mut self) -> Result<(Self, Vec<(String, Tensor)>)> {
        let headers = std::mem::take(&mut self.headers).into_iter();
        self.headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        let Some(inputs) = self.inputs.take() else { return Ok((self, Vec::new())) };
        let body = json!({"inputs": inputs}).to_string().into();
        let request = decode_infer(&body, None, None, &WireLimits::default())?;
        let inputs = request.inputs.into_iter().map(|input| (input.name, input.tensor));
        Ok((self, inputs.collect()))
    }
}

/// Prints where each request goes, and how many went where.
pub(super) fn replay(
    policy: &Policy,
    records: Records,
    args: &ReplayArgs,
    out: &mut impl Write,
) -> Result<()> {
    let variants = variants(&args.variants)?;
    let versions: Vec<u64> = variants.iter().map(|variant| variant.version).collect();
    let router = RouterPlugin::load(&policy.host, &policy.compiled, policy.request(), variants)?;
    let key = args.key.as_deref().map(KeySource::parse).transpose()?;
    let routing = Routing::new(Box::new(router), key, Arc::default());
    let mut counts = vec![0u64; versions.len()];
    for (record, number) in records.zip(1u64..) {
        let record = record.with_context(|| format!("record {number} is no JSON"))?;
        let prepared = read::<Record>(record, number, Subject::Requests)?.prepare();
        let (record, inputs) = prepared.with_context(|| format!("record {number}"))?;
        let choice = routing.choose(Some(&record), &inputs);
        let chosen = choice.as_ref().and_then(|choice| counts.get_mut(choice.variant));
        chosen.into_iter().for_each(|count| *count += 1);
        let line = decision(number, choice.as_ref(), &versions, args.json);
        if !print(out, &line)? {
            return Ok(());
        }
    }
    let summary = summary(&versions, &counts, &routing, args.json);
    print(out, &summary).map(drop)
}

fn decision(number: u64, choice: Option<&RouteChoice>, versions: &[u64], as_json: bool) -> String {
    let version = choice.and_then(|choice| versions.get(choice.variant));
    let shadow = choice.map_or(0, |choice| choice.shadow);
    let is_outside = choice.is_some_and(|choice| choice.is_outside);
    let copies: Vec<u64> = versions
        .iter()
        .enumerate()
        .filter(|(at, _)| shadow >> at & 1 == 1)
        .map(|(_, &version)| version)
        .collect();
    match (as_json, version) {
        (true, version) => json!({
            "record": number, "version": version, "copies": copies, "outside": is_outside,
        })
        .to_string(),
        (false, None) => format!("{number:>7} undecided: the stable version answers"),
        (false, Some(version)) if is_outside => {
            format!("{number:>7} version {version}, outside of the experiment")
        }
        (false, Some(version)) if copies.is_empty() => format!("{number:>7} version {version}"),
        (false, Some(version)) => format!("{number:>7} version {version}, copied to {copies:?}"),
    }
}

fn summary(versions: &[u64], counts: &[u64], routing: &Routing, as_json: bool) -> String {
    if as_json {
        let by_version: BTreeMap<String, u64> =
            versions.iter().map(u64::to_string).zip(counts.iter().copied()).collect();
        return json!({
            "requests": by_version,
            "keyless": routing.counts().keyless,
            "undecided": routing.counts().undecided,
            "outside": routing.counts().outside,
            "failure": routing.stats().last_failure,
        })
        .to_string();
    }
    let pairs = versions.iter().zip(counts);
    let shares: Vec<String> =
        pairs.map(|(version, count)| format!("version {version}: {count}")).collect();
    let mut text = format!(
        "{}; without a key: {}, undecided: {}",
        shares.join(", "),
        routing.counts().keyless,
        routing.counts().undecided
    );
    if let Some(failure) = routing.stats().last_failure {
        text.push_str(&format!("; the router failed: {failure}"));
    }
    text
}

/// `1=75,2=25`: versions with their shares in percent, the stable one first.
fn variants(text: &str) -> Result<Vec<RouteVariant>> {
    let wrong = || {
        CliError::new(
            format!("\"{text}\" does not name versions and shares"),
            "write --variants STABLE=PERCENT,OTHER=PERCENT, which add up to 100",
        )
    };
    let one = |(at, pair): (usize, &str)| -> Option<RouteVariant> {
        let (version, percent) = pair.split_once('=')?;
        let percent: f64 = percent.trim_end_matches('%').parse().ok()?;
        let weight = (0.0..=100.0).contains(&percent).then(|| (percent * 100.0).round() as u32)?;
        Some(RouteVariant { version: version.trim().parse().ok()?, weight, stable: at == 0 })
    };
    let found: Option<Vec<RouteVariant>> = text.split(',').enumerate().map(one).collect();
    let found = found.ok_or_else(wrong)?;
    match found.iter().map(|variant| variant.weight).sum::<u32>() == Variant::WHOLE {
        true => Ok(found),
        false => Err(wrong().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_name_versions_and_shares() {
        let read = variants("1=75,2=25%").unwrap();
        let seen: Vec<(u64, u32, bool)> =
            read.iter().map(|it| (it.version, it.weight, it.stable)).collect();
        assert_eq!(seen, [(1, 7_500, true), (2, 2_500, false)]);
        for wrong in ["", "1", "1=50,2=40", "1=a", "1=101,2=-1"] {
            assert!(variants(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn records_give_headers_parameters_and_inputs() {
        let record = r#"{"headers": {"User": "a"}, "parameters": {"n": 3, "s": "t"},
            "inputs": [{"name": "id", "datatype": "INT64", "shape": [1], "data": [7]}]}"#;
        let record: Record = serde_json::from_str(record).unwrap();
        let (record, inputs) = record.prepare().unwrap();
        assert_eq!(record.header("user"), Some(&b"a"[..]));
        assert_eq!(record.parameter("n").as_deref(), Some(&b"3"[..]));
        assert_eq!(record.parameter("s").as_deref(), Some(&b"t"[..]));
        assert_eq!(inputs[0].0, "id");
    }
}
