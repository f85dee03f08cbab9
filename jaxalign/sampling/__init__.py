"""Sampling: completions of prompts from a policy."""
