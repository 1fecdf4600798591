//! A forest laid out for speed, and its walks.
//!
//! All nodes stand in one array, each tree in the order of a walk that goes
//! left first. A leaf's children are itself, so that several rows can go down
//! one tree in step, without a branch, until none of them moves.

use super::nodes::{RawNode, RawTrees};
use mortise_types::{Element, Error, Result};
use rayon::prelude::*;
use std::collections::HashMap;

/// How a node compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Leq,
    Lt,
    Gte,
    Gt,
    Eq,
    Neq,
    Member,
    Leaf,
}

impl Mode {
    pub(super) fn from_name(name: &[u8]) -> Result<Self> {
        Ok(match name {
            b"BRANCH_LEQ" => Self::Leq,
            b"BRANCH_LT" => Self::Lt,
            b"BRANCH_GTE" => Self::Gte,
            b"BRANCH_GT" => Self::Gt,
            b"BRANCH_EQ" => Self::Eq,
            b"BRANCH_NEQ" => Self::Neq,
            b"LEAF" => Self::Leaf,
            other => {
                let name = String::from_utf8_lossy(other);
                return Err(Error::unsupported(format!("node mode \"{name}\"")));
            }
        })
    }

    pub(super) fn from_number(number: u8) -> Result<Self> {
        let modes = [Self::Leq, Self::Lt, Self::Gte, Self::Gt, Self::Eq, Self::Neq, Self::Member];
        modes
            .get(usize::from(number))
            .copied()
            .ok_or_else(|| Error::unsupported(format!("node mode {number}")))
    }
}

/// How the leaves of several trees become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aggregate {
    Sum,
    /// Summed here; whoever reads the total divides.
    Average,
    Min,
    Max,
}

/// The precision of thresholds and weights.
pub(super) trait Real: Element + std::ops::Add<Output = Self> + Default {
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
}

impl Real for f32 {
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
}

/// 16 bytes in single precision: four to a cache line.
#[derive(Clone, Copy)]
struct Node<T> {
    /// The threshold; in a leaf of a one-target forest, its weight.
    value: T,
    /// The feature's column, and [`MISSING_IS_TRUE`].
    feature: u32,
    /// Where to go when the comparison does not hold, and when it does: read by
    /// index, since a branch would be guessed wrong every other time.
    children: [u32; 2],
}

/// The bit of a node's feature that says that NaN passes its comparison.
const MISSING_IS_TRUE: u32 = 1 << 31;

impl<T> Node<T> {
    fn column(&self) -> u32 {
        self.feature & !MISSING_IS_TRUE
    }

    fn takes_missing(&self) -> bool {
        self.feature & MISSING_IS_TRUE != 0
    }
}

/// Whether a node takes NaN, and this is one; without a branch.
#[expect(clippy::eq_op, reason = "only NaN differs from itself")]
fn is_missing<X: Real>(feature: u32, x: X) -> bool {
    (feature & MISSING_IS_TRUE != 0) & (x != x)
}

pub(super) struct Forest<T> {
    nodes: Vec<Node<T>>,
    modes: Vec<Mode>,
    /// `Some` when all interior nodes compare alike.
    uniform: Option<Mode>,
    /// Whether NaN passes any comparison.
    tracks_missing: bool,
    roots: Vec<u32>,
    /// By node: the leaf's span of `weights`.
    spans: Vec<(u32, u32)>,
    weights: Vec<(u32, T)>,
    /// Sorted sets of the `Member` nodes.
    members: HashMap<u32, Vec<T>>,
    target_count: usize,
    column_count: usize,
    aggregate: Aggregate,
}

/// One node, put together from the tables of its forest.
pub(super) struct NodeRecord<T> {
    pub(super) mode: Mode,
    pub(super) missing_is_true: bool,
    pub(super) value: T,
    pub(super) feature: u32,
    pub(super) yes: u32,
    pub(super) no: u32,
    /// Of the weights.
    pub(super) span: (u32, u32),
}

/// What a block of rows got from a forest.
pub(super) struct Totals<T> {
    target_count: usize,
    scores: Vec<T>,
    seen: Vec<bool>,
}

impl<T: Real> Totals<T> {
    pub(super) fn read(&self, row: usize, scores: &mut [Option<f64>]) {
        let first = row * self.target_count;
        for (target, score) in scores.iter_mut().enumerate() {
            let at = first + target;
            *score = self.seen[at].then(|| self.scores[at].to_f64());
        }
    }
}

impl<T: Real> Forest<T> {
    /// Lays the trees out.
    ///
    /// # Errors
    /// When a node is reached twice: the walk could go round for ever.
    pub(super) fn new(raw: &RawTrees, target_count: usize, aggregate: Aggregate) -> Result<Self> {
        let mut layout = Layout::new(raw);
        let mut roots = Vec::with_capacity(raw.roots.len());
        for &root in &raw.roots {
            roots.push(layout.place_tree(root)?);
        }
        let Layout { order, placed, .. } = layout;
        let mut forest = Self {
            nodes: Vec::with_capacity(order.len()),
            modes: Vec::with_capacity(order.len()),
            uniform: None,
            tracks_missing: false,
            roots,
            spans: vec![(0, 0); order.len()],
            weights: Vec::new(),
            members: HashMap::new(),
            target_count,
            column_count: 1,
            aggregate,
        };
        for (position, &source) in order.iter().enumerate() {
            forest.push_node(&raw.nodes[source], position as u32, &placed);
            if let Some(set) = raw.members.get(&source) {
                forest.members.insert(position as u32, sorted(set));
            }
        }
        forest.uniform = uniform(&forest.modes);
        forest.tracks_missing = forest.nodes.iter().any(Node::takes_missing);
        forest.attach_weights(raw, &placed);
        Ok(forest)
    }

    fn push_node(&mut self, raw: &RawNode, position: u32, placed: &[u32]) {
        let leaf = raw.mode == Mode::Leaf;
        let child = |index: usize| if leaf { position } else { placed[index] };
        self.nodes.push(Node {
            value: T::from_f64(raw.value),
            feature: raw.feature | if raw.missing_is_true { MISSING_IS_TRUE } else { 0 },
            children: [child(raw.no), child(raw.yes)],
        });
        self.modes.push(raw.mode);
        self.column_count = self.column_count.max(raw.feature as usize + 1);
    }

    fn attach_weights(&mut self, raw: &RawTrees, placed: &[u32]) {
        let mut list: Vec<(u32, u32, T)> = raw
            .weights
            .iter()
            .filter(|weight| placed[weight.0] != UNPLACED)
            .map(|&(leaf, target, weight)| (placed[leaf], target as u32, T::from_f64(weight)))
            .collect();
        list.sort_by_key(|weight| weight.0);
        for (leaf, target, weight) in list {
            let at = self.weights.len() as u32;
            let span = &mut self.spans[leaf as usize];
            if span.1 == 0 {
                *span = (at, at);
                if self.nodes[leaf as usize].children[1] == leaf {
                    self.nodes[leaf as usize].value = weight;
                }
            }
            span.1 = at + 1;
            self.weights.push((target, weight));
        }
    }

    pub(super) fn target_count(&self) -> usize {
        self.target_count
    }

    pub(super) fn tree_count(&self) -> usize {
        self.roots.len()
    }

    pub(super) fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// # Panics
    /// When there is no such node.
    pub(super) fn node(&self, at: usize) -> NodeRecord<T> {
        let node = &self.nodes[at];
        let Node { value, children: [no, yes], .. } = *node;
        let (mode, missing_is_true) = (self.modes[at], node.takes_missing());
        let feature = node.column();
        NodeRecord { mode, missing_is_true, value, feature, yes, no, span: self.spans[at] }
    }

    pub(super) fn roots(&self) -> &[u32] {
        &self.roots
    }

    pub(super) fn weights(&self) -> &[(u32, T)] {
        &self.weights
    }

    pub(super) fn column_count(&self) -> usize {
        self.column_count
    }

    /// # Errors
    /// When a tree looks at a feature that the rows do not have.
    pub(super) fn check_columns(&self, columns: usize) -> Result<()> {
        if columns >= self.column_count {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the trees look at {} features, the input has {columns}",
            self.column_count
        )))
    }

    /// Totals of `rows` rows of `columns` values; call `check_columns` first.
    pub(super) fn run<X: Real>(&self, values: &[X], columns: usize, rows: usize) -> Totals<X> {
        /// Rows that go through all trees together, to share the nodes in cache.
        const BLOCK: usize = 64;
        /// Below this many walks the threads cost more than they save.
        const PARALLEL_WALKS: usize = 8192;
        let count = rows * self.target_count;
        let mut totals = Totals {
            target_count: self.target_count,
            scores: vec![X::default(); count],
            seen: vec![false; count],
        };
        let parallel =
            rows * self.roots.len() >= PARALLEL_WALKS && rayon::current_num_threads() > 1;
        let targets = self.target_count;
        if parallel {
            totals
                .scores
                .par_chunks_mut(BLOCK * targets)
                .zip(totals.seen.par_chunks_mut(BLOCK * targets))
                .zip(values.par_chunks(BLOCK * columns))
                .for_each(|((scores, seen), rows)| self.run_block(rows, columns, scores, seen));
        } else {
            totals
                .scores
                .chunks_mut(BLOCK * targets)
                .zip(totals.seen.chunks_mut(BLOCK * targets))
                .zip(values.chunks(BLOCK * columns))
                .for_each(|((scores, seen), rows)| self.run_block(rows, columns, scores, seen));
        }
        totals
    }

    fn run_block<X: Real>(
        &self,
        values: &[X],
        columns: usize,
        scores: &mut [X],
        seen: &mut [bool],
    ) {
        match self.uniform {
            Some(Mode::Leq) => self.walk_alike(values, columns, scores, seen, |x, t| x <= t),
            Some(Mode::Lt) => self.walk_alike(values, columns, scores, seen, |x, t| x < t),
            Some(Mode::Gte) => self.walk_alike(values, columns, scores, seen, |x, t| x >= t),
            Some(Mode::Gt) => self.walk_alike(values, columns, scores, seen, |x, t| x > t),
            _ => {
                let test = |at, feature, x, t| self.test(at, x, t) | is_missing(feature, x);
                self.walk_all(values, columns, scores, seen, test);
            }
        }
    }

    /// A forest of one comparison; `compare` has no branch.
    fn walk_alike<X: Real>(
        &self,
        values: &[X],
        columns: usize,
        scores: &mut [X],
        seen: &mut [bool],
        compare: impl Fn(X, X) -> bool,
    ) {
        if !self.tracks_missing {
            return self.walk_all(values, columns, scores, seen, |_, _, x, t| compare(x, t));
        }
        let test = |_, feature, x, t| compare(x, t) | is_missing(feature, x);
        self.walk_all(values, columns, scores, seen, test);
    }

    /// The comparison of a node whose rule is its own.
    fn test<X: Real>(&self, node: u32, x: X, threshold: X) -> bool {
        match self.modes[node as usize] {
            Mode::Leq => x <= threshold,
            Mode::Lt => x < threshold,
            Mode::Gte => x >= threshold,
            Mode::Gt => x > threshold,
            Mode::Eq => x == threshold,
            Mode::Neq => x != threshold,
            Mode::Member => self.members.get(&node).is_some_and(|set| {
                set.binary_search_by(|item| {
                    convert::<T, X>(*item).partial_cmp(&x).unwrap_or(std::cmp::Ordering::Less)
                })
                .is_ok()
            }),
            Mode::Leaf => true,
        }
    }

    fn walk_all<X: Real>(
        &self,
        values: &[X],
        columns: usize,
        scores: &mut [X],
        seen: &mut [bool],
        test: impl Fn(u32, u32, X, X) -> bool,
    ) {
        /// Rows that go down one tree in step: their loads overlap.
        const LANES: usize = 8;
        let targets = self.target_count;
        for &root in &self.roots {
            let mut row = 0;
            let mut groups = values.chunks_exact(columns * LANES);
            for group in groups.by_ref() {
                let leaves = self.walk_lanes::<X, LANES>(root, group, columns, &test);
                for leaf in leaves {
                    let span = row * targets..(row + 1) * targets;
                    self.add_leaf(leaf, &mut scores[span.clone()], &mut seen[span]);
                    row += 1;
                }
            }
        }
        let whole = values.len() / columns / LANES * LANES;
        for (row, line) in values.chunks_exact(columns).enumerate().skip(whole) {
            let span = row * targets..(row + 1) * targets;
            self.walk_trees(line, &mut scores[span.clone()], &mut seen[span], &test);
        }
    }

    /// All trees for one row, some of them in step.
    fn walk_trees<X: Real>(
        &self,
        line: &[X],
        scores: &mut [X],
        seen: &mut [bool],
        test: &impl Fn(u32, u32, X, X) -> bool,
    ) {
        const LANES: usize = 16;
        let mut groups = self.roots.chunks_exact(LANES);
        for group in groups.by_ref() {
            let mut at = [0; LANES];
            at.copy_from_slice(group);
            loop {
                let mut moved = 0;
                for at in &mut at {
                    let next = self.step(*at, line, test);
                    moved |= next ^ *at;
                    *at = next;
                }
                if moved == 0 {
                    break;
                }
            }
            at.into_iter().for_each(|leaf| self.add_leaf(leaf, scores, seen));
        }
        for &root in groups.remainder() {
            self.add_leaf(self.walk(root, line, test), scores, seen);
        }
    }

    fn walk<X: Real>(&self, root: u32, line: &[X], test: &impl Fn(u32, u32, X, X) -> bool) -> u32 {
        let mut at = root;
        loop {
            let next = self.step(at, line, test);
            if next == at {
                return at;
            }
            at = next;
        }
    }

    #[inline(always)]
    fn step<X: Real>(&self, at: u32, line: &[X], test: &impl Fn(u32, u32, X, X) -> bool) -> u32 {
        let node = &self.nodes[at as usize];
        let x = line[node.column() as usize];
        let holds = test(at, node.feature, x, convert(node.value));
        node.children[usize::from(holds)]
    }

    fn walk_lanes<X: Real, const LANES: usize>(
        &self,
        root: u32,
        group: &[X],
        columns: usize,
        test: &impl Fn(u32, u32, X, X) -> bool,
    ) -> [u32; LANES] {
        let mut at = [root; LANES];
        loop {
            let mut moved = 0;
            for (lane, at) in at.iter_mut().enumerate() {
                let line = &group[lane * columns..(lane + 1) * columns];
                let next = self.step(*at, line, test);
                moved |= next ^ *at;
                *at = next;
            }
            if moved == 0 {
                return at;
            }
        }
    }

    #[inline(always)]
    fn add_leaf<X: Real>(&self, leaf: u32, scores: &mut [X], seen: &mut [bool]) {
        let (first, end) = self.spans[leaf as usize];
        if let ([score], [seen]) = (&mut *scores, &mut *seen) {
            if first < end {
                let value = convert(self.nodes[leaf as usize].value);
                *score = self.merged(*score, *seen, value);
                *seen = true;
            }
            return;
        }
        for &(target, weight) in &self.weights[first as usize..end as usize] {
            let target = target as usize;
            scores[target] = self.merged(scores[target], seen[target], convert(weight));
            seen[target] = true;
        }
    }

    #[inline(always)]
    fn merged<X: Real>(&self, score: X, seen: bool, weight: X) -> X {
        match self.aggregate {
            Aggregate::Sum | Aggregate::Average => score + weight,
            Aggregate::Min if !seen || weight < score => weight,
            Aggregate::Max if !seen || weight > score => weight,
            Aggregate::Min | Aggregate::Max => score,
        }
    }
}

/// Free when both are the same type.
#[inline(always)]
fn convert<T: Real, X: Real>(value: T) -> X {
    X::from_f64(value.to_f64())
}

fn sorted<T: Real>(set: &[f64]) -> Vec<T> {
    let mut set: Vec<T> = set.iter().map(|&value| T::from_f64(value)).collect();
    set.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    set
}

fn uniform(modes: &[Mode]) -> Option<Mode> {
    let mut interior = modes.iter().copied().filter(|mode| *mode != Mode::Leaf);
    let first = interior.next().unwrap_or(Mode::Leq);
    interior.all(|mode| mode == first).then_some(first)
}

const UNPLACED: u32 = u32::MAX;

/// Decides where each node of the file goes.
struct Layout<'a> {
    raw: &'a RawTrees,
    /// By place: which node of the file.
    order: Vec<usize>,
    /// By node of the file: its place.
    placed: Vec<u32>,
}

impl<'a> Layout<'a> {
    fn new(raw: &'a RawTrees) -> Self {
        Self { raw, order: Vec::new(), placed: vec![UNPLACED; raw.nodes.len()] }
    }

    /// Places the nodes under `root`, true branches first.
    fn place_tree(&mut self, root: usize) -> Result<u32> {
        let mut pending = vec![root];
        while let Some(node) = pending.pop() {
            let RawNode { mode, yes, no, .. } = self.raw.nodes[node];
            if self.placed[node] != UNPLACED {
                if mode == Mode::Leaf {
                    continue;
                }
                return Err(Error::invalid(format!(
                    "the tree node at position {node} has two parents: trees may not share \
                     nodes or go round"
                )));
            }
            self.placed[node] = u32::try_from(self.order.len())
                .ok()
                .filter(|&place| place != UNPLACED)
                .ok_or_else(|| Error::limit("a forest may have at most 2^32 - 2 nodes"))?;
            self.order.push(node);
            if mode != Mode::Leaf {
                pending.push(no);
                pending.push(yes);
            }
        }
        Ok(self.placed[root])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(mode: Mode, value: f64, yes: usize, no: usize) -> RawNode {
        RawNode { mode, feature: 0, value, missing_is_true: false, yes, no }
    }

    fn trees(nodes: Vec<RawNode>) -> RawTrees {
        let weights = vec![(nodes.len() - 2, 0, 1.0), (nodes.len() - 1, 0, 2.0)];
        RawTrees { nodes, roots: vec![0], weights, members: HashMap::new() }
    }

    #[test]
    fn rows_in_step_end_at_the_leaves_of_rows_alone() {
        let leaf = node(Mode::Leaf, 0.0, 0, 0);
        for mode in [Mode::Leq, Mode::Lt, Mode::Gte, Mode::Gt, Mode::Neq] {
            let raw = trees(vec![node(mode, 0.5, 1, 2), leaf, leaf]);
            let forest = Forest::<f32>::new(&raw, 1, Aggregate::Sum).unwrap();
            let values: Vec<f32> = (0..21).map(|at| at as f32 / 20.0).collect();
            let together = forest.run(&values, 1, values.len());
            for (row, value) in values.iter().enumerate() {
                let alone = forest.run(&[*value], 1, 1);
                assert_eq!(together.scores[row], alone.scores[0], "{mode:?} of {value}");
            }
        }
    }

    #[test]
    fn trees_that_go_round_are_refused() {
        let leaf = node(Mode::Leaf, 0.0, 0, 0);
        for nodes in [
            vec![node(Mode::Leq, 0.0, 0, 1), leaf, leaf],
            vec![node(Mode::Leq, 0.0, 1, 2), node(Mode::Leq, 0.0, 0, 2), leaf, leaf],
            vec![node(Mode::Leq, 0.0, 1, 1), node(Mode::Leq, 0.0, 2, 3), leaf, leaf],
        ] {
            let result = Forest::<f32>::new(&trees(nodes), 1, Aggregate::Sum);
            let message = result.err().map(|error| error.message().to_owned());
            assert!(message.is_some_and(|message| message.contains("two parents")));
        }
    }
}
