"""Alignment: sections, each in a frame of its own, to one volume."""
