//! What is known of built-in functions.
