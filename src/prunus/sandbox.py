"""Code that a model wrote, run where it can do no harm: a process of its own, without network, in which nothing can be written."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from typing import Literal

from .errors import RecipeError

__all__ = ["Execute", "passes"]

Execute = Literal["off", "sandbox", "here"]  # code that a model wrote: never, confined, or on this machine

_UNCONFINED = 99  # what the process ends with when the system does not let it be confined

# Runs in the new process, before the code does. Namespaces (man 7 namespaces): users, files, network, processes; all files are then
# read-only (mount_setattr with AT_RECURSIVE), and the rights that the first of them gave are laid down. /run is hidden, as a socket
# in it may lead to a service of another user.
_CONFINE = r"""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def confine():
    user, group = os.getuid(), os.getgid()
    if libc.unshare(0x10000000 | 0x00020000 | 0x40000000 | 0x20000000 | 0x08000000):
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    if libc.mount(None, b"/", None, 0x44000, None):
        return False
    libc.mount(b"tmpfs", b"/run", b"tmpfs", 0, None)
    read_only = (ctypes.c_uint64 * 4)(1, 0, 0, 0)
    if libc.syscall(442, -100, b"/", 0x8000, ctypes.byref(read_only), 32):
        return False
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(1 if status else 0)
    libc.prctl(1, 9, 0, 0, 0)
    libc.prctl(38, 1, 0, 0, 0)
    for right in range(64):
        libc.prctl(24, right, 0, 0, 0)
    head, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    return not libc.capset(ctypes.byref(head), ctypes.byref(none))
try:
    confined = confine()
except OSError:
    confined = False
if not confined:
    os._exit(99)
"""
_LIMIT = r"""
import resource, sys
for name, most in ((resource.RLIMIT_CPU, int(sys.argv[1]) + 1), (resource.RLIMIT_AS, 4 << 30), (resource.RLIMIT_FSIZE, 0),
                   (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(name, (most, most))
exec(compile(sys.stdin.read(), "written by the model", "exec"), {"__name__": "__main__"})
"""


def passes(code: str, seconds: float = 3.0, confined: bool = True) -> bool:
    """Whether Python code runs to its end in so many seconds, without an error; what it prints is not seen.

    It runs in a process of its own with an empty environment and at most 4 GiB of memory, and writes no byte to a file. `confined`,
    it has no network either, can reach no other process, and all files are read-only (Linux alone). Raises RecipeError where the
    system does not allow that.
    """
    script = (_CONFINE if confined else "") + _LIMIT
    with tempfile.TemporaryDirectory(prefix="prunus-code-") as folder:
        process = subprocess.Popen([sys.executable, "-I", "-c", script, str(int(seconds))], stdin=subprocess.PIPE, cwd=folder, env={},
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            process.communicate(code.encode(errors="replace"), timeout=seconds + 1)  # the interpreter has to start
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end(process)
    if confined and process.returncode == _UNCONFINED:
        raise RecipeError("execute = 'sandbox': this system does not let a process be confined (user namespaces, Linux 5.12 or newer). Use "
                          "execute = 'here' only on a machine that has nothing to lose.")
    return process.returncode == 0


def _end(process: "subprocess.Popen[bytes]") -> None:
    """The process, and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
