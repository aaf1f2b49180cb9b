"""Opens the volumes of a run, or any others, in Neuroglancer, served from this machine.

    python -m pipelines.view --run_dir run
    python -m pipelines.view --run_dir run --truth labels.h5 --screenshot view.png
    python -m pipelines.view --volume em.zarr --volume 'gs://b/seg|neuroglancer-precomputed:'
On a remote machine, after `ssh -L 8080:localhost:8080 MACHINE`:
    python -m pipelines.view --run_dir run --port 8080
"""

from __future__ import annotations

import argparse
import json
import sys
import threading

from absl import app
from absl import flags as absl_flags

from h01_beam import generations, storage
from h01_beam.export import screenshot, serve, view


def main(args: argparse.Namespace) -> int:
    try:
        layers = view.open_layers(
            args.run_dir and generations.current(args.run_dir),
            [generations.resolve(uri) for uri in args.volume],
            args.truth,
        )
        with serve.serving(args.port) as server:
            state = view.serve_layers(server, layers, picture=bool(args.screenshot))
            if args.state:
                storage.write_bytes(args.state, json.dumps(state, indent=1).encode())
            if args.screenshot:
                storage.write_bytes(args.screenshot, screenshot.take_screenshot(server))
                return 0
            names = ', '.join(one.layer.name for one in layers)
            print(f'{names}: {server.url}\nCtrl-C ends.', flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        pass
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def flags() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument('--run_dir', help='a run: its inputs and its result')
    result.add_argument('--volume', action='append', default=[], help='URI; may be repeated')
    result.add_argument('--truth', help='URI of a segmentation to compare with')
    result.add_argument('--port', type=int, default=0, help='on 127.0.0.1; default: any free one')
    result.add_argument('--screenshot', metavar='FILE.png', help='render headless, then end')
    result.add_argument('--state', metavar='FILE.json', help='write the Neuroglancer state')
    return result


def parse(argv: list[str]) -> argparse.Namespace:
    absl_flags.FLAGS(argv[:1])  # absl insists; none of its flags is ours.
    return flags().parse_args(argv[1:])


if __name__ == '__main__':
    app.run(lambda args: sys.exit(main(args)), flags_parser=parse)
