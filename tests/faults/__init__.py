"""Faults injected into runs and restores."""
