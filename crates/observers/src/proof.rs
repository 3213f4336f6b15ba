//! What the proofs of all observers share.

use aya::maps::Array;
use vahti_ebpf::abi::{self, KIND_PROOF, Proof, SelfFacts, TEST_RUN_MAGIC};
use vahti_ebpf::error::EbpfError;
use vahti_ebpf::manager::AyaManager;
use vahti_runtime::ebpf::EbpfManager as _;

/// Runs every attached program once with arguments that no tracepoint passes.
/// It writes a proof record and our own thread group id as the kernel knows
/// it. Kernels before 5.10 can't; there, stronger proofs have to do.
fn test_run_all(manager: &AyaManager) {
    // In every place, as not every tracepoint's first argument is an address.
    let arguments = [TEST_RUN_MAGIC; 12];
    for program in manager.attached() {
        if let Err(error) = program.test_run(&arguments) {
            tracing::debug!(program = program.name(), %error, "no test run");
        }
    }
}

/// The probe that a test run's record proves, as a bit.
pub(crate) fn test_run_proof(record: &[u8]) -> u32 {
    match abi::split::<Proof>(record) {
        Some((proof, _)) if proof.header.kind == KIND_PROOF => 1 << (proof.probe & 31),
        _ => 0,
    }
}

/// Has the programs run once, and tells our thread group id as they know it:
/// in a pid namespace getpid() would not.
pub(crate) fn introduce(manager: &mut AyaManager) -> Option<u32> {
    test_run_all(manager);
    match write_self(manager, |facts| facts) {
        Ok(facts) => Some(facts.tgid),
        Err(error) => {
            tracing::debug!(%error, "nobody can be told of our proofs");
            None
        }
    }
}

/// Changes what the programs know of us. The thread group id is theirs to
/// tell; where they could not be asked, ours has to do.
pub(crate) fn write_self(
    manager: &mut AyaManager,
    change: impl FnOnce(SelfFacts) -> SelfFacts,
) -> Result<SelfFacts, EbpfError> {
    let failed = |error: aya::maps::MapError| EbpfError::Map {
        map: "self".to_owned(),
        what: error.to_string(),
    };
    let mut map: Array<_, [u32; 2]> = manager.map("self")?.try_into().map_err(failed)?;
    let [mut tgid, proof] = map.get(&0, 0).map_err(failed)?;
    if tgid == 0 {
        tgid = std::process::id();
    }
    let facts = change(SelfFacts { tgid, proof });
    map.set(0, [facts.tgid, facts.proof], 0).map_err(failed)?;
    Ok(facts)
}
