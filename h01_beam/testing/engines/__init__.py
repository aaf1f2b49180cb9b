"""Engines beside DirectRunner, started on this machine: Flink and Prism.

    with FlinkCluster(folder) as engine:
        subprocess.run([*command, *engine.beam_flags()])

`deploy/engines/fetch` brings what they need into `.engines`.
"""

from h01_beam.testing.engines.flink import FlinkCluster
from h01_beam.testing.engines.prism import Prism
from h01_beam.testing.engines.processes import MissingEngineError

__all__ = ['FlinkCluster', 'MissingEngineError', 'Prism']
