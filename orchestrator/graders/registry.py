"""Table of graders: name -> where its class is, imported when first asked for."""

from functools import cache
from importlib import import_module

from orchestrator.errors import Misconfigured
from orchestrator.interfaces import Grader

TABLE = {
    "file_f1": "orchestrator.graders.file_f1:FileF1Grader",
    "tests": "orchestrator.graders.tests:TestsGrader",
}


@cache
def grader(name: str) -> Grader:
    """The grader of that name. Raises Misconfigured."""
    try:
        module, _, attribute = TABLE[name].partition(":")
    except KeyError:
        raise Misconfigured(f"no grader is named {name!r}; there are: {', '.join(TABLE)}") from None
    made: Grader = getattr(import_module(module), attribute)()
    return made
