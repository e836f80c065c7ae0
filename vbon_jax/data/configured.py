"""The rows that a configuration names: those of `config.data`, and of `config.pairs`."""

from ml_collections import ConfigDict

from vbon_jax.data import formats, sources


def read(config: ConfigDict, path: str, split: str) -> sources.Rows:
    """The rows of the training ("train") or the held-out ("eval") data at `path`.

    Splits, columns and filters are those of `config.data`; embedded reviews, which the
    configuration names no data for, are read as they are.
    """
    settings = config.data
    if not settings[split]:
        return sources.read(path)
    keep, name = settings.filter, settings.split_train
    if split == "eval":
        keep, name = settings.filter_eval or settings.filter, settings.split_eval
    return sources.read(
        path,
        split=name,
        columns=settings.columns,
        keep=keep,
        limit=settings.stream_rows,
        streaming=settings.stream_rows > 0,
    )


def read_pairs(config: ConfigDict, tokenizer) -> tuple[sources.Rows, formats.Preferences]:
    """The rows of `pairs.path`, and the preferences that they are; the tokenizer may be None."""
    settings = config.pairs
    table = sources.read(
        settings.path, split=settings.split, columns=settings.columns, keep=settings.filter
    )
    return table, preferences(config, table, tokenizer)


def preferences(config: ConfigDict, table: sources.Rows, tokenizer) -> formats.Preferences:
    """Rows as preferences, with ties and empty responses treated as `config.pairs` says."""
    settings = config.pairs
    return formats.preferences(
        table, tokenizer=tokenizer, on_tie=settings.on_tie, on_empty=settings.on_empty
    )
