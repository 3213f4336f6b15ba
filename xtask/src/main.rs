//! What people type: `cargo xtask <command>`. One module a command.

#[cfg(feature = "checks")]
mod bench;
mod bpf;
#[cfg(feature = "checks")]
mod ci;
mod command;
#[cfg(feature = "checks")]
mod crash;
mod deb;
mod dist;
mod stage;

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
  deb          build the static binary and make a Debian package of it,
               target/debian/vahti_VERSION_ARCH.deb
  dist         a release: archive, Debian package, bill of materials and
               checksums, in target/dist
  dist binary  build the static binary, and say where it is
  dist papers FOLDER
               licences, notices and the bill of that binary
  dist check   try what a release promises
  dist kubernetes
               try the DaemonSet in the cluster of KUBECONFIG, with the image
               VAHTI_IMAGE
  bpf --check  compile them elsewhere and fail if they differ from what is committed
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        ["bpf"] => bpf::build(),
        ["bpf", "--check"] => bpf::check(),
        ["deb"] => deb::build(),
        ["dist", parts @ ..] => dist::run(parts),
        other => match checks(other) {
            Some(result) => result,
            None => {
                eprint!("{USAGE}");
                return ExitCode::from(64);
            }
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What needs the store's code to look into what an agent left; releases are
/// built without it.
#[cfg(feature = "checks")]
fn checks(args: &[&str]) -> Option<Result<(), String>> {
    Some(match args {
        ["ci"] => ci::run(),
        ["bench", parts @ ..] => bench::run(parts),
        ["crash", options @ ..] => crash::run(options),
        // What `crash` starts as processes of their own.
        ["load", load @ ..] => crash::load(load),
        _ => return None,
    })
}

#[cfg(not(feature = "checks"))]
fn checks(_: &[&str]) -> Option<Result<(), String>> {
    None
}
