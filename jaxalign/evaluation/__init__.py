"""Judging: held-out preferences and generations."""
