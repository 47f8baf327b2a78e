//! The one binary.

/// A message is allocated by the task that reads it and freed by the thread that stored it: the C library's allocator
/// spends a third of a loaded node's time on that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    seaway_edge_broker::cli::main()
}
