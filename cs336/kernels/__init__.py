"""Attention kernels: the plain tiled algorithm, and the same in Triton."""
