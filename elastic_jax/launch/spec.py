"""What is launched, before any engine's words for it?"""

import dataclasses
from collections.abc import Mapping

from elastic_jax.launch.machines import Machine
from elastic_jax.launch.options import Options
from elastic_jax.launch.waves import Wave

REQUEUE = 75  # exit code of a run that saved because it was asked to stop (sysexits.h: EX_TEMPFAIL)
PORT = 8476  # where process 0 of a job waits for the others


@dataclasses.dataclass(frozen=True)
class Launch:
    """A study on an engine.

    Attributes:
      arguments: the `--config...` words of the user.
      workdir: as the jobs see it.
      runs: number of runs of the study, done ones included.
      waves: those with something left to do.
      collect: name of the job that makes table and report.
      environment: of every process, as the user wants it. The flags of XLA and libtpu are not here: every process sets those
        of `parallel.flags` that its own compiler knows, and leaves what it finds in its environment.
      out: folder of the rendered files, as the scripts name it.
    """

    study: str
    arguments: tuple[str, ...]
    workdir: str
    runs: int
    waves: tuple[Wave, ...]
    collect: str
    machine: Machine
    options: Options
    environment: Mapping[str, str]
    out: str

    def train(self, only: str = "", distributed: str = "") -> list[str]:
        """The command of a job; without `only` it lacks that word."""
        words = [self.options.python, "-m", "elastic_jax.run", *self.arguments, f"--workdir={self.workdir}"]
        # A job that finds no accelerator where one was asked for has to fail, not to fall back to the CPU.
        words += [f"--platform={self.machine.platform}"] if self.machine.platform != "cpu" else []
        words += [f"--distributed={distributed}"] if distributed else []
        return [*words, f"--only={only}"] if only else words

    @property
    def report(self) -> list[str]:
        """The command that collects."""
        return [
            self.options.python, "-m", "elastic_jax.report", f"--workdir={self.workdir}", f"--study={self.study}",
        ]  # fmt: skip

    @property
    def jobs(self) -> int:
        return sum(len(wave.jobs) for wave in self.waves)
