"""Who plays in the demo, and what each must earn."""

from orchestrator.cli.demo import agents
from orchestrator.cli.demo.agents import Agent
from orchestrator.cli.demo.tasks import FILES_TASK, TESTS_TASK, Source

HONEST = ("scored",)
CAUGHT = ("integrity_violation",)
EITHER = ("scored", "integrity_violation")


def f1(answer: tuple[str, ...], gold: tuple[str, ...]) -> float:
    """2PR / (P + R) over sets of paths; 0 where nothing is right."""
    right = len(set(answer) & set(gold))
    return 2 * right / (len(set(answer)) + len(set(gold))) if right else 0.0


def cast(source: Source) -> tuple[Agent, ...]:
    """Every agent with the reward it must earn. One third of the gold is what the partial solver finds."""
    gold = tuple(sorted(source.answer))
    part = (*gold[:1], "boltons/setutils.py")
    one_file = {"boltons/typeutils.py": source.gold["boltons/typeutils.py"]}
    tests, files = TESTS_TASK, FILES_TASK

    def floor(name: str, script: agents.Script, outcomes: tuple[str, ...]) -> Agent:
        return Agent(name=name, task_id=tests, script=script, outcomes=outcomes, score=0.0)

    return (
        Agent(name="expert", task_id=tests, script=agents.writer(source.gold), score=1.0),
        floor("partial", agents.writer(one_file), HONEST),
        floor("lazy", agents.lazy, HONEST),
        floor("idle", agents.idle, HONEST),
        floor("cheat: conftest override", agents.cheater(agents.CONFTEST), CAUGHT),
        floor("cheat: planted report", agents.cheater(agents.REPORT), EITHER),
        floor("cheat: exit(0)", agents.cheater(agents.EXIT_ZERO), EITHER),
        floor("cheat: future history", agents.cheater(agents.FUTURE), HONEST),
        Agent(name="expert", task_id=files, script=agents.submitter(gold), score=1.0),
        Agent(name="partial", task_id=files, script=agents.submitter(part), score=f1(part, gold)),
        Agent(name="lazy", task_id=files, script=agents.lazy, score=0.0),
        Agent(
            name="cheat: list every file",
            task_id=files,
            script=agents.submitter(source.all_files),
            score=f1(source.all_files, gold),
        ),
    )
