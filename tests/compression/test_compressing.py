"""The call in Python: what replaces what in a recipe, and plans that write nothing."""

from __future__ import annotations

import pytest
import torch

from strop.compression import Recipe
from strop.compression.compressing import dry_run, planned
from strop.compression.parts import given_parts
from strop.errors import ConfigError, DataError, UnsafeFileError
from tests.compression.conftest import small_net

RECIPE = {'model': 'timm:resnet10t', 'data': 'digits', 'stages': [{'prune': {'ratio': 0.5}}], 'seed': 3}


def test_arguments_replace_what_the_recipe_says():
    job = planned(
        recipe=RECIPE, data={'source': 'mnist', 'limit': 50}, budget={'macs': 0.5}, seed=4, threads=1, runtimes=['eager']
    )
    recipe = job.recipe
    assert (recipe.data.source, recipe.seed, recipe.threads, recipe.runtimes) == ('mnist', 4, 1, ('eager',))
    assert recipe.budget.macs == 0.5
    assert [stage.name for stage in recipe.stages] == ['prune']
    assert planned(recipe=RECIPE).recipe.seed == 3


def test_automatic_stages_follow_a_new_budget():
    job = planned('timm:resnet10t', 'digits', budget={'latency': 0.5, 'runtime': 'eager'})
    assert [stage.kind for stage in job.recipe.stages] == ['prune', 'distill', 'export']


def test_a_dry_run_counts_the_model_and_the_steps_and_writes_nothing(tmp_path, pictures):
    job = planned(
        small_net(),
        pictures,
        stages=[{'prune': {'ratio': 0.5}}, {'distill': {'epochs': 3}}],
        output=tmp_path / 'out',
        threads=1,
    )
    plan = dry_run(job)
    conv = 9 * (64 * 16 + 64 * 16 * 16 + 9 * 16 * 32)
    assert plan.macs == conv + 32 * 4
    assert [(stage.steps, stage.rehearsed) for stage in plan.stages] == [(0, 0), (9, 0)]
    assert plan.stages[1].seconds > 0
    assert plan.peak_memory_mb > 4 * plan.size_mb
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('budget', 'later', 'rehearsed'),
    [
        ({'latency': 0.5, 'runtime': 'eager'}, [{'distill': {'epochs': 3}}], 6 * 10 + 3 * 20 + 3 * 40),
        ({'accuracy_drop': 1}, [{'finetune': {'epochs': 3}}], 2 * 10),
        ({'latency': 0.5, 'runtime': 'eager'}, ['export'], 0),
        ({'macs': 0.5}, ['distill'], 0),
    ],
)
def test_a_dry_run_counts_the_steps_that_candidates_are_taught_for(pictures, budget, later, rehearsed):
    stages = [{'prune': {'rehearse': 10, 'tries': 2}}, *later]
    plan = dry_run(planned(small_net(), pictures, budget=budget, stages=stages, threads=1))
    assert plan.stages[0].rehearsed == rehearsed
    assert (plan.stages[0].seconds is not None) == (rehearsed > 0)


def test_neither_model_nor_data_can_be_left_out(pictures):
    with pytest.raises(ConfigError, match='no model'):
        planned(recipe={'stages': ['export']}, data=pictures)
    with pytest.raises(ConfigError, match='no data'):
        planned(small_net(), stages=['export'])
    with pytest.raises(DataError, match="'train' and 'test'"):
        planned(small_net(), [torch.zeros(1)], stages=['export']).open()


def test_what_a_recipe_names_needs_leave_and_what_is_named_here_has_it(tmp_path, monkeypatch):
    (tmp_path / 'own_parts.py').write_text('import torch\nx = torch.zeros(32, 3)\nparts = {"train": x, "test": x}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = {'model': 'torch.nn:Identity', 'data': 'own_parts:parts', 'stages': ['export']}
    with pytest.raises(UnsafeFileError, match=r"model: .*'torch.nn:Identity'"):
        planned(recipe=recipe)
    with pytest.raises(UnsafeFileError, match=r"data: .*'own_parts:parts'"):
        planned('torch.nn:Identity', recipe=recipe)
    job = planned('torch.nn:Identity', 'own_parts:parts', stages=['export'], output=tmp_path / 'out')
    job.open()
    assert job.data.counts()['test'] == 32


def test_another_model_than_that_of_the_recipe_gives_its_name():
    assert planned('timm:resnet18', recipe=RECIPE).recipe.name == 'timm:resnet18'
    assert planned('timm:resnet18', recipe={**RECIPE, 'name': 'mine'}).recipe.name == 'mine'
    job = planned(small_net(), recipe=RECIPE)
    assert (job.recipe.name, job.recipe.model) == ('Sequential', None)


def test_data_in_memory_replace_what_the_recipe_names(tmp_path, pictures):
    options = {'source': 'mine:parts', 'limit': 5, 'batch_size': 16, 'labels': False}
    for given, kept in (('no/such', None), (options, {'source': 'data in memory', 'batch_size': 16, 'labels': False})):
        recipe = {'data': given, 'stages': [{'distill': {'epochs': 1}}]}
        job = planned(small_net(), pictures, recipe=recipe, output=tmp_path / 'out', threads=1)
        assert job.recipe.to_dict().get('data') == kept
        job.open()
        assert (job.data.name, job.data.batch_size, job.data.labels) == ('data in memory', 16 if kept else 32, not kept)
        assert Recipe.of(job.recipe.to_dict()) == job.recipe
        job = planned(small_net(), given_parts(pictures, batch_size=8), recipe=recipe, output=tmp_path / 'out', threads=1)
        assert job.recipe.data is None
