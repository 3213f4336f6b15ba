//! What people type: `cargo xtask <command>`. One module a command.

mod bench;
mod bpf;
mod ci;
mod deb;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask <command>

  bpf          compile the eBPF objects and put them beside their sources
  ci           everything that must hold before a change lands
  bench [PART]...
               measure: queue, sampler, pipeline, network; latency, start, idle,
               storm (the last four as root, with the release binary)
  deb          build the release binary and make a Debian package of it,
               target/debian/vahti_VERSION_ARCH.deb
  bpf --check  compile them elsewhere and fail if they differ from what is committed
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        ["bpf"] => bpf::build(),
        ["bpf", "--check"] => bpf::check(),
        ["deb"] => deb::build(),
        ["ci"] => ci::run(),
        ["bench", parts @ ..] => bench::run(parts),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(64);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
