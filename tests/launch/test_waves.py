"""Does every run get a place after its parent, under a name that lasts?"""

import dataclasses
import re

import launches
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elastic_jax.errors import UserError
from elastic_jax.launch import names, waves

STAGES = st.sampled_from(["pretrain", "align", "perturb"])


@st.composite
def trees(draw) -> tuple[waves.Member, ...]:
    """Any forest, parents first; a run is done only if its parent is."""
    members: list[waves.Member] = []
    for number in range(draw(st.integers(1, 12))):
        parent = draw(st.sampled_from([None, *members]))
        done = draw(st.booleans()) and (parent is None or parent.done)
        stage = draw(STAGES)
        members.append(
            waves.Member(f"{stage}-{number}", parent.key if parent else "", stage, f"{stage}-{number}", done)
        )
    return tuple(members)


@settings(max_examples=60, deadline=None)
@given(trees(), st.integers(1, 4))
def test_what_is_left_is_done_once_and_after_its_parents(members, runs_per_job):
    found = waves.cut(members, study="s", workdir="w", runs_per_job=runs_per_job)
    place = {key: wave.number for wave in found for job in wave.jobs for key in job.keys}
    launched = [key for wave in found for job in wave.jobs for key in job.keys]
    assert len(launched) == len(set(launched))
    for member in members:
        assert member.done or member.key in place
        parent = next((m for m in members if m.key == member.parent), None)
        if member.key in place and parent is not None and not parent.done:
            assert place[parent.key] < place[member.key]
    assert all(len(job.keys) <= runs_per_job for wave in found for job in wave.jobs)
    assert [wave.number for wave in found] == sorted(wave.number for wave in found)


@settings(max_examples=60, deadline=None)
@given(trees(), st.integers(1, 4))
def test_jobs_keep_names_and_places_while_the_study_advances(members, runs_per_job):
    fresh = tuple(dataclasses.replace(member, done=False) for member in members)
    before, after = (waves.cut(m, study="s", workdir="w", runs_per_job=runs_per_job) for m in (fresh, members))
    known = {wave.name: wave for wave in before}
    for wave in after:
        assert set(wave.jobs) <= set(known[wave.name].jobs)


def test_nothing_is_left_of_a_study_that_is_done():
    done = tuple(dataclasses.replace(member, done=True) for member in launches.MEMBERS)
    assert waves.cut(done, study="s", workdir="w") == []


def test_another_folder_or_another_run_has_another_name():
    one = names.make("ej", "align", ["/a", "align-1"], 63)
    assert one == names.make("ej", "align", ["/a", "align-1"], 63)
    assert (
        len({one, names.make("ej", "align", ["/b", "align-1"], 63), names.make("ej", "align", ["/a", "align-2"], 63)})
        == 3
    )


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1), st.integers(24, 63))
def test_a_name_is_a_label_of_the_allowed_length(title, limit):
    name = names.make("ej", title, ["w", title], limit)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= limit


@pytest.mark.parametrize("prefix", ["", "Ej", "1a", "a_b", "a-", "a" * 50, "a/b", "é"])
def test_a_prefix_that_makes_no_names_is_refused(prefix):
    with pytest.raises(UserError, match=r"--prefix=.*at most 26 lower-case letters"):
        names.make(prefix, "align", ["x"], 40)


def test_runs_per_job_has_to_be_positive():
    with pytest.raises(UserError, match="--runs_per_job=0: expected 1 or more"):
        waves.cut(launches.MEMBERS, study="s", workdir="w", runs_per_job=0)


@pytest.mark.parametrize("name", launches.EXAMPLES)
def test_names_of_every_engine_fit_it(name):
    example = launches.EXAMPLES[name]
    launch = launches.launch(example)
    found = [launch.collect, *(w.name for w in launch.waves), *(job.name for w in launch.waves for job in w.jobs)]
    limit = launches.backends.BACKENDS[example.backend].limit
    assert len(set(found)) == len(found) and max(map(len, found)) <= limit
