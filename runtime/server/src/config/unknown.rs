use anyhow::{Result, bail};
use toml::{Table, Value};

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
    match mortise_deploy::nearest(key, known.keys().map(String::as_str)) {
        Some(candidate) => format!("did you mean `{candidate}`?"),
        None => {
            let keys: Vec<&str> = known.keys().map(String::as_str).collect();
            let of = if path.is_empty() { String::new() } else { format!(" of `{path}`") };
            format!("known keys{of}: {}", keys.join(", "))
        }
    }
}
