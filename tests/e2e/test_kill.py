"""kill -9 of the server, at random moments and at every failpoint: same boxes, same replies, each effect once, nothing left."""

import asyncio
import os
import random
from collections.abc import Callable, Sequence

import aiohttp
import pytest

from tests.e2e.harness import MENDED, Server, Trainer, serving
from tests.needs import needs

pytestmark = [needs("docker", "root"), pytest.mark.anyio, pytest.mark.timeout(300)]

KILLS = 10
ROLLOUTS = 4
FAILPOINTS = ("before_dispatch", "after_effect", "before_commit", "before_reply", "before_acknowledge")


async def one_turn(player: Trainer, turn: int) -> None:
    """Every tool once, each call leaving a mark that the history check can count."""
    token = f"{player.trace_id}-{turn}"
    await player.call(f"{turn}-shell", "shell", command=f"echo {token} >> history; sleep 0.05; wc -l < history")
    await asyncio.gather(
        player.call(f"{turn}-write", "write_file", path=f"w{turn}.txt", content=f"one {token}\n"),
        player.call(f"{turn}-list", "list_dir", path="."),
        player.call(f"{turn}-search", "search", pattern="def ", path="."),
    )
    counted = await player.call(
        f"{turn}-session", "shell", session="main", command=f"N=$((N+1)); echo {token} >> counted; echo N=$N"
    )
    assert counted.splitlines()[0] == f"N={turn + 1}", "the session's own variable, counted up once a turn"
    await player.call(f"{turn}-edit", "edit_file", path=f"w{turn}.txt", old="one ", new="one two ")
    await player.call(f"{turn}-read", "read_file", path=f"w{turn}.txt")
    await player.call(f"{turn}-submit", "submit", files=["calc.py", f"w{turn}.txt"])


async def check_history(player: Trainer, turns: Sequence[int]) -> None:
    """Each acknowledged mark is there once and in order; each call sent again answers the same bytes."""
    marks = (await player.call("check", "shell", command="cat history")).splitlines()
    expected = [f"{player.trace_id}-{turn}" for turn in turns]
    assert [line for line in marks if line.startswith(player.trace_id)] == expected
    assert (await player.call("check-counted", "shell", command="cat counted")).splitlines() == expected
    for call_id, (_, raw) in list(player.replies.items()):
        assert await player.again(call_id) == raw, call_id
    for turn in turns:
        text = await player.call(f"check-{turn}", "shell", command=f"cat w{turn}.txt")
        assert f"one two {player.trace_id}-{turn}" in text


async def test_ten_kills_at_random_moments(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], session: aiohttp.ClientSession
) -> None:
    seed = int(os.environ.get("TILTYARD_SEED", random.SystemRandom().randrange(2**32)))
    print(f"seed: {seed} (TILTYARD_SEED={seed} runs it again)")
    dice = random.Random(seed)
    async with serving(tmp_path_factory.mktemp("kills"), rows) as server:
        players = [
            Trainer(server=server, trace_id=f"trace_k{n}", task_id="calc-tests", session=session)
            for n in range(ROLLOUTS)
        ]
        await asyncio.gather(*(player.call("open", "shell", command="true") for player in players))
        boxes = server.boxes()
        assert len(boxes) == ROLLOUTS
        done = asyncio.Event()

        async def play(player: Trainer) -> list[int]:
            turn = 0
            while not done.is_set():
                await one_turn(player, turn)
                turn += 1
            return list(range(turn))

        playing = [asyncio.create_task(play(player)) for player in players]
        for _ in range(KILLS):
            await asyncio.sleep(dice.uniform(0.05, 1.0))
            await server.kill()
            await server.start()
        done.set()
        turns = await asyncio.gather(*playing)
        assert all(turns)
        assert server.boxes() == boxes, "a rollout lives in another container, or its agent was started again"
        for player, played in zip(players, turns, strict=True):
            await check_history(player, played)
        await players[0].call("mend", "write_file", path="calc.py", content=MENDED)
        assert await asyncio.gather(*(player.grade() for player in players)) == [1.0] + [0.0] * (ROLLOUTS - 1)
        await server.stop()
        assert await server.settled() == []


@pytest.fixture(scope="module")
async def restartable(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]) -> object:
    async with serving(tmp_path_factory.mktemp("failpoints"), rows) as server:
        yield server
        await server.stop()
        assert await server.settled() == []


@pytest.mark.parametrize(
    "tool", ["shell", "session", "write_file", "edit_file", "read_file", "list_dir", "search", "submit"]
)
@pytest.mark.parametrize("failpoint", FAILPOINTS)
async def test_killed_at_a_failpoint_of_each_tool(
    restartable: Server, trainer: Callable[..., Trainer], failpoint: str, tool: str
) -> None:
    server, player = restartable, trainer(restartable)
    arguments: dict[str, dict[str, object]] = {
        "shell": {"command": "echo mark >> history; wc -l < history"},
        "session": {"session": "main", "command": "N=$((N+1)); echo mark >> ../history; echo $N"},
        "write_file": {"path": "new.txt", "content": "text\n"},
        "edit_file": {"path": "calc.py", "old": "a - b", "new": "a - b - 0"},
        "read_file": {"path": "calc.py"},
        "list_dir": {"path": "."},
        "search": {"pattern": "return", "path": "."},
        "submit": {"files": ["calc.py"]},
    }
    await player.call("open", "shell", command="N=4; mkdir -p sub; cd sub", session="main")
    mine = set(server.boxes().items())
    await server.stop()
    await server.start(TILTYARD_FAILPOINTS=f"{failpoint}:kill")
    pending = asyncio.create_task(player.call("it", "shell" if tool == "session" else tool, **arguments[tool]))
    assert await server.died() == -9, "the failpoint did not fire"
    await server.start()
    await pending
    first = player.replies["it"][1]
    assert await player.again("it") == first
    assert mine == set(server.boxes().items())
    if tool in ("shell", "session"):
        assert (await player.call("count", "shell", command="cat history")).count("mark") == 1
    told = await player.call("session", "shell", session="main", command="echo $N; basename $PWD")
    assert told == ("5\nsub\n" if tool == "session" else "4\nsub\n"), "the session's state, counted up once"
    if tool == "edit_file":
        assert (await player.call("count", "shell", command="cat calc.py")).count("- 0") == 1
    await player.grade()


async def test_killed_while_session_calls_run_and_wait(restartable: Server, trainer: Callable[..., Trainer]) -> None:
    """One runs and one waits for it, beside a session that is not concerned: each effect once, in order, the state whole."""
    server, player = restartable, trainer(restartable)
    await player.call("open", "shell", command="N=1", session="main")
    mine = set(server.boxes().items())
    step = "echo begin-{0} >> steps; sleep {1}; N=$((N * {0})); echo end-{0}-$N >> steps; echo $N"
    first = asyncio.create_task(player.call("a", "shell", session="main", command=step.format(3, 2)))
    await player.call("look", "shell", command="until grep -q begin-3 steps; do sleep 0.05; done")
    second = asyncio.create_task(player.call("b", "shell", session="main", command=step.format(5, 0)))
    beside = asyncio.create_task(player.call("c", "shell", session="other", command="echo beside"))
    await beside
    assert not first.done()
    await server.kill()
    await server.start()
    assert (await first, await second) == ("3\n", "15\n")
    for call_id in ("a", "b", "c"):
        assert await player.again(call_id) == player.replies[call_id][1]
    steps = (await player.call("steps", "shell", command="cat steps")).splitlines()
    assert steps == ["begin-3", "end-3-3", "begin-5", "end-5-15"]
    assert await player.call("state", "shell", session="main", command="echo $N") == "15\n"
    assert mine == set(server.boxes().items())
    await player.grade()


async def test_killed_in_a_grade_after_the_evidence(restartable: Server, trainer: Callable[..., Trainer]) -> None:
    server, player = restartable, trainer(restartable)
    await player.call("mend", "write_file", path="calc.py", content=MENDED)
    await server.stop()
    await server.start(TILTYARD_FAILPOINTS="after_evidence:kill")
    pending = asyncio.create_task(player.grade())
    assert await server.died() == -9, "the failpoint did not fire"
    await server.start()
    assert await pending == 1.0
    assert await player.grade() == 1.0
