"""The optimisation of a policy: methods, one step, the mesh, checkpoints, logs."""
