"""Synthetic volumes with truth, for tests and demonstrations."""
