//! What people type: `cargo xtask <command>`. One module a command.

mod bench;
mod bpf;
mod ci;
mod crash;
mod deb;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask <command>

  bpf          compile the eBPF objects and put them beside their sources
  ci           everything that must hold before a change lands
  bench [PART]...
               measure: queue, sampler, pipeline, network; latency, start, idle,
               storm (the last four as root, with the release binary)
  bench reload [--reloads N] [--events PER_SECOND]
               so many reloads (1,000) under so many events a second (20,000),
               every tenth of them invalid; every event is counted (as root)
  crash [--kills N] [--seed S] [--max-bytes SIZE]
               kill the release binary at random moments under load, and look
               up what it promised (as root; 200 kills, a store that keeps all)
  crash outage [--events N]
               take a durable exporter's disk away for so many events (100,000)
  crash overload [--seconds N]
               offer each emitter ten times what it takes, for so long (60)
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
        ["crash", options @ ..] => crash::run(options),
        // What `crash` starts as processes of their own.
        ["load", load @ ..] => crash::load(load),
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
