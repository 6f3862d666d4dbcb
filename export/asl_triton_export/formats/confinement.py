"""Runs untrusted code in a process that can compute and do little else.

    python -I confinement.py '{"call": "MODULE:FUNCTION", "arguments": [...], "scratch": FOLDER, "read": [...], ...}'

On Linux, the process can write only below `scratch`, and read only there, below `read`, and Python's own files
(Landlock, Linux 5.13 or later). On x86-64 it cannot open a socket, start a program, or inspect or kill a process
(seccomp). On every system, CPU time, file sizes and running time are limited. The process confines itself before it
imports anything large, so every later thread is confined too. This file is run by its path, so it imports only the
standard library.

This limits what a network can do through PyTorch's operators, and what code can do that exploits a flaw in PyTorch. It
does not protect against kernel bugs or timing side channels.
"""

import ctypes
import importlib
import json
import os
import platform
import resource
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

MAX_COMPUTING_S = 1800
MAX_WRITTEN_BYTES = 8 * 2**30
# From <linux/landlock.h>: how many file access rights each version of the interface defines.
READ_RIGHTS, FILE_RIGHTS = 1 << 0 | 1 << 2 | 1 << 3, 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14
NUM_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION_FLAG, PATH_BENEATH = 1, 1
# From <sys/prctl.h>, <linux/seccomp.h>, <linux/audit.h>, <linux/bpf_common.h>, <linux/sched.h>, and x86-64's
# <asm/unistd_64.h>.
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, MODE_FILTER = 22, 38, 2
AUDIT_ARCH_X86_64, X32_CALLS = 0xC000003E, 0x40000000
LOAD, IF_EQUAL, IF_AT_LEAST, IF_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
CALL, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in the data that a filter reads
ENDS = {"allow": 0x7FFF0000, "refuse": 0x00050000 | 1, "missing": 0x00050000 | 38}  # EPERM, ENOSYS
CLONE, CLONE3, CLONE_THREAD = 56, 435, 0x10000
REFUSED_CALLS = {
    "socket": 41, "socketpair": 53, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "ptrace": 101,
    "rt_sigqueueinfo": 129, "mount": 165, "tkill": 200, "tgkill": 234, "add_key": 248, "request_key": 249,
    "keyctl": 250, "unshare": 272, "rt_tgsigqueueinfo": 297, "perf_event_open": 298, "setns": 308,
    "process_vm_readv": 310, "process_vm_writev": 311, "bpf": 321, "execveat": 322, "userfaultfd": 323,
    "pidfd_send_signal": 424, "io_uring_setup": 425, "pidfd_getfd": 438,
}  # fmt: skip


def run_confined(
    call: str, arguments: Sequence[object], scratch: Path, read: Iterable[Path], timeout_s: float
) -> "subprocess.CompletedProcess[bytes]":
    """Call `MODULE:FUNCTION` with JSON-serializable arguments in a confined process.

    Its output is discarded. It gets only the environment variables that libraries need.

    Raises:
        subprocess.TimeoutExpired: it ran for more than `timeout_s` and was killed.
    """
    order = {
        "call": call,
        "arguments": list(arguments),
        "scratch": str(scratch),
        "read": [str(path.absolute()) for path in read],
        "modules": [place for place in sys.path if place and Path(place).is_absolute()],
    }
    kept = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "MKL_NUM_THREADS")
    environment = {name: os.environ[name] for name in kept if name in os.environ} | {"TMPDIR": str(scratch)}
    return subprocess.run(
        [sys.executable, "-I", __file__, json.dumps(order)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=scratch,
        env=environment,
        timeout=timeout_s,
        check=False,
    )


def can_confine() -> bool:
    """Whether this system can restrict file access. Other systems only limit time and file sizes."""
    return sys.platform == "linux" and read_landlock_version() > 0


def read_landlock_version() -> int:
    """Return the version of the kernel's Landlock interface, or a number below 1 if it has none."""
    return int(ctypes.CDLL(None).syscall(CREATE_RULESET, None, 0, VERSION_FLAG))


def confine(scratch: str, read: Iterable[str]) -> None:
    """Confine this process and its future threads as far as the system supports it."""
    for which, most in ((resource.RLIMIT_CPU, MAX_COMPUTING_S), (resource.RLIMIT_FSIZE, MAX_WRITTEN_BYTES)):
        resource.setrlimit(which, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot disable new privileges")
    version = read_landlock_version()
    if version > 0:
        restrict_files(libc, version, scratch, read)
    if platform.machine() == "x86_64":
        refuse_calls(libc)


def restrict_files(libc: ctypes.CDLL, version: int, scratch: str, read: Iterable[str]) -> None:
    """Restrict this process to writing below `scratch`, and to reading there and below `read`."""
    rights = (1 << NUM_RIGHTS[min(version, max(NUM_RIGHTS))]) - 1
    handled = ctypes.create_string_buffer(struct.pack("=Q", rights), 8)
    ruleset = libc.syscall(CREATE_RULESET, handled, 8, 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "cannot create a Landlock ruleset")
    for place, allowed in ((scratch, rights), *((place, READ_RIGHTS & rights) for place in read)):
        try:
            file = os.open(place, os.O_PATH | os.O_CLOEXEC)
        except OSError:  # not on this system
            continue
        if not os.path.isdir(place):
            allowed &= FILE_RIGHTS
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, file), 12)
        if libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, rule, 0):
            raise OSError(ctypes.get_errno(), f"cannot allow {place}")
        os.close(file)
    if libc.syscall(RESTRICT_SELF, ruleset, 0):
        raise OSError(ctypes.get_errno(), "cannot restrict this process")
    os.close(ruleset)


def refuse_calls(libc: ctypes.CDLL) -> None:
    """Make the kernel refuse `REFUSED_CALLS` and new processes, but not new threads."""
    # Each step is an operation, its operand, and where to jump if the test is true and if it is false (None: go on).
    steps: list[tuple[int, int, str | None, str | None]] = [
        (LOAD, ARCHITECTURE, None, None),
        (IF_EQUAL, AUDIT_ARCH_X86_64, None, "refuse"),
        (LOAD, CALL, None, None),
        (IF_AT_LEAST, X32_CALLS, "refuse", None),  # the same calls with other numbers
        (IF_EQUAL, CLONE3, "missing", None),  # a filter cannot read its flags; glibc falls back to clone
        *((IF_EQUAL, call, "refuse", None) for call in REFUSED_CALLS.values()),
        (IF_EQUAL, CLONE, None, "allow"),
        (LOAD, FIRST_ARGUMENT, None, None),
        (IF_SET, CLONE_THREAD, "allow", "refuse"),
    ]
    ends = {name: len(steps) + place for place, name in enumerate(ENDS)}
    code = b"".join(
        struct.pack("=HBBI", kind, *(ends[to] - place - 1 if to else 0 for to in (if_so, if_not)), value)
        for place, (kind, value, if_so, if_not) in enumerate(steps)
    )
    code += b"".join(struct.pack("=HBBI", RETURN, 0, 0, value) for value in ENDS.values())
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    if libc.prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.create_string_buffer(program, len(program)), 0, 0):
        raise OSError(ctypes.get_errno(), "cannot filter system calls")


def find_own_files(modules: Iterable[str]) -> list[str]:
    """Return the paths that Python, its packages and their libraries are loaded from."""
    own = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *modules]
    system = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/sys/devices", "/sys/fs/cgroup", "/proc/self"]
    return [*own, *system, "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/dev/null", "/dev/urandom"]


def main(order_json: str) -> None:
    """Confine this process, then make the call that the order describes."""
    order = json.loads(order_json)
    confine(order["scratch"], [*order["read"], *find_own_files(order["modules"])])
    sys.path[:] = order["modules"]
    module, _, function = order["call"].partition(":")
    getattr(importlib.import_module(module), function)(*order["arguments"])


if __name__ == "__main__":
    main(sys.argv[1])
