"""How good a policy is, and how far from Best-of-N."""
