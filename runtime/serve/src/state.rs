use crate::options::StateTie;
use mortise_types::{DType, Error, Result, Signature, Storage, Tensor, TensorSpec, VARIABLE};

/// The tensors that a model keeps between the requests of a sequence: outputs
/// of one request that are inputs of the next. Clients see neither.
pub(crate) struct State(Vec<Tie>);

struct Tie {
    /// Positions in the signature of the run.
    input: usize,
    output: usize,
    dtype: DType,
    /// [`VARIABLE`] stands for the rows of the request.
    initial: Vec<i64>,
}

impl State {
    /// Ties outputs of `run` to its inputs.
    ///
    /// # Errors
    /// When a name is unknown or tied twice, both sides differ in dtype or
    /// rank, or the shape that a sequence begins with is not known.
    pub(crate) fn new(run: &Signature, ties: &[StateTie]) -> Result<Self> {
        let mut state = Self(Vec::new());
        for tie in ties {
            let tie = Tie::new(run, tie)?;
            if state.0.iter().any(|other| other.input == tie.input || other.output == tie.output) {
                let (input, output) = (&run.inputs[tie.input], &run.outputs[tie.output]);
                return Err(Error::invalid(format!(
                    "state: \"{}\" or \"{}\" is tied twice",
                    input.name, output.name
                )));
            }
            state.0.push(tie);
        }
        Ok(state)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What clients send and get.
    pub(crate) fn public(&self, run: &Signature) -> Signature {
        let inputs = run.inputs.iter().enumerate().filter(|(at, _)| !self.has_input(*at));
        let outputs = run.outputs.iter().enumerate().filter(|(at, _)| !self.has_output(*at));
        Signature {
            inputs: inputs.map(|(_, spec)| spec.clone()).collect(),
            outputs: outputs.map(|(_, spec)| spec.clone()).collect(),
        }
    }

    pub(crate) fn has_input(&self, index: usize) -> bool {
        self.0.iter().any(|tie| tie.input == index)
    }

    pub(crate) fn has_output(&self, index: usize) -> bool {
        self.0.iter().any(|tie| tie.output == index)
    }

    /// The state that a sequence begins with, each with its input's position.
    pub(crate) fn initial(&self, rows: usize) -> impl Iterator<Item = (usize, Result<Tensor>)> {
        self.0.iter().map(move |tie| {
            let dim = |&dim: &i64| if dim == VARIABLE { rows } else { dim as usize };
            let shape: Vec<usize> = tie.initial.iter().map(dim).collect();
            (tie.input, Tensor::zeros(tie.dtype, &shape))
        })
    }

    /// Puts kept state among the inputs of a run.
    pub(crate) fn put(&self, kept: &[Tensor], inputs: &mut [Tensor]) {
        for (tie, tensor) in self.0.iter().zip(kept) {
            if let Some(input) = inputs.get_mut(tie.input) {
                *input = tensor.clone();
            }
        }
    }

    /// What to keep of the outputs of a run: copies, since outputs may be views
    /// of a merged run.
    pub(crate) fn take(&self, outputs: &[Tensor]) -> Vec<Tensor> {
        self.0.iter().filter_map(|tie| outputs.get(tie.output)).map(own).collect()
    }
}

impl Tie {
    fn new(run: &Signature, tie: &StateTie) -> Result<Self> {
        let input = position(&run.inputs, &tie.input, "input")?;
        let output = position(&run.outputs, &tie.output, "output")?;
        let (takes, gives) = (&run.inputs[input], &run.outputs[output]);
        if takes.dtype != gives.dtype || takes.shape.len() != gives.shape.len() {
            return Err(Error::invalid(format!(
                "state: the output {gives} cannot become the input {takes}"
            )));
        }
        let initial = match &tie.initial_shape {
            Some(shape) => {
                takes.check_shape(shape).map_err(|error| error.context("initial_shape"))?;
                shape.iter().map(|&dim| dim as i64).collect()
            }
            None => declared(takes)?,
        };
        Ok(Self { input, output, dtype: takes.dtype, initial })
    }
}

fn declared(spec: &TensorSpec) -> Result<Vec<i64>> {
    match spec.shape.iter().skip(1).any(|&dim| dim == VARIABLE) {
        false => Ok(spec.shape.clone()),
        true => Err(Error::invalid(format!(
            "state: the input {spec} leaves its shape open; give initial_shape"
        ))),
    }
}

fn position(specs: &[TensorSpec], name: &str, what: &str) -> Result<usize> {
    specs.iter().position(|spec| spec.name == name).ok_or_else(|| {
        let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        Error::invalid(format!("state names no {what} of the model: \"{name}\"; it has {names:?}"))
    })
}

/// A tensor with memory of its own.
pub(crate) fn own(tensor: &Tensor) -> Tensor {
    let Some(bytes) = tensor.bytes() else { return tensor.clone() };
    let mut storage = Storage::zeroed(bytes.len());
    if let Some(target) = storage.as_mut_bytes() {
        target.copy_from_slice(bytes);
    }
    Tensor::from_storage(tensor.dtype(), tensor.shape(), storage).unwrap_or_else(|_| tensor.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Signature {
        let spec = |name: &str, shape: &[i64]| TensorSpec::new(name, DType::F32, shape);
        Signature {
            inputs: vec![spec("x", &[-1, 2]), spec("h", &[-1, 4]), spec("cache", &[-1, -1])],
            outputs: vec![spec("y", &[-1, 2]), spec("h2", &[-1, 4]), spec("flat", &[-1])],
        }
    }

    fn tie(input: &str, output: &str) -> StateTie {
        let (input, output) = (input.to_string(), output.to_string());
        StateTie { input, output, initial_shape: None }
    }

    #[test]
    fn clients_see_no_state_and_runs_get_it() {
        let state = State::new(&run(), &[tie("h", "h2")]).unwrap();
        let public = state.public(&run());
        let names = |specs: &[TensorSpec]| -> Vec<String> {
            specs.iter().map(|spec| spec.name.clone()).collect()
        };
        assert_eq!(names(&public.inputs), ["x", "cache"]);
        assert_eq!(names(&public.outputs), ["y", "flat"]);
        let begin: Vec<_> = state.initial(3).collect();
        assert_eq!(begin[0].0, 1);
        assert_eq!(begin[0].1.as_ref().unwrap().shape(), [3, 4]);
    }

    #[test]
    fn ties_that_do_not_fit_are_refused() {
        let cases = [
            (vec![tie("q", "h2")], "names no input of the model: \"q\""),
            (vec![tie("h", "q")], "names no output of the model: \"q\""),
            (vec![tie("h", "flat")], "cannot become the input h FP32[-1, 4]"),
            (vec![tie("cache", "h2")], "give initial_shape"),
            (vec![tie("h", "h2"), tie("h", "y")], "tied twice"),
        ];
        for (ties, want) in cases {
            let error = State::new(&run(), &ties).err().unwrap();
            assert!(error.message().contains(want), "{error}");
        }
    }
}
