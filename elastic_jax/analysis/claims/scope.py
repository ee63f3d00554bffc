"""Appendix: does rebound hold whatever the algorithm of alignment, and in the reversed direction?"""

from collections.abc import Iterable

from elastic_jax.analysis import rebound
from elastic_jax.analysis.claims import path as of
from elastic_jax.analysis.claims.statement import Outcome, Settings, Statement, Test, Untested
from elastic_jax.analysis.table import Study

STATEMENTS = (
    Statement("scope.methods", "Rebound under every algorithm of alignment", "appendix B.2: PPO, DPO, KTO, SimPO"),
    Statement("scope.reversed", "Rebound in the reversed direction: negative first, then positive", "appendix"),
)
METHODS = Test("methods_rebound", "scope.methods", "way back towards the base", "score", 1)
REVERSED = Test("reversed_rebound", "scope.reversed", "way back towards the base", "score", 1)


def outcomes(study: Study, settings: Settings) -> Iterable[Outcome | Untested]:
    paths = [path for path in rebound.trajectories(study) if path.arm == "aligned"]
    methods = {path.condition[1] for path in paths}
    tasks = _tasks(study)
    for condition in sorted({path.condition for path in paths}):
        values = {path.seed: of.towards_base(path) for path in paths if path.condition == condition}
        if len(methods) > 1:
            yield Outcome(METHODS, values, condition[:3], condition[4])
        if tasks.get(condition[0], tasks.get("", "")).endswith("_reversed"):
            yield Outcome(REVERSED, values, condition[:3], condition[4])
    if not paths:
        reasons = ["no aligned model has been perturbed"] * 2
    else:
        reasons = [
            f"one algorithm ({', '.join(sorted(methods))})",
            "no part of the study is reversed (configs/rebound.py:reversed is)",
        ]
    for statement, reason in zip(STATEMENTS, reasons, strict=True):
        yield Untested(statement.key, reason)


def _tasks(study: Study) -> dict[str, str]:
    """Variant -> its task; under "" that of a study without variants."""
    config = study.info.get("config") or {}
    configs = config.get("variants") if "data" not in config else {"": config}
    return {name: str((one.get("data") or {}).get("task") or "") for name, one in (configs or {}).items()}
