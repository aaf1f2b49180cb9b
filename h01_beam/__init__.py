"""Reconstruction of serial-section electron microscopy: from tiles to a connectome."""

__version__ = '0.1.0'
