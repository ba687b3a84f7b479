from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strop.errors import SubnetError, UnknownKeyError, UnsafeFileError
from strop.mutables import AnyOf, KOf, OneOf, Ordered, Space, choices_of, dump_subnet, load_subnet, read_document, subnet_schema

from .drawn import spaces

OPS = ('shuffle_3x3', 'shuffle_5x5', 'shuffle_7x7', 'shuffle_xception')
SPACE = Space({f'backbone.layers.0.{i}': OneOf(OPS, mixable=True) for i in range(4)})
CHOSEN = dict(zip(SPACE, ('shuffle_7x7', 'shuffle_3x3', 'shuffle_xception', 'shuffle_5x5')))
SMALL = Space({'op': OneOf(('conv', 'skip'), mixable=True), 'in': AnyOf(('a', 'b', 'c'))})


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding='utf-8')
    return path


class TestOwnFiles:
    @given(spaces(), st.integers(0, 2**32), st.sampled_from(['json', 'yaml', 'yml', 'subnet']))
    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_round_trip(self, tmp_path: Path, space: Space, seed: int, suffix: str) -> None:
        subnet = space.sample(np.random.default_rng(seed))
        path = tmp_path / f'best.{suffix}'
        dump_subnet(subnet, path)
        loaded = load_subnet(path, space)
        assert loaded == subnet
        assert loaded.digest == subnet.digest
        text = path.read_text(encoding='utf-8')
        content = yaml.safe_load(text) if suffix in ('yaml', 'yml') else json.loads(text)
        jsonschema.Draft202012Validator(subnet_schema()).validate(content)

    def test_the_schema_is_one(self) -> None:
        jsonschema.Draft202012Validator.check_schema(subnet_schema())

    def test_weights_and_awkward_labels(self, tmp_path: Path) -> None:
        space = Space(
            {'no': OneOf(('on', 'null', '1e3', '~', '3'), mixable=True), 'v': Ordered((None, True, 1, 2.5, 'x', (1, 2)))}
        )
        for choices in (
            {'no': [0.1, 0.2, 0.3, 0.4, 0.0], 'v': True},
            *({'no': op, 'v': v} for op in ('on', '3') for v in (None, [1, 2])),
        ):
            for suffix in ('json', 'yaml'):
                dump_subnet(space.subnet(choices), tmp_path / f'a.{suffix}')
                assert load_subnet(tmp_path / f'a.{suffix}', space) == space.subnet(choices)

    def test_a_person_can_read_it(self, tmp_path: Path) -> None:
        dump_subnet(SMALL.subnet({'op': 'conv', 'in': ['a']}), tmp_path / 'a.yaml')
        assert (tmp_path / 'a.yaml').read_text() == 'strop: subnet\nversion: 1\nchoices:\n  op: conv\n  in:\n  - a\n'

    @pytest.mark.parametrize(
        ('content', 'text'),
        [
            ({'strop': 'subnet', 'version': 2, 'choices': {}}, 'version 2; this Strop reads up to version 1. Upgrade'),
            ({'strop': 'subnet', 'choices': {}}, "'version' is a required property"),
            ({'strop': 'subnet', 'version': '1', 'choices': {}}, "version breaks the schema.*'1' is not of type 'integer'"),
            ({'strop': 'subnet', 'version': 0, 'choices': {}}, 'less than the minimum'),
            ({'strop': 'recipe', 'version': 1, 'choices': {}}, "'subnet' was expected"),
            ({'strop': 'subnet', 'version': 1, 'choices': []}, 'choices breaks the schema'),
            ({'strop': 'subnet', 'version': 1, 'choices': {}, 'extra': 1}, "'extra' was unexpected"),
            ({'strop': 'subnet', 'version': 1, 'choices': {'op': {'weight': [1]}}}, 'choices/op breaks the schema'),
            ({'strop': 'subnet', 'version': 1, 'choices': {'op': 'conv', 'in': [], 'opp': 1}}, "'opp' is not a decision.*'op'"),
        ],
    )
    def test_malformed(self, tmp_path: Path, content: object, text: str) -> None:
        path = write(tmp_path / 'a.json', content)
        with pytest.raises(SubnetError, match=text) as caught:
            load_subnet(path, SMALL)
        assert str(caught.value).startswith(str(path))

    def test_only_subnets_are_written(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match=r'which Space.subnet makes of choices, but got a dict'):
            dump_subnet({'op': 'conv'}, tmp_path / 'a.json')
        assert not (tmp_path / 'a.json').exists()

    def test_a_note_is_ignored(self, tmp_path: Path) -> None:
        content = {'strop': 'subnet', 'version': 1, 'choices': {'op': 'conv', 'in': []}, 'note': {'score': 93.1}}
        assert load_subnet(write(tmp_path / 'a.json', content), SMALL)['op'] == 'conv'


class TestForeignFiles:
    @pytest.mark.parametrize(
        'content',
        [
            {'op': 'skip', 'in': ['a', 'c']},
            {'op': 1, 'in': [0, 2]},
            {'op': [1], 'in': [True, False, True]},
            {'op': [False, True], 'in': [1.0, 0.0, 1.0]},
            {'op': {'_value': 'skip', '_idx': 1}, 'in': {'_value': ['a', 'c'], '_idx': [0, 2]}},
        ],
    )
    def test_nnis_forms(self, tmp_path: Path, content: dict[str, object]) -> None:
        expected = SMALL.subnet({'op': 'skip', 'in': ['a', 'c']})
        assert load_subnet(write(tmp_path / 'a.json', content), SMALL) == expected
        assert load_subnet(write(tmp_path / 'a.yaml', yaml.safe_dump(content)), SMALL) == expected
        tensors = {
            key: torch.tensor(value)
            for key, value in content.items()
            if isinstance(value, list) and isinstance(value[0], (bool, float))
        }
        assert SMALL.subnet({**content, **tensors}) == expected

    def test_nnis_weights(self, tmp_path: Path) -> None:
        assert load_subnet(write(tmp_path / 'a.json', {'op': [0.5, 0.5], 'in': 'b'}), SMALL)['op'] == {'weights': [0.5, 0.5]}

    @pytest.mark.parametrize(
        ('content', 'text'),
        [
            ({'op': 2, 'in': []}, "'op': An index must be in 0..1, but got 2"),
            ({'op': -1, 'in': []}, 'but got -1'),
            ({'op': [], 'in': []}, 'Exactly one'),
            ({'op': 'con', 'in': []}, "Did you mean 'conv'"),
            ({'op': [True, False, False], 'in': []}, r"'op': A mask needs one entry for each of 2"),
            ({'op': 'conv', 'in': [False, True]}, r"'in': A mask needs one entry for each of 3"),
            ({'op': 'conv', 'in': [0.5, 0.5]}, 'one number for each of 3'),
            ({'op': 'conv', 'in': [0, 3]}, 'but got 3'),
            ({'op': 'conv'}, "no choice for 'in'"),
            ({'op': 'conv', 'in': [], 'lr': 0.1}, "'lr' is not a decision of this space"),
        ],
    )
    def test_nnis_silent_misreadings_are_refused(self, tmp_path: Path, content: dict[str, object], text: str) -> None:
        with pytest.raises(SubnetError, match=text):
            load_subnet(write(tmp_path / 'a.json', content), SMALL)

    @pytest.mark.parametrize(
        'form',
        [
            lambda name: name,  # DSNAS_SUBNET_IMAGENET_PAPER_ALIAS.yaml
            lambda name: {'chosen': name},  # DETNAS_SUBNET.yaml
            lambda name: {'chosen': [name]},  # SPOS_MOBILENETV2_490M_ANGELNAS.yaml
            lambda name: {'chosen': name, 'meta': {'all_choices': list(OPS)}},  # what MMRazor 1.x exports
        ],
    )
    @pytest.mark.parametrize('prefix', ['', 'architecture.'])
    def test_mmrazors_exported_subnets(self, tmp_path: Path, form: Any, prefix: str) -> None:
        text = yaml.safe_dump({prefix + key: form(name) for key, name in CHOSEN.items()})
        assert dict(load_subnet(write(tmp_path / 'subnet.yaml', text), SPACE)) == CHOSEN

    def test_mmrazors_file_of_modules_and_channels(self, tmp_path: Path) -> None:
        # As in SPOS_SHUFFLENETV2_330M_IN1k_PAPER_2.0.yaml, where `channels:` is empty.
        text = 'modules:\n' + ''.join(f'  {key}: {name}\n' for key, name in CHOSEN.items()) + 'channels:\n'
        assert dict(load_subnet(write(tmp_path / 'subnet.yaml', text), SPACE)) == CHOSEN
        space = Space({'modules': OneOf(('a', 'b')), 'channels': OneOf((8, 16))})
        assert dict(load_subnet(write(tmp_path / 'b.json', {'modules': {'chosen': 'b'}, 'channels': 8}), space)) == {
            'modules': 'b',
            'channels': 8,
        }

    def test_mmrazors_darts_cell(self, tmp_path: Path) -> None:
        # DARTS_SUBNET_CIFAR_PAPER_ALIAS.yaml: two edges of a node, and one operation for each edge.
        edges = tuple(f'normal_n3_p{i}' for i in range(3))
        ops = ('max_pool_3x3', 'skip_connect', 'sep_conv_3x3')
        space = Space({'normal_n3': KOf(edges, k=2), **{edge: OneOf(ops, mixable=True) for edge in edges}})
        content = {'normal_n3': {'chosen': list(edges[1::-1])}, **{edge: {'chosen': ['sep_conv_3x3']} for edge in edges}}
        subnet = load_subnet(write(tmp_path / 'a.yaml', yaml.safe_dump(content)), space)
        assert dict(subnet) == {'normal_n3': list(edges[:2]), **dict.fromkeys(edges, 'sep_conv_3x3')}

    def test_mmrazors_values(self, tmp_path: Path) -> None:
        # OFA_SUBNET_NOTE8_LAT22.yaml: numbers, and a shape.
        space = Space({'backbone.layers.2.depth': Ordered((2, 3, 4)), 'input_shape': Ordered(((140, 140), (192, 192)))})
        text = 'backbone.layers.2.depth:\n  chosen: 2\ninput_shape:\n  chosen:\n  - 140\n  - 140\n'
        assert dict(load_subnet(write(tmp_path / 'a.yaml', text), space)) == {
            'backbone.layers.2.depth': 2,
            'input_shape': [140, 140],
        }

    def test_a_model_that_has_an_architecture_of_its_own(self, tmp_path: Path) -> None:
        space = Space({'architecture.op': OneOf(('a', 'b'))})
        assert load_subnet(write(tmp_path / 'a.yaml', 'architecture.op: b'), space)['architecture.op'] == 'b'
        with pytest.raises(SubnetError, match=r"'op' is answered twice, the second time as 'architecture.op'"):
            choices_of({'op': 'a', 'architecture.op': 'b'})


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path(Malicious.target),)


class TestHostileFiles:
    @pytest.mark.parametrize('suffix', ['.json', '.yaml', '.pth'])
    @pytest.mark.parametrize('protocol', [0, 1, 2, 3, 4, 5, 'torch', 'torch legacy'])
    def test_pickles_are_never_loaded(self, tmp_path: Path, protocol: int | str, suffix: str) -> None:
        Malicious.target = str(tmp_path / 'executed')
        path = tmp_path / f'subnet{suffix}'
        if isinstance(protocol, int):
            path.write_bytes(pickle.dumps({'op': Malicious()}, protocol=protocol))
        else:
            torch.save({'op': Malicious()}, path, _use_new_zipfile_serialization=protocol == 'torch')
        with pytest.raises((UnsafeFileError, SubnetError), match=r'subnet' + suffix):
            load_subnet(path, SMALL)
        assert not (tmp_path / 'executed').exists()
        if protocol not in (0, 1):
            with pytest.raises(UnsafeFileError, match='is never unpickled'):
                load_subnet(path, SMALL)

    @pytest.mark.parametrize(
        ('name', 'content', 'error', 'text'),
        [
            ('a.json', b'\xff\xfe\x00\x01', UnsafeFileError, 'not UTF-8'),
            ('a.yaml', bytes(range(128, 256)), UnsafeFileError, 'not UTF-8'),
            ('a.json', b'{"op": "conv"', SubnetError, 'is not JSON'),
            ('a.json', b'', SubnetError, 'is not JSON'),
            ('a.yaml', b'', SubnetError, 'holds a NoneType'),
            ('a.yaml', b'- op\n- in', SubnetError, 'holds a list'),
            ('a.yaml', b'just words', SubnetError, 'holds a str'),
            ('a.yaml', b'op: [', SubnetError, 'neither JSON nor plain YAML'),
            ('a.yaml', b'op: !!python/object/apply:os.system ["true"]', SubnetError, 'neither JSON nor plain YAML'),
            ('a.yaml', b'0: conv', SubnetError, 'are strings, but got 0'),
            ('a.yaml', b'? [a, b]\n: conv', SubnetError, 'are strings'),
            ('a.json', b'{"op": "conv", "op": "skip", "in": []}', SubnetError, "'op' stands twice"),
            ('a.yaml', b'op: conv\nin: []\nop: skip', SubnetError, "'op' stands twice"),
            ('a.yaml', b'op: {chosen: conv, chosen: skip}\nin: []', SubnetError, "'chosen' stands twice"),
            ('a.json', b'[' * 100_000, SubnetError, 'nested too deeply'),
            ('a.yaml', b'[' * 5_000, SubnetError, 'nested too deeply'),
            ('a.json', b'{"op": NaN, "in": []}', SubnetError, 'none of the alternatives'),
            ('a.json', b'{"op": [NaN, 1.0], "in": []}', SubnetError, 'finite'),
        ],
    )
    def test_corrupt_files(self, tmp_path: Path, name: str, content: bytes, error: type[Exception], text: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(error, match=text) as caught:
            load_subnet(tmp_path / name, SMALL)
        assert name in str(caught.value)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            load_subnet(tmp_path / 'none.json', SMALL)

    def test_the_error_class_survives_the_path(self, tmp_path: Path) -> None:
        with pytest.raises(UnknownKeyError, match=r"a\.json: 'opp' is not a decision"):
            load_subnet(write(tmp_path / 'a.json', {'opp': 0}), SMALL)

    def test_a_byte_order_mark_is_no_matter(self, tmp_path: Path) -> None:
        (tmp_path / 'a.json').write_text('{"op": "conv", "in": []}', encoding='utf-8-sig')
        assert load_subnet(tmp_path / 'a.json', SMALL)['op'] == 'conv'


def test_choices_may_have_names_like_numbers_with_an_exponent(tmp_path):
    (tmp_path / 'subnet.yaml').write_text(yaml.safe_dump({'version': 1, 'choices': {'first': '3e6'}}))
    assert read_document(tmp_path / 'subnet.yaml', 'a subnet file')['choices'] == {'first': '3e6'}
    assert read_document(tmp_path / 'subnet.yaml', 'a recipe', exponents=True)['choices'] == {'first': 3e6}
