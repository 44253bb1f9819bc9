"""The `tests` grader: hidden tests in a fresh box, and a verdict that the code under test cannot write.

delta.py      what may be carried from the agent's box into the grading one (pure)
sites.py      where a test file states what it expects (pure)
literals.py   plausible other values for what is stated there (pure)
mutants.py    must-fail siblings of a test file (pure)
plan.py       which child runs which version of which file (pure, given its randomness)
verdict.py    what the children's wait statuses and events amount to (pure)
runner/       the trusted side inside the box
box.py        hands a plan to a box and reads the frames that come back
grader.py     the grader; calibration.py proves a task's siblings on its gold answer
"""

from orchestrator.graders.tests.grader import TestsGrader

__all__ = ["TestsGrader"]
