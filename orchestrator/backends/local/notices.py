"""What an operator reads at every start on this backend, and in `doctor`: in few words, what it does not stop."""

from orchestrator.backends.local.cgroups import Hierarchies
from orchestrator.backends.local.settings import LocalSettings

ALWAYS = (
    "backend local is for machines without a container engine, not for models you distrust: boxes share this machine's kernel and "
    "read its programs in /usr; docs/local.md says what it does not stop"
)
LOST = {
    "memory": "memory (each process is held to the limit, all of them together are not)",
    "pids": "processes of the box as a whole",
    "cpu": "processor time",
}


def notices(settings: LocalSettings, hierarchies: Hierarchies, *, rooted: bool) -> tuple[str, ...]:
    """In the order in which they matter."""
    found = [ALWAYS]
    if not rooted:
        found.append(
            "without root: agent and commands of a box share your uid, disk is watched and not capped, tasks with the tests grader cannot be graded, "
            "and there is no limit of processor "
            "time, and of memory only for each process by itself"
        )
    elif hierarchies.missing:
        lost = "; ".join(LOST[name] for name in hierarchies.missing)
        found.append(f"this machine's cgroups are not ours to use, so boxes are not limited in: {lost}")
    if settings.any_image:
        found.append(
            "--host-root: whatever image a task names, its boxes get this machine's programs; rewards may differ from those on its image"
        )
    return tuple(found)
