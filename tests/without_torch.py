"""Runs a module as `python -m` does, without torch, which users need not have and tests do.

`python -m tests.without_torch experiments.compare --workdir ...`; transformers would import it,
which takes longer than many a program here.
"""

import runpy
import sys
from importlib.machinery import PathFinder


class Finder(PathFinder):
    """Finds what is installed but for torch."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname == "torch" else super().find_spec(fullname, path, target)


if __name__ == "__main__":
    sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
