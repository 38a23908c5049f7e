//! The `longreel` command: see [`longreel::cli`].

#[global_allocator]
static ALLOCATOR: longreel::allocator::Allocator = longreel::allocator::Allocator;

fn main() -> std::process::ExitCode {
    longreel::allocator::keep_freed_memory();
    longreel::cli::main()
}
