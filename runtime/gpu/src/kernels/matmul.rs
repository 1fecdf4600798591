//! Matrix products, with what follows them in the same kernel.

use super::{activation, float, input, int, only_output};
use crate::lower::{Builder, MAX_GROUPS, THREADS};
use crate::operand::{Operand, Place, collapse};
use crate::params::Params;
use crate::shaders::{File, Kernel};
use crate::tune::{GEMV_ROWS, Tiles, UnitTiles};
use crate::weights::{Format, half_words};
use mortise_types::{DType, NodeDef, Result, Shape, ValueId};

/// One product, ready to emit: sizes, and strides in elements.
pub(crate) struct Product {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// Two batch dimensions.
    pub(crate) batch: [usize; 2],
    /// Row, column, batch and batch.
    pub(crate) a: [usize; 4],
    pub(crate) b: [usize; 4],
    /// Row, batch and batch; columns lie side by side.
    pub(crate) out: [usize; 3],
    pub(crate) alpha: f32,
    pub(crate) activation: u32,
    pub(crate) bias: Option<Bias>,
    pub(crate) residual: Option<Place>,
    /// Whether the residual is added before the activation.
    pub(crate) activates_residual: bool,
    /// Whether rounding the left operand to `FP16` is allowed, or nothing.
    pub(crate) allows_half: bool,
    /// Whether the answer is rounded to `FP16`.
    pub(crate) rounds: bool,
    pub(crate) weights: Packing,
}

pub(crate) struct Bias {
    pub(crate) place: Place,
    pub(crate) row: usize,
    pub(crate) column: usize,
    pub(crate) beta: f32,
}

impl Default for Product {
    fn default() -> Self {
        Self {
            m: 0,
            n: 0,
            k: 0,
            batch: [1, 1],
            a: [0; 4],
            b: [0; 4],
            out: [0; 3],
            alpha: 1.0,
            activation: 0,
            bias: None,
            residual: None,
            activates_residual: false,
            allows_half: false,
            rounds: false,
            weights: Packing::Words,
        }
    }
}

/// How the right operand is stored; see `matmul.wgsl`.
#[derive(Clone)]
pub(crate) enum Packing {
    Words,
    Half,
    /// Unsigned, of 4 or 8 bits, with a scale and a zero point for each block
    /// of values.
    Blocks {
        bits: usize,
        block: usize,
        scales: Place,
        zeros: Place,
    },
}

impl Packing {
    fn code(&self) -> u32 {
        match self {
            Self::Words => 0,
            Self::Half => 1,
            Self::Blocks { bits: 8, .. } => 2,
            Self::Blocks { .. } => 3,
        }
    }

    /// Values, in quads, that four words hold.
    fn quads_in_four_words(&self) -> usize {
        match self {
            Self::Words => 1,
            Self::Half => 2,
            Self::Blocks { bits, .. } => 32 / bits,
        }
    }

    /// Whether four words never hold values of two blocks.
    fn has_whole_blocks(&self) -> bool {
        match self {
            Self::Blocks { bits, block, .. } => block.is_multiple_of(128 / bits),
            _ => true,
        }
    }
}

impl Product {
    /// Emits the product of `left` and `right` into `out`.
    pub(crate) fn launch(self, builder: &mut Builder<'_>, left: Place, right: Place, out: Place) {
        let variant = self.variant(builder);
        if let Variant::Units(_) = variant {
            let (left, right) = (self.pack(builder, left), self.expand(builder, right));
            let halves = Self { weights: Packing::Half, ..self };
            return halves.launch_as(builder, variant, left, right, out);
        }
        self.launch_as(builder, variant, left, right, out);
    }

    fn launch_as(
        self,
        builder: &mut Builder<'_>,
        variant: Variant,
        left: Place,
        right: Place,
        out: Place,
    ) {
        let groups = self.groups(variant);
        let parts = variant.parts(groups, self.k);
        if parts == 1 {
            let kernel = self.kernel(variant, 1);
            return self.emit(builder, kernel, groups, [left, right, out]);
        }
        let count = groups[2] * parts * self.m * self.n;
        let sums = builder.allocate(DType::F32, &[count]).place;
        let spread = [groups[0], groups[1], groups[2] * parts];
        let plain = Self {
            bias: None,
            residual: None,
            activation: 0,
            rounds: false,
            weights: self.weights.clone(),
            ..self
        };
        let kernel = plain.kernel(variant, parts);
        plain.emit(builder, kernel, spread, [left, right, sums.clone()]);
        self.combine(builder, sums, parts, out);
    }

    /// Emits the addition of `parts` sums, and all that follows.
    pub(crate) fn combine(&self, builder: &mut Builder<'_>, sums: Place, parts: usize, out: Place) {
        let mut constants = self.ending();
        constants.push(("SUMMANDS", parts as u32));
        let kernel = Kernel::new(File::Combine, 7, &constants);
        let groups = [(self.m * self.n).div_ceil(THREADS), 1, self.batch[0] * self.batch[1]];
        self.emit(builder, kernel, groups, [sums.clone(), sums, out]);
    }

    fn emit(
        &self,
        builder: &mut Builder<'_>,
        kernel: Kernel,
        groups: [usize; 3],
        [left, right, out]: [Place; 3],
    ) {
        let (scales, zeros, block) = match &self.weights {
            Packing::Blocks { scales, zeros, block, .. } => (scales.clone(), zeros.clone(), *block),
            _ => (left.clone(), left.clone(), 1),
        };
        let bias = self.bias.as_ref();
        let bindings = vec![
            left.clone(),
            right,
            out,
            bias.map_or(left.clone(), |bias| bias.place.clone()),
            self.residual.clone().unwrap_or(left),
            scales,
            zeros,
        ];
        let params = Params::new()
            .sizes(&[self.m, self.n, self.k, self.batch[1]])
            .sizes(&self.a)
            .sizes(&self.b)
            .sizes(&self.out)
            .size(block)
            .size(bias.map_or(0, |bias| bias.row))
            .size(bias.map_or(0, |bias| bias.column))
            .float(self.alpha)
            .float(bias.map_or(0.0, |bias| bias.beta));
        builder.launch(kernel, bindings, params, groups);
    }

    /// Which kernel suits the shapes and strides.
    fn variant(&self, builder: &Builder<'_>) -> Variant {
        let shared = builder.context.limits.max_compute_workgroup_storage_size as usize;
        if self.m <= GEMV_ROWS {
            return match () {
                () if self.columns_are_quads() => Variant::GemvQuads,
                () if self.columns_are_words(shared) => Variant::GemvWords,
                () => Variant::Gemv,
            };
        }
        let size = [self.m, self.n, self.k];
        let units = builder.tuning.units(size, shared);
        if let Some(tiles) = units.filter(|_| builder.context.has_matrix_units && self.fits_units())
        {
            return Variant::Units(tiles);
        }
        let tiles = builder.tuning.tiles(size, shared);
        match self.are_quads() {
            true => Variant::Quads(tiles),
            false => Variant::Scalars(tiles),
        }
    }

    /// Workgroups along columns and rows, and for each product.
    fn groups(&self, variant: Variant) -> [usize; 3] {
        let [m, n] = match variant {
            Variant::Gemv => [self.m, 256 / self.gemv_lanes()],
            Variant::GemvQuads | Variant::GemvWords => [self.m, 32],
            Variant::Scalars(tiles) | Variant::Quads(tiles) => [tiles.m(), tiles.n()],
            Variant::Units(tiles) => [tiles.m(), tiles.n()],
        };
        [self.n.div_ceil(n), self.m.div_ceil(m), self.batch[0] * self.batch[1]]
    }

    fn kernel(&self, variant: Variant, parts: usize) -> Kernel {
        let format = ("B_FORMAT", self.weights.code());
        let along_k = ("B_ALONG_K", u32::from(self.runs_along_k()));
        let a_along_k = ("A_ALONG_K", u32::from(self.a[1] == 1));
        let (rows, parts) = (("M", self.m as u32), ("PARTS", parts as u32));
        let mut constants = self.ending();
        let file = match variant {
            Variant::Gemv => {
                let lanes = self.gemv_lanes() as u32;
                constants.extend([format, along_k, rows, ("LANES", lanes)]);
                File::Gemv
            }
            Variant::GemvQuads => {
                constants.push(rows);
                File::GemvQuads
            }
            Variant::GemvWords => {
                constants.extend([format, rows]);
                File::GemvWords
            }
            Variant::Scalars(tiles) => {
                constants.extend(tile_constants(tiles));
                constants.extend([format, along_k, a_along_k, parts]);
                File::Matmul
            }
            Variant::Quads(tiles) => {
                constants.extend(tile_constants(tiles));
                let b_along_k = ("B_ALONG_K", u32::from(self.b[1] != 1));
                constants.extend([a_along_k, b_along_k, parts]);
                File::MatmulQuads
            }
            Variant::Units(tiles) => {
                constants.extend(unit_constants(tiles));
                constants.push(parts);
                File::MatmulUnits
            }
        };
        Kernel::new(file, 7, &constants)
    }

    /// What happens to a sum before it is written.
    fn ending(&self) -> Vec<(&'static str, u32)> {
        vec![
            ("ACTIVATION", self.activation),
            ("HAS_BIAS", u32::from(self.bias.is_some())),
            ("HAS_RESIDUAL", self.residual_code()),
            ("ROUNDS", u32::from(self.rounds)),
        ]
    }

    /// Whether neighbours in the right operand lie along k.
    fn runs_along_k(&self) -> bool {
        !matches!(self.weights, Packing::Words) || (self.b[0] == 1 && self.n > 1)
    }

    fn gemv_lanes(&self) -> usize {
        if self.runs_along_k() { 32 } else { 8 }
    }

    fn residual_code(&self) -> u32 {
        match (&self.residual, self.activates_residual) {
            (None, _) => 0,
            (Some(_), false) => 1,
            (Some(_), true) => 2,
        }
    }

    /// Whether neighbouring columns of the matrix of floats lie in fours.
    fn columns_are_quads(&self) -> bool {
        let [row, column, b0, b1] = self.b;
        matches!(self.weights, Packing::Words) && column == 1 && in_fours([row, b0, b1, self.n])
    }

    /// Whether the matrix and the rows before it can be read along k, four words
    /// at a time, by threads that share `shared` bytes.
    fn columns_are_words(&self, shared: usize) -> bool {
        let [row, column, b0, b1] = self.b;
        let rows = self.a[1] == 1 && in_fours([self.a[0], self.a[2], self.a[3], self.k]);
        let unit = !matches!(self.weights, Packing::Words) || row == 1;
        let words = if self.m <= 4 { 64 } else { 32 };
        let staged = self.m * words * (self.weights.quads_in_four_words() + 1) * 16;
        rows && unit
            && in_fours([column, b0, b1, 4])
            && self.weights.has_whole_blocks()
            && staged + 4096 <= shared
    }

    /// Whether both matrices of floats can be read in fours.
    fn are_quads(&self) -> bool {
        let quads = |[outer, inner, b0, b1]: [usize; 4], [long, short]: [usize; 2]| {
            let (along, across, length) =
                if inner == 1 { (inner, outer, short) } else { (outer, inner, long) };
            along == 1 && in_fours([across, b0, b1, length])
        };
        matches!(self.weights, Packing::Words)
            && quads(self.a, [self.m, self.k])
            && quads(self.b, [self.k, self.n])
    }

    /// Whether the product may and can run on matrix units.
    fn fits_units(&self) -> bool {
        self.allows_half && !matches!(self.weights, Packing::Words) && self.batch == [1, 1]
    }

    /// Emits the left operand's packing as panels of `FP16`.
    fn pack(&self, builder: &mut Builder<'_>, left: Place) -> Place {
        let panels = self.k.div_ceil(PANEL);
        let packed = builder.allocate(DType::I32, &[panels, self.m, PANEL / 2]);
        let params = Params::new().sizes(&[self.m, self.k, panels, self.a[0], self.a[1]]);
        let groups = [packed.len().div_ceil(THREADS), 1, 1];
        let bindings = vec![left, packed.place.clone()];
        builder.launch(Kernel::new(File::PackHalf, 2, &[]), bindings, params, groups);
        packed.place
    }

    /// Emits the right operand's packing as panels of `FP16`.
    fn expand(&self, builder: &mut Builder<'_>, right: Place) -> Place {
        let (bits, scales, zeros, block) = match &self.weights {
            Packing::Blocks { bits, block, scales, zeros } => (*bits, scales, zeros, *block),
            _ => (16, &right, &right, 1),
        };
        let panels = self.k.div_ceil(PANEL);
        let expanded = builder.allocate(DType::I32, &[panels, self.n, PANEL / 2]);
        let params = Params::new().sizes(&[self.n, self.k, self.b[1], panels, block]);
        let groups = [(expanded.len() / 4).div_ceil(THREADS), 1, 1];
        let bindings = vec![right.clone(), scales.clone(), zeros.clone(), expanded.place.clone()];
        let kernel = Kernel::new(File::Expand, 4, &[("BITS", bits as u32)]);
        builder.launch(kernel, bindings, params, groups);
        expanded.place
    }

    /// Whether a dispatch can have as many workgroups as this takes.
    pub(crate) fn fits(&self) -> bool {
        let smallest = Tiles::FLAT;
        self.batch[0] * self.batch[1] <= MAX_GROUPS
            && self.m.div_ceil(smallest.m()) <= MAX_GROUPS
            && self.n.div_ceil(8) <= MAX_GROUPS
    }
}

fn in_fours(counts: [usize; 4]) -> bool {
    counts.iter().all(|count| count.is_multiple_of(4))
}

/// A kernel for products, and how it is cut.
#[derive(Clone, Copy)]
enum Variant {
    /// Few rows: by any strides, and where columns, or values of one column, lie
    /// in fours.
    Gemv,
    GemvQuads,
    GemvWords,
    /// Tiles of operands by any strides, and of such as lie in fours.
    Scalars(Tiles),
    Quads(Tiles),
    /// On matrix units.
    Units(UnitTiles),
}

impl Variant {
    /// Parts of the terms that workgroups take, where there are too few of them
    /// otherwise.
    fn parts(self, groups: [usize; 3], k: usize) -> usize {
        match self {
            Self::Scalars(tiles) | Self::Quads(tiles) => parts(groups, k, tiles.depth),
            Self::Units(tiles) => parts(groups, k, tiles.depth),
            _ => 1,
        }
    }
}

/// Values along k in one panel of an operand of the matrix units.
const PANEL: usize = 32;

/// Workgroups that keep a large device busy.
const BUSY_GROUPS: usize = 160;

/// Tiles along k that a part has at least.
const TILES_A_PART: usize = 4;

/// Parts to cut `k` terms in, so that a large device has enough workgroups.
pub(crate) fn parts(groups: [usize; 3], k: usize, depth: usize) -> usize {
    let wanted = BUSY_GROUPS / groups.iter().product::<usize>().max(1);
    wanted.min(k / (depth * TILES_A_PART)).max(1)
}

fn unit_constants(tiles: UnitTiles) -> [(&'static str, u32); 5] {
    [
        ("WARPS_M", tiles.warps[0] as u32),
        ("WARPS_N", tiles.warps[1] as u32),
        ("FRAGMENTS", tiles.fragments as u32),
        ("TILE_K", tiles.depth as u32),
        ("STAGES", tiles.stages as u32),
    ]
}

pub(crate) fn tile_constants(tiles: Tiles) -> [(&'static str, u32); 6] {
    [
        ("ROWS", tiles.rows as u32),
        ("COLUMNS", tiles.columns as u32),
        ("THREADS_M", tiles.threads_m as u32),
        ("THREADS_N", tiles.threads_n as u32),
        ("TILE_K", tiles.depth as u32),
        ("STAGES", tiles.stages as u32),
    ]
}

/// A matrix operand: strides of the last two dimensions swapped if wanted.
fn turned(mut operand: Operand, transposed: bool) -> Operand {
    let rank = operand.shape.len();
    if transposed {
        operand.shape.swap(rank - 1, rank - 2);
        operand.strides.swap(rank - 1, rank - 2);
    }
    operand
}

/// `MatMul` of tensors of rank 2 and more, and its fused forms.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn matmul(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let Some(call) = Call::matmul(builder, node) else { return Ok(false) };
    let flip = |shape: Shape, turn: bool| {
        let mut shape = shape;
        if turn {
            let rank = shape.len();
            shape.swap(rank - 1, rank - 2);
        }
        shape
    };
    let (Some(a), Some(b)) = (builder.shape(call.a), builder.shape(call.b)) else {
        return Ok(false);
    };
    let (a, b) = (flip(a, call.turn_a), flip(b, call.turn_b));
    let (rank_a, rank_b) = (a.len(), b.len());
    let batch = crate::operand::broadcast(&a[..rank_a - 2], &b[..rank_b - 2]);
    let Some(batch) = batch.filter(|_| a[rank_a - 1] == b[rank_b - 2]) else { return Ok(false) };
    let mut shape = batch.clone();
    shape.extend([a[rank_a - 2], b[rank_b - 1]]);
    // One row, also as exporters of scikit-learn write it: [1, columns].
    let is_row = |bias: Shape| {
        let ones = bias.len().saturating_sub(1);
        ones < 2 && bias.last() == b.last() && bias.iter().take(ones).all(|dim| *dim == 1)
    };
    if call.bias.is_some_and(|bias| !builder.shape(bias).is_some_and(is_row)) {
        return Ok(false);
    }
    emit(builder, &call, &batch, &shape)
}

/// What a node multiplies.
struct Call {
    a: ValueId,
    b: ValueId,
    output: ValueId,
    turn_a: bool,
    turn_b: bool,
    alpha: f32,
    beta: f32,
    bias: Option<ValueId>,
    activation: u32,
    dtype: DType,
}

impl Call {
    fn new(builder: &Builder<'_>, node: &NodeDef) -> Option<Self> {
        let (a, b) = (input(node, 0)?, input(node, 1)?);
        let dtype = builder.dtype(a)?;
        let ranks = [a, b].map(|value| builder.shape(value).map_or(0, |shape| shape.len()));
        let fits = builder.is_float(a)
            && builder.is_float(b)
            && builder.dtype(b) == Some(dtype)
            && ranks.iter().all(|rank| (2..=6).contains(rank));
        fits.then_some(())?;
        let bias = input(node, 2);
        if bias.is_some_and(|bias| !builder.is_float(bias)) {
            return None;
        }
        Some(Self {
            a,
            b,
            output: only_output(node)?,
            turn_a: int(node, "transA", 0)? != 0,
            turn_b: int(node, "transB", 0)? != 0,
            alpha: float(node, "alpha", 1.0)?,
            beta: float(node, "beta", 1.0)?,
            bias,
            activation: activation(node)?,
            dtype,
        })
    }

    fn matmul(builder: &Builder<'_>, node: &NodeDef) -> Option<Self> {
        let batched = ["transBatchA", "transBatchB"];
        let plain = batched.iter().all(|name| node.attribute(name).is_none());
        let extra = if &*node.op == "MatMulBias" { 3 } else { 2 };
        Self::new(builder, node).filter(|_| plain && node.inputs.len() <= extra)
    }
}

/// `Gemm` and its fused form.
///
/// # Errors
/// As [`Builder::operand`].
pub(crate) fn gemm(builder: &mut Builder<'_>, node: &NodeDef) -> Result<bool> {
    let plain = ["activation_alpha", "activation_beta", "activation_gamma"];
    let Some(call) = Call::new(builder, node) else { return Ok(false) };
    let (Some(a), Some(b)) = (builder.shape(call.a), builder.shape(call.b)) else {
        return Ok(false);
    };
    if a.len() != 2 || b.len() != 2 || plain.iter().any(|name| node.attribute(name).is_some()) {
        return Ok(false);
    }
    let [m, k] = if call.turn_a { [a[1], a[0]] } else { [a[0], a[1]] };
    let [rows, n] = if call.turn_b { [b[1], b[0]] } else { [b[0], b[1]] };
    let broadcasts = |bias: ValueId| {
        let shape = builder.shape(bias).unwrap_or_default();
        shape.len() <= 2
            && crate::operand::broadcast(&shape, &[m, n]).is_some_and(|j| j.as_slice() == [m, n])
    };
    if rows != k || call.bias.is_some_and(|bias| !broadcasts(bias)) {
        return Ok(false);
    }
    emit(builder, &call, &[], &[m, n])
}

fn emit(builder: &mut Builder<'_>, call: &Call, batch: &[usize], shape: &[usize]) -> Result<bool> {
    let a = turned(builder.operand(call.a)?, call.turn_a);
    let half = call.dtype == DType::F16 && builder.constant(call.b).is_some_and(|b| b.rank() == 2);
    let b = match half {
        true => None,
        false => Some(turned(builder.operand(call.b)?, call.turn_b)),
    };
    let Some(mut product) = describe(&a, b.as_ref(), batch, shape) else { return Ok(false) };
    product.alpha = call.alpha;
    product.rounds = call.dtype == DType::F16;
    product.activation = call.activation;
    if let Some(bias) = call.bias {
        let operand = builder.operand(bias)?;
        let strides = operand.broadcast_strides(&shape[shape.len() - 2..]);
        let (place, row, column) = (operand.place, strides[0], strides[1]);
        product.bias = Some(Bias { place, row, column, beta: call.beta });
    }
    let right = match (b, builder.constant(call.b).cloned()) {
        (Some(operand), _) => operand.place,
        (None, Some(tensor)) => {
            let format = Format::HalfColumns { transposed: call.turn_b };
            product.weights = Packing::Half;
            product.b = [0, half_words(product.k), 0, 0];
            product.allows_half = true;
            Place::Weight(builder.weight(&tensor, format)?)
        }
        (None, None) => return Ok(false),
    };
    if !product.fits() {
        return Ok(false);
    }
    let out = builder.allocate(call.dtype, shape);
    product.launch(builder, a.place, right, out.place.clone());
    builder.define(call.output, out);
    Ok(true)
}

/// Defines the value, rounded to its own precision where that is less than the
/// kernel's.
pub(crate) fn round(builder: &mut Builder<'_>, value: ValueId, operand: Operand) {
    match operand.dtype {
        DType::F16 => {
            let chain = super::pointwise::Chain::rounding(operand);
            builder.defer(value, chain);
        }
        _ => builder.define(value, operand),
    }
}

/// Sizes and strides, with the batch joined into rows where it can be and else
/// into two dimensions; `None` when it takes more. `b` is `None` for a packed
/// matrix.
fn describe(a: &Operand, b: Option<&Operand>, batch: &[usize], shape: &[usize]) -> Option<Product> {
    let rank = shape.len();
    let (m, n) = (shape[rank - 2], shape[rank - 1]);
    let last = |operand: &Operand| {
        let rank = operand.shape.len();
        [operand.strides[rank - 2], operand.strides[rank - 1]]
    };
    let k = a.shape[a.shape.len() - 1];
    let [b_row, b_col] = b.map_or([0, 0], last);
    let mut product = Product {
        m,
        n,
        k,
        a: [last(a)[0], last(a)[1], 0, 0],
        b: [b_row, b_col, 0, 0],
        out: [n, 0, 0],
        ..Product::default()
    };
    let spread = |operand: &Operand| {
        let rank = operand.shape.len() - 2;
        let outer = Operand {
            shape: operand.shape[..rank].into(),
            strides: operand.strides[..rank].into(),
            ..operand.clone()
        };
        outer.broadcast_strides(batch)
    };
    let dense: Shape = crate::operand::dense_strides(shape)[..rank - 2].into();
    let zero: Shape = batch.iter().map(|_| 0).collect();
    let layouts = [spread(a), b.map_or(zero, spread), dense];
    if layouts[1].iter().all(|stride| *stride == 0) && joins_rows(&mut product, &layouts[0], batch)
    {
        return Some(product);
    }
    let (dims, kept) = collapse(batch, &layouts);
    let at = |layout: usize, axis: usize| kept[layout][axis];
    match dims.len() {
        1 => {
            product.batch = [1, dims[0]];
            (product.a[3], product.b[3], product.out[2]) = (at(0, 0), at(1, 0), at(2, 0));
        }
        2 => {
            product.batch = [dims[0], dims[1]];
            (product.a[2], product.b[2], product.out[1]) = (at(0, 0), at(1, 0), at(2, 0));
            (product.a[3], product.b[3], product.out[2]) = (at(0, 1), at(1, 1), at(2, 1));
        }
        _ => return None,
    }
    Some(product)
}

/// Takes the batch as more rows when every product has the same matrix.
fn joins_rows(product: &mut Product, strides: &Shape, batch: &[usize]) -> bool {
    let mut shape: Shape = batch.into();
    shape.push(product.m);
    let mut layout = strides.clone();
    layout.push(product.a[0]);
    let (dims, kept) = collapse(&shape, &[layout]);
    if dims.len() != 1 {
        return false;
    }
    product.m = dims[0];
    product.a[0] = kept[0][0];
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operand(shape: &[usize]) -> Operand {
        Operand::dense(Place::Arena(1), DType::F32, shape)
    }

    #[test]
    fn a_batch_of_rows_is_one_product() {
        let (a, b) = (operand(&[2, 5, 7, 3]), operand(&[3, 4]));
        let product = describe(&a, Some(&b), &[2, 5], &[2, 5, 7, 4]).unwrap();
        assert_eq!((product.m, product.batch, product.a[0]), (70, [1, 1], 3));
    }

    #[test]
    fn heads_are_two_batch_dimensions() {
        // [batch, sequence, heads, size] seen as [batch, heads, sequence, size].
        let mut a = operand(&[2, 8, 4, 16]);
        a.shape.swap(1, 2);
        a.strides.swap(1, 2);
        let product = describe(&a, Some(&a.clone()), &[2, 4], &[2, 4, 8, 8]);
        let product = product.unwrap();
        assert_eq!(product.batch, [2, 4]);
        assert_eq!(product.a, [64, 1, 512, 16]);
        assert_eq!(product.out, [8, 256, 64]);
    }
}
