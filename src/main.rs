//! The `longreel` command: see [`longreel::cli`].

/// Freed tiles are handed out again without going back to the system, so a steady step has no page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    longreel::cli::main()
}
