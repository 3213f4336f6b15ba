//! Compiles the eBPF programs. The objects are committed, so that building
//! the agent needs no clang; `--check` proves that they come from their source.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Another major version makes other code, so exactly this one.
const CLANG: &str = "clang-14";
const STRIP: &str = "llvm-strip-14";

/// Where the shared headers lie, from the root of the repository.
const INCLUDE: &str = "crates/ebpf/bpf";
/// The sources; each object lies beside its own.
const SOURCES: [&str; 3] = [
    "crates/ebpf/tests/probes.bpf.c",
    "crates/observers/src/network/network.bpf.c",
    "crates/observers/src/container/container.bpf.c",
];

/// Compiles all objects in place.
pub(crate) fn build() -> Result<(), String> {
    let root = root()?;
    for source in SOURCES {
        let object = object_of(&root.join(source));
        compile(&root, source, &object)?;
        println!("{}", object.strip_prefix(&root).unwrap_or(&object).display());
    }
    Ok(())
}

/// Compiles all objects elsewhere and compares them with what is there.
pub(crate) fn check() -> Result<(), String> {
    let root = root()?;
    let scratch = root.join("target/xtask-bpf");
    std::fs::create_dir_all(&scratch).map_err(|e| format!("{}: {e}", scratch.display()))?;
    let mut differing = Vec::new();
    for source in SOURCES {
        let committed = object_of(&root.join(source));
        let name = committed.file_name().ok_or("a source without a name")?;
        let fresh = scratch.join(name);
        compile(&root, source, &fresh)?;
        if read(&committed)? != read(&fresh)? {
            differing.push(object_of(Path::new(source)).display().to_string());
        }
    }
    if differing.is_empty() {
        println!("{} eBPF objects are what their sources compile to", SOURCES.len());
        return Ok(());
    }
    Err(format!(
        "not what the source compiles to: {}; run `cargo xtask bpf` and commit the result",
        differing.join(", ")
    ))
}

fn root() -> Result<PathBuf, String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.parent().ok_or("xtask lies outside of the repository")?;
    Ok(root.to_owned())
}

fn object_of(source: &Path) -> PathBuf {
    // network.bpf.c -> network.bpf.o
    source.with_extension("o")
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Compiles one source. Run from the root with relative paths, so that the
/// object is the same wherever the repository lies.
fn compile(root: &Path, source: &str, object: &Path) -> Result<(), String> {
    run(Command::new(CLANG)
        .current_dir(root)
        .args(["--target=bpf", "-mcpu=v2", "-O2", "-g", "-std=gnu11"])
        .args(["-Wall", "-Wextra", "-Werror", "-I", INCLUDE])
        .arg(format!("-ffile-prefix-map={}=.", root.display()))
        .args(["-fdebug-compilation-dir=.", "-c", source, "-o"])
        .arg(object))?;
    // Debug information goes; .BTF and .BTF.ext stay, they are what CO-RE needs.
    run(Command::new(STRIP).arg("-g").arg(object))
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => format!(
            "{program} is not installed; eBPF objects are built with exactly this version \
             (Debian: apt-get install clang-14 llvm-14)"
        ),
        _ => format!("{program}: {e}"),
    })?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{program}: {status}"))
}
