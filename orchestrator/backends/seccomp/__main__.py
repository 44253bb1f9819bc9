"""`python -m orchestrator.backends.seccomp`: says whether the pinned filter is what the rules make of upstream; `--write` makes it so."""

import argparse
import sys
from pathlib import Path

from orchestrator.backends.seccomp.generate import decide, generate, render, upstream
from orchestrator.backends.seccomp.pinned import PINNED


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.backends.seccomp", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the pinned file")
    parser.add_argument("--explain", action="store_true", help="list what becomes of each call, and why")
    chosen = parser.parse_args()
    facts = upstream()
    if chosen.explain:
        for decision in decide(facts).values():
            print(
                f"{'keep' if decision.kept else 'drop'}  {decision.call:<28} {decision.rule.name}: {decision.rule.reason}"
            )
    text, path = render(generate(facts)), Path(__file__).with_name(PINNED)
    if chosen.write:
        path.write_text(text, encoding="utf-8")
    current = path.is_file() and path.read_text(encoding="utf-8") == text
    print(
        f"{path.name} {'is' if current else 'is NOT'} what the rules make of {facts.repository} at {facts.commit[:12]}"
    )
    return 0 if current else 1


if __name__ == "__main__":
    sys.exit(main())
