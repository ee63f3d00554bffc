"""How are the variants of one config run, and reported as one?

Each variant is a study of its own in the same working directory, so that runs which are equal in several are trained once. The
report is of all of them, joined by `analysis.join`.
"""

from collections.abc import Sequence
from functools import cached_property

from etils import epath

from elastic_jax import config as config_lib
from elastic_jax.config import Config
from elastic_jax.errors import UserError, closest
from elastic_jax.parallel import distributed
from elastic_jax.study import Study, write_report
from elastic_jax.study.session import Session
from elastic_jax.train import account


class Suite:
    """The studies of a config: one, or one for each of its variants.

    Args:
      session: what it shares with other suites of this process.

    Attributes:
      studies: variant -> study, in the order of the config; "" for the only one.

    Raises:
      UserError: as `Study`, before any of them begins.
    """

    def __init__(self, config: Config, workdir: epath.PathLike, session: Session | None = None):
        config_lib.validate(config)
        self.config, self.session = config, session or Session()
        variants = config_lib.variants(config).items()
        self.studies = {name: Study(variant, workdir, session=self.session) for name, variant in variants}

    @property
    def workdir(self):
        return next(iter(self.studies.values())).workdir

    @cached_property
    def fingerprint(self) -> str:
        return config_lib.fingerprint(self.config)

    def run(self, stage: str | None = None, only: Sequence[str] | None = None) -> epath.Path | None:
        """Run or continue all studies, one after the other; arguments and result as for `Study.run`."""
        if list(self.studies) == [""]:
            return self.studies[""].run(stage, only)
        if only is not None:
            for study, keys in self._having(only):
                study.run(only=keys)
            return None
        for study in self.studies.values():  # before the first of them is trained for hours
            study.check()
        fresh = False
        for study in self.studies.values():
            fresh = fresh or not all(status.done for status in study.status())
            study.run(stage, page=False)
        if not distributed.is_main():
            return None
        eps = self.config.measures.kl_eps
        with self.session.account.during(account.REPORT):
            return write_report(self.workdir, self.config.name, self.fingerprint, eps, fresh)

    def _having(self, keys: Sequence[str]) -> list[tuple[Study, list[str]]]:
        """The first study that has each key, with its keys. Raises UserError for one that no study has."""
        found: dict[str, list[str]] = {}
        for key in keys:
            names = [name for name, study in self.studies.items() if any(run.key == key for run in study.runs)]
            if not names:
                known = [run.key for study in self.studies.values() for run in study.runs]
                raise UserError(f"--only={key}: no such run in {self.config.name}. {closest(key, known)}")
            found.setdefault(names[0], []).append(key)
        return [(self.studies[name], mine) for name, mine in found.items()]
