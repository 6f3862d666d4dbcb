"""Run a process with the restrictions of deploy/ but without a container engine: `unshare` makes the namespaces.

The root file system is read-only except for tmpfs on /tmp, /run/asl-triton and /dev/shm. The process is PID 1 of its
namespace, runs as uid 1000, has no capabilities and cannot gain any.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.deploy.programs import program

# $1 is mounted at /mnt/given. $2 (Python) and $3 (the checkout) keep their paths, even if uid 1000 cannot reach them
# there or the tmpfs on /tmp hides them.
NAMESPACE = """
set -eu
as_user() { setpriv --reuid 1000 --regid 1000 --clear-groups "$@"; }
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs /mnt
mkdir /mnt/given /mnt/python /mnt/checkout
mount --bind "$1" /mnt/given
mount --bind "$2" /mnt/python
mount --bind "$3" /mnt/checkout
top="/$(echo "$2" | cut -d/ -f2)"
case "$top" in
    /usr|/opt|/bin) ;;
    *) if ! as_user test -x "$2"; then
        mount -t tmpfs -o mode=0755 tmpfs "$top"
        mkdir -p "$2"
        mount --bind /mnt/python "$2"
    fi ;;
esac
mount -t tmpfs -o mode=1777 tmpfs /tmp
if ! as_user test -e "$3/pyproject.toml"; then
    mkdir -p "$3"
    mount --bind /mnt/checkout "$3"
fi
mount -t tmpfs -o mode=1777,size=512m tmpfs /dev/shm
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir /run/asl-triton
mount -t tmpfs -o mode=0700,uid=1000,gid=1000 tmpfs /run/asl-triton
mount -o remount,bind,ro /
mount -o remount,bind,ro /mnt/given
mount -o remount,ro /mnt
mount -o remount,ro /run
shift 3
cd /tmp
exec setpriv --reuid 1000 --regid 1000 --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


@contextmanager
def run_contained(
    command: Sequence[str | Path], variables: Mapping[str, str], given: Path, log: Path
) -> Iterator[psutil.Process]:
    """Run `command` in the namespaces for the block, then kill whatever is left of it.

    It sees the folder `given` at /mnt/given. The folder is made readable for everyone.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root to create the namespaces that it runs a process in")
    unshare = program("unshare", "apt-get install util-linux")
    program("setpriv", "apt-get install util-linux")
    given.chmod(0o755)  # pytest makes its folders private to root
    python, checkout = Path(sys.base_prefix), Path(__file__).parents[2]
    namespaces = [unshare, "--mount", "--pid", "--fork", "--mount-proc"]
    with log.open("wb") as output:
        outer = subprocess.Popen(
            [*namespaces, "sh", "-c", NAMESPACE, "sh", given, python, checkout, *command],
            env={"PYTHONDONTWRITEBYTECODE": "1", **variables, "HOME": "/tmp"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    first: list[psutil.Process] = []
    try:
        while not first:
            assert outer.poll() is None, log.read_text()
            first = psutil.Process(outer.pid).children()
        yield first[0]
    finally:
        # Killing PID 1 ends its namespace. `unshare --kill-child` would not: its signal is lost when the user changes.
        for process in first:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        outer.kill()
        outer.wait()
