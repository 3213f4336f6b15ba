//! The bpf(2) calls that aya has no words for.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;

/// Calls bpf(2) with an attribute made of 64-bit words, which is how every
/// `union bpf_attr` variant can be written on a little-endian machine.
///
/// # Safety
/// Words that the command takes for addresses must be valid for it.
unsafe fn bpf<const N: usize>(
    command: libc::c_int,
    words: &mut [u64; N],
) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is readable and writable for the size given; the
    // caller vouches for the addresses inside.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, words.as_mut_ptr(), size_of::<[u64; N]>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Loads the smallest program of the type that observers use, and lets go of
/// it: capability bits tell less, for in a user namespace all may be set.
pub(crate) fn try_to_load() -> io::Result<()> {
    const RAW_TRACEPOINT: u64 = 17;
    // r0 = 0; exit
    let program = [0xb7_u64, 0x95];
    // struct { u32 prog_type, insn_cnt; u64 insns, license; u32 log_level, log_size;
    //          u64 log_buf; u32 kern_version, prog_flags; }
    let mut words = [0_u64; 6];
    words[0] = RAW_TRACEPOINT | (program.len() as u64) << 32;
    words[1] = program.as_ptr() as u64;
    words[2] = c"GPL".as_ptr() as u64;
    // SAFETY: insns points to insn_cnt instructions and license to a C string,
    // for the length of the call.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &mut words) }?;
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel made it for us, and nobody else has it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

fn fd_word(fd: BorrowedFd<'_>) -> u64 {
    // File descriptors are not negative.
    u64::from(fd.as_raw_fd().unsigned_abs())
}

/// Runs a raw tracepoint program once with these arguments, as the caller,
/// on this CPU. Needs Linux 5.10.
pub(crate) fn test_run(program: BorrowedFd<'_>, arguments: &[u64; 12]) -> io::Result<()> {
    // struct { u32 prog_fd, retval, data_size_in, data_size_out; u64 data_in, data_out;
    //          u32 repeat, duration, ctx_size_in, ctx_size_out; u64 ctx_in, ctx_out; u32 flags, cpu; }
    let mut words = [0_u64; 9];
    words[0] = fd_word(program);
    words[5] = size_of_val(arguments) as u64;
    words[6] = arguments.as_ptr() as u64;
    // SAFETY: ctx_in points to ctx_size_in readable bytes for the length of the call.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut words) }.map(drop)
}

/// What the kernel counts for a program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProgramCounters {
    /// Time spent in it, while statistics were enabled.
    pub run_time_ns: u64,
    /// How often it ran, while statistics were enabled.
    pub runs: u64,
    /// Calls that the kernel skipped because it was running on that CPU.
    pub missed: u64,
}

/// Reads a program's counters. Those of raw tracepoints leave `missed` at 0
/// before 6.1, which skips no run.
pub(crate) fn program_counters(program: BorrowedFd<'_>) -> io::Result<ProgramCounters> {
    // struct bpf_prog_info up to and with recursion_misses (offset 208).
    let mut info = [0_u64; 27];
    // struct { u32 bpf_fd, info_len; u64 info; }
    let mut words =
        [fd_word(program) | (size_of_val(&info) as u64) << 32, info.as_mut_ptr() as u64];
    // SAFETY: info points to info_len writable bytes for the length of the call.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut words) }?;
    Ok(ProgramCounters { run_time_ns: info[24], runs: info[25], missed: info[26] })
}
