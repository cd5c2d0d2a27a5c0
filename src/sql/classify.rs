//! One statement string → its intent.

use super::{
    Dialect, Intent, LexModes,
    catalog::{Catalog, FunctionRules},
};

/// Reads `text` as `dialect` under `modes`; what it calls and touches is judged by `catalog` and
/// `rules`. Never fails: what cannot be understood is a write.
pub fn classify(
    _text: &[u8],
    _dialect: Dialect,
    _modes: LexModes,
    _catalog: &Catalog,
    _rules: &FunctionRules,
) -> Intent {
    unimplemented!()
}
