//! Splits text into tokens, strips literals; fail-safe.
