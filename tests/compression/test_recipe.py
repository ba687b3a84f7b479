"""Recipes are checked whole before anything runs, and those of strangers run no code."""

from __future__ import annotations

import dataclasses
import json

import jsonschema
import pytest

from strop.compression import DataSource, Recipe, export_stage, recipe_schema
from strop.compression import recipe as recipe_module
from strop.compression.budget import Budget
from strop.compression.recipe import STAGES, automatic_stages
from strop.errors import ConfigError, DataError, MissingDependencyError, UnsafeFileError

WHOLE = {
    'model': {'source': 'timm:resnet10t', 'args': {'num_classes': 10, 'in_chans': 1}},
    'data': {'source': 'digits', 'batch_size': 64},
    'budget': {'macs': 0.5, 'accuracy_drop': 1.0},
    'stages': [
        'finetune',
        {'prune': {'round_to': 4}},
        {'distill': {'epochs': 2, 'hard': 0.5}},
        {'kind': 'export', 'formats': 'pt2'},
    ],
    'seed': 3,
    'threads': 1,
}


def test_a_recipe_comes_back_from_what_it_writes():
    recipe = Recipe.of(WHOLE)
    again = Recipe.of(json.loads(json.dumps(recipe.to_dict())))
    assert again == recipe
    assert [stage.name for stage in recipe.stages] == ['finetune', 'prune', 'distill', 'export']
    assert recipe.stages[2].settings.hard == 0.5


def test_yaml_and_json_are_read(tmp_path):
    (tmp_path / 'a.yaml').write_text('model: timm:resnet10t\ndata: digits\nstages: [finetune, {prune: {ratio: 0.5}}]\n')
    (tmp_path / 'a.json').write_text(json.dumps(WHOLE))
    assert Recipe.read(tmp_path / 'a.yaml').stage('prune').settings.ratio == 0.5
    assert Recipe.read(tmp_path / 'a.json') == Recipe.of(WHOLE)


def test_stages_of_one_kind_are_numbered_from_the_second_on():
    recipe = Recipe.of({'stages': [{'prune': {'ratio': 0.2}}, 'distill', {'prune': {'ratio': 0.2}}, 'distill']})
    assert [stage.name for stage in recipe.stages] == ['prune', 'distill', 'prune-2', 'distill-2']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'modle': 'x'}, "no key 'modle'.*Did you mean 'model'"),
        ({'version': 2}, 'version 1'),
        ({'stages': [{'prun': {}}]}, "no stage 'prun'.*Did you mean 'prune'"),
        ({'stages': [{'prune': {'ratoi': 0.5}}]}, "stage 1: .*'ratoi'.*Did you mean 'ratio'"),
        ({'stages': [{'prune': {'ratio': 1.5}}]}, 'stage 1: .*`ratio`'),
        ({'stages': [{'prune': {'importance': 'l3'}}]}, 'stage 1: .*l3'),
        ({'stages': [{'distill': {'soft': 0}}]}, 'nothing to learn by'),
        ({'stages': ['quantize', 'distill']}, '`distill` comes after `quantize`'),
        ({'stages': ['finetune', 'search']}, '`search` comes first'),
        ({'stages': [{'quantize': {'backend': 'openvin'}}]}, "Did you mean 'openvino'"),
        ({'stages': [{'quantize': {'backend': 'openvino'}}, {'quantize': {'backend': 'openvino'}}]}, 'same backend'),
        ({'stages': ['export', 'export']}, 'one stage `export`'),
        ({'stages': 'prune'}, '`stages` are a list'),
        ({'stages': [{'export': {'formats': ['onxx']}}]}, "Did you mean 'onnx'"),
        ({'budget': {'latncy': 0.5}}, "budget: .*Did you mean 'latency'"),
        ({'budget': {'latency': 2}}, 'budget: .*share of the original between 0 and 1'),
        ({'budget': {'latency': 0.5, 'runtime': 'openvno'}}, "Did you mean 'openvino'"),
        ({'budget': {'accuracy_drop': -1}}, 'number of points'),
        ({'data': {'source': 'digits', 'batchsize': 2}}, "data: .*Did you mean 'batch_size'"),
        ({'data': {'source': 'digits', 'val': 1.5}}, 'data: .*`val`'),
        ({'data': {}}, 'needs a `source`'),
        ({'model': {'source': 'timm:x', 'weight': 'a'}}, "Did you mean 'weights'"),
        ({'seed': -1}, '`seed`'),
        ({'threads': 0}, '`threads`'),
        ({'batches': [0]}, '`batches`'),
        ({'runtimes': ['eagr']}, "Did you mean 'eager'"),
        ({'runtimes': 3}, '`runtimes` is a list of names'),
        ({'stages': [{'export': {'formats': 3}}]}, '`formats` of the stage `export` is a list'),
        ({'stages': [{'export': {'rtol': 'small'}}]}, "`rtol` .* but got 'small'"),
        ({'stages': [{'export': {'atol': -1}}]}, '`atol` .* but got -1'),
        ({'stages': [{'export': {'opset': 'latest'}}]}, '`opset`'),
        ({'stages': [{'distill': {'features': 3}}]}, '`features` of the stage `distill` are paths'),
        ({'stages': [{'quantize': {'smooth_alpha': 5}}]}, '`smooth_alpha` is between 0 and 1'),
        ({'stages': [{'prune': {'ratio': 0.5, 'importance': 3}}]}, '`importance` of the stage `prune` is a name'),
        ({'stages': [{'prune': {'ratio': 0.5, 'importance': {'type': 'l1', 'reduc': 'max'}}}]}, "Did you mean 'reduce'"),
        ({'data': {'source': 'a.txt', 'val': 0.5, 'test': 0.5}}, 'together at most 0.9, but got 0.5 and 0.5'),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_what_is_near(change, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.of({**WHOLE, **change})


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        ({'model': 'timm:resnet10tt'}, ConfigError, "no model 'resnet10tt'.*resnet10t"),
        ({'model': 'transformers:/nowhere'}, ConfigError, "no folder '/nowhere'"),
        ({'model': 'mynet:make'}, UnsafeFileError, 'may not run code unless you say so'),
        ({'data': 'mydata:parts'}, UnsafeFileError, 'may not run code unless you say so'),
        ({'data': 'digts'}, DataError, "Did you mean 'digits'"),
        ({'model': {'source': 'timm:resnet10t', 'weights': '/none.pth'}}, ConfigError, "no file '/none.pth'"),
        ({'data': {'source': 'digits', 'labels': False}}, ConfigError, "stage 'finetune'.*Use `distill`"),
        ({'stages': ['prune'], 'budget': {'threads': 1}}, ConfigError, 'not told how far'),
        (
            {
                'stages': [{'quantize': {}}, {'quantize': {'backend': 'onnxruntime'}}],
                'budget': {'size_mb': 1, 'runtime': 'onnxruntime'},
            },
            ConfigError,
            'for the same backend, onnxruntime',
        ),
        (
            {'budget': {'latency': 0.5, 'runtime': 'compile', 'relative_to': 'quantized'}},
            ConfigError,
            'no stage `quantize` makes',
        ),
        (
            {
                'stages': ['prune', {'quantize': {'backend': 'inductor'}}],
                'budget': {'latency': 0.5, 'runtime': 'eager', 'relative_to': 'quantized'},
            },
            ConfigError,
            'eager does not compute with integers: name `runtime: compile`',
        ),
        (
            {'stages': [{'prune': {'how': 'uniform'}}], 'budget': {'latency': 0.5, 'runtime': 'eager'}},
            ConfigError,
            "`how: uniform` cuts by a ratio or to counted limits, but the recipe limits only 'latency'",
        ),
        (
            {'stages': [{'prune': {'how': 'global'}}], 'budget': {'accuracy_drop': 1.0}},
            ConfigError,
            '`how: global` cuts by a ratio',
        ),
        (
            {'stages': [{'prune': {'ratio': 0.5, 'resolution': True}}]},
            ConfigError,
            '`resolution` belongs to the automatic plan',
        ),
        (
            {'stages': [{'prune': {'resolution': True}}], 'budget': {'accuracy_drop': 1.0}},
            ConfigError,
            '`resolution` belongs to the automatic plan',
        ),
    ],
)
def test_what_would_fail_later_fails_at_the_check(change, error, message):
    with pytest.raises(error, match=message):
        Recipe.of({**WHOLE, **change}).check()


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    import strop.compression.export_stage as module

    def missing(name, extra):
        raise MissingDependencyError(f'{name} is missing: strop[{extra}]')

    monkeypatch.setattr(module, 'try_import', missing)
    recipe = Recipe.of({'stages': [{'export': {'formats': ['onnx']}}]})
    with pytest.raises(MissingDependencyError, match=r"stage 'export': onnx is missing: strop\[onnx\]"):
        recipe.check()


def test_a_recipe_in_python_runs_only_where_it_is_trusted(tmp_path):
    file = tmp_path / 'recipe.py'
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nrecipe = {WHOLE!r}\n")
    with pytest.raises(UnsafeFileError, match='--trust'):
        Recipe.read(file)
    assert not (tmp_path / 'ran').exists()
    assert Recipe.read(file, trust=True) == Recipe.of(WHOLE)


def test_tags_of_python_in_yaml_are_refused(tmp_path):
    (tmp_path / 'a.yaml').write_text(f'model: !!python/object/apply:os.mkdir [{tmp_path}/made]\n')
    with pytest.raises(ConfigError, match='plain YAML'):
        Recipe.read(tmp_path / 'a.yaml', trust=True)
    assert not (tmp_path / 'made').exists()


def test_a_function_is_not_even_imported_by_the_check(tmp_path, monkeypatch):
    (tmp_path / 'evil_net.py').write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafeFileError):
        Recipe.of({**WHOLE, 'model': 'evil_net:make'}).check()
    assert not (tmp_path / 'ran').exists()


def test_stages_are_chosen_for_a_budget_where_none_are_named():
    with pytest.raises(ConfigError, match='names its `stages`, or says by `budget`'):
        Recipe.of({'model': 'timm:resnet10t', 'data': 'digits'})
    kinds = [stage.kind for stage in automatic_stages(Budget(latency=0.5, runtime='onnxruntime'))]
    assert kinds == ['prune', 'distill', 'quantize', 'export']
    assert [stage.kind for stage in automatic_stages(Budget(accuracy_drop=1.0))][-1] == 'export'


def test_the_schema_knows_every_key_and_takes_what_recipes_write():
    schema = recipe_schema()
    for kind, stage in STAGES.items():
        assert set(schema['$defs'][kind]['properties']) == {entry.name for entry in dataclasses.fields(stage)}, kind
    assert set(schema['$defs']['budget']['properties']) == {entry.name for entry in dataclasses.fields(Budget)}
    assert set(schema['$defs']['data']['properties']) == {entry.name for entry in dataclasses.fields(DataSource)}
    jsonschema.Draft202012Validator.check_schema(schema)
    for content in (WHOLE, Recipe.of(WHOLE).to_dict()):
        jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**WHOLE, 'stages': [{'prune': {'ratoi': 1}}]}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**WHOLE, 'model': {**WHOLE['model'], 'config': {}}}, schema)


def test_a_change_of_a_stage_changes_its_digest_and_those_behind_it():
    def digests(**change):
        return Recipe.of({**WHOLE, **change}).digests('m', 'd', 1)

    first = digests()
    other = digests(stages=['finetune', {'prune': {'round_to': 8}}, *WHOLE['stages'][2:]])
    assert [a == b for a, b in zip(first, other)] == [True, False, False, False]
    assert not set(first) & set(digests(seed=4))


def test_a_plan_is_made_again_if_the_stage_that_teaches_its_candidates_changes():
    def digests(lr: float, ratio: float | None = None) -> list[str]:
        prune = {} if ratio is None else {'ratio': ratio}
        stages = [{'finetune': {'lr': 0.1}}, {'prune': prune}, {'distill': {'lr': lr}}]
        return Recipe.of({'model': 'timm:resnet10t', 'data': 'digits', 'stages': stages, 'budget': {'latency': 0.5}}).digests(
            'model', 'data', 1
        )

    first, second = digests(0.1), digests(0.2)
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert first[2] != second[2]
    assert digests(0.1, 0.5)[1] == digests(0.2, 0.5)[1]


def test_a_plan_that_teaches_no_candidate_is_made_again_if_other_modules_must_stay():
    def first(prune, **distill):
        stages = [{'prune': prune}, {'distill': distill}]
        return Recipe.of({'model': 'timm:resnet10t', 'data': 'digits', 'stages': stages, 'budget': {'latency': 0.5}}).digests(
            'model', 'data', 1
        )[0]

    untaught = {'rehearse': 0}
    assert first(untaught, lr=0.1) == first(untaught, lr=0.2)
    assert first(untaught, features=['layer1']) != first(untaught)
    assert first(untaught, features=['layer1']) != first(untaught, features=['layer2'])
    assert first(untaught, features=['layer1'], lr=0.1) == first(untaught, features=['layer1'], lr=0.2)
    # How far a ratio goes does not depend on what comes after it.
    assert first({'ratio': 0.5}, features=['layer1']) == first({'ratio': 0.5})


def test_a_plan_is_made_again_if_something_else_is_quantized_for(monkeypatch):
    def digests(*after, **prune):
        stages = [{'prune': prune}, 'distill', *after]
        return Recipe.of({'model': 'timm:resnet10t', 'data': 'digits', 'stages': stages, 'budget': {'latency': 0.5}}).digests(
            'model', 'data', 1
        )

    pytest.importorskip('onnxruntime')
    floats, integers = digests(), digests({'quantize': {'backend': 'onnxruntime'}})
    assert floats[0] != integers[0]
    # How far a ratio goes does not depend on what comes after it.
    assert digests(ratio=0.5)[0] == digests({'quantize': {'backend': 'onnxruntime'}}, ratio=0.5)[0]


def test_other_arguments_of_the_model_or_the_data_are_another_run():
    def first(**change):
        return Recipe.of({**WHOLE, **change}).digests('m', 'd', 1)[0]

    assert first(data={'source': 'digits', 'batch_size': 64, 'augment': False}) != first()
    assert first(model={**WHOLE['model'], 'args': {**WHOLE['model']['args'], 'drop_rate': 0.2}}) != first()


def test_a_stage_may_be_named_by_its_kind_alone():
    recipe = Recipe.of({**WHOLE, 'stages': [{'kind': 'finetune'}, {'kind': 'prune', 'ratio': 0.5}]})
    assert [stage.kind for stage in recipe.stages] == ['finetune', 'prune']
    assert recipe.stages[1].settings.ratio == 0.5


def test_what_is_installed_decides_about_a_quantization_of_no_named_backend_alone(monkeypatch):
    def digests(stage):
        return Recipe.of({**WHOLE, 'stages': ['finetune', stage]}).digests('model', 'data', 1)[1]

    named = {'quantize': {'backend': 'onnxruntime'}}
    before = digests('quantize'), digests(named)
    monkeypatch.setattr(recipe_module, 'planned_backends', lambda stages, budget: ('another',))
    assert digests('quantize') != before[0]
    assert digests(named) == before[1]


def test_numbers_with_an_exponent_and_no_point_are_numbers(tmp_path):
    (tmp_path / 'recipe.yaml').write_text('model: timm:resnet10t\ndata: digits\nstages:\n- export: {rtol: 1e-3}\n')
    assert Recipe.read(tmp_path / 'recipe.yaml').stages[0].settings.rtol == 0.001


def test_what_is_installed_decides_about_an_export_of_no_named_format_alone(monkeypatch):
    def digests(*stages):
        return Recipe.of({**WHOLE, 'stages': ['finetune', *stages]}).digests('model', 'data', 1)

    before = digests('export'), digests({'export': {'formats': ['pt2']}})
    monkeypatch.setattr(export_stage, 'FORMATS', {'pt2': export_stage.FORMATS['pt2']})
    after = digests('export'), digests({'export': {'formats': ['pt2']}})
    assert before[0][0] == after[0][0]
    assert before[0][1] != after[0][1]
    assert before[1] == after[1]
