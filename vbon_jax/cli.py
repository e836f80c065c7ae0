"""What every program shares: flags, the configuration, and one-line errors with status 2."""

import ast
import difflib
import logging
import pathlib
import re
import sys
from collections.abc import Callable

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from vbon_jax import files
from vbon_jax.types import InputError

DEFAULT_CONFIG = str(pathlib.Path(__file__).with_name("config.py"))


def define(*, workdir: bool = True) -> tuple:
    """The flags `--config` and `--workdir` of a program; returns their holders."""
    config = config_flags.DEFINE_config_file(
        "config", None, "Python file with get_config(); --config.KEY=VALUE overrides."
    )
    if not workdir:
        return (config,)
    return config, flags.DEFINE_string("workdir", None, "Folder of everything that is made.")


def fail(message: str) -> None:
    """Print one line to standard error and leave with status 2."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(2)


def run(main: Callable[[], None], *, required: tuple[str, ...] = ()) -> None:
    """Parse the flags, run `main`, and turn what a user did wrong into one line and status 2."""

    def guarded(argv: list[str]) -> None:
        _log_progress()
        if len(argv) > 1:
            fail(f"unexpected argument {argv[1]!r}; options are written --name=value (see --help)")
        missing = [name for name in required if not flags.FLAGS[name].value]
        if missing:
            fail(f"--{missing[0]} is missing; give it a path (see --help)")
        try:
            main()
        except InputError as error:
            fail(error)

    app.run(guarded, flags_parser=_parse)


def _log_progress() -> None:
    """Show what the package logs as plain lines on standard error; Orbax and absl stay quiet."""
    logging.getLogger("absl").setLevel(logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    progress = logging.getLogger("vbon_jax")
    progress.setLevel(logging.INFO)
    progress.handlers, progress.propagate = [handler], False


def _parse(argv: list[str]) -> list[str]:
    """absl's parser, with errors as one line that names the nearest keys."""
    file = _config_file(argv)
    if not pathlib.Path(file).is_file():
        fail(f"--config={file}: there is no such file; give a Python file with get_config()")
    if file == DEFAULT_CONFIG and "config" in flags.FLAGS:
        argv = [argv[0], f"--config={file}", *argv[1:]]
    try:
        rest = flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        fail(_unknown_key(argv, file, error))
    except (flags.Error, TypeError, ValueError, SyntaxError) as error:
        fail(error)
    if "config" in flags.FLAGS:
        config = flags.FLAGS["config"].value
        if not isinstance(config, ConfigDict):
            fail(f"{file}: get_config() must return an ml_collections ConfigDict")
        _split_tuples(config)
    return rest


def _config_file(argv: list[str]) -> str:
    for index, word in enumerate(argv):
        if word in ("--config", "-config") and index + 1 < len(argv):
            return argv[index + 1].partition(":")[0]
        if match := re.match(r"--?config=([^:]*)", word):
            return match[1]
    return DEFAULT_CONFIG


def _unknown_key(argv: list[str], file: str, error: Exception) -> str:
    """Which `--config.KEY` the configuration lacks, and the keys that look like it."""
    namespace: dict = {"__name__": "config", "__file__": file}
    exec(compile(pathlib.Path(file).read_text(), file, "exec"), namespace)
    known = files.flat(namespace["get_config"]())
    for word in argv:
        match = re.match(r"--?config\.([\w.]+)", word)
        if match and match[1] not in known:
            near = difflib.get_close_matches(match[1], known, n=3, cutoff=0.4)
            hint = f"nearest: {', '.join(near)}" if near else "see vbon_jax/config.py for all keys"
            return f"{file} has no key {match[1]!r}; {hint}"
    return f"{file}: {error}"


def _split_tuples(config: ConfigDict) -> None:
    """`--config.methods=vbon,kl_rl` arrives as one string in a tuple: split it at its commas."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            _split_tuples(value)
        elif isinstance(value, tuple) and any(isinstance(item, str) for item in value):
            words = [word.strip() for item in value for word in str(item).split(",")]
            with config.ignore_type():
                config[key] = tuple(_literal(word) for word in words if word)


def _literal(word: str):
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word
