//! The operators, one file per family. A family's `ENTRIES` are of ONNX's
//! default domain, or of `ai.onnx.ml` where the name starts with `ml_`;
//! `MS_ENTRIES` are of `com.microsoft`.

pub(crate) mod attention;
pub(crate) mod broadcast;
pub(crate) mod control;
pub(crate) mod conv;
pub(crate) mod determinant;
pub(crate) mod elementwise;
pub(crate) mod flex_attention;
pub(crate) mod index_ops;
pub(crate) mod layout;
pub(crate) mod linear_attention;
pub(crate) mod loss;
pub(crate) mod matmul;
pub(crate) mod ml_linear;
pub(crate) mod ml_prep;
pub(crate) mod ml_scores;
pub(crate) mod ml_svm;
pub(crate) mod ml_trees;
pub(crate) mod norm;
pub(crate) mod optimizers;
pub(crate) mod pool;
pub(crate) mod quant;
pub(crate) mod random;
pub(crate) mod recurrent;
pub(crate) mod reduce;
pub(crate) mod rotary;
pub(crate) mod sequence;
pub(crate) mod shape_ops;
pub(crate) mod signal;
pub(crate) mod softmax;
pub(crate) mod spatial;
pub(crate) mod text;
pub(crate) mod window;
