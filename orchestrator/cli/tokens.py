"""`tiltyard token new`."""

from orchestrator.errors import Misconfigured
from tool_gateway.auth import Scope, new_token


def entry(name: str, digest: str, jobs: list[str], scopes: list[str]) -> str:
    """One `[[tokens]]` entry of a token file. Raises Misconfigured for an unknown scope."""
    known = {scope.value for scope in Scope}
    if wrong := sorted(set(scopes) - known):
        raise Misconfigured(f"unknown scope {', '.join(wrong)}; there are {', '.join(sorted(known))}")
    quoted_scopes = ", ".join(f'"{scope}"' for scope in scopes)
    quoted_jobs = ", ".join(f'"{job}"' for job in jobs)
    return f'[[tokens]]\nname = "{name}"\nsha256 = "{digest}"\nscopes = [{quoted_scopes}]\njobs = [{quoted_jobs}]\n'


def new(name: str, jobs: list[str], scopes: list[str]) -> None:
    """The token on the first line; the rest goes into the token file (chmod 600)."""
    token, digest = new_token()
    print(f"# token, shown once: {token}")
    print(entry(name, digest, jobs, scopes), end="")
