"""A process as deploy/ lets it run, without a container engine: the kernel's own namespaces, by `unshare`.

The root file system is read-only but for tmpfs on /tmp, /run/asl-triton and /dev/shm, the process is the first of its
PID namespace, runs as uid 1000, and has no capabilities and no way to new ones.
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

# $1 is a folder that is to be seen at /mnt/given; $2, Python's, and $3, the checkout, stay where they are, although
# uid 1000 may not be able to reach them, or /tmp covers them.
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
def contained(
    command: Sequence[str | Path], variables: Mapping[str, str], given: Path, log: Path
) -> Iterator[psutil.Process]:
    """`command` within; it finds the folder `given`, which is opened to all, at /mnt/given.

    Whatever of it is left at the end is killed.
    """
    if os.geteuid() != 0:
        pytest.skip("only root may make the namespaces that this test runs a process in")
    unshare = program("unshare", "apt-get install util-linux")
    program("setpriv", "apt-get install util-linux")
    given.chmod(0o755)  # pytest's folders are root's alone
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
        # The first process takes all of its namespace along. That unshare's end kills it is lost with its user.
        for process in first:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        outer.kill()
        outer.wait()
