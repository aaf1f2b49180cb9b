"""Network definitions and converters: they make the files that workers load.

Nothing here is installed. It meets `h01_beam` at an artifact, a `.keras` file with its card
(see `h01_beam.models`), so workers need no Python from this folder.
"""
