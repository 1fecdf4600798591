//! Ensembles: deployed models in a row, as one endpoint. The file takes the
//! place of a plugin's component: it is stored, kept and rolled back as one.
//!
//! ```toml
//! # What to answer with; default: everything that no later step takes.
//! outputs = ["label"]
//!
//! [[step]]
//! model = "embed"               # a deployed endpoint, with its transforms
//!
//! [step.inputs]                 # its input = a tensor of the ensemble;
//! text = "prompt"               # default: the tensor of the same name
//!
//! [step.outputs]                # its output = the tensor that it becomes
//! vector = "embedding"
//!
//! [[step]]
//! model = "classify"
//! inputs = { features = "embedding" }
//! ```

use crate::toolchain::{CompiledPlugin, VerifiedPlugin};
use mortise_host::{LoadRequest, World};
use mortise_serve::{EnsemblePlan, EnsembleStep, Registry, Stage};
use mortise_types::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Stands where a plugin's name would.
pub(crate) const ENSEMBLE: &str = "ensemble";

/// Steps of one ensemble.
const MAX_STEPS: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEnsemble {
    #[serde(default)]
    step: Vec<RawStep>,
    outputs: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStep {
    model: String,
    #[serde(default)]
    inputs: BTreeMap<String, String>,
    #[serde(default)]
    outputs: BTreeMap<String, String>,
}

/// An ensemble's file that was read.
struct EnsembleFile {
    digest: String,
    plan: EnsemblePlan,
    registry: Arc<Registry>,
}

/// Reads an ensemble's file.
///
/// # Errors
/// `InvalidInput` naming the key that is wrong.
pub(crate) fn verify(
    digest: &str,
    text: &[u8],
    registry: &Arc<Registry>,
) -> Result<Box<dyn VerifiedPlugin>> {
    let plan = parse(text)?;
    let (digest, registry) = (digest.to_string(), registry.clone());
    Ok(Box::new(EnsembleFile { digest, plan, registry }))
}

fn parse(text: &[u8]) -> Result<EnsemblePlan> {
    let text = std::str::from_utf8(text)
        .map_err(|_| Error::invalid("the ensemble's file is not UTF-8 text"))?;
    let raw: RawEnsemble = toml::from_str(text).map_err(|error| {
        let error = error.to_string();
        Error::invalid(format!("the ensemble's file is not as documented: {}", error.trim()))
    })?;
    if raw.step.len() > MAX_STEPS {
        return Err(Error::invalid(format!("an ensemble has at most {MAX_STEPS} steps")));
    }
    let step = |step: RawStep| EnsembleStep {
        model: step.model,
        inputs: step.inputs.into_iter().collect(),
        outputs: step.outputs.into_iter().collect(),
    };
    Ok(EnsemblePlan { steps: raw.step.into_iter().map(step).collect(), outputs: raw.outputs })
}

impl VerifiedPlugin for EnsembleFile {
    fn world(&self) -> World {
        World::Model
    }

    fn is_compiled(&self) -> bool {
        true
    }

    fn compile(self: Box<Self>) -> Result<Box<dyn CompiledPlugin>> {
        Ok(self)
    }
}

impl CompiledPlugin for EnsembleFile {
    fn load(&self, _: LoadRequest) -> Result<Stage> {
        Stage::ensemble(&self.digest, &self.plan, &self.registry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_or_refused() {
        let source = include_str!("ensemble.rs");
        let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
        let text: Vec<&str> = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
        let text = text.join("\n");
        let documented = text.split("```").nth(1).unwrap().strip_prefix("toml\n").unwrap();
        let plan = parse(documented.as_bytes()).unwrap();
        let pair = |own: &str, name: &str| vec![(own.to_string(), name.to_string())];
        assert_eq!(plan.steps[0].inputs, pair("text", "prompt"));
        assert_eq!(plan.steps[0].outputs, pair("vector", "embedding"));
        assert_eq!(plan.steps[1].inputs, pair("features", "embedding"));
        assert_eq!(plan.outputs, Some(vec!["label".to_string()]));
        let error = parse(b"[[step]]\nmodle = \"x\"").unwrap_err();
        assert!(error.message().contains("unknown field `modle`"), "{error}");
        assert!(parse(&[0xff]).is_err());
    }
}
