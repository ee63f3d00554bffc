"""Compress a file with a model of a study, or get it back.

    python -m elastic_jax.compress --workdir=W --run=KEY --file=TEXT --out=FILE
    python -m elastic_jax.compress --workdir=W --decompress --file=FILE --out=TEXT

Any bytes come back exactly, or not at all: the same checkpoint is needed, and a machine that computes the same probabilities bit for
bit. docs/theory.md says what that means. Both sides need the model itself, whose size is no part of the file's.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elastic_jax import cli
from elastic_jax.errors import UserError


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__, "compress", workdir=True)
    parser.add_argument(
        "--run", default="", help="key of the run; when decompressing, by default the one that the file names"
    )
    parser.add_argument(
        "--updates", type=int, help="which of its checkpoints (default: the last; decompressing: the file's)"
    )
    parser.add_argument("--study", default=None, help="one of several in the same folder; by default the latest")
    parser.add_argument("--file", required=True, help="what is compressed or decompressed")
    parser.add_argument("--out", required=True, help="where the result goes; must not be there yet")
    parser.add_argument("--decompress", action="store_true", help="get the original back")
    parser.add_argument("--lanes", type=int, help="texts that are coded side by side (default 64)")
    parser.add_argument(
        "--compare", action="store_true", help="also print the sizes that gzip, bzip2, xz and zstd reach"
    )
    parser.add_argument("--platform", default="", help="cpu, gpu or tpu; by default the best that this machine has")
    return cli.guarded(_compress, parser, argv)


def _compress(args: cli.Arguments) -> None:
    from elastic_jax.compressor import archive
    from elastic_jax.data import files

    data = _read(args.file)
    if Path(args.out).exists():
        raise UserError(f"--out={args.out}: this file is there already. Remove it, or give another name.")
    if args.decompress:
        for name in ("lanes", "compare"):
            if getattr(args, name):
                raise UserError(f"--{name} has no effect with --decompress. Leave it out.")
        header, _, _ = _named(args.file, lambda: archive.unpack(data))
        if args.run in ("", header.run):
            args.run, args.updates = header.run, header.updates if args.updates is None else args.updates
    elif not args.run:
        raise UserError("--run=KEY: which model is to compress? python -m elastic_jax.status lists the runs.")
    elif args.lanes is not None and args.lanes < 1:
        raise UserError(f"--lanes={args.lanes}: expected 1 or more.")
    args.distributed = ""
    _reproducible(args.platform)
    cli.start_jax(args, None)
    import jax

    from elastic_jax.compressor.codec import LANES
    from elastic_jax.compressor.studies import codec_of
    from elastic_jax.study import points, say

    if jax.process_count() > 1:
        raise UserError(
            "compress works in one process, and a launcher has started several. Start it by itself, on one host."
        )
    codec = codec_of(points.find(args.workdir, args.run, args.updates, name=args.study))
    began = time.monotonic()
    if args.decompress:
        made = _named(args.file, lambda: codec.decompress(data))
        note = f"{len(data):,} bytes -> {len(made):,}"
    else:
        found = codec.compress(data, args.lanes or LANES)
        made, note = found.data, str(found)
    seconds = time.monotonic() - began
    files.write_bytes(Path(args.out), made)
    say(f"{note}\n{args.out}: written in {seconds:.1f} s")
    if args.decompress:
        return
    say(
        f"Reading it takes {codec.run}, update {codec.updates}: {codec.model.size:,} parameters, {codec.weights_bytes:,} bytes, which are "
        "not in the file."
    )
    if args.compare:
        from elastic_jax.analysis import compressors

        say(str(compressors.side_by_side(data, {codec.run: (len(made), codec.weights_bytes)}).to_string(index=False)))


def _reproducible(platform: str) -> None:
    """On a GPU XLA times several kernels and takes the fastest, which may be another one in the process that decompresses."""
    from elastic_jax.parallel import flags, platforms

    if (platforms.choose(platform) or platforms.machine().platform) != "gpu":
        return
    wanted = ["--xla_gpu_deterministic_ops=true", "--xla_gpu_autotune_level=0"]
    known = flags.probe(flags.XLA, wanted)
    os.environ[flags.XLA] = " ".join(
        [os.environ.get(flags.XLA, ""), *(flag for flag in wanted if flag in known)]
    ).strip()


def _read(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except IsADirectoryError:
        raise UserError(f"--file={name}: this is a folder. Give a file.") from None
    except FileNotFoundError:
        raise UserError(f"--file={name}: no such file.") from None


def _named(name: str, call: Callable[[], Any]) -> Any:
    """What went wrong with a file, with its name."""
    try:
        return call()
    except UserError as error:
        raise UserError(f"--file={name}: {error}") from error


if __name__ == "__main__":
    raise SystemExit(main())
