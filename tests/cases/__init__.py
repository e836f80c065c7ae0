"""Inputs that once gave a wrong number or an unclear end, each with a line on what is right."""
