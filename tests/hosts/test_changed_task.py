"""A task that changes under its id while a rollout lives: what ran over one tree is never graded over another."""

from dataclasses import replace

import pytest

from orchestrator.errors import RepositoryError
from orchestrator.hosts.events import Phase
from orchestrator.interfaces import Bench, Template
from orchestrator.operations import Read, ReadResult
from tests.hosts.world import TESTED, World, a_call, a_grade, a_task, a_template, key, until

pytestmark = pytest.mark.anyio


async def test_the_templates_key_is_stored_with_the_box(world: World) -> None:
    async with world.host() as host:
        await host.call(a_call("true"), world.task(), timeout_s=5)
        binding = await world.store.binding(key())
        assert binding is not None
        assert binding.template == world.templates.template_.key
        await host.grade(a_grade(key("lazy")), world.task(), timeout_s=5)
        unopened = await world.store.binding(key("lazy"))
        assert unopened is not None
        assert unopened.template == ""


@pytest.mark.parametrize("evidence_first", [False, True], ids=["before evidence", "after evidence"])
async def test_a_grade_over_another_tree_is_refused_until_the_task_is_as_it_was(
    world: World, evidence_first: bool
) -> None:
    task = world.task()
    old = world.templates.template_
    async with world.host() as host:
        await host.call(a_call("echo 2 > pkg/core.py"), task, timeout_s=5)
        if evidence_first:

            async def fail(bench: object) -> None:
                raise ValueError("the grader's fault")

            world.grader.work = fail
            with pytest.raises(Exception, match="grader count failed"):
                await host.grade(a_grade(), task, timeout_s=5)
            world.grader.work = None
    world.templates.template_ = replace(old, key="another")
    async with world.host() as host:
        for _ in range(2):
            with pytest.raises(RepositoryError, match="was changed while this rollout lived"):
                await host.grade(a_grade(), task, timeout_s=5)
        assert await world.store.reward(key()) is None
        rollout = host._life.live.get(key())
        assert rollout is None or rollout.state.phase in (Phase.GATHERING, Phase.GRADING)
        world.templates.template_ = old
        assert (await host.grade(a_grade(), task, timeout_s=5)).score == 1.0
    evidence = await world.store.evidence(key())
    assert evidence is not None
    assert [change.path for change in evidence.changes] == ["pkg/core.py"]


@pytest.mark.parametrize("reserve", [0, 1], ids=["made for the grade", "warm"])
async def test_a_grading_box_lies_over_the_tree_of_the_rollouts_box(world: World, reserve: int) -> None:
    """The image that a task names by a tag may become another at any time: before the rollout's box was made, or after."""
    task = world.task(a_task(tests=TESTED))
    old, new = world.templates.template_, other_template(world, "new")
    seen: list[bytes] = []

    async def work(bench: Bench) -> None:
        async with bench.fresh_box() as box:
            read = await box.run(Read(path="/workspace/README.md"))
            assert isinstance(read, ReadResult)
            seen.append(read.data)

    world.grader.work = work
    async with world.host(grader_reserve=reserve) as host:
        await host.call(a_call("true"), task, timeout_s=5)
        await until(lambda: len(world.machine.boxes) == 1 + reserve)
        world.templates.template_ = new
        await host.call(a_call("true", rollout=key("later")), task, timeout_s=5)
        await host.grade(a_grade(key("later")), task, timeout_s=5)
        assert seen == [b"new\n"]
        await host.grade(a_grade(), task, timeout_s=5)
        assert seen == [b"new\n", b"hello\n"]
    later = await world.store.binding(key("later"))
    assert old.key != new.key
    assert later is not None
    assert later.template == new.key


def other_template(world: World, text: str) -> Template:
    folder = world.folder / text
    folder.mkdir()
    made = a_template(folder)
    (folder / "README.md").write_text(f"{text}\n")
    return replace(made, key=text)
