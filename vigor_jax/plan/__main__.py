"""Compiles a config's programs for a pod that is not here: do they fit, and how long will it all take?

python -m vigor_jax.plan --config configs/vigor_all_7b.yaml --topology v5e:4x4
python -m vigor_jax.plan --config configs/vigor_all_7b.yaml --topology a100-40g:8 --search
"""

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from vigor_jax import cli  # which brings no JAX

# Which devices are here plays no part, and a GPU's own driver is not needed to compile for it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nor does one who plans hold a chip that others want


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring."""
    parser = cli.Parser("plan", __doc__)
    parser.add_argument(
        "--topology", required=True, help="v5e:4x4, v5p:2x2x2, v6e:4x4, v4:2x2x2, a100-40g:8, h200:1, ..."
    )
    parser.add_argument("--search", action="store_true", help="first look for the fastest settings that fit")
    parser.add_argument("--no-nearest", action="store_true", help="if it does not fit, do not look for what would")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--images", type=int, default=25_574, help="images of the recipe")
    parser.add_argument("--descriptions", type=int, default=16_000, help="annotated descriptions of the recipe")
    parser.add_argument("--answer", type=int, default=120, help="tokens of a response, on the average")
    options, rest = parser.parse_known_args(arguments)
    from vigor_jax.plan.hardware import parse_topology

    topology = parse_topology(options.topology)
    if topology.is_gpu:
        # Without the GPU there is nothing to time kernels on.
        os.environ["XLA_FLAGS"] = " ".join(
            (os.environ.get("XLA_FLAGS", ""), "--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false")
        )
    from vigor_jax.config import TrainConfig
    from vigor_jax.errors import InputError
    from vigor_jax.hf.hub import local_directory
    from vigor_jax.pipeline.table import make_stages
    from vigor_jax.plan.estimate import Known
    from vigor_jax.plan.planning import compiler, plan
    from vigor_jax.plan.search import nearest, search
    from vigor_jax.stages.programs import Work

    config: TrainConfig = cli.parse(TrainConfig, rest, description=__doc__ or "")
    directory = local_directory(config.model.path)  # of a model on the Hub, the sizes are enough
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=directory))
    make_stages(config)  # a stream that cannot be imported is said here, not as settings that do not fit
    work = Work(options.images, options.descriptions, options.answer)
    flags: dict[str, Any] = {}
    known: Known = {}
    devices = topology.devices()
    if options.search:
        searched = search(config, len(devices), compiler(topology, devices, known))
        config, flags = searched.config, searched.flags
        print(f"the fastest that fits: {_words(flags)}", file=sys.stderr)
        for stage in searched.missing:
            print(f"{stage}: nothing tried fits", file=sys.stderr)
    try:
        found = plan(config, topology, work, known)
    except InputError as error:
        raise InputError(str(error) if options.search else f"{error}; --search looks for settings that fit") from None
    compile_known = functools.partial(compiler, known=known)
    fitting = None if found.fits or options.no_nearest else nearest(config, topology, compile_known)
    if options.json:
        near = fitting and {"topology": fitting[0].name, "flags": fitting[1].flags}
        print(json.dumps(dataclasses.asdict(found) | {"fits": found.fits, "flags": flags, "nearest": near}, indent=1))
    else:
        print(found.table())
    if not found.fits:
        if not (options.json or options.no_nearest):
            print(
                f"It does not fit. The nearest that does: --topology {fitting[0].name} {_words(fitting[1].flags)}"
                if fitting
                else "It does not fit, and nothing that was tried does; take larger chips."
            )
        sys.exit(3)


def _words(flags: Mapping[str, Any]) -> str:
    return " ".join(f"--{name} {value}" for name, value in flags.items())


if __name__ == "__main__":
    cli.run(main)
