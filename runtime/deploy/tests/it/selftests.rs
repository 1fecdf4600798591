//! The self-test format against a model of two lines, as a table: the file, and
//! what must be said about it.

use mortise_deploy::selftest::{SelfTest, Subject};
use mortise_types::{
    Bytes, DType, Error, Result, RunControl, Signature, Strings, Tensor, TensorSpec,
};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// `score` is the softmax-like pair of the sum of two columns, `sum` the sum,
/// `word` says whether it is positive.
struct Model {
    signature: Signature,
    slope: f32,
}

impl Model {
    fn new(slope: f32) -> Self {
        let inputs = vec![TensorSpec::new("x", DType::F32, &[-1, 2])];
        let outputs = vec![
            TensorSpec::new("score", DType::F32, &[-1, 2]),
            TensorSpec::new("sum", DType::F32, &[-1]),
            TensorSpec::new("word", DType::String, &[-1]),
        ];
        Self { signature: Signature { inputs, outputs }, slope }
    }
}

impl Subject for Model {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn predict(
        &self,
        inputs: Vec<(String, Tensor)>,
        control: &RunControl,
    ) -> Result<Vec<(String, Tensor)>> {
        control.check()?;
        let [(_, x)] = inputs.as_slice() else { return Err(Error::invalid("one input")) };
        let sums: Vec<f32> =
            x.as_slice::<f32>()?.chunks(2).map(|row| self.slope * (row[0] + row[1])).collect();
        let rows = sums.len();
        let logistic = |sum: f32| 1.0 / (1.0 + (-sum).exp());
        let scores = sums.iter().flat_map(|&sum| [1.0 - logistic(sum), logistic(sum)]).collect();
        let words: Strings =
            sums.iter().map(|&sum| if sum > 0.0 { "plus" } else { "minus" }).collect();
        Ok(vec![
            ("score".to_string(), Tensor::from_vec::<f32>(&[rows, 2], scores)?),
            ("sum".to_string(), Tensor::from_vec(&[rows], sums)?),
            ("word".to_string(), Tensor::from_strings(&[rows], words)?),
        ])
    }
}

const EXAMPLE: &str = r#"
[[example]]
name = "two rows"
inputs = { x = [[1, 2], [-1.5, 0]] }
outputs = { sum = [3, -1.5], word = ["plus", "minus"] }
"#;

const HOLDOUT: &str = r#"
[holdout]
label = "truth"
features = { x = ["a", "b"] }
text = """
a, b, truth, name, real
1, 1, 1, plus, 2.0
2, -1, 1, plus, 1.5
-1, -1, 0, minus, -2.0
-3, 2, 0, minus, -1.0
0.5, -1, 1, plus, -0.5
"""
"#;

fn data() -> BTreeMap<String, Bytes> {
    let examples = br#"[{"inputs": {"x": [[1, 1]]}, "outputs": {"sum": [2]}},
                       {"name": "far", "inputs": {"x": [["nan", 1]]}, "outputs": {"sum": ["nan"]}}]"#;
    BTreeMap::from([("examples.json".to_string(), Bytes::from_static(examples))])
}

fn check(text: &str, live: Option<&dyn Subject>) -> Result<mortise_deploy::selftest::Report> {
    let tests = SelfTest::parse(text.as_bytes(), &data())?;
    tests.run(&Model::new(1.0), live, Instant::now() + Duration::from_secs(60))
}

/// `Err` holds words of the message.
type Case = (&'static str, String, std::result::Result<(), &'static str>);

fn run(cases: Vec<Case>) {
    for (name, text, expected) in cases {
        match (check(&text, None), expected) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(words)) => assert!(error.message().contains(words), "{name}: {error}"),
            (got, expected) => panic!("{name}: got {got:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn examples() {
    let with = |from: &str, to: &str| EXAMPLE.replace(from, to);
    let file = |extra: &str| format!("[[example]]\nfile = \"examples.json\"\n{extra}");
    run(vec![
        ("empty", String::new(), Ok(())),
        ("right", EXAMPLE.to_string(), Ok(())),
        ("from a file", file(""), Ok(())),
        ("wrong number", with("-1.5], word", "-1.6], word"), Err("at [1] is -1.5, expected -1.6")),
        ("says which", with("[3, ", "[4, "), Err("example \"two rows\": output \"sum\" at [0]")),
        ("says how far", with("[3, ", "[4, "), Err("(tolerance 0.00001)")),
        ("within tolerance", format!("{}tolerance = 0.5", with("[3, ", "[4, ")), Ok(())),
        ("wrong word", with("\"minus\"", "\"plus\""), Err("is \"minus\", expected \"plus\"")),
        ("wrong count", with("[3, -1.5]", "[3]"), Err("shape [2], expected [1]")),
        ("unknown input", with("x =", "z ="), Err("no \"z\"; it has [\"x\"]")),
        ("unknown output", with("sum =", "summ ="), Err("no \"summ\"")),
        ("ragged", with("[-1.5, 0]", "[-1.5]"), Err("rows differ in length")),
        ("too deep", with("[1, 2]", "[[1], 2]"), Err("nested deeper")),
        ("wrong width", with("[[1, 2], [-1.5, 0]]", "[[1]]"), Err("expects shape [-1, 2]")),
        ("a word for a number", with("[1, 2]", "[\"a\", 2]"), Err("\"a\" is not a number")),
        ("unknown key", with("name =", "nmae ="), Err("nmae")),
        ("unknown table", "[[exmaple]]".to_string(), Err("exmaple")),
        ("no such file", "[[example]]\nfile = \"a.json\"".to_string(), Err("\"a.json\"")),
        ("file and inputs", file("inputs = { x = 1 }"), Err("not both")),
    ]);
}

#[test]
fn invariances_and_ranges() {
    let invariance = |text: &str| format!("{EXAMPLE}\n[[invariance]]\nepsilon = 1e-3\n{text}");
    let range = |text: &str| format!("{EXAMPLE}\n[[range]]\n{text}");
    run(vec![
        ("small", invariance("max_change = 0.01\noutputs = [\"sum\"]"), Ok(())),
        ("all outputs", invariance("max_change = 0.01"), Ok(())),
        ("too much", invariance("max_change = 1e-4"), Err("moving input \"x\" by 0.001")),
        ("relative", invariance("max_change = 0.01\nrelative = true"), Ok(())),
        ("no such input", invariance("max_change = 1\nperturb = [\"q\"]"), Err("no \"q\"")),
        ("no such example", invariance("max_change = 1\nexamples = [\"q\"]"), Err("\"q\"")),
        ("no example", "[[invariance]]\nepsilon = 1\nmax_change = 1".to_string(), Err("needs an")),
        ("in range", range("output = \"score\"\nmin = 0\nmax = 1\nsums_to_one = true"), Ok(())),
        ("below", range("output = \"sum\"\nmin = 0"), Err("at [1] it is -1.5, below min = 0")),
        ("above", range("output = \"sum\"\nmax = 2"), Err("at [0] it is 3, above max = 2")),
        ("sum", range("output = \"sum\"\nsums_to_one = true"), Err("row 0 sums to 1.5")),
        ("words", range("output = \"word\""), Err("needs numbers")),
        ("no such output", range("output = \"q\""), Err("no \"q\"")),
        (
            "not finite",
            "[[example]]\nfile = \"examples.json\"\n[[range]]\noutput = \"sum\"".to_string(),
            Err("on far: at [0] it is NaN, which is not finite"),
        ),
    ]);
}

#[test]
fn holdouts() {
    let with = |limits: &str, extra: &str| {
        HOLDOUT.replace("[holdout]", &format!("[holdout]\nlimits = [{limits}]\n{extra}"))
    };
    let words = |limits: &str| with(limits, "output = \"word\"").replace("\"truth\"", "\"name\"");
    let real = |limits: &str| with(limits, "output = \"sum\"").replace("\"truth\"", "\"real\"");
    let score = "output = \"score\"";
    run(vec![
        ("classes by score", with("\"accuracy >= 0.8\"", score), Ok(())),
        ("in batches", with("\"accuracy >= 0.8\"", "output = \"score\"\nbatch_rows = 2"), Ok(())),
        ("too high", with("\"accuracy >= 0.9\"", score), Err("is 0.8, and must be at least 0.9")),
        ("words", words("\"accuracy >= 0.8\", \"accuracy <= 0.8\""), Ok(())),
        ("auc", with("\"auc >= 1\"", score), Ok(())),
        ("mae", real("\"mae <= 0.1\", \"mae >= 0.099\""), Ok(())),
        ("rmse", real("\"rmse <= 0.2\""), Err("rmse on the hold-out is 0.22")),
        ("nothing is live", with("\"accuracy no worse than live\"", score), Ok(())),
        ("no output named", with("\"accuracy >= 0.8\"", ""), Err("name the one to score")),
        ("no limit", with("\"accuracy is good\"", score), Err("is no limit")),
        (
            "no column",
            with("", "output = \"sum\"").replace("\"b\"]", "\"c\"]"),
            Err("no column \"c\""),
        ),
        ("no label", with("", "output = \"sum\"").replace("truth\"", "t\""), Err("column \"t\"")),
        ("not numbers", with("\"mae <= 1\"", "output = \"word\""), Err("needs one number a row")),
    ]);
}

#[test]
fn the_live_model_is_asked_the_same() {
    let text = HOLDOUT.replace(
        "[holdout]",
        "[holdout]\noutput = \"sum\"\nlimits = [\"mae no worse than live by 0.01\"]",
    );
    let text = text.replace("\"truth\"", "\"real\"");
    let report = check(&text, Some(&Model::new(1.0))).unwrap();
    assert_eq!(report.metrics, report.live_metrics);
    assert_eq!(report.holdout_rows, 5);
    check(&text, Some(&Model::new(0.0))).unwrap();
    let tests = SelfTest::parse(text.as_bytes(), &data()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let error = tests.run(&Model::new(0.0), Some(&Model::new(1.0)), deadline).unwrap_err();
    assert!(error.message().contains("no worse than live, which has 0.1"), "{error}");
    let mut other = Model::new(1.0);
    other.signature.inputs[0].name = "z".to_string();
    let report = check(&text, Some(&other)).unwrap();
    assert!(report.notes[0].contains("not compared with what is live"), "{report:?}");
}

#[test]
fn a_deadline_ends_the_tests() {
    let tests = SelfTest::parse(EXAMPLE.as_bytes(), &data()).unwrap();
    let error = tests.run(&Model::new(1.0), None, Instant::now()).unwrap_err();
    assert_eq!(error.kind(), mortise_types::ErrorKind::Deadline);
}
