"""Controlled comparisons: a question, a grid of runs that share their common stages, measures, and a report."""
