//! Whether requests may be merged: a proof that no operator mixes rows.

use crate::plan::Draft;

/// Conservative: `false` unless every operator is known to keep rows apart.
pub(crate) fn rows_independent(_draft: &Draft) -> bool {
    false
}
