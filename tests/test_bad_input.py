"""Is every mistake answered on one screen, naming the field and the cure, with exit code 2 and nothing lost?"""

import fcntl
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from elastic_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SMALL = str(Path(__file__).parent / "study" / "small.py")

Run = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture, tmp_path: Path) -> Run:
    """Runs a command in this process and returns its message."""

    def run(*words: str, config: str = SMALL, workdir: Path | str = tmp_path / "w", command: str = "run") -> str:
        import importlib

        module = "elastic_jax.report.__main__" if command == "report" else f"elastic_jax.{command}"
        main = importlib.import_module(module).main
        flags = [] if command == "status" else [f"--config={config}", "--config.mesh.data=-1"]
        flags = [] if command == "report" else flags
        capsys.readouterr()
        code = main([*flags, *([] if command == "plan" else [f"--workdir={workdir}"]), *words])
        captured = capsys.readouterr()
        assert code == 2, captured
        assert "Traceback" not in captured.err
        message = captured.err[captured.err.index("error: ") :] if "error: " in captured.err else captured.err
        assert 0 < len(message.splitlines()) <= 12 and max(map(len, message.splitlines())) < 500
        return message

    return run


# flags -> what the message must say, all of it
FIELDS = {
    # names
    "--config.align.optim.learning_rate=1": ["align.optim.learning_rate: no such field in", "small.py", "align.optim.lr"],
    "--config.pretrian.tokens=1": ["--config.pretrian.tokens: no such field", "pretrain"],
    "--config.name.x=1": ["--config.name.x: no such field"],
    "--config.align.objective.name=dop": ["align.objective 'dop': no such method", "Closest: dpo"],
    "--config.model.size=51k": ["model.size='51k'", "50k"],
    "--config.data.task=sentimnet": ["data.task='sentimnet'", "sentiment"],
    "--config.align.optim.schedule=cos": ["align.optim.schedule='cos'", "cosine"],
    "--config.data.kind=universal": ["data.kind='universal'", "text, universe"],
    "--config.model.activation=relu": ["model.activation='relu'", "gelu"],
    # types
    "--config.pretrain.batch_size=eight": ["--config.pretrain.batch_size=eight: expected int"],
    "--config.align.volumes=16,many": ["--config.align.volumes=16,many", "int values separated by commas"],
    "--config.align=5": ["--config.align=5: this is a group of fields", "volumes"],
    "--config.perturb.control=maybe": ["--config.perturb.control=maybe: expected bool"],
    "--config.model.rope_theta=far": ["model.rope_theta='far': expected a number"],
    "--config.model.gated=7": ["model.gated=7: expected true or false"],
    "--config.seeds=0.5": ["--config.seeds=0.5: expected int"],
    "--config.align.volumes": ["expected --config.align.volumes=VALUE"],
    # values
    "--config.seeds=0,1,0": ["seeds=(0, 1, 0)", "each once"],
    "--config.seeds=()": ["seeds=()", "at least one"],
    "--config.seeds=-1": ["seeds=(-1,)", "from 0"],
    "--config.name=a/b": ["name='a/b'", "letters, digits"],
    "--config.align.optim.lr=-0.1": ["align.optim.lr=-0.1: expected 0 <= lr"],
    "--config.perturb.optim.lr=0": ["perturb.optim.lr=0", "positive"],
    "--config.align.optim.lr=1e9": ["align.optim.lr=1000000000.0: expected"],
    "--config.align.optim.lr=nan": ["align.optim.lr=nan"],
    "--config.align.optim.b1=1.0": ["align.optim.b1=1.0: expected"],
    "--config.pretrain.tokens=100": ["pretrain.tokens=100 makes zero updates", "256 tokens"],
    "--config.align.volumes=4": ["align.volumes: 4 examples in batches of 8 make zero optimizer updates"],
    "--config.align.volumes=16,20": ["align.volumes: 20 examples", "Use 16 or 24"],
    "--config.perturb.volumes=24,8": ["perturb.volumes=(24, 8): expected growing numbers"],
    "--config.perturb.volumes=0,8": ["perturb.volumes=(0, 8): expected growing numbers", "() to leave the stage out"],
    "--config.align.accumulate=3": ["align.batch_size=8", "Use align.accumulate=2 or 4, or align.batch_size=9"],
    "--config.align.accumulate=0": ["align.accumulate=0", "Use align.accumulate=1."],
    "--config.align.reduce=part": ["align.reduce='part'", "step or micro"],
    "--config.align.reduce=micro": ["align.reduce=micro has no effect with align.accumulate=1"],
    "--config.align.optim.moments=int8": ["align.optim.moments='int8'", "float32, bfloat16"],
    "--config.model.loss_chunk=-1": ["model.loss_chunk=-1", "or 0 to have it chosen"],
    "--config.model.remat=some": ["model.remat='some'", "save_qkv_attn_mlp_in"],
    "--config.align.batch_size=0": ["align.batch_size=0"],
    "--config.measures.samples=1": ["measures.samples=1: expected 2"],
    "--config.measures.per_octave=-1": ["measures.per_octave=-1"],
    "--config.measures.top_p=0.0": ["measures.top_p=0.0"],
    "--config.measures.temperature=-1.0": ["measures.temperature=-1.0"],
    "--config.measures.keep=9": ["measures.keep=9", "measures.samples"],
    "--config.measures.batch_size=0": ["measures.batch_size=0"],
    "--config.measures.kl_eps=0.0": ["measures.kl_eps=0.0"],
    "--config.checkpoint_seconds=0": ["checkpoint_seconds=0"],
    "--config.model.heads=3": ["model.heads=3", "kv_heads"],
    "--config.model.head_dim=7": ["model.head_dim=7", "even"],
    "--config.model.embed=0": ["model.embed=0: expected a positive whole number"],
    "--config.data.pretrain.positive=1.5": ["data.pretrain", "positive"],
    "--config.data.topics=0": ["topics"],
    "--config.data.seq_len=8": ["data.seq_len=8", "Use data.seq_len="],
    "--config.pretrain.objective.name=dpo": ["pretrain.objective=dpo: pre-training reads plain texts"],
    # what does not fit what
    "--config.align.volumes=16,96": ["align.volumes asks for 96 examples, but data has 64", "data.align.rows"],
    "--config.perturb.volumes=8,96": ["perturb.volumes asks for 96 examples, but data has 64", "data.perturb.rows"],
    "--config.measures.sample_tokens=60": ["measures.sample_tokens=60", "has room for", "or 0 to fill the row"],
    "--config.mesh.data=3": ["mesh.data=3", "there are 8 devices", "--config.mesh.data=8"],
    "--config.mesh.data=0": ["mesh.data=0"],
    # settings that would be ignored
    "--config.pretrain.optim.schedule=constant": ["pretrain.optim.final=0.1 has no effect with optim.schedule=constant"],
    "--config.align.optim.final=0.1": ["align.optim.final=0.1 has no effect"],
    # commands
    "--stage=allign": ["--stage=allign: expected one of pretrain, align, perturb"],
    "--work_dir=x": ["--work_dir=x: no such flag", "--workdir"],
    "--distributed=yes": ["--distributed=yes"],
}  # fmt: skip


@pytest.mark.parametrize("flag", FIELDS)
def test_a_wrong_field_is_named_with_what_would_do(refused: Run, flag: str) -> None:
    message = refused(flag)
    for part in FIELDS[flag]:
        assert part in message


SEVERAL = [
    (["--config.align.optim.name=sgd", "--config.align.optim.b2=0.5"], ["align.optim.b2=0.5 has no effect"]),
    (["--config.align.optim.name=sgd", "--config.align.optim.weight_decay=0.1"], ["align.optim.weight_decay=0.1 has no effect"]),
    (["--config.measures.temperature=0", "--config.measures.top_p=0.9"], ["measures.top_p=0.9 has no effect"]),
    (["--config.mesh.data=2", "--config.mesh.fsdp=1"], ["mesh.data=2, mesh.fsdp=1, mesh.tensor=1", "8 devices"]),
    (["--config.mesh.fsdp=-1"], ["at most one of them -1"]),
    (
        ["--config.mesh.data=1", "--config.mesh.tensor=8"],
        ["model dim 'vocab' has size 260, which does not divide over mesh axis tensor = 8", "--config.mesh.tensor=2"],
    ),
    (
        ["--config.pretrain.batch_size=4", "--config.pretrain.tokens=1024"],
        ["pretrain.batch_size", "does not divide over mesh axes data x fsdp = 8", "Use 8"],
    ),
    (
        ["--config.align.accumulate=2"],
        ["align.accumulate=2", "data x fsdp = 8 gives a device 1 rows", "Use align.accumulate=1, or align.batch_size=16"],
    ),
    (["--config.align.optim.name=sgd", "--config.align.optim.moments=bfloat16"], ["align.optim.moments=bfloat16 has no effect"]),
    (["--config.align.objective={'name': 'dpo', 'beta': -1}"], ["align.objective dpo: beta=-1"]),
    (["--config.align.objective={'name': 'dpo', 'gamma': 1}"], ["align.objective dpo", "gamma", "beta, label_smoothing"]),
    (["--config.align.objective={'name': 'sft', 'beta': 1}"], ["align.objective sft", "Its settings: none"]),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "parts"), SEVERAL)
def test_settings_that_do_not_fit_each_other(refused: Run, flags: list[str], parts: list[str]) -> None:
    message = refused(*flags)
    for part in parts:
        assert part in message


def recipe(folder: Path, body: str) -> str:
    path = folder / "recipe.py"
    path.write_text(f"from elastic_jax import config\n{body}\n")
    return str(path)


RECIPES = {
    "def get_config():\n    c = config.default()\n    c.align.optim.learning_rate = 1\n    return c": ["learning_rate"],
    "def get_config():\n    c = config.default()\n    c.pretrain.batch_size = 'eight'\n    return c": ["batch_size"],
    "def get_config():\n    c = config.default()\n    c.align.volumes = ('a', 'b')\n    return c": [
        "align.volumes=('a', 'b')"
    ],
    "def get_config():\n    c = config.default()\n    del c.align\n    return c": [
        "align: missing",
        "config.default()",
    ],
    "def other():\n    return 1": ["has no function get_config()"],
    "def get_config(:": ["SyntaxError"],
    "import no_such_module": ["ModuleNotFoundError", "no_such_module"],
    "def get_config():\n    return 1 / 0": ["ZeroDivisionError"],
    "def get_config():\n    return None": ["get_config() returned"],
}


@pytest.mark.parametrize("body", RECIPES)
def test_a_wrong_recipe_is_named(refused: Run, tmp_path: Path, body: str) -> None:
    path = recipe(tmp_path, body)
    message = refused(config=path)
    assert "recipe.py" in message or "align" in message
    for part in RECIPES[body]:
        assert part in message


def test_the_config_file_is_looked_for(refused: Run) -> None:
    assert "no such file. Closest: configs/quickstart.py" in refused(config="configs/quikstart.py")
    assert "no such file" in refused(config="nowhere/x.py:tiny")
    assert "unknown. Closest: seeds" in refused(config=f"{SMALL}:seed=2")
    assert "unknown. Closest: tiny" in refused(config=str(ROOT / "configs" / "quickstart.py") + ":tinny")


def test_the_workdir_is_looked_at(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "this is a file. Give a folder" in refused(workdir=tmp_path / "file")
    assert "cannot be written" in refused(workdir=tmp_path / "file" / "below")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    assert "not one of ours" in refused(workdir=tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "study.json").write_text('{"format": 1, "stu')
    assert "study.json: cannot be read" in refused(workdir=tmp_path / "torn")
    (tmp_path / "torn" / "study.json").write_text('{"format": 99, "studies": {}}')
    assert "written in format 99" in refused(workdir=tmp_path / "torn")


def test_what_a_killed_command_left_in_a_new_workdir_is_no_obstacle(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "study.json.tmp-0123456789ab").write_text("{")
    assert "align.volumes asks for 96" in refused("--config.align.volumes=16,96")


def test_a_workdir_in_use_is_not_touched(refused: Run, tmp_path: Path) -> None:
    assert "align.volumes asks for 96" in refused("--config.align.volumes=16,96")  # makes the workdir and the data
    with open(tmp_path / "w" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process is running a study here" in refused()
    assert not list((tmp_path / "w" / "runs").iterdir())


@pytest.mark.parametrize("stage", ["align", "perturb"])
def test_a_volume_larger_than_the_data_is_no_run(refused: Run, tmp_path: Path, stage: str) -> None:
    assert f"{stage}.volumes asks for 96" in refused(f"--config.{stage}.volumes=16,96")
    assert not list((tmp_path / "w" / "runs").iterdir())


@pytest.mark.parametrize(("seeds", "said"), [("0", True), ("0,1", False)])
def test_one_seed_is_said_before_training(
    refused: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    seeds: str,
    said: bool,
) -> None:
    printed = []

    def train(*args: object) -> None:
        printed.append(capsys.readouterr().out)
        raise UserError("no further")

    monkeypatch.setattr("elastic_jax.study.suite.Suite.run", train)
    refused(f"--config.seeds={seeds}")
    assert ("one seed: no intervals over seeds" in printed[0]) is said
    assert not list((tmp_path / "w" / "runs").iterdir())


def test_status_and_report_name_the_studies_that_are_there(refused: Run, tmp_path: Path) -> None:
    assert "no study here" in refused(command="status", workdir=tmp_path)
    assert "no study here" in refused(command="status", workdir=tmp_path / "absent")
    (tmp_path / "study.json").write_text(json.dumps(dict(format=1, latest="mine", studies={"mine": {"runs": []}})))
    assert "--study=yours: no such study" in refused("--study=yours", command="status", workdir=tmp_path)
    assert "There: mine." in refused("--study=yours", command="status", workdir=tmp_path)
    assert "measures.parquet" in refused(command="report", workdir=tmp_path)


def reviews(path: Path, labels: tuple = (0, 1), rows: int = 40) -> Path:
    lines = [
        json.dumps({"text": f"review number {i} of film {i * 7}", "label": labels[i % len(labels)]})
        for i in range(rows)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


TEXT = (
    "def get_config():\n"
    "    c = config.default(config.text_data())\n"
    "    c.data.test = ''\n"
    "    c.data.seq_len = 32\n"
    "    c.data.rows.update(dict(pretrain=8, prose=0, align=8, perturb=8, scorer=4, heldout=2, prompts=2))\n"
    "    c.data.tokenizer.vocab_size = 300\n"
    "    c.pretrain.batch_size = c.align.batch_size = c.perturb.batch_size = 8\n"
    "    c.align.volumes = c.perturb.volumes = (8,)\n"
    "    return c"
)


def test_data_files_are_looked_at(refused: Run, tmp_path: Path) -> None:
    config = recipe(tmp_path, TEXT)
    good, empty, torn, bad = (tmp_path / name for name in ("good.jsonl", "empty.jsonl", "torn.jsonl", "labels.jsonl"))
    reviews(good)
    empty.write_text("")
    torn.write_text(good.read_text() + '{"text": "a review that en')
    reviews(bad, labels=(0, 1, 7))

    def message(train: Path, *more: str) -> str:
        return refused(f"--config.data.train={train}", *more, config=config, workdir=tmp_path / "w")

    assert "data.train: no file" in (found := message(tmp_path / "god.jsonl")) and "good.jsonl" in found
    assert "data.train" in (found := message(empty)) and "is empty" in found
    assert "torn.jsonl:41" in message(torn)
    assert "labels outside data.labels" in (found := message(bad)) and "'7'" in found and "data.where" in found
    found = message(good, "--config.data.columns.text=txt")
    assert "data.columns.text='txt'" in found and "It has: text, label" in found
    assert "data.where" in (found := message(good, "--config.data.where=label > 5")) and "keeps none" in found
    assert "data.where" in message(good, "--config.data.where=label >")
    found = message(good, "--config.data.rows.align=1000")
    assert "data.rows.align" in found
    found = message(good, "--config.data.columns.chosen=text")
    assert "give both, or neither" in found
    assert "compares two answers" in message(good, "--config.align.objective.name=dpo")
    assert "--config.data.task: no such field" in message(good, "--config.data.task=refusal")


def test_in_a_shell_it_is_a_message_and_an_exit_code(tmp_path: Path) -> None:
    for words in (["--config.align.optim.lrr=1"], ["--wrong"], []):
        flags = [f"--config={SMALL}", f"--workdir={tmp_path / 'w'}", *words] if words else []
        done = subprocess.run(
            [sys.executable, "-m", "elastic_jax.run", *flags], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 2
        assert done.stdout == "" and "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 5
        assert "error: " in done.stderr
    assert not (tmp_path / "w").exists()
