"""Kernels in Triton: attention beside its plain tiled twin, and fused norms, rotations, gates, loss and AdamW."""
