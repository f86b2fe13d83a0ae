//! One command, and its exit code.

/// A producer's records are allocated by one thread and freed by another, six pieces each, at which the C library's own allocator spends
/// a third of the CPU time. How it is set is in `.cargo/config.toml`.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    headwater::cli::main()
}
