"""Variational Best-of-N alignment, BoNBoN and their rivals, in JAX."""
