use anyhow::{Result, bail};
use toml::{Table, Value};

/// Least similarity (Jaro-Winkler) at which a known key is suggested.
const SIMILAR: f64 = 0.8;

/// Refuses keys of `given` that `known` does not have, at any depth.
///
/// # Errors
/// Names the first unknown key and the known key that looks most like it.
pub(super) fn refuse(given: &Table, known: &Table) -> Result<()> {
    refuse_below("", given, known)
}

fn refuse_below(path: &str, given: &Table, known: &Table) -> Result<()> {
    for (key, value) in given {
        let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match (value, known.get(key)) {
            (_, None) => bail!("unknown key `{full}`; {}", advice(path, key, known)),
            (Value::Table(inner), Some(Value::Table(known))) => refuse_below(&full, inner, known)?,
            _ => {}
        }
    }
    Ok(())
}

fn advice(path: &str, key: &str, known: &Table) -> String {
    let closest = known
        .keys()
        .map(|candidate| (strsim::jaro_winkler(key, candidate), candidate))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match closest {
        Some((similarity, candidate)) if similarity >= SIMILAR => {
            format!("did you mean `{candidate}`?")
        }
        _ => {
            let keys: Vec<&str> = known.keys().map(String::as_str).collect();
            let of = if path.is_empty() { String::new() } else { format!(" of `{path}`") };
            format!("known keys{of}: {}", keys.join(", "))
        }
    }
}
