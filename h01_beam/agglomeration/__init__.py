"""Agglomeration: supervoxels to segments, from edge tables to global ids."""
