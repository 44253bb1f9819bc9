"""The fake box's shell does what sh does, where it does anything; checked against the real one."""

import asyncio
from pathlib import Path

import anyio
import pytest

from orchestrator.backends.fake.syntax import ShellSyntaxError, parse
from orchestrator.conformance.rig import Box

pytestmark = pytest.mark.anyio

SCRIPTS = [
    "echo hello; echo 'a  b' \"c  d\" e\\ f",
    "printf '%s-%s\\n' a b c; printf '%05d|%x\\n' 42 255; printf 'no newline'",
    "true && echo yes || echo no; false && echo yes || echo no; ! false && echo negated",
    'x=1; y="$x 2"; echo $y "$y" \'$y\' ${x} ${z:-default} ${x:-default}',
    'x=\'a   b\'; echo $x; echo "$x"; echo "-$x-" -$x-',
    'x=$(echo one; echo two); echo "$x" $x; echo "$(printf \'a b\')"',
    "(exit 3); echo $?; sh -c 'exit 4'; echo $?; (cd /; pwd); pwd | wc -l",
    "for i in 1 2 3; do echo $i; done; for w in $(echo a b); do echo $w; done",
    "if false; then echo a; elif true; then echo b; else echo c; fi",
    "while ! test -f stop; do echo turn; touch stop; done; until test -f stop; do echo never; done",
    "echo one > f; echo two >> f; cat < f; cat f f | wc -l; cat nothing 2>/dev/null || echo missing",
    "echo out; echo err >&2; { echo a; echo b >&2; } 2>&1 | wc -l",
    "mkdir -p a/b; echo x > a/b/c; cp a/b/c d; mv d e; ls; ls a; rm -r a; ls",
    "echo t > t; ln -s t l; cat l; readlink l; test -L l && echo link; rm l; test -e t && echo kept",
    "test -f nothing; echo $?; [ 2 -gt 1 ] && echo more; [ -z '' -o a ] 2>/dev/null; test a = a; echo $?",
    "A=1 sh -c 'echo $A'; export B=2; sh -c 'echo $B'; C=3; sh -c 'echo ${C:-unset}'",
    "sh -c 'echo $0 $1 $#' name first second; env -i X=1 env",
    "exit 5; echo never",
    "kill -0 $$ && echo alive; trap '' TERM; kill $$; echo still",
    "echo a | { read line; echo got $line; }; printf 'a b\\nc' | head -n 1; seq 3 | tail -n 1",
    "chmod 755 . && echo x > s && chmod +x s && test -x s && echo executable; chmod a-x s; test -x s || echo plain",
    "sleep 0.01; echo $(sleep 0.01; echo slept) & wait; echo waited",
    "# comment\necho a # not b\necho 'c # d'\\\n e",
    "nosuchprogram 2>/dev/null; echo $?",
    "printf '\\303\\244\\101\\n'; echo ä | wc -c",
    'echo 5 > n; x=$(cat n); test "$x" -eq 5 && echo five',
]


@pytest.mark.parametrize("script", SCRIPTS)
async def test_script_does_what_sh_does(box: Box, tmp_path: Path, script: str) -> None:
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    real = await anyio.run_process(["/bin/sh", "-c", script], cwd=tmp_path, env=env, check=False)
    result = await box.exec(box.shell_op(script, merge=False))
    assert (result.stdout.head, result.exit_code) == (real.stdout, real.returncode)


@pytest.mark.parametrize(
    "script",
    [
        "echo 'open",
        "if true; then",
        "(echo",
        "echo )",
        "cat << EOF\nEOF",
        "case a in a) ;; esac",
        "echo $((1+1))",
        "; echo",
    ],
)
def test_what_is_not_done_is_a_syntax_error(script: str) -> None:
    with pytest.raises(ShellSyntaxError):
        parse(script)


async def test_syntax_error_is_told_with_status_2(box: Box) -> None:
    result = await box.sh("echo $((1+1))")
    assert result.exit_code == 2
    assert b"syntax error" in result.stdout.head


@pytest.mark.parametrize("script", ["test a -gt b", "seq x", "readlink", "head -n x", "printf %d x"])
async def test_bad_arguments_are_the_programs_failure(box: Box, script: str) -> None:
    result = await box.sh(f"{script}; echo status $?")
    assert result.stdout.head.splitlines()[-1] in (b"status 1", b"status 2")


async def test_endless_loop_meets_its_time_out(box: Box) -> None:
    assert (await box.sh("while true; do true; done", timeout_s=0.1)).timed_out


async def test_endless_pipe_ends_by_sigpipe(box: Box) -> None:
    assert await box.text("yes | head -n 2", timeout_s=5) == "y\ny\n"


async def test_command_without_a_wait_costs_no_task(box: Box) -> None:
    before = len(asyncio.all_tasks())
    await box.text("echo a; echo b | cat; x=$(echo c)")
    assert len(asyncio.all_tasks()) == before
