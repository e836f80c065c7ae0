"""Runs a program in a process that is forked from one which has imported what all programs need.

Starting Python and importing takes longer than what many a test asks a program for. A program that
is to start from nothing, as a user's does, is run by `tiny.program` with an `environment`.
"""

import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preloaded"])


def run(module: str, arguments: list[str], folder: pathlib.Path) -> subprocess.CompletedProcess:
    """`python -m module arguments` in a folder; output is captured as text."""
    with tempfile.TemporaryDirectory() as made:
        files = [f"{made}/stdout", f"{made}/stderr"]
        inputs = module, arguments, folder, dict(os.environ), files
        process = CONTEXT.Process(target=_main, args=inputs)
        process.start()
        process.join()
        texts = [pathlib.Path(file).read_text() for file in files]
    return subprocess.CompletedProcess([module, *arguments], process.exitcode, *texts)


def _main(module: str, arguments: list[str], folder, environment: dict, files: list[str]) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
