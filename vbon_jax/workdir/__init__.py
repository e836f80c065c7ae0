"""The files of a working directory, which `study` writes and `report` reads."""
