"""Starts JAX, which reads its settings from environment variables; bad ones are one line."""

import os
import sys


def start_jax(*, devices: bool) -> None:
    """Import JAX and, where `devices` are needed, find them.

    A variable that JAX cannot use leaves with one line and status 2.
    """
    try:
        import jax

        if devices:
            jax.devices()
    except (AssertionError, ImportError, RuntimeError, ValueError) as error:
        given = [f"{name}={os.environ[name]}" for name in sorted(os.environ) if "JAX_" in name]
        why = " ".join(str(error).split()) or "there is no such device"
        variables = ", ".join(given) or "no JAX variable set"
        print(f"error: JAX does not start with {variables}: {why}; correct it", file=sys.stderr)
        sys.exit(2)
