"""Kernels that do what `jaxalign.models.attention` defines, faster on their hardware."""
