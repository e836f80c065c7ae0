"""Sampling from a policy, rewards of text, and the cache of reference rewards."""
