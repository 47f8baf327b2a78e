//! The one binary.

/// A message is allocated by the task that reads it and freed by the thread that stored it, which the C library's allocator
/// does badly.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    seaway_edge_broker::cli::main()
}
