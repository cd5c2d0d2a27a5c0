//! Bounded cache: statement text → intent.
