"""The rows that a configuration names: those of `config.data`, and of `config.pairs`."""

from ml_collections import ConfigDict

from vbon_jax.data import formats, sources


def read(config: ConfigDict, split: str) -> sources.Rows:
    """The training ("train") or the held-out ("eval") rows of `config.data`."""
    settings = config.data
    keep, name = settings.filter, settings.split_train
    if split == "eval":
        keep, name = settings.filter_eval or settings.filter, settings.split_eval
    return sources.read(
        settings[split],
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
