"""Command-line jobs: one short script per pipeline, run as `python -m pipelines.NAME`."""
