"""The programs: the only place with flags, clocks and working directories."""
