//! `starlock`: see the library.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // Fails only if there is a provider already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    starlock::cli::main()
}
