//! Tree ensembles, against the CPU device and against walks in float64.

use super::check::{Graph, Random, close};
use super::poison;
use crate::params::Params;
use crate::shaders::{File, Kernel};
use mortise_types::{Attribute, DType, Tensor, ValueId};

/// Sums of a few hundred leaves in another order.
const F32: f32 = 2e-5;

/// Transforms whose formula loses digits by itself.
const COARSE: f32 = 2e-3;

/// Trees as ONNX lists them.
#[derive(Default)]
struct Lists {
    trees: Vec<i64>,
    ids: Vec<i64>,
    features: Vec<i64>,
    modes: Vec<&'static str>,
    values: Vec<f32>,
    yes: Vec<i64>,
    no: Vec<i64>,
    missing: Vec<i64>,
    /// Tree, node, target and weight.
    leaves: Vec<(i64, i64, i64, f32)>,
}

/// What random trees are like.
#[derive(Clone, Copy)]
struct Shape {
    trees: usize,
    depth: usize,
    columns: usize,
    targets: usize,
    modes: &'static [&'static str],
    /// Weights of one leaf: of several targets, or of one.
    weights: usize,
    /// Leaves speak of this target at least.
    first_target: usize,
    negative: bool,
}

const SHAPE: Shape = Shape {
    trees: 33,
    depth: 4,
    columns: 7,
    targets: 1,
    modes: &["BRANCH_LEQ"],
    weights: 1,
    first_target: 0,
    negative: true,
};

const MODES: &[&str] =
    &["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"];

/// A value on a grid, so that rows meet thresholds.
fn grid(random: &mut Random) -> f32 {
    match random.usize(40) {
        0 => -0.0,
        1 => f32::INFINITY,
        2 => f32::NEG_INFINITY,
        // Too small for devices that know no such numbers.
        3 => 1e-41,
        at => (at as f32 - 20.0) * 0.25,
    }
}

impl Lists {
    fn random(random: &mut Random, shape: Shape) -> Self {
        let mut lists = Self::default();
        for tree in 0..shape.trees {
            let first = lists.ids.len();
            lists.grow(random, shape, tree as i64, shape.depth);
            assert!(lists.ids[first] == 0);
        }
        lists
    }

    /// Adds a node and all below it.
    fn grow(&mut self, random: &mut Random, shape: Shape, tree: i64, depth: usize) -> i64 {
        let at = self.trees.len();
        let id = self.trees.iter().filter(|other| **other == tree).count() as i64;
        let is_leaf = depth == 0 || (depth < shape.depth && random.usize(9) == 0);
        self.trees.push(tree);
        self.ids.push(id);
        self.features.push(random.usize(shape.columns) as i64);
        let mode = shape.modes[random.usize(shape.modes.len())];
        self.modes.push(if is_leaf { "LEAF" } else { mode });
        self.values.push(if random.usize(60) == 0 { f32::NAN } else { grid(random) });
        self.missing.push(random.usize(2) as i64);
        self.yes.push(0);
        self.no.push(0);
        if is_leaf {
            self.add_leaves(random, shape, (tree, id));
        } else {
            self.yes[at] = self.grow(random, shape, tree, depth - 1);
            self.no[at] = self.grow(random, shape, tree, depth - 1);
        }
        id
    }

    /// With weights whose sums have no rounding, in whatever order, so that no
    /// label hangs on a last bit.
    fn exact(mut self) -> Self {
        self.leaves.iter_mut().for_each(|leaf| leaf.3 = on_grid(leaf.3));
        self
    }

    fn add_leaves(&mut self, random: &mut Random, shape: Shape, (tree, id): (i64, i64)) {
        let spread = shape.targets - shape.first_target;
        for _ in 0..random.usize(shape.weights + 1).max(shape.weights.min(1)) {
            let target = shape.first_target + random.usize(spread);
            let weight = random.usize(2000) as f32 / 1000.0;
            let weight = if shape.negative { weight - 1.0 } else { weight + 0.001 };
            self.leaves.push((tree, id, target as i64, weight));
        }
    }

    fn attributes(&self, kind: &str) -> Vec<(String, Attribute)> {
        let ints = |values: &[i64]| Attribute::Ints(values.to_vec());
        let leaf = |pick: fn(&(i64, i64, i64, f32)) -> i64| {
            Attribute::Ints(self.leaves.iter().map(pick).collect())
        };
        let modes = self.modes.iter().map(|mode| mode.as_bytes().to_vec()).collect();
        let weights = self.leaves.iter().map(|leaf| leaf.3).collect();
        vec![
            ("nodes_treeids".into(), ints(&self.trees)),
            ("nodes_nodeids".into(), ints(&self.ids)),
            ("nodes_featureids".into(), ints(&self.features)),
            ("nodes_modes".into(), Attribute::Strings(modes)),
            ("nodes_values".into(), Attribute::Floats(self.values.clone())),
            ("nodes_truenodeids".into(), ints(&self.yes)),
            ("nodes_falsenodeids".into(), ints(&self.no)),
            ("nodes_missing_value_tracks_true".into(), ints(&self.missing)),
            (format!("{kind}_treeids"), leaf(|leaf| leaf.0)),
            (format!("{kind}_nodeids"), leaf(|leaf| leaf.1)),
            (format!("{kind}_ids"), leaf(|leaf| leaf.2)),
            (format!("{kind}_weights"), Attribute::Floats(weights)),
        ]
    }

    /// The node with this id in the tree that starts at `root`.
    fn step(&self, at: usize, row: &[f32]) -> Option<i64> {
        let (x, t) = (row[self.features[at] as usize], self.values[at]);
        let holds = match self.modes[at] {
            "BRANCH_LEQ" => x <= t,
            "BRANCH_LT" => x < t,
            "BRANCH_GTE" => x >= t,
            "BRANCH_GT" => x > t,
            "BRANCH_EQ" => x == t,
            "BRANCH_NEQ" => x != t,
            _ => return None,
        };
        let holds = holds || (x.is_nan() && self.missing[at] == 1);
        Some(if holds { self.yes[at] } else { self.no[at] })
    }

    /// Weights that one row gathers, as pairs of target and weight, by tree.
    fn gathered(&self, row: &[f32]) -> Vec<Vec<(usize, f64)>> {
        let roots = (0..self.ids.len()).filter(|at| self.ids[*at] == 0);
        let leaf = |root: usize| {
            let mut at = root;
            while let Some(id) = self.step(at, row) {
                at = root + id as usize;
            }
            let here = (self.trees[at], self.ids[at]);
            let own = self.leaves.iter().filter(|leaf| (leaf.0, leaf.1) == here);
            own.map(|leaf| (leaf.2 as usize, f64::from(leaf.3))).collect()
        };
        roots.map(leaf).collect()
    }
}

fn rows(random: &mut Random, rows: usize, columns: usize) -> Tensor {
    let value = |random: &mut Random| match random.usize(30) {
        0 => f32::NAN,
        _ => grid(random),
    };
    let values = (0..rows * columns).map(|_| value(random)).collect::<Vec<f32>>();
    Tensor::from_vec(&[rows, columns], values).unwrap()
}

fn text(value: &str) -> Attribute {
    Attribute::String(value.as_bytes().to_vec())
}

fn node(
    graph: &mut Graph,
    op: &str,
    x: ValueId,
    attributes: &[(String, Attribute)],
    count: usize,
) -> Vec<ValueId> {
    let borrowed: Vec<_> = attributes.iter().map(|(n, a)| (n.as_str(), a.clone())).collect();
    let outputs = graph.nodes("ai.onnx.ml", op, &[x], &borrowed, count);
    graph.def.body.nodes.last_mut().unwrap().opset = if op == "TreeEnsemble" { 5 } else { 3 };
    outputs
}

fn regressor(lists: &Lists, shape: Shape, more: &[(&str, Attribute)]) -> Graph {
    let mut attributes = lists.attributes("target");
    attributes.push(("n_targets".into(), Attribute::Int(shape.targets as i64)));
    attributes.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    let mut graph = Graph::default();
    let x = graph.input(DType::F32, &[-1, shape.columns as i64]);
    let y = node(&mut graph, "TreeEnsembleRegressor", x, &attributes, 1)[0];
    graph.output(y);
    graph
}

#[test]
fn regressors_agree_and_match_float64() {
    let mut random = Random::new();
    for count in [1, 7, 33, 129] {
        for (targets, weights) in [(1, 1), (3, 1), (5, 4)] {
            for aggregate in ["SUM", "AVERAGE", "MIN", "MAX"] {
                let shape = Shape { targets, weights, modes: MODES, ..SHAPE };
                let lists = Lists::random(&mut random, shape);
                let base = random.floats(&[targets]).as_slice::<f32>().unwrap().to_vec();
                let more = [
                    ("aggregate_function", text(aggregate)),
                    ("base_values", Attribute::Floats(base.clone())),
                ];
                let graph = regressor(&lists, shape, &more);
                let x = rows(&mut random, count, shape.columns);
                let label = format!("{aggregate} {count} {targets} {weights}");
                graph.agrees_on_device(&label, std::slice::from_ref(&x), F32);
                let want = reference(&lists, shape, aggregate, &base, &x);
                let got = graph.run_on(&*super::device(), std::slice::from_ref(&x)).unwrap();
                close(&label, &got[0], &want, F32);
            }
        }
    }
}

fn reference(lists: &Lists, shape: Shape, aggregate: &str, base: &[f32], x: &Tensor) -> Tensor {
    let x = x.as_slice::<f32>().unwrap();
    let mut answers = Vec::new();
    for row in x.chunks(shape.columns) {
        let gathered = lists.gathered(row);
        for (target, base) in base.iter().enumerate() {
            let own = gathered.iter().flatten().filter(|(other, _)| *other == target);
            let own: Vec<f64> = own.map(|(_, weight)| *weight).collect();
            let total = match aggregate {
                "SUM" => own.iter().sum(),
                "AVERAGE" => own.iter().sum::<f64>() / shape.trees as f64,
                "MIN" => own.iter().copied().reduce(f64::min).unwrap_or(0.0),
                _ => own.iter().copied().reduce(f64::max).unwrap_or(0.0),
            };
            answers.push((total + f64::from(*base)) as f32);
        }
    }
    Tensor::from_vec(&[answers.len() / shape.targets, shape.targets], answers).unwrap()
}

#[test]
fn transforms_of_regressors_agree() {
    let mut random = Random::new();
    for targets in [1, 4] {
        for transform in ["LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT"] {
            let shape = Shape { targets, trees: 3, ..SHAPE };
            let lists = Lists::random(&mut random, shape);
            let more = [("post_transform", text(transform))];
            let graph = regressor(&lists, shape, &more);
            let x = rows(&mut random, 33, shape.columns);
            graph.agrees_on_device(&format!("{transform} {targets}"), &[x], COARSE);
        }
    }
}

/// Every way in which two classes, one or many are decided.
#[test]
fn classifiers_agree() {
    let mut random = Random::new();
    for transform in ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT"] {
        for (targets, first_target, weights) in [(1, 0, 1), (2, 0, 2), (2, 1, 1), (5, 0, 3)] {
            for bases in [0, 1, targets] {
                for negative in [false, true] {
                    let shape = Shape { targets, first_target, weights, negative, ..SHAPE };
                    classify(&mut random, shape, transform, bases);
                }
            }
        }
    }
    // One of two classes, the first.
    for bases in [0, 1, 2] {
        let shape = Shape { targets: 2, ..SHAPE };
        let mut lists = Lists::random(&mut random, shape).exact();
        lists.leaves.iter_mut().for_each(|leaf| leaf.2 = 0);
        agrees(&mut random, &lists, shape, "LOGISTIC", bases);
    }
}

fn classify(random: &mut Random, shape: Shape, transform: &str, bases: usize) {
    // Few trees with few leaves, so that scores lie around the limits.
    let lists = Lists::random(random, Shape { trees: 5, depth: 2, ..shape }).exact();
    agrees(random, &lists, shape, transform, bases);
}

fn agrees(random: &mut Random, lists: &Lists, shape: Shape, transform: &str, bases: usize) {
    let graph = classifier(random, lists, shape, transform, bases);
    let x = rows(random, 65, shape.columns);
    let label = format!("{transform} {} {} {bases}", shape.targets, shape.first_target);
    graph.agrees_on_device(&label, &[x], COARSE);
}

/// Sums of these have no rounding.
fn on_grid(value: f32) -> f32 {
    (value * 64.0).round() / 64.0
}

fn classifier(
    random: &mut Random,
    lists: &Lists,
    shape: Shape,
    transform: &str,
    bases: usize,
) -> Graph {
    let mut attributes = lists.attributes("class");
    let labels = (0..shape.targets as i64).map(|at| 100 - 7 * at).collect();
    attributes.push(("classlabels_int64s".into(), Attribute::Ints(labels)));
    attributes.push(("post_transform".into(), text(transform)));
    if bases > 0 {
        let base = random.floats(&[bases]);
        let base = base.as_slice::<f32>().unwrap().iter().map(|value| on_grid(*value)).collect();
        attributes.push(("base_values".into(), Attribute::Floats(base)));
    }
    let mut graph = Graph::default();
    let x = graph.input(DType::F32, &[-1, shape.columns as i64]);
    let outputs = node(&mut graph, "TreeEnsembleClassifier", x, &attributes, 2);
    outputs.into_iter().for_each(|output| graph.output(output));
    graph
}

#[test]
fn integer_features_agree() {
    let mut random = Random::new();
    for dtype in [DType::I64, DType::I32] {
        let lists = Lists::random(&mut random, SHAPE);
        let mut graph = regressor(&lists, SHAPE, &[]);
        graph.def.inputs[0].dtype = dtype;
        let x = random.indices(&[33, 7], 9);
        let x = match dtype {
            DType::I64 => x,
            _ => {
                let values = x.as_slice::<i64>().unwrap().iter().map(|v| *v as i32 - 4);
                Tensor::from_vec(&[33, 7], values.collect()).unwrap()
            }
        };
        graph.agrees_on_device(&format!("{dtype}"), &[x], F32);
    }
}

/// The form of opset 5, with leaves apart.
#[test]
fn unified_ensembles_agree() {
    let mut random = Random::new();
    for (transform, aggregate) in [(0, 1), (2, 0), (1, 3), (0, 2)] {
        // Two branches a tree: the root and its true child.
        let trees = 9;
        let value = |values: Vec<f32>| {
            Attribute::Tensor(Tensor::from_vec(&[values.len()], values).unwrap())
        };
        let pick = |random: &mut Random, most: usize, count: usize| -> Vec<i64> {
            (0..count).map(|_| random.usize(most) as i64).collect()
        };
        let branches = 2 * trees;
        let modes = pick(&mut random, 6, branches).iter().map(|mode| *mode as u8).collect();
        let roots: Vec<i64> = (0..trees as i64).map(|tree| 2 * tree).collect();
        let by_branch = |even: fn(i64) -> i64, odd: fn(i64) -> i64| {
            let child = |at: i64| if at % 2 == 0 { even(at) } else { odd(at) };
            Attribute::Ints((0..branches as i64).map(child).collect())
        };
        let weights = random.floats(&[3 * trees]).as_slice::<f32>().unwrap().to_vec();
        let attributes = [
            ("n_targets", Attribute::Int(3)),
            ("aggregate_function", Attribute::Int(aggregate)),
            ("post_transform", Attribute::Int(transform)),
            ("tree_roots", Attribute::Ints(roots)),
            ("nodes_featureids", Attribute::Ints(pick(&mut random, 7, branches))),
            ("nodes_modes", Attribute::Tensor(Tensor::from_vec(&[branches], modes).unwrap())),
            ("nodes_splits", value((0..branches).map(|_| grid(&mut random)).collect())),
            ("nodes_truenodeids", by_branch(|at| at + 1, |at| at / 2 * 3)),
            ("nodes_trueleafs", by_branch(|_| 0, |_| 1)),
            ("nodes_falsenodeids", by_branch(|at| at / 2 * 3 + 1, |at| at / 2 * 3 + 2)),
            ("nodes_falseleafs", by_branch(|_| 1, |_| 1)),
            ("leaf_targetids", Attribute::Ints(pick(&mut random, 3, 3 * trees))),
            ("leaf_weights", value(weights)),
        ];
        let attributes = attributes.map(|(name, value)| (name.to_owned(), value));
        let mut graph = Graph::default();
        let x = graph.input(DType::F32, &[-1, 7]);
        let y = node(&mut graph, "TreeEnsemble", x, &attributes, 1)[0];
        graph.output(y);
        let input = rows(&mut random, 33, 7);
        graph.agrees_on_device(&format!("{transform} {aggregate}"), &[input], COARSE);
    }
}

#[test]
fn five_hundred_trees_agree() {
    let mut random = Random::new();
    let shape = Shape { trees: 500, depth: 6, columns: 28, ..SHAPE };
    let lists = Lists::random(&mut random, shape).exact();
    let graph = regressor(&lists, shape, &[]);
    let pair = Shape { targets: 2, first_target: 1, ..shape };
    let lists = Lists::random(&mut random, pair).exact();
    let classes = classifier(&mut random, &lists, pair, "LOGISTIC", 0);
    for count in [1, 1024] {
        let x = rows(&mut random, count, shape.columns);
        graph.agrees_on_device(&format!("{count}"), std::slice::from_ref(&x), F32);
        classes.agrees_on_device(&format!("classes of {count}"), &[x], F32);
    }
}

/// Nodes that go round, and indices beyond everything there is: the walk ends,
/// and what is not a leaf counts for nothing.
#[test]
fn hostile_nodes_neither_hang_nor_read_elsewhere() {
    let branch = |feature: u32, yes: u32, no: u32| [0, feature, yes, no];
    let leaf = |weight: f32, target: u32, count: u32, first: u32| {
        [weight.to_bits(), target | 1 << 29, count, first]
    };
    let nodes = [
        // Round and round.
        branch(0, 0, 0),
        // Children and features far beyond the end: the last node, a leaf.
        branch(1 << 28, u32::MAX, 1 << 30),
        // More weights than there are, from beyond their end on.
        leaf(0.0, 0, 1 << 30, 1 << 30),
        leaf(2.5, 99, 1, 0),
    ];
    let words: Vec<i32> = nodes.iter().flatten().map(|word| *word as i32).collect();
    let list = |values: Vec<i32>| Tensor::from_vec(&[values.len()], values).unwrap();
    let roots = list(vec![0, 1, 2, i32::MAX]);
    let weights = list(vec![0, 1f32.to_bits() as i32, 77, 4f32.to_bits() as i32]);
    let x = Tensor::from_vec(&[3, 2], vec![1.0f32; 6]).unwrap();
    let constants = [("ONE_TARGET", 0)];
    let params = Params::new().sizes(&[3, 2, 4, 1, 2, 1 << 10, 3, 1]);
    let inputs = [list(words), roots, weights, x];
    let kernel = Kernel::new(File::Trees, 5, &constants);
    let got = poison::run_kernel(kernel, &inputs, (DType::F32, &[2, 3]), params, 1);
    // Of target 1, which all wrong targets become: 2.5 of the second tree, 4 of
    // the third, whose list starts at the last weight, and 2.5 of the fourth.
    let totals = got.as_slice::<f32>().unwrap();
    assert!(totals[..3].iter().all(|total| total.is_nan()), "nothing speaks of target 0");
    assert_eq!(totals[3..], [9.0; 3]);
}

/// What has no kernel runs on the CPU as before.
#[test]
fn labels_of_text_are_left_to_the_cpu() {
    let mut random = Random::new();
    let shape = Shape { targets: 2, ..SHAPE };
    let lists = Lists::random(&mut random, shape).exact();
    let mut graph = classifier(&mut random, &lists, shape, "NONE", 0);
    let attributes = &mut graph.def.body.nodes[0].attributes;
    attributes.retain(|(name, _)| &**name != "classlabels_int64s");
    let labels = vec![b"no".to_vec(), b"yes".to_vec()];
    attributes.push(("classlabels_strings".into(), Attribute::Strings(labels)));
    let x = rows(&mut random, 3, shape.columns);
    assert_eq!(graph.left_to_cpu(std::slice::from_ref(&x)), ["TreeEnsembleClassifier"]);
    graph.run_on(&*super::device(), &[x]).unwrap();
}
