"""What does a study look like by another judge than the data's own?"""

from elastic_jax.analysis.rebound import FURTHER, further_units
from elastic_jax.analysis.table import Study
from elastic_jax.errors import UserError, closest

OWN = FURTHER + "data"  # what the data's own score is then called
_BOUNDED = ("probability", "fraction")


def by_scorer(study: Study, name: str) -> Study:
    """The study with a further scorer's measure in the place of the score, and the score among the further scorers.

    The texts that are kept have no score then: theirs is by the data's scorer.

    Args:
      name: of the scorer: "refusal", or its measure, "score_refusal".

    Raises:
      UserError: the study has no such scorer, or its scores are not from 0 to 1, as the statements and their log-odds need them.
    """
    units, measure = further_units(study), name if name.startswith(FURTHER) else FURTHER + name
    if not units:
        raise UserError(f"--score={name}: study {study.name} has no further scorers. Name some in measures.scorers.")
    if measure not in units:
        raise UserError(f"--score={name}: study {study.name} has no such scorer. {closest(measure, units)}")
    if units[measure] not in _BOUNDED:
        raise UserError(
            f"--score={name}: its scores are in {units[measure]}, which has no bounds 0 and 1: the statements and their log-odds are "
            "about probabilities. Its curve, half-lives and rebound are under Further scorers of the study's report."
        )
    rows = study.rows.copy()
    chosen = rows.measure == measure
    rows.loc[rows.measure == "score", "measure"] = OWN
    rows.loc[chosen, "measure"], rows.loc[chosen, "unit"] = "score", "probability"
    rows.loc[rows.measure == "sample", "value"] = float("nan")
    notes = [*(study.info.get("notes") or []), f"The score is {measure.removeprefix(FURTHER)}'s (--score={name})."]
    return Study(study.name, rows, {**study.info, "notes": notes})
