"""The runs of a working directory and what they share."""
