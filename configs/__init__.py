"""Configurations: plain functions that return a locked ConfigDict."""
