"""The quick start: a small study in a generated world, on CPU, in minutes. See `program`, `stages` and `settings`."""
