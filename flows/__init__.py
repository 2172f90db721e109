"""Prefect flows: when and in which order. ``python -m flows`` is the command line ``prefloop``."""
