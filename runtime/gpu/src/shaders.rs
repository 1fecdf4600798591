//! Kernels: a shader file, what it includes, and the constants it is tuned by.

use std::sync::Arc;

macro_rules! files {
    ($($variant:ident => $file:literal),* $(,)?) => {
        /// A file in `shaders/`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum File { $($variant),* }

        impl File {
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),*];

            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$variant => $file),* }
            }

            fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => include_str!(concat!("../../../shaders/", $file))),*
                }
            }
        }
    };
}

files! {
    Attention => "attention.wgsl",
    Columns => "columns.wgsl",
    Combine => "combine.wgsl",
    Common => "common.wgsl",
    Conv => "conv.wgsl",
    ConvDirectInt8 => "conv_direct_int8.wgsl",
    ConvInt8 => "conv_int8.wgsl",
    Copy => "copy.wgsl",
    Depthwise => "depthwise.wgsl",
    Expand => "expand.wgsl",
    Gather => "gather.wgsl",
    Gemv => "gemv.wgsl",
    GemvQuads => "gemv_quads.wgsl",
    GemvWords => "gemv_words.wgsl",
    Lanes => "lanes.wgsl",
    Leaves => "leaves.wgsl",
    Matmul => "matmul.wgsl",
    MatmulInt8 => "matmul_int8.wgsl",
    MatmulQuads => "matmul_quads.wgsl",
    MatmulUnits => "matmul_units.wgsl",
    Norm => "norm.wgsl",
    Pack => "pack.wgsl",
    PackChannels => "pack_channels.wgsl",
    PackHalf => "pack_half.wgsl",
    Parts => "parts.wgsl",
    Peak => "peak.wgsl",
    Pool => "pool.wgsl",
    Product => "product.wgsl",
    Reduce => "reduce.wgsl",
    Scalars => "scalars.wgsl",
    Softmax => "softmax.wgsl",
    Stream => "stream.wgsl",
    Tiles => "tiles.wgsl",
    TreeScores => "tree_scores.wgsl",
    Trees => "trees.wgsl",
}

/// A line of a shader that stands for the text of another file.
const INCLUDE: &str = "// include: ";

/// A compiled kernel's identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kernel {
    text: Text,
    constants: Vec<(&'static str, u32)>,
    bindings: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Text {
    File(File),
    /// Written for one chain of operators.
    Generated(Arc<str>),
}

impl Kernel {
    /// `constants` replace the values that the file gives its `const`s of the
    /// same names.
    pub(crate) fn new(file: File, bindings: usize, constants: &[(&'static str, u32)]) -> Self {
        Self { text: Text::File(file), constants: constants.to_vec(), bindings }
    }

    pub(crate) fn generated(source: &str, bindings: usize) -> Self {
        Self { text: Text::Generated(source.into()), constants: Vec::new(), bindings }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.text {
            Text::File(file) => file.name(),
            Text::Generated(_) => "pointwise",
        }
    }

    pub(crate) fn binding_count(&self) -> usize {
        self.bindings
    }

    /// WGSL with includes in place and constants set.
    pub(crate) fn source(&self) -> String {
        let text = match &self.text {
            Text::File(file) => file.text(),
            Text::Generated(source) => source,
        };
        let mut source = String::with_capacity(2 * text.len());
        push(&mut source, text);
        for (name, value) in &self.constants {
            source = with_constant(&source, name, *value);
        }
        source
    }
}

/// Files that others include, and that are no shader by themselves.
const FRAGMENTS: [File; 8] = [
    File::Columns,
    File::Common,
    File::Lanes,
    File::Leaves,
    File::Parts,
    File::Product,
    File::Scalars,
    File::Tiles,
];

/// The text with includes in place, those of fragments too.
fn push(source: &mut String, text: &str) {
    for line in text.lines() {
        match line.strip_prefix(INCLUDE) {
            Some(name) => push(source, included(name)),
            None => source.push_str(line),
        }
        source.push('\n');
    }
}

/// # Panics
/// When there is no such fragment.
fn included(name: &str) -> &'static str {
    let known = FRAGMENTS.iter().find(|file| file.name() == name);
    known.unwrap_or_else(|| panic!("no fragment {name}")).text()
}

/// # Panics
/// When the shader has no such constant.
fn with_constant(source: &str, name: &str, value: u32) -> String {
    let declaration = format!("const {name}: u32 = ");
    let at = source.find(&declaration);
    let start = at.unwrap_or_else(|| panic!("no constant {name}")) + declaration.len();
    let end = start + source[start..].find(';').unwrap_or_default();
    format!("{}{value}u{}", &source[..start], &source[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses and validates, as a driver that we have not got would see it.
    pub(crate) fn validate(source: &str) -> Result<(), String> {
        let module = naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
        let capabilities = naga::valid::Capabilities::all();
        naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities)
            .validate(&module)
            .map(drop)
            .map_err(|e| e.emit_to_string(source))
    }

    #[test]
    fn every_shader_validates() {
        for file in File::ALL.iter().filter(|file| !FRAGMENTS.contains(file)) {
            let kernel = Kernel::new(*file, 1, &[]);
            validate(&kernel.source()).unwrap_or_else(|e| panic!("{}: {e}", file.name()));
        }
    }

    #[test]
    fn every_shader_says_what_it_binds() {
        for file in File::ALL {
            let text = file.text();
            for heading in ["// Bindings:", "// Shapes:", "// Limits:"] {
                assert!(text.contains(heading), "{} lacks \"{heading}\"", file.name());
            }
        }
    }

    #[test]
    fn every_file_is_listed() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shaders");
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(File::ALL.iter().any(|file| file.name() == name), "{name} is not used");
        }
    }
}
