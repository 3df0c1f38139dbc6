//! `starlock`: see the library.

fn main() {}
