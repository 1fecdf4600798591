//! Tree ensembles: walks of all trees at once, and then the scores of each row.

use super::input;
use super::rows::row_groups;
use crate::lower::{Builder, THREADS};
use crate::operand::{Operand, Place, is_float};
use crate::params::Params;
use crate::shaders::{File, Kernel};
use crate::weights::Format;
use mortise_compute::{TreeAggregate, TreeBranch, TreeEnsemble, TreeNode, TreeTest, TreeTransform};
use mortise_types::{DType, Element, NodeDef, Result, Tensor, ValueId};

/// Walkers that keep a large device busy.
const WALKERS: usize = 1 << 16;

/// Words that the totals of parts may take.
const MAX_TOTALS: usize = 1 << 24;

/// Flags of a node's second word, as `trees.wgsl` has them; the rest of the word
/// is an index.
const IS_EQUAL: u32 = 1 << 31;
const NAN_IS_FIRST: u32 = 1 << 30;
const IS_LEAF: u32 = 1 << 29;

pub(crate) fn knows(op: &str) -> bool {
    matches!(op, "TreeEnsemble" | "TreeEnsembleClassifier" | "TreeEnsembleRegressor")
}

/// The three operators of tree ensembles. Labels of text, thresholds that need
/// doubles and sets of members are left to the CPU.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn ensemble(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let Some(call) = Call::of(builder, node) else { return Ok(false) };
    let totals = call.walk(builder)?;
    let (scores, chosen) = call.finish(builder, totals)?;
    let answers = match call.trees.classes {
        Some(_) => [Some(chosen), Some(scores)],
        None => [Some(scores), None],
    };
    for (output, answer) in node.outputs.iter().zip(answers) {
        if let (Some(output), Some(answer)) = (output, answer) {
            builder.define(*output, answer);
        }
    }
    Ok(true)
}

struct Call {
    trees: TreeEnsemble,
    x: ValueId,
    /// What constants made of the node are known by.
    key: ValueId,
    rows: usize,
    columns: usize,
    /// How many walkers share the trees of a row.
    parts: usize,
}

impl Call {
    fn of(builder: &Builder<'_>, node: &NodeDef) -> Option<Self> {
        let x = input(node, 0).filter(|x| builder.is_held(*x))?;
        let (rows, columns) = match *builder.shape(x)? {
            [columns] => (1, columns),
            [rows, columns] => (rows, columns),
            _ => return None,
        };
        let key = node.outputs.iter().flatten().copied().next()?;
        let trees = TreeEnsemble::of(node)?;
        let answers = rows.checked_mul(trees.target_count)?;
        let most = (MAX_TOTALS / answers).max(1);
        let parts = (WALKERS / rows).clamp(1, trees.roots.len().max(1)).min(most);
        let fits = builder.dtype(x) != Some(DType::Bool)
            && columns >= trees.column_count
            && answers < 1 << 29
            && is_plain(&trees);
        fits.then_some(Self { trees, x, key, rows, columns, parts })
    }

    /// Totals of the leaves that every row comes to, by part and target.
    fn walk(&self, builder: &mut Builder<'_>) -> Result<Operand> {
        let trees = &self.trees;
        let x = builder.dense(self.x)?;
        let last = |count: usize| count.saturating_sub(1);
        let params = Params::new()
            .sizes(&[self.rows, self.columns, trees.roots.len(), self.parts])
            .sizes(&[trees.target_count, trees.depth()])
            .sizes(&[last(trees.nodes.len()), last(trees.weights.len())]);
        let integers = !is_float(x.dtype);
        let constants = [
            ("INTEGERS", u32::from(integers)),
            ("ONE_TARGET", u32::from(trees.target_count == 1)),
            ("AGGREGATE", aggregate(trees.aggregate)),
        ];
        let nodes = self.constant(builder, 0, || {
            trees.nodes.iter().flat_map(|node| node_words(node, &trees.weights))
        })?;
        let roots = self.constant(builder, 1, || trees.roots.iter().map(|root| *root as i32))?;
        let weights = self.constant(builder, 2, || trees.weights.iter().flat_map(weight_words))?;
        let walkers = self.rows * self.parts;
        let totals = builder.allocate(DType::I32, &[self.parts, trees.target_count, self.rows]);
        let bindings = vec![nodes, roots, weights, x.place, totals.place.clone()];
        let groups = [walkers.div_ceil(THREADS), 1, 1];
        builder.launch(Kernel::new(File::Trees, 5, &constants), bindings, params, groups);
        Ok(totals)
    }

    /// Scores, and labels of a classifier.
    fn finish(&self, builder: &mut Builder<'_>, totals: Operand) -> Result<(Operand, Operand)> {
        let trees = &self.trees;
        let lanes = self.parts.div_ceil(2).next_power_of_two().min(THREADS);
        let params =
            Params::new().sizes(&[self.rows, trees.target_count, self.parts, trees.roots.len()]);
        let classes = trees.classes.as_ref();
        let flag = |is: bool| u32::from(is);
        let constants = [
            ("AGGREGATE", aggregate(trees.aggregate)),
            ("CLASSIFIES", flag(classes.is_some())),
            ("TRANSFORM", transform(trees.transform)),
            ("BASES", trees.base.len() as u32),
            ("IS_AVERAGE", flag(trees.aggregate == TreeAggregate::Average)),
            ("ONE_SIDED", flag(classes.is_some_and(|classes| classes.one_sided))),
            ("ALL_POSITIVE", flag(classes.is_some_and(|classes| classes.all_positive))),
            ("LANES", lanes as u32),
        ];
        let base = self.constant(builder, 3, || trees.base.iter().copied())?;
        let labels = classes.map_or(&[][..], |classes| &classes.labels);
        let labels = self.constant(builder, 4, || labels.iter().map(|label| *label as i32))?;
        let scores = builder.allocate(DType::F32, &[self.rows, trees.target_count]);
        let chosen = builder.allocate(DType::I64, &[self.rows]);
        let bindings = vec![totals.place, base, labels, scores.place.clone(), chosen.place.clone()];
        let groups = row_groups(self.rows, lanes);
        builder.launch(Kernel::new(File::TreeScores, 5, &constants), bindings, params, groups);
        Ok((scores, chosen))
    }

    /// A list of words on the device, never an empty one.
    fn constant<T: Element + Default, I: Iterator<Item = T>>(
        &self,
        builder: &mut Builder<'_>,
        at: u32,
        values: impl FnOnce() -> I,
    ) -> Result<Place> {
        let tensor = builder.derived((self.key, at), || {
            let mut values: Vec<T> = values().collect();
            if values.is_empty() {
                values.resize(4, T::default());
            }
            Tensor::from_vec(&[values.len()], values)
        })?;
        Ok(Place::Weight(builder.weight(&tensor, Format::Words)?))
    }
}

/// Whether there are trees, all numbers are finite, so that the order of sums
/// changes nothing but digits, and every index fits its word.
fn is_plain(trees: &TreeEnsemble) -> bool {
    let labels = trees.classes.iter().flat_map(|classes| &classes.labels);
    let finite = trees.weights.iter().map(|weight| &weight.1).chain(&trees.base);
    let most = IS_LEAF as usize;
    !trees.roots.is_empty()
        && finite.into_iter().all(|value| value.is_finite())
        && labels.into_iter().all(|label| i32::try_from(*label).is_ok())
        && trees.nodes.len() < most
        && trees.weights.len() < most
        && trees.column_count <= most
        && trees.target_count <= most
}

fn aggregate(how: TreeAggregate) -> u32 {
    match how {
        TreeAggregate::Sum | TreeAggregate::Average => 0,
        TreeAggregate::Min => 1,
        TreeAggregate::Max => 2,
    }
}

fn transform(how: TreeTransform) -> u32 {
    match how {
        TreeTransform::None => 0,
        TreeTransform::Logistic => 1,
        TreeTransform::Softmax => 2,
        TreeTransform::SoftmaxZero => 3,
        TreeTransform::Probit => 4,
    }
}

fn weight_words(&(target, weight): &(u32, f32)) -> [i32; 2] {
    [target as i32, weight.to_bits() as i32]
}

/// An integer in the order of the floats; both zeros are 0.
fn key(value: f32) -> i32 {
    let magnitude = (value.to_bits() & 0x7fff_ffff) as i32;
    if value.is_sign_negative() { -magnitude } else { magnitude }
}

/// Below every key that a number has.
const NEVER: i32 = i32::MIN;

/// A branch with as few kinds of tests as there can be.
struct Test {
    threshold: i32,
    is_equal: bool,
    /// The first child is the one for what fails the original test.
    is_turned: bool,
}

impl Test {
    fn of(branch: &TreeBranch) -> Self {
        let at_most = |threshold, is_turned| Self { threshold, is_equal: false, is_turned };
        let at = key(branch.threshold);
        let differs = branch.test == TreeTest::Unequal;
        // No number is below, above or the same as NaN.
        if branch.threshold.is_nan() {
            return at_most(NEVER, differs);
        }
        match branch.test {
            TreeTest::AtMost => at_most(at, false),
            TreeTest::Below => at_most(at - 1, false),
            TreeTest::AtLeast => at_most(at - 1, true),
            TreeTest::Above => at_most(at, true),
            TreeTest::Equal | TreeTest::Unequal => {
                Self { threshold: at, is_equal: true, is_turned: differs }
            }
        }
    }
}

fn branch_words(branch: &TreeBranch) -> [i32; 4] {
    let test = Test::of(branch);
    let nan_holds = branch.missing_is_true || branch.test == TreeTest::Unequal;
    let mut word = branch.feature;
    if test.is_equal {
        word |= IS_EQUAL;
    }
    if nan_holds != test.is_turned {
        word |= NAN_IS_FIRST;
    }
    let (yes, no) = (branch.yes as i32, branch.no as i32);
    let [first, second] = if test.is_turned { [no, yes] } else { [yes, no] };
    [test.threshold, word as i32, first, second]
}

/// The words of one node; a leaf with one weight holds it.
fn node_words(node: &TreeNode, weights: &[(u32, f32)]) -> [i32; 4] {
    match node {
        TreeNode::Branch(branch) => branch_words(branch),
        TreeNode::Leaf { first, end } => {
            let count = end.saturating_sub(*first);
            let (target, weight) = match count {
                1 => weights[*first as usize],
                _ => (0, 0.0),
            };
            [weight.to_bits() as i32, (target | IS_LEAF) as i32, count as i32, *first as i32]
        }
    }
}
