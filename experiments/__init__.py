"""The programs: the only place with flags, clocks and working directories."""

import signal
import sys

from vbon_jax import environment

if sys.argv[:1] == ["-m"]:  # a program is being started: its imports take seconds
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    environment.start_jax(devices=False)
