"""Commands other than a run."""
