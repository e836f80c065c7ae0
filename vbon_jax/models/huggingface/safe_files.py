"""Folders of models on disk: found or downloaded, read safely, written whole or not at all.

Nothing here knows what is in a model; `model_folder.py` does.
"""

import contextlib
import fnmatch
import hashlib
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from vbon_jax import files
from vbon_jax.types import InputError

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"  # of peft, beside adapter_model.safetensors
MODEL_FILES = (CONFIG_FILE, GENERATION_FILE, "*.safetensors", INDEX_FILE)
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "*.jinja",
)
PICKLED_FILES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
DISK_DTYPES = ("F32", "F16", "BF16")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Stored(NamedTuple):
    """Where a tensor lies, and its type and shape as the file's header gives them."""

    file: pathlib.Path
    dtype: str
    shape: tuple[int, ...]

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """InputError unless the tensor has this shape and a type that is read."""
        if self.dtype not in DISK_DTYPES:
            raise InputError(f"{self.file}: {name} is {self.dtype}; use {', '.join(DISK_DTYPES)}")
        if self.shape != shape:
            raise InputError(
                f"{self.file}: {name} is {list(self.shape)}, and {CONFIG_FILE} asks for "
                f"{list(shape)}; correct {CONFIG_FILE} or the weights"
            )


def find(path: str | pathlib.Path) -> pathlib.Path:
    """The folder that `path` names; `owner/name` that is not a folder is fetched from the hub.

    Raises InputError where there is neither.
    """
    folder = pathlib.Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{path}: not a folder; give the folder that holds {CONFIG_FILE}")
    if not HUB_NAME.fullmatch(str(path)):
        raise InputError(f"{path}: no such folder; give a folder that holds {CONFIG_FILE}")
    return _download(str(path))


def _download(name: str) -> pathlib.Path:
    """A repository of the Hugging Face hub, its JSON, safetensors and tokenizer files alone."""
    import huggingface_hub

    wanted = [*MODEL_FILES, *TOKENIZER_FILES, ADAPTER_CONFIG_FILE]
    try:
        fetched = huggingface_hub.snapshot_download(
            name, allow_patterns=wanted, ignore_patterns=["*/*"]
        )
    except Exception as error:  # of whichever HTTP library the hub's client is built on
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{name}: no such folder, and the Hugging Face hub did not give it "
            f"({type(error).__name__}: {reason}); correct the path or download it first"
        ) from error
    return pathlib.Path(fetched)


def matching(folder: pathlib.Path, patterns: Iterable[str]) -> list[pathlib.Path]:
    """The folder's own files whose name fits one of the patterns, by name."""
    patterns = tuple(patterns)
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and any(fnmatch.fnmatchcase(file.name, p) for p in patterns)
    )


def read_json(file: pathlib.Path, remedy: str) -> dict[str, Any]:
    """A JSON object; InputError (with `remedy`) where the file is missing or is not one."""
    if not file.is_file():
        raise InputError(f"{file}: no such file; {remedy}")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{file}: not JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise InputError(f"{file}: not a JSON object; {remedy}")
    return value


def write_json(file: pathlib.Path, value: dict[str, Any]) -> None:
    """A JSON object, keys sorted, as transformers writes them."""
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def fingerprint(path: str | pathlib.Path) -> str:
    """The fingerprint of a folder: sha256 (hex) over its config, weight and tokenizer files."""
    digest = hashlib.sha256()
    for file in matching(find(path), MODEL_FILES + TOKENIZER_FILES):
        with file.open("rb") as content:
            one = hashlib.file_digest(content, "sha256").hexdigest()
        digest.update(f"{file.name} {one}\n".encode())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------- weights


def stored_tensors(folder: pathlib.Path) -> dict[str, Stored]:
    """Every tensor of `model.safetensors`, or of the shards its index names; headers only.

    Raises InputError for pickled, missing or damaged weights.
    """
    return {
        name: Stored(file, view.get_dtype(), tuple(view.get_shape()))
        for file in _weight_files(folder)
        for name, view in _views(file)
    }


def read_tensor(name: str, stored: Stored) -> np.ndarray:
    """One tensor as float32. Raises InputError where a value is not a finite number."""
    # jax has registered bfloat16 with numpy by the time that this runs.
    with safetensors.safe_open(stored.file, framework="np") as weights:
        value = weights.get_tensor(name).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        total = value.sum()  # finite only where all are, and quicker than to look at each
    if not np.isfinite(total) and (bad := np.count_nonzero(~np.isfinite(value))):
        raise InputError(
            f"{stored.file}: {name} has {bad} values that are not finite, of {value.size}; fetch "
            "the file again, or take an earlier checkpoint of that model"
        )
    return value


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    index, whole_file = folder / INDEX_FILE, folder / WEIGHTS_FILE
    if whole_file.is_file() and index.is_file():
        raise InputError(f"{folder}: both {WEIGHTS_FILE} and {INDEX_FILE}; remove the older one")
    if whole_file.is_file():
        return [whole_file]
    if index.is_file():
        names = read_json(index, "fetch the folder again").get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise InputError(f"{index}: weight_map is not a table of files; fetch the folder again")
        files = [folder / pathlib.PurePath(name).name for name in sorted(set(names.values()))]
        for file in files:
            if not file.is_file():
                raise InputError(f"{file}: no such file, and {index.name} names it; fetch it")
        return files
    for file in matching(folder, PICKLED_FILES):
        raise InputError(
            f"{file}: pickled weights can run code and are refused; convert them to {WEIGHTS_FILE} "
            "(save_pretrained of a current transformers writes it)"
        )
    raise InputError(f"{folder}: neither {WEIGHTS_FILE} nor {INDEX_FILE}; add the weights")


def _views(file: pathlib.Path) -> Iterator[tuple[str, Any]]:
    try:
        with safetensors.safe_open(file, framework="np") as weights:
            yield from [(name, weights.get_slice(name)) for name in weights.keys()]  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise InputError(f"{file}: damaged safetensors ({error}); fetch it again") from error


def write_tensors(
    folder: pathlib.Path,
    sizes: dict[str, int],
    read: Callable[[str], np.ndarray],
    *,
    max_shard_bytes: int,
) -> None:
    """Write tensors (name -> bytes in `sizes`, made one shard at a time by `read`) to safetensors.

    One file when they fit into `max_shard_bytes`, else shards and the index that names them.
    """
    import huggingface_hub

    split = huggingface_hub.split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for file, names in split.filename_to_tensors.items():
        write_file(folder / file, {name: read(name) for name in names})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / INDEX_FILE, index)


def write_file(file: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """One safetensors file, in float32. Raises InputError for a value that is not finite."""
    tensors = {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise InputError(f"{file.parent}: {name} is not finite, so nothing is written")
    # transformers refuses weights that do not say that they are laid out as torch's are.
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})


# ---------------------------------------------------------------------------------------- folders


@contextlib.contextmanager
def whole(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write into, which becomes `path` when the block ends, or vanishes if it fails.

    An earlier model at `path` is replaced; a folder that holds anything else is an InputError.
    A process killed inside the block leaves `path` as it was, and a hidden `.NAME.partial` beside
    it which the next call clears; killed between the two renames, the next call also brings the
    earlier model back. Raises InputError where another process is writing there, and Unwritable.
    """
    target = files.local_path(path).resolve()
    with files.lock(target.parent, target.name):
        try:
            yield from _replaced(target)
        except (OSError, safetensors.SafetensorError) as error:
            raise files.Unwritable(target, error) from error


def _replaced(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder that `whole` gives; the rest of this runs when its block ends."""
    partial = target.with_name(f".{target.name}.partial")
    replaced = target.with_name(f".{target.name}.replaced")
    _refuse_foreign(target)
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.iterdir():  # safetensors makes files that only their owner may read
            file.chmod(partial.stat().st_mode & 0o666)
        if target.exists():
            target.rename(replaced)
        partial.rename(target)
    finally:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _refuse_foreign(target: pathlib.Path) -> None:
    """Only what looks like a saved model is ever removed to make room for another."""
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file; choose another folder")
    if target.is_dir():
        patterns = (*MODEL_FILES, *TOKENIZER_FILES, ADAPTER_CONFIG_FILE)
        replaceable = {file.name for file in matching(target, patterns)}
        foreign = sorted({entry.name for entry in target.iterdir()} - replaceable)
        if foreign:
            raise InputError(
                f"{target}: would be replaced, but holds {foreign[0]!r}, which is not part of a "
                "model; choose another folder"
            )
