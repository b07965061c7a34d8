"""
Run Python code in a process that has imported neither this package nor a package of Hugging Face.

A new interpreter imports torch first, which takes longer than most tests. Instead, each test process starts one server
(`multiprocessing`'s fork server) that imports torch and other packages of no interest, and forks it for each run.
"""

import functools
import io
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path


# No package that reads environment variables or files of a test at its import.
PRELOADED = (
    "torch torch._dynamo torch.distributed.checkpoint torch.distributed.tensor torch._inductor.config numpy pandas"
    " pyarrow pyarrow.dataset pyarrow.parquet av sympy httpx aiohttp"
).split()


@functools.cache
def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run_python(
    arguments: Sequence[str | os.PathLike],
    cwd: str | os.PathLike = ".",
    env: Mapping[str, str] | None = None,
    timeout_seconds: float = 300,
) -> subprocess.CompletedProcess:
    """
    Run `python *arguments` and return its exit status, stdout and stderr, as `subprocess.run` does.

    Args:
        arguments (`Sequence[str]`): `-c CODE`, `-m MODULE` or the path of a script, and `sys.argv[1:]`.
        cwd (`str` or `os.PathLike`): Working directory of the process.
        env (`Mapping[str, str]`, *optional*): Environment of the process; by default a copy of this one.
        timeout_seconds (`float`): Maximum duration.

    Raises:
        subprocess.TimeoutExpired: If the process runs longer.
    """
    command = [os.fspath(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        process = _context().Process(
            target=_run, args=(command, os.path.abspath(cwd), dict(os.environ if env is None else env), outputs)
        )
        process.start()
        process.join(timeout_seconds)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout_seconds)
        stdout, stderr = (output.read_text(encoding="utf-8", errors="replace") for output in outputs)
        return subprocess.CompletedProcess(command, process.exitcode, stdout, stderr)


def _run(command: list[str], cwd: str, env: dict[str, str], outputs: list[Path]) -> None:
    """Run in the forked process."""
    for number, output in enumerate(outputs, 1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin = io.TextIOWrapper(os.fdopen(0, "rb", closefd=False))
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    python_path = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    installed = [path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix))]
    kind, *rest = command
    script_folder = cwd if kind in ("-c", "-m") else os.path.dirname(os.path.abspath(kind))
    sys.path[:] = [script_folder, *python_path, *installed]
    if "OMP_NUM_THREADS" in env:
        sys.modules["torch"].set_num_threads(int(env["OMP_NUM_THREADS"]))  # torch was imported before
    sys.modules.pop("sitecustomize", None)
    if any((Path(path) / "sitecustomize.py").exists() for path in python_path):
        import sitecustomize  # noqa: F401
    try:
        if kind == "-c":
            sys.argv = ["-c", *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), vars(sys.modules["__main__"]) | {"__name__": "__main__"})
        elif kind == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = command
            runpy.run_path(kind, run_name="__main__")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
