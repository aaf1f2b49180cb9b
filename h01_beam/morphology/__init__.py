"""Shapes of segmented objects."""
