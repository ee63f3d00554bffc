"""Can a batch be cut into as many parts as the config asks for?"""

from typing import Literal

from elastic_jax.errors import UserError

Reduce = Literal["step", "micro"]


def check_accumulate(stage: str, batch_size: int, accumulate: int, reduce: str, shards: int = 1) -> None:
    """Nothing, when the parts are whole on every device.

    Args:
      shards: devices over which the batch is spread; they divide it.

    Raises:
      UserError: with the nearest numbers that would do, or because `reduce` is unknown or has no effect.
    """
    if reduce not in ("step", "micro"):
        raise UserError(f"{stage}.reduce={reduce!r}: expected step or micro.")
    if reduce == "micro" and accumulate == 1:
        raise UserError(
            f"{stage}.reduce=micro has no effect with {stage}.accumulate=1: there is one reduction anyway. Set "
            f"{stage}.reduce=step, or raise {stage}.accumulate."
        )
    rows = batch_size // shards
    if accumulate >= 1 and rows % accumulate == 0:
        return
    fits = [parts for parts in range(1, rows + 1) if rows % parts == 0]
    near = {max((n for n in fits if n < accumulate), default=1), min((n for n in fits if n > accumulate), default=rows)}
    spread = f" over mesh axes data x fsdp = {shards}" if shards > 1 else ""
    larger = f", or {stage}.batch_size={shards * accumulate * -(-rows // accumulate)}" if accumulate >= 1 else ""
    raise UserError(
        f"{stage}.accumulate={accumulate}: {stage}.batch_size={batch_size}{spread} gives a device {rows} rows, which do not "
        f"divide into {accumulate} parts. Use {stage}.accumulate={' or '.join(map(str, sorted(near)))}{larger}."
    )
