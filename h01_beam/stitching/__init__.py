"""Stitching: the tiles of one section, each in pixels of its own, to one montage."""
