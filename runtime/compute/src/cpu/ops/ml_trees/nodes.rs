//! Reads the node lists of a tree ensemble, in the two forms ONNX has.

use super::Trees;
use super::forest::{Aggregate, Forest, Mode};
use crate::cpu::op::Attributes;
use crate::cpu::ops::layout::doubles;
use mortise_types::{Attribute, Error, Result};
use std::collections::{BTreeSet, HashMap};

/// Nodes as the file lists them, children resolved to positions in `nodes`.
/// Thresholds and weights are doubles, which hold every float exactly.
pub(super) struct RawTrees {
    pub(super) nodes: Vec<RawNode>,
    pub(super) roots: Vec<usize>,
    /// Leaf, target and weight, in the order of the file.
    pub(super) weights: Vec<(usize, usize, f64)>,
    /// The sets of the `Member` nodes, by node.
    pub(super) members: HashMap<usize, Vec<f64>>,
}

#[derive(Clone, Copy)]
pub(super) struct RawNode {
    pub(super) mode: Mode,
    pub(super) feature: u32,
    pub(super) value: f64,
    /// NaN takes the true branch.
    pub(super) missing_is_true: bool,
    pub(super) yes: usize,
    pub(super) no: usize,
}

impl RawNode {
    const LEAF: Self =
        Self { mode: Mode::Leaf, feature: 0, value: 0.0, missing_is_true: false, yes: 0, no: 0 };
}

impl RawTrees {
    pub(super) fn into_trees(self, target_count: usize, aggregate: Aggregate) -> Result<Trees> {
        if self.fits_floats() {
            return Ok(Trees::Single(Forest::new(&self, target_count, aggregate)?));
        }
        Ok(Trees::Double(Forest::new(&self, target_count, aggregate)?))
    }

    /// Whether floats hold all numbers exactly, as they do unless the file
    /// gives them as double tensors.
    fn fits_floats(&self) -> bool {
        let fits = |value: f64| value.is_nan() || f64::from(value as f32) == value;
        self.nodes.iter().all(|node| fits(node.value))
            && self.weights.iter().all(|weight| fits(weight.2))
            && self.members.values().flatten().all(|&value| fits(value))
    }

    pub(super) fn weighted_target_count(&self) -> usize {
        self.weights.iter().map(|weight| weight.1).collect::<BTreeSet<_>>().len()
    }

    pub(super) fn weights_are_positive(&self) -> bool {
        self.weights.iter().all(|weight| weight.2 >= 0.0)
    }
}

/// # Errors
/// When not positive or absurdly large.
pub(super) fn count(value: i64, name: &str) -> Result<usize> {
    usize::try_from(value)
        .ok()
        .filter(|count| (1..=1 << 20).contains(count))
        .ok_or_else(|| Error::invalid(format!("{name} = {value} must be from 1 to 1048576")))
}

/// A list of floats under `name`, or of doubles under `name_as_tensor`.
pub(super) fn numbers(attributes: &Attributes<'_>, name: &str) -> Result<Vec<f64>> {
    if let Some(tensor) = attributes.tensor(&format!("{name}_as_tensor"))? {
        return Ok(doubles(tensor)?.into_owned());
    }
    let list = attributes.floats(name)?.unwrap_or(&[]);
    Ok(list.iter().map(|&value| f64::from(value)).collect())
}

/// The form of opsets 1 and 3: one list per property, nodes named by tree and
/// node id; `kind` is `class` or `target`.
pub(super) fn from_lists(
    attributes: &Attributes<'_>,
    kind: &str,
    target_count: usize,
) -> Result<RawTrees> {
    let lists = NodeLists::read(attributes)?;
    let positions = lists.positions()?;
    let mut roots = Vec::new();
    let mut nodes = Vec::with_capacity(lists.trees.len());
    for position in 0..lists.trees.len() {
        if position == 0 || lists.trees[position - 1] != lists.trees[position] {
            roots.push(position);
        }
        nodes.push(lists.node(position, &positions)?);
    }
    let weights = leaf_weights(attributes, kind, target_count, &positions)?;
    Ok(RawTrees { nodes, roots, weights, members: HashMap::new() })
}

struct NodeLists<'a> {
    trees: &'a [i64],
    ids: &'a [i64],
    features: &'a [i64],
    modes: &'a [Vec<u8>],
    values: Vec<f64>,
    yes: &'a [i64],
    no: &'a [i64],
    missing: &'a [i64],
}

impl<'a> NodeLists<'a> {
    fn read(attributes: &Attributes<'a>) -> Result<Self> {
        let ints = |name: &str| Ok::<_, Error>(attributes.ints(name)?.unwrap_or(&[]));
        let lists = Self {
            trees: ints("nodes_treeids")?,
            ids: ints("nodes_nodeids")?,
            features: ints("nodes_featureids")?,
            modes: attributes.texts("nodes_modes")?.unwrap_or(&[]),
            values: numbers(attributes, "nodes_values")?,
            yes: ints("nodes_truenodeids")?,
            no: ints("nodes_falsenodeids")?,
            missing: ints("nodes_missing_value_tracks_true")?,
        };
        let lengths = [
            lists.ids.len(),
            lists.features.len(),
            lists.modes.len(),
            lists.values.len(),
            lists.yes.len(),
            lists.no.len(),
        ];
        if lengths.iter().any(|&len| len != lists.trees.len()) {
            return Err(Error::invalid(format!(
                "the nodes_* lists must have equal lengths: nodes_treeids has {}, the others {lengths:?}",
                lists.trees.len()
            )));
        }
        Ok(lists)
    }

    fn positions(&self) -> Result<HashMap<(i64, i64), usize>> {
        let mut positions = HashMap::with_capacity(self.trees.len());
        for (position, key) in self.trees.iter().zip(self.ids).enumerate() {
            if positions.insert((*key.0, *key.1), position).is_some() {
                return Err(Error::invalid(format!("tree {} lists node {} twice", key.0, key.1)));
            }
        }
        Ok(positions)
    }

    fn node(&self, position: usize, positions: &HashMap<(i64, i64), usize>) -> Result<RawNode> {
        let mode = Mode::from_name(&self.modes[position])?;
        if mode == Mode::Leaf {
            return Ok(RawNode::LEAF);
        }
        let tree = self.trees[position];
        let child = |id: i64| {
            positions
                .get(&(tree, id))
                .copied()
                .ok_or_else(|| Error::invalid(format!("tree {tree} has no node {id}")))
        };
        Ok(RawNode {
            mode,
            feature: feature(self.features[position])?,
            value: self.values[position],
            missing_is_true: self.missing.get(position) == Some(&1),
            yes: child(self.yes[position])?,
            no: child(self.no[position])?,
        })
    }
}

fn feature(index: i64) -> Result<u32> {
    // One bit is the forest's own.
    let fits = u32::try_from(index).ok().filter(|feature| *feature <= i32::MAX as u32);
    fits.ok_or_else(|| Error::invalid(format!("feature {index} is out of range")))
}

fn target(index: i64, target_count: usize) -> Result<usize> {
    usize::try_from(index).ok().filter(|&index| index < target_count).ok_or_else(|| {
        Error::invalid(format!("a leaf names class or target {index} of {target_count}"))
    })
}

fn leaf_weights(
    attributes: &Attributes<'_>,
    kind: &str,
    target_count: usize,
    positions: &HashMap<(i64, i64), usize>,
) -> Result<Vec<(usize, usize, f64)>> {
    let ints =
        |name: &str| Ok::<_, Error>(attributes.ints(&format!("{kind}_{name}"))?.unwrap_or(&[]));
    let (ids, trees, leaves) = (ints("ids")?, ints("treeids")?, ints("nodeids")?);
    let weights = numbers(attributes, &format!("{kind}_weights"))?;
    if [trees.len(), leaves.len(), weights.len()].iter().any(|&len| len != ids.len()) {
        return Err(Error::invalid(format!("the {kind}_* lists must have equal lengths")));
    }
    let mut list = Vec::with_capacity(ids.len());
    for (index, &weight) in weights.iter().enumerate() {
        let leaf = positions.get(&(trees[index], leaves[index])).ok_or_else(|| {
            Error::invalid(format!("tree {} has no node {}", trees[index], leaves[index]))
        })?;
        list.push((*leaf, target(ids[index], target_count)?, weight));
    }
    Ok(list)
}

/// The form of opset 5: interior nodes and leaves apart, named by position.
pub(super) fn from_tensors(attributes: &Attributes<'_>, target_count: usize) -> Result<RawTrees> {
    let lists = TensorLists::read(attributes)?;
    let mut members = HashMap::new();
    let mut sets = member_sets(attributes)?.into_iter();
    let interior = lists.features.len();
    let mut nodes = Vec::with_capacity(interior + lists.leaf_targets.len());
    for position in 0..interior {
        let node = lists.node(position)?;
        if node.mode == Mode::Member {
            let set = sets.next().ok_or_else(|| {
                Error::invalid(
                    "membership_values has fewer sets than there are BRANCH_MEMBER nodes",
                )
            })?;
            members.insert(position, set);
        }
        nodes.push(node);
    }
    nodes.resize(interior + lists.leaf_targets.len(), RawNode::LEAF);
    let mut weights = Vec::with_capacity(lists.leaf_targets.len());
    for (leaf, (&index, &weight)) in lists.leaf_targets.iter().zip(&lists.leaf_weights).enumerate()
    {
        weights.push((interior + leaf, target(index, target_count)?, weight));
    }
    let roots = lists.roots()?;
    Ok(RawTrees { nodes, roots, weights, members })
}

struct TensorLists<'a> {
    roots: &'a [i64],
    features: &'a [i64],
    modes: Vec<u8>,
    splits: Vec<f64>,
    yes: &'a [i64],
    no: &'a [i64],
    yes_is_leaf: &'a [i64],
    no_is_leaf: &'a [i64],
    missing: &'a [i64],
    leaf_targets: &'a [i64],
    leaf_weights: Vec<f64>,
}

impl<'a> TensorLists<'a> {
    fn read(attributes: &Attributes<'a>) -> Result<Self> {
        let ints = |name: &str| Ok::<_, Error>(attributes.ints(name)?.unwrap_or(&[]));
        let lists = Self {
            roots: ints("tree_roots")?,
            features: ints("nodes_featureids")?,
            modes: modes(attributes)?,
            splits: tensor_numbers(attributes, "nodes_splits")?,
            yes: ints("nodes_truenodeids")?,
            no: ints("nodes_falsenodeids")?,
            yes_is_leaf: ints("nodes_trueleafs")?,
            no_is_leaf: ints("nodes_falseleafs")?,
            missing: ints("nodes_missing_value_tracks_true")?,
            leaf_targets: ints("leaf_targetids")?,
            leaf_weights: tensor_numbers(attributes, "leaf_weights")?,
        };
        let lengths = [
            lists.modes.len(),
            lists.splits.len(),
            lists.yes.len(),
            lists.no.len(),
            lists.yes_is_leaf.len(),
            lists.no_is_leaf.len(),
        ];
        if lengths.iter().any(|&len| len != lists.features.len()) {
            return Err(Error::invalid(format!(
                "the nodes_* lists must have equal lengths: nodes_featureids has {}, the others {lengths:?}",
                lists.features.len()
            )));
        }
        if lists.leaf_targets.len() != lists.leaf_weights.len() {
            return Err(Error::invalid("leaf_targetids and leaf_weights must have equal lengths"));
        }
        Ok(lists)
    }

    fn node(&self, position: usize) -> Result<RawNode> {
        Ok(RawNode {
            mode: Mode::from_number(self.modes[position])?,
            feature: feature(self.features[position])?,
            value: self.splits[position],
            missing_is_true: self.missing.get(position) == Some(&1),
            yes: self.child(self.yes[position], self.yes_is_leaf[position] != 0)?,
            no: self.child(self.no[position], self.no_is_leaf[position] != 0)?,
        })
    }

    fn child(&self, id: i64, is_leaf: bool) -> Result<usize> {
        let (count, first) = if is_leaf {
            (self.leaf_targets.len(), self.features.len())
        } else {
            (self.features.len(), 0)
        };
        usize::try_from(id)
            .ok()
            .filter(|&id| id < count)
            .map(|id| first + id)
            .ok_or_else(|| Error::invalid(format!("a node names child {id} of {count}")))
    }

    fn roots(&self) -> Result<Vec<usize>> {
        self.roots.iter().map(|&root| self.child(root, false)).collect()
    }
}

fn modes(attributes: &Attributes<'_>) -> Result<Vec<u8>> {
    match attributes.tensor("nodes_modes")? {
        Some(tensor) => Ok(tensor.as_slice::<u8>()?.to_vec()),
        None => Ok(Vec::new()),
    }
}

fn tensor_numbers(attributes: &Attributes<'_>, name: &str) -> Result<Vec<f64>> {
    match attributes.0.attribute(name) {
        Some(Attribute::Tensor(tensor)) => Ok(doubles(tensor)?.into_owned()),
        _ => Err(Error::invalid(format!("attribute {name} must be a tensor"))),
    }
}

/// The sets of `membership_values`, each ended by NaN.
fn member_sets(attributes: &Attributes<'_>) -> Result<Vec<Vec<f64>>> {
    let Some(tensor) = attributes.tensor("membership_values")? else {
        return Ok(Vec::new());
    };
    let values = doubles(tensor)?;
    Ok(values.split(|value| value.is_nan()).map(<[f64]>::to_vec).collect())
}
