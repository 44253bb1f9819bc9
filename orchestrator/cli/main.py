"""`tiltyard`: the command line. Commands are imported when they are called, so that `--help` is quick and extras stay extras."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.terminal import plain
from orchestrator.errors import TiltyardError
from orchestrator.settings import Settings, load_settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Boxes, a gateway and graders for reinforcement fine-tuning of coding agents.",
)
rollouts = typer.Typer(no_args_is_help=True, help="What happened in rollouts.")
token = typer.Typer(no_args_is_help=True, help="Tokens for trainers and operators.")
app.add_typer(rollouts, name="rollouts")
app.add_typer(token, name="token")
deploy = typer.Typer(no_args_is_help=True, help="Boxes on a Kubernetes cluster; see docs/kubernetes.md.")
app.add_typer(deploy, name="deploy")

Deployment = Annotated[str | None, typer.Option(help="Name of the deployment (TILTYARD_DEPLOYMENT).")]
StateDir = Annotated[
    Path | None, typer.Option(help="Folder of store, blobs, templates and boxes (TILTYARD_STATE_DIR).")
]
Runtime = Annotated[
    str | None, typer.Option(help="The engine's runtime for boxes: runc, or runsc (gVisor); see docs/runtimes.md.")
]
AcceptOldRunc = Annotated[
    bool,
    typer.Option("--accept-old-runc", help="Make boxes although runc lacks published fixes; see docs/runtimes.md."),
]
Backend = Annotated[
    str | None,
    typer.Option(
        help="docker; kubernetes (pods); local (no engine, see docs/local.md); fake (in memory, runs nothing). (TILTYARD_BACKEND)"
    ),
]
HostRoot = Annotated[
    bool,
    typer.Option(
        "--host-root",
        help="Backend local: run tasks of any image over this machine's own programs; see docs/local.md.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="For a program to read.")]


@app.command()
def serve(
    tasks: Annotated[Path | None, typer.Option(help="Task file (JSONL), served as job `default`.")] = None,
    jobs: Annotated[Path | None, typer.Option(help="Job file (TOML) naming several task files.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="Token file; see `tiltyard token new`.")] = None,
    insecure_loopback: Annotated[
        bool, typer.Option("--insecure-loopback", help="No tokens; processes of this machine only.")
    ] = False,
    backend: Backend = None,
    host_root: HostRoot = False,
    runtime: Runtime = None,
    accept_old_runc: AcceptOldRunc = False,
    deployment: Deployment = None,
    state_dir: StateDir = None,
) -> None:
    """Serve trainers: tool calls and grades over HTTP. Whatever else can be set is in docs/settings.md."""
    from orchestrator.cli.serve import run

    run(
        load_settings(
            tasks=tasks,
            jobs=jobs,
            listen_host=host,
            listen_port=port,
            tokens=tokens,
            insecure_loopback=insecure_loopback or None,
            backend=backend,
            local_any_image=host_root or None,
            runtime=runtime,
            accept_old_runc=accept_old_runc or None,
            deployment=deployment,
            state_dir=state_dir,
        )
    )


@app.command()
def demo(
    deployment: Annotated[str, typer.Option(help="Name of the demo's own deployment.")] = "demo",
    backend: Backend = None,
    runtime: Runtime = None,
    state_dir: StateDir = None,
) -> None:
    """Play a trainer with scripted agents against a real server, and check every reward."""
    from orchestrator.cli.demo.command import run

    raise typer.Exit(
        run(
            load_settings(
                deployment=deployment, state_dir=state_dir, backend=backend, runtime=runtime, accept_old_runc=True
            )
        )
    )


@app.command()
def doctor(
    conformance: Annotated[
        str | None, typer.Option(help="Run the conformance suite over this backend: docker, local or fake.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Image for the conformance suite's boxes; the backend's usual one.")
    ] = None,
    backend: Backend = None,
    runtime: Runtime = None,
    accept_old_runc: AcceptOldRunc = False,
    deployment: Deployment = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Say what this machine lacks, and the fix; or prove a backend."""
    from orchestrator.cli.doctor import run

    settings = load_settings(
        deployment=deployment,
        state_dir=state_dir,
        backend=backend,
        runtime=runtime,
        accept_old_runc=accept_old_runc or None,
    )
    raise typer.Exit(run(settings, conformance, image, as_json))


@app.command()
def sweep(
    everything: Annotated[bool, typer.Option("--all", help="Every deployment of this machine.")] = False,
    backend: Backend = None,
    deployment: Deployment = None,
    state_dir: StateDir = None,
) -> None:
    """Remove the boxes, mounts and folders that a deployment left; refused while it is served."""
    from orchestrator.cli.sweep import run

    run(load_settings(deployment=deployment, state_dir=state_dir, backend=backend), everything)


@deploy.command("check")
def deploy_check(
    image: Annotated[str, typer.Option(help="A task's image, to be tried as well.")] = "",
    context: Annotated[str | None, typer.Option(help="Of the kubeconfig; the current one unless given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what the cluster of the current context lacks, and the fix: two small boxes are made and ended."""
    from orchestrator.cli.deploy import check

    raise typer.Exit(check(load_settings(backend="kubernetes", kube_context=context), image, as_json))


@deploy.command("agent-image")
def deploy_agent_image(
    out: Annotated[Path, typer.Argument(help="The archive to write, for docker load or ctr images import.")],
) -> None:
    """Write the image that brings the in-box agent into pods, and print its name. No engine is needed."""
    from orchestrator.cli.deploy import agent_image

    agent_image(out)


@rollouts.command("list")
def rollouts_list(
    job: Annotated[str | None, typer.Option(help="Only this job's.")] = None,
    limit: Annotated[int, typer.Option(help="The newest so many.", min=1, max=10_000)] = 50,
    deployment: Deployment = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """The newest rollouts: task, state, calls, reward."""
    from orchestrator.cli.rollouts import list_rollouts

    list_rollouts(_settings(deployment, state_dir), job, limit, as_json)


@rollouts.command("show")
def rollouts_show(
    trace_id: Annotated[str, typer.Argument(help="The trainer's trace_id.")],
    job: Annotated[str, typer.Option(help="The rollout's job.")] = "default",
    deployment: Deployment = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """One rollout: calls, replies, changed files, reward and why."""
    from orchestrator.cli.rollouts import show_rollout

    show_rollout(_settings(deployment, state_dir), job, trace_id, as_json)


@token.command("new")
def token_new(
    name: Annotated[str, typer.Argument(help="Who holds it, for the logs.")],
    jobs: Annotated[list[str] | None, typer.Option("--job", help="A job it may use; all when none is named.")] = None,
    scopes: Annotated[list[str] | None, typer.Option("--scope", help="tools, grade, rollouts, metrics.")] = None,
) -> None:
    """Print a new token, and the entry for the token file. The token is shown once."""
    from orchestrator.cli.tokens import new

    new(name, jobs or ["*"], scopes or ["tools", "grade"])


def _settings(deployment: str | None, state_dir: Path | None) -> Settings:
    return load_settings(deployment=deployment, state_dir=state_dir)


def main() -> None:
    """Entry point: errors of ours are one line that names the fix, and exit status 2."""
    try:
        app()
    except TiltyardError as error:
        print(f"tiltyard: {plain(error.message)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
