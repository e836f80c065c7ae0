"""Mathematics: arrays in, arrays out; no model, no configuration, no input or output."""
