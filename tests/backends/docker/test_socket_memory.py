"""Where the group of version 1 is found whose limit holds what lies in sockets. That it holds: test_limits.py."""

from pathlib import Path

from orchestrator.backends.docker.socket_memory import group_of

MOUNTS = (
    "40 32 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    "44 32 0:31 / /sys/fs/cgroup/my\\040memory rw - cgroup cgroup rw,memory\n"
)


def test_the_group_lies_below_the_mount_of_version_1() -> None:
    cgroups = "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/docker/abc\n"
    assert group_of(cgroups, MOUNTS) == Path("/sys/fs/cgroup/my memory/docker/abc")


def test_version_2_has_none() -> None:
    assert group_of("0::/system.slice/docker-abc.scope\n", MOUNTS) is None
    assert group_of("5:memory:/docker/abc\n", "40 32 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n") is None
