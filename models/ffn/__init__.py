"""Flood-filling networks: their definition, and the converter for published checkpoints."""
