"""Segmentation: flood filling within a block, and blocks to one segmentation."""
