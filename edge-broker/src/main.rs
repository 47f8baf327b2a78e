//! The one binary.

fn main() -> std::process::ExitCode {
    seaway_edge_broker::cli::main()
}
