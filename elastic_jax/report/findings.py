"""Which tables does a report show?

Everything the page, the figures and the summary need is computed here once, from one study.
"""

import dataclasses
import functools

from elastic_jax.analysis import claims, compression, laws, rebound, statistics, table
from elastic_jax.analysis.rebound import CONDITION
from elastic_jax.analysis.table import Frame, Study

SPLITS = ("pretrain", "align", "perturb")
Panel = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class Findings:
    """The analysis of one study. A panel is a (model, align method, perturb method) of it."""

    study: Study
    eps: float = rebound.EPS
    level: float = statistics.LEVEL

    @functools.cached_property
    def scores(self) -> list[rebound.Trajectory]:
        return rebound.trajectories(self.study)

    @functools.cached_property
    def per_seed(self) -> Frame:
        return rebound.per_seed(self.study, eps=self.eps)

    @functools.cached_property
    def quantities(self) -> Frame:
        return rebound.aggregate(self.per_seed, self.level)

    @functools.cached_property
    def further(self) -> Frame:
        """Quantities of the further scorers, over seeds."""
        return rebound.aggregate(rebound.further_per_seed(self.study), self.level)

    @functools.cached_property
    def changes(self) -> Frame:
        return compression.aggregate(compression.changes(self.study), self.level)

    @functools.cached_property
    def tests(self) -> Frame:
        return claims.tests(self.study, self.level, self.eps)

    @functools.cached_property
    def decays(self) -> Frame:
        return laws.decays_of(self.study, self.level)

    @functools.cached_property
    def power_laws(self) -> Frame:
        return laws.power_laws(self.per_seed, self._sizes, self.level)

    @functools.cached_property
    def predictions(self) -> Frame:
        return laws.predictions(self.per_seed, self._sizes, self.level)

    @property
    def _sizes(self) -> Frame:
        rows = self.study.rows[self.study.rows.run != ""]
        return rows.groupby("model", as_index=False, sort=True)[["params", "pretrain_tokens"]].max()

    @functools.cached_property
    def panels(self) -> list[Panel]:
        rows = self.study.rows
        for stage, arm in (("perturb", "aligned"), ("perturb", "control"), ("align", "aligned")):
            part = rows[(rows.stage == stage) & (rows.arm == arm)]
            if len(part):
                keys = part[["model", "align_method", "perturb_method"]].drop_duplicates()
                order = {model.name: i for i, model in enumerate(self.study.models)}
                found = [(str(a), str(b), str(c)) for a, b, c in keys.itertuples(index=False)]
                return sorted(found, key=lambda panel: (order[panel[0]], *panel))
        return []

    def panel_names(self, frame: Frame) -> list[str]:
        """Those of the frame's column `panel`, in the order of `panels`."""
        names = [self.panel_name(panel) for panel in self.panels]
        there = set(frame.panel)
        return [name for name in dict.fromkeys(names) if name in there] + sorted(there - set(names))

    def panel_name(self, panel: Panel) -> str:
        """What tells this panel from the others; "" when there is one."""
        parts = [part for i, part in enumerate(panel) if len({other[i] for other in self.panels}) > 1]
        return ", ".join(part or "none" for part in parts)

    @functools.cached_property
    def volumes(self) -> list[int]:
        """Alignment volumes that were perturbed, or recorded in align runs where none was perturbed yet."""
        rows = self.study.rows
        found = rows[(rows.stage == "perturb") & (rows.arm != "control")].align_volume
        if found.empty:
            found = rows[(rows.stage == "align") & (rows.examples > 0)].examples
        return sorted({int(v) for v in found})

    @functools.cached_property
    def seeds(self) -> list[int]:
        return sorted({int(s) for s in self.study.rows[self.study.rows.stage != "data"].seed})

    def splits(self, measure: str) -> list[str]:
        found = set(self.study.rows[self.study.rows.measure == measure].split)
        return [s for s in SPLITS if s in found] + sorted(found - set(SPLITS))

    def in_panel(self, frame: Frame, panel: Panel) -> Frame:
        """Rows of the panel and of the control that belongs to it."""
        model, align, perturb = panel
        own = (frame.model == model) & (frame.align_method == align) & (frame.perturb_method == perturb)
        own &= frame.arm != "control"
        control = (frame.model == model) & (frame.perturb_method == perturb) & (frame.arm == "control")
        return frame[own | control]

    def curves(self, measure: str, split: str) -> Frame:
        """Perturbation curves over seeds, with `panel` and `split`, one block per panel."""
        frame = rebound.curves(rebound.trajectories(self.study, measure, split), self.level)
        return self._stack(frame).assign(measure=measure, split=split)

    def _stack(self, frame: Frame) -> Frame:
        parts = [self.in_panel(frame, p).assign(panel=self.panel_name(p)) for p in self.panels]
        return table.stack(parts) if parts else frame.assign(panel="")

    def stacked(self, quantities: Frame) -> Frame:
        return self._stack(quantities)

    def conditions(self) -> Frame:
        """Distinct conditions in the order of tables: panel, aligned by volume, then the control."""
        frame = self.stacked(self.quantities)[["panel", *CONDITION]].drop_duplicates()
        place = {name: i for i, name in enumerate(self.panel_names(frame))}
        frame = frame.assign(_panel=frame.panel.map(place), _late=frame.arm == "control")
        return frame.sort_values(["_panel", "_late", "align_volume"], kind="stable").drop(columns=["_panel", "_late"])

    def missing(self) -> list[str]:
        """What the table does not hold, said once at the top of the page."""
        rows, out = self.study.rows, []
        done, planned = self.study.progress()
        if done < planned:
            out.append(
                f"{done} of {planned} runs finished; curves and quantities use the seeds that reached the "
                "last point of their condition."
            )
        perturbed = rows[rows.stage == "perturb"]
        if perturbed.empty and "perturb" not in self.study.stage_of.values():
            out.append("Nothing is perturbed in this study.")
        elif perturbed.empty:
            out.append("No perturb run has been measured yet.")
        elif not (perturbed.arm == "control").any():
            out.append("No control (the same perturbation straight from the base) was run.")
        if len(self.seeds) == 1:
            out.append("One seed: means are single values and no interval over seeds exists.")
        bases = self.study.base_runs()
        if len(self.seeds) > 1 and self.study.info.get("bases"):
            out.append("All seeds start from the same weights: intervals cover alignment and perturbation only.")
        elif len(self.seeds) > 1 and len(bases) == 1:
            out.append("All seeds start from one pre-training run: intervals cover alignment and perturbation only.")
        for measure, what in (
            ("kl_base_model", "KL(base || model)"),
            ("kl_model_base", "KL(model || base)"),
            ("kl_data_model", "KL(data || model), which needs a source with known probabilities"),
            ("score", "Score"),
        ):
            if not (rows.measure == measure).any():
                out.append(f"{what}: not measured.")
        return out + rebound.ambiguities(self.study)
