//! Tree ensembles as plain data, for devices that have kernels of their own.

use super::forest::{Aggregate, Forest, Mode};
use super::{Classifier, Regressor, Trees};
use crate::cpu::ops::ml_scores::{Labels, Transform};
use mortise_types::NodeDef;

/// A tree ensemble whose numbers are floats, as checked as the CPU device's
/// own: no node has two parents, and every index is in range.
#[derive(Clone, Debug, PartialEq)]
pub struct TreeEnsemble {
    /// A node stands behind its parents.
    pub nodes: Vec<TreeNode>,
    /// The first node of every tree.
    pub roots: Vec<u32>,
    /// Target and weight, which leaves name by spans.
    pub weights: Vec<(u32, f32)>,
    pub target_count: usize,
    /// Columns that a row must have at least.
    pub column_count: usize,
    pub aggregate: TreeAggregate,
    pub transform: TreeTransform,
    /// Base values as the file has them; what they mean depends on how many
    /// there are.
    pub base: Vec<f32>,
    /// Of a classifier.
    pub classes: Option<TreeClasses>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TreeNode {
    Branch(TreeBranch),
    /// Its weights, from one index up to another.
    Leaf {
        first: u32,
        end: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TreeBranch {
    pub feature: u32,
    pub test: TreeTest,
    pub threshold: f32,
    /// NaN takes the true branch, whatever the test says.
    pub missing_is_true: bool,
    pub yes: u32,
    pub no: u32,
}

/// How a feature is compared with the threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeTest {
    AtMost,
    Below,
    AtLeast,
    Above,
    Equal,
    Unequal,
}

/// How the leaves of several trees become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeAggregate {
    Sum,
    Average,
    Min,
    Max,
}

/// What becomes of the totals of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeTransform {
    None,
    Logistic,
    Softmax,
    SoftmaxZero,
    Probit,
}

/// What a classifier knows of its classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeClasses {
    pub labels: Vec<i64>,
    /// Two classes, and every leaf speaks of the same one of them.
    pub one_sided: bool,
    /// No weight is negative.
    pub all_positive: bool,
}

impl TreeEnsemble {
    /// The ensemble of a node; `None` when it is none, when the CPU device
    /// would refuse it, or when it needs doubles, sets or labels of text.
    pub fn of(node: &NodeDef) -> Option<Self> {
        match &*node.op {
            "TreeEnsembleClassifier" => Self::of_classifier(&Classifier::of(node).ok()?),
            "TreeEnsembleRegressor" => Self::of_regressor(&Regressor::of(node).ok()?),
            "TreeEnsemble" if node.opset >= 5 => {
                Self::of_regressor(&Regressor::of_unified(node).ok()?)
            }
            _ => None,
        }
    }

    fn of_regressor(regressor: &Regressor) -> Option<Self> {
        let aggregate = match regressor.aggregate {
            Aggregate::Sum => TreeAggregate::Sum,
            Aggregate::Average => TreeAggregate::Average,
            Aggregate::Min => TreeAggregate::Min,
            Aggregate::Max => TreeAggregate::Max,
        };
        Self::new(&regressor.trees, aggregate, regressor.transform, &regressor.base)
    }

    fn of_classifier(classifier: &Classifier) -> Option<Self> {
        let Labels::Ints(labels) = &classifier.labels else { return None };
        let Classifier { trees, transform, base, one_sided, all_positive, .. } = classifier;
        let classes = TreeClasses {
            labels: labels.clone(),
            one_sided: *one_sided,
            all_positive: *all_positive,
        };
        let ensemble = Self::new(trees, TreeAggregate::Sum, *transform, base)?;
        Some(Self { classes: Some(classes), ..ensemble })
    }

    fn new(
        trees: &Trees,
        aggregate: TreeAggregate,
        transform: Transform,
        base: &[f64],
    ) -> Option<Self> {
        let Trees::Single(forest) = trees else { return None };
        let nodes = (0..forest.node_count()).map(|at| node(forest, at)).collect::<Option<_>>()?;
        Some(Self {
            nodes,
            roots: forest.roots().to_vec(),
            weights: forest.weights().to_vec(),
            target_count: forest.target_count(),
            column_count: forest.column_count(),
            aggregate,
            transform: match transform {
                Transform::None => TreeTransform::None,
                Transform::Logistic => TreeTransform::Logistic,
                Transform::Softmax => TreeTransform::Softmax,
                Transform::SoftmaxZero => TreeTransform::SoftmaxZero,
                Transform::Probit => TreeTransform::Probit,
            },
            base: base.iter().map(|value| *value as f32).collect(),
            classes: None,
        })
    }

    /// Branches on the longest way from a root to a leaf.
    pub fn depth(&self) -> usize {
        let mut depths = vec![0usize; self.nodes.len()];
        for (at, node) in self.nodes.iter().enumerate() {
            let TreeNode::Branch(branch) = node else { continue };
            for child in [branch.yes, branch.no] {
                depths[child as usize] = depths[child as usize].max(depths[at] + 1);
            }
        }
        depths.into_iter().max().unwrap_or(0)
    }
}

fn node(forest: &Forest<f32>, at: usize) -> Option<TreeNode> {
    let view = forest.node(at);
    let test = match view.mode {
        Mode::Leaf => {
            let (first, end) = view.span;
            // With one target the first weight is all that counts.
            let end = if forest.target_count() == 1 { end.min(first + 1) } else { end };
            return Some(TreeNode::Leaf { first, end });
        }
        Mode::Leq => TreeTest::AtMost,
        Mode::Lt => TreeTest::Below,
        Mode::Gte => TreeTest::AtLeast,
        Mode::Gt => TreeTest::Above,
        Mode::Eq => TreeTest::Equal,
        Mode::Neq => TreeTest::Unequal,
        Mode::Member => return None,
    };
    Some(TreeNode::Branch(TreeBranch {
        feature: view.feature,
        test,
        threshold: view.value,
        missing_is_true: view.missing_is_true,
        yes: view.yes,
        no: view.no,
    }))
}
