"""The command line of every program: flags, the configuration, help, and one-line errors.

Errors of a user leave with status 2; progress goes to standard error, results to standard output.
"""

import ast
import contextlib
import io
import logging
import os
import pathlib
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import absl.logging
from absl import flags
from ml_collections import ConfigDict

from vbon_jax import environment, files, interrupts
from vbon_jax.config import Key, defaults, flat, get, help_text, set_key, unknown
from vbon_jax.types import InputError

CONFIG_HELP = (
    "FILE or FILE:ARG, a Python file with get_config(arg) -> ConfigDict; without it the defaults. "
    "--config.KEY=VALUE changes a key."
)
logger = logging.getLogger("vbon_jax")
OVERRIDE = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)


class _RecipeParser(flags.ArgumentParser):
    """FILE or FILE:ARG -> the configuration that the file's get_config returns."""

    def parse(self, argument: Any) -> ConfigDict:
        if isinstance(argument, ConfigDict):
            return argument
        name, colon, arg = argument.partition(":")
        path = files.local_path(name)
        if not path.is_file():
            raise ValueError("there is no such file; give a Python file with get_config()")
        try:
            with _siblings(path):
                recipe = runpy.run_path(str(path)).get("get_config")
                config = recipe(*[arg] * bool(colon)) if recipe else None
        except Exception as error:
            frames = [
                f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)
            ]
            line = f", line {frames[-1].lineno}" if frames else ""
            raise InputError(f"{path}{line}: {type(error).__name__}: {error}") from error
        if not isinstance(config, ConfigDict):
            raise ValueError("get_config() must return an ml_collections ConfigDict")
        return config


@contextlib.contextmanager
def _siblings(recipe: pathlib.Path) -> Iterator[None]:
    """A recipe in a package imports from that one, whatever package of its name is nearer."""
    package = recipe.resolve().parent
    if not (package / "__init__.py").exists():
        yield
        return
    sys.path.insert(0, str(package.parent))
    try:
        yield
    finally:
        sys.path.remove(str(package.parent))


class _PathParser(flags.ArgumentParser):
    """A file or a folder, and what is written there: "file", "folder", or "" for nothing."""

    def __init__(self, writes: str):
        super().__init__()
        self.writes = writes

    def parse(self, argument: str | pathlib.Path) -> pathlib.Path:
        if not str(argument):
            raise ValueError("it is empty; give a path")
        return files.local_path(argument)


def define(*, workdir: bool = True, recipe: str | None = None) -> tuple[flags.FlagHolder, ...]:
    """Define `--config`, whose default is a recipe or else the defaults, and `--workdir`."""
    config = flags.DEFINE(_RecipeParser(), "config", recipe, CONFIG_HELP)
    if not workdir:
        return (config,)
    return config, define_workdir("Folder of everything that is written.")


def define_workdir(description: str) -> flags.FlagHolder:
    """Define `--workdir`, a folder that is written."""
    return define_path("workdir", description, writes="folder")


def define_path(name: str, description: str, *, writes: str = "") -> flags.FlagHolder:
    """Define a flag whose value is a `pathlib.Path`.

    What is written there, "file" or "folder", is checked before the program begins.
    """
    return flags.DEFINE(_PathParser(writes), name, None, description)


def fail(message: object) -> None:
    """Print one line to standard error and leave with status 2."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    sys.exit(2)


def _drop_output() -> None:
    """Forget what standard output did not take, or the interpreter's end would try again."""
    with contextlib.suppress(io.UnsupportedOperation):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail_by(error: BaseException) -> None:
    """Leave with the line of an error; at once where threads may still try to save."""
    message = str(error)
    if isinstance(error, OSError):
        _drop_output()
        message = f"{error.filename or 'input or output'}: {error.strerror or error}"
    try:
        fail(message)
    finally:
        while error and not isinstance(error, files.SaveFailed):
            error = error.__context__
        if error:
            os._exit(2)


def run(
    main: Callable[[], None],
    *,
    required: tuple[str, ...] = (),
    keys: Iterable[Key] = (),
    devices: bool = True,
) -> None:
    """Parse the flags and run `main`; what a user did wrong becomes one line and status 2.

    `keys` are those of the program's own configuration besides the table's, shown by `--help`.
    `devices` says whether `main` computes. SIGTERM and Ctrl-C end it as `interrupts` says.
    """
    _log_progress()
    for stream in (sys.stdout, sys.stderr):  # a terminal may lack characters
        stream.reconfigure(errors="backslashreplace")
    try:
        with interrupts.watch():
            _parsed(main, required, keys, devices=devices)
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has seen enough
        _drop_output()
    except interrupts.Interrupted as stopped:
        print(f"\n{stopped}; continue with: {interrupts.command()}", file=sys.stderr)
        sys.exit(interrupts.STATUS)
    except (InputError, flags.Error, OSError) as error:
        _fail_by(error)


def _parsed(
    main: Callable[[], None], required: tuple[str, ...], keys: Iterable[Key], *, devices: bool
) -> None:
    """Parse and check the flags, or show help, then run `main`."""
    if {"--help", "-help", "-h"} & set(sys.argv[1:]):
        print(program_help(sys.modules["__main__"].__doc__ or "", keys))
        return
    rest = _parse(sys.argv)
    if rest:
        fail(f"unexpected argument {rest[0]!r}; options are written --name=value (see --help)")
    for name in required:
        if not flags.FLAGS[name].value:
            fail(f"--{name} is missing; give it a path (see --help)")
    for flag in (flags.FLAGS[name] for name in flags.FLAGS):
        if flag.value is not None and getattr(flag.parser, "writes", ""):
            files.check_writable(flag.value, what=flag.parser.writes)
    environment.start_jax(devices=devices)
    main()


def program_help(program: str, keys: Iterable[Key] = ()) -> str:
    """A program's docstring, its flags, and, where it has a configuration, all keys."""
    parts = [program.strip(), "Flags:"]
    for module in (sys.argv[0], __name__):
        for flag in flags.FLAGS.flags_by_module_dict().get(module, []):
            shown = "" if flag.default in (None, "", []) else f" = {flag.default_unparsed}"
            parts[-1] += f"\n  --{flag.name}{shown}\n      {flag.help}"
    if "config" in flags.FLAGS:
        parts += [f"Keys of the configuration, with their defaults:\n{help_text(keys)}"]
        name = pathlib.Path(sys.argv[0]).stem
        recipe = "" if flags.FLAGS["config"].default else "--config configs/demo.py "
        parts += [f"Example:\n  python -m experiments.{name} {recipe}"
                  f"--workdir runs/{'demo' if recipe else name} --config.train.steps=20 "
                  "--config.n_values=2,4"]  # fmt: skip
    return "\n\n".join(parts)


def _log_progress() -> None:
    """Show what the package logs as plain lines on standard error; Orbax and absl stay quiet."""
    absl.logging.set_verbosity(absl.logging.FATAL)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    progress = logging.getLogger("vbon_jax")
    progress.setLevel(logging.INFO)
    progress.handlers, progress.propagate = [handler], False


# ---------------------------------------------------------------------------------------- parsing


def _parse(argv: list[str]) -> list[str]:
    """Parse the flags, then change the configuration; returns arguments that are not flags."""
    plain, changes = _split(argv)
    rest = flags.FLAGS(plain)[1:]
    if "config" in flags.FLAGS:
        holder = flags.FLAGS["config"]
        if holder.value is None:
            holder.value = defaults()
        for name, text in changes:
            change(holder.value, name, text)
    elif changes:
        raise InputError(f"--config.{changes[0][0]}: this program has no configuration")
    return rest


def _split(argv: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Plain arguments, and the keys that `--config.KEY=VALUE` (or `--config.KEY VALUE`) change."""
    plain, changes = [], []
    words = iter(argv)
    for word in words:
        match = OVERRIDE.fullmatch(word)
        if not match:
            plain.append(word)
            continue
        negated, name, text = match.groups()
        changes.append((name, "false" if negated else next(words, "") if text is None else text))
    return plain, changes


def change(config: ConfigDict, name: str, text: str) -> None:
    """Set a dotted key to what a word of the command line means for its type."""
    known = flat(config)
    if name not in known:
        raise InputError(f"--config.{name}: {unknown(name, known)}")
    old = get(config, name)
    try:
        if isinstance(old, bool):
            value = {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        elif isinstance(old, tuple | list):
            value = type(old)(_elements(text))
        else:
            value = text if old is None else type(old)(text)
    except (KeyError, ValueError) as error:
        kind = {bool: "true or false", int: "a whole number", float: "a number"}
        raise InputError(f"--config.{name}={text}: give {kind[type(old)]}") from error
    set_key(config, name, value, "--config")
    own = [(f"config.by_method.{method}", flat(keys)) for method, keys in config.by_method.items()]
    for place, keys in own + [("config.cells", cell) for cell in config.cells]:
        if name in keys:
            logger.warning(f"{place} has a {name} of its own, which --config.{name} leaves alone")


def _elements(text: str) -> list[Any]:
    """The elements of a tuple: a Python literal, or words between commas."""
    value = _literal(text)
    if isinstance(value, tuple | list):
        return list(value)
    return [_literal(word.strip()) for word in text.split(",") if word.strip()]


def _literal(word: str) -> Any:
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word
