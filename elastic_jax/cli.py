"""What do the commands share: flags, overrides, and errors as messages?"""

import argparse
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from elastic_jax.errors import UserError, first_line
from elastic_jax.parallel import huge_pages
from elastic_jax.train import interrupt

Arguments = argparse.Namespace
USER_ERROR = 2
OUT_OF_MEMORY = (
    "Raise STAGE.accumulate, lower STAGE.batch_size, set --config.model.remat=full, or spread the parameters with "
    "--config.mesh.fsdp; python -m elastic_jax.plan shows what fits. The same command continues."
)


def parser(
    description: str | None, command: str, *, config: bool = False, workdir: bool = False
) -> argparse.ArgumentParser:
    """A parser with the flags of `command`; `--config.field=value` is read by `guarded`."""
    made = argparse.ArgumentParser(
        prog=f"python -m elastic_jax.{command}",
        description=description,
        epilog="Any field of the config can be set with --config.FIELD=VALUE." if config else None,
        allow_abbrev=False,
    )
    if config:
        made.add_argument("--config", required=True, metavar="FILE.py[:ARGUMENT]", help="the study")
    if workdir:
        made.add_argument("--workdir", required=True, help="folder for everything that is computed")
    if config:
        made.add_argument("--distributed", default="", help='"auto" to find the other processes (Slurm, TPU, GKE)')
        made.add_argument("--platform", default="", help="cpu, gpu or tpu; by default the best that this machine has")
    return made


def guarded(
    command: Callable[[Arguments], None],
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    *,
    interruptible: bool = False,
) -> int:
    """Run a command; a mistake of the user ends it with the message alone and exit code 2.

    An `interruptible` one continues where it stopped, and says so with exit code 75 when a scheduler stops it, or when another
    process of its job is lost.
    """
    if argv is None and interruptible:  # a command of its own, not a call from a notebook or a test
        huge_pages.restart()
    main = threading.current_thread() is threading.main_thread()  # signals can be heard nowhere else
    with interrupt.listening() if interruptible and main else contextlib.nullcontext():
        code = _guarded(command, parser, argv)
    if (distributed := sys.modules.get("elastic_jax.parallel.distributed")) is not None:
        distributed.leave()
    return code


def _guarded(command: Callable[[Arguments], None], parser: argparse.ArgumentParser, argv: list[str] | None) -> int:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("elastic_jax").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)
    sys.unraisablehook = _unraisable
    words = list(sys.argv[1:] if argv is None else argv)
    overrides = [word for word in words if word.startswith("--config.")]
    try:
        args, unknown = parser.parse_known_args([word for word in words if word not in overrides])
        if unknown:
            flags = [option for action in parser._actions for option in action.option_strings]
            raise UserError(f"{unknown[0]}: no such flag. Flags: {', '.join(sorted(flags))}, --config.FIELD=VALUE.")
        args.overrides = dict(_pair(word) for word in overrides)
        if overrides and not hasattr(args, "config"):
            raise UserError(f"{overrides[0]}: this command takes no config.")
        command(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return _lost() if _is_lost(error) else USER_ERROR
    except OSError as error:
        print(f"error: {error}\nWhat was computed is kept; the same command continues.", file=sys.stderr)
        return USER_ERROR
    except (RuntimeError, ValueError) as error:  # jax.errors.JaxRuntimeError is one, and jax may not be imported yet
        if _is_lost(error):
            print(f"error: another process of this job is gone. {first_line(error)}", file=sys.stderr)
            return _lost()
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"error: out of device memory. {first_line(error)}\n{OUT_OF_MEMORY}", file=sys.stderr)
        return USER_ERROR
    except interrupt.Interrupted as end:
        print(f"\n{end.farewell}", file=sys.stderr)
        return end.code
    except KeyboardInterrupt:
        print("\nInterrupted. The same command continues from the last checkpoint.", file=sys.stderr)
        return interrupt.CTRL_C
    return 0


def _is_lost(error: Exception) -> bool:
    """Whether another process of this job is gone; only a command that has joined others can know."""
    distributed = sys.modules.get("elastic_jax.parallel.distributed")
    return distributed is not None and distributed.lost_peer(error)


def _lost() -> int:
    """The others have to be started again as well; an end that waits for them would wait for ever."""
    interrupt.exit_at_once(interrupt.requested() or "the loss of a process")
    return interrupt.EXIT


def _unraisable(unraisable: Any) -> None:
    """When one file of a checkpoint cannot be read, orbax closes its event loop, and the reads of the others complain to no one
    when they end; the checkpoint itself is reported."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def _pair(word: str) -> tuple[str, str]:
    name, given, value = word.removeprefix("--config.").partition("=")
    if not given:
        raise UserError(f"{word}: expected --config.{name}=VALUE.")
    return name, value


def load_config(args: Arguments) -> Any:
    """The config of the flags, checked."""
    from elastic_jax import config

    loaded = config.load(args.config, args.overrides)
    config.validate(loaded)
    return loaded


def start_jax(args: Arguments, config: Any) -> Any:
    """Choose and check the devices, and join the other processes if a launcher asked for it; they have to run the same study.

    Returns:
      What counts the programs that the compile cache had, or None without one.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # warnings of the compiler's partitioner are for its authors
    from elastic_jax import config as config_lib
    from elastic_jax.parallel import compile_cache, distributed, flags, platforms

    wanted = platforms.choose(args.platform)
    several = bool(args.distributed) or distributed.launch_from() is not None
    flags.apply(wanted, several=several)
    joined = distributed.initialize(args.distributed)
    if joined:
        interrupt.join()
        distributed.watch(lambda who: interrupt.exit_at_once(interrupt.requested() or f"the loss of {who}"))
    platforms.check(wanted)
    counter = compile_cache.enable()  # after joining: all processes use it, or none
    if joined:
        distributed.preflight(config_lib.fingerprint(config))
    return counter


def note(programs: Any) -> None:
    """In the log of process 0, what the compile cache was good for."""
    from elastic_jax.parallel import distributed

    if programs is not None and distributed.is_main():
        logging.getLogger("elastic_jax").info("%s", programs)
