"""Detectors over a run's history: signal, value, limit, cause, action. Pure functions; nothing here reads a model or a file."""
