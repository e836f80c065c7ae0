"""The exact lab: policies whose responses can be enumerated."""
