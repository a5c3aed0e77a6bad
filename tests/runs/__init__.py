"""A night in all its ways."""
