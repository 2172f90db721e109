"""Detectors over a run's history: signal, value, limit, cause, action. Pure functions; nothing here reads a model or a file."""

from pipelines.diagnosis.finding import Action, Finding, Hit, Level, Method, Record
from pipelines.diagnosis.table import DETECTORS, Detector, detector_of, examine, method_of

__all__ = [
    "DETECTORS",
    "Action",
    "Detector",
    "Finding",
    "Hit",
    "Level",
    "Method",
    "Record",
    "detector_of",
    "examine",
    "method_of",
]
