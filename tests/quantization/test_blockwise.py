"""GPTQ through whole models: which blocks, exact inputs of each, kills, bad data."""

from __future__ import annotations

import textwrap

import pytest
import torch
from torch import nn

from strop.errors import ConfigError, DataError
from strop.quantization import Grid, gptq_round, packed_layers, quantize_weights, round_weight
from strop.quantization.blockwise import _chains, _Feed
from strop.quantization.gptq import output_errors
from strop.quantization.linear_layers import memory_shared, select
from tests.scripts import run_script


def ids(number: int = 4, length: int = 16, seed: int = 0) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randint(64, (2, length), generator=rng) for _ in range(number)]


def transformer(kind: str) -> nn.Module:
    t = pytest.importorskip('transformers')
    torch.manual_seed(0)
    some = dict(vocab_size=64, num_hidden_layers=3, hidden_size=32, num_attention_heads=4, max_position_embeddings=64)
    inner = dict(intermediate_size=48)
    models = {
        'llama': lambda: t.LlamaForCausalLM(t.LlamaConfig(**some, **inner, num_key_value_heads=2)),
        'gpt2': lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)
        ),
        'opt': lambda: t.OPTForCausalLM(t.OPTConfig(**some, ffn_dim=48, word_embed_proj_dim=16)),
        'bert': lambda: t.BertForSequenceClassification(t.BertConfig(**some, **inner)),
        'gemma': lambda: t.Gemma3ForCausalLM(
            t.Gemma3TextConfig(
                **some,
                **inner,
                num_key_value_heads=2,
                head_dim=8,
                sliding_window=4,
                layer_types=['sliding_attention', 'full_attention', 'sliding_attention'],
            )
        ),
        't5': lambda: t.T5ForConditionalGeneration(
            t.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
        ),
        'albert': lambda: t.AlbertModel(t.AlbertConfig(**some, **inner, embedding_size=16)),
    }
    return models[kind]().eval()


def batches(kind: str) -> list:
    return [{'input_ids': each, 'labels': each} for each in ids()] if kind == 't5' else ids()


class Mixed(nn.Module):
    """A chain with a layer before it, one after it, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before = nn.Linear(12, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)) for _ in range(3))
        self.after = nn.Linear(16, 5)
        self.never = nn.Linear(16, 5)

    def forward(self, x):
        x = self.before(x)
        for block in self.blocks:
            x = block(x)
        return self.after(x)


class Skips(Mixed):
    """The same blocks, but what one gives is not what the next one takes."""

    def forward(self, x):
        x = self.before(x)
        for block in self.blocks:
            x = x + block(x)
        return self.after(x)


def by_hand(model: nn.Module, order: list[list[str]], data: list[torch.Tensor], grid: Grid) -> dict[str, torch.Tensor]:
    """Round group after group of layers on full forwards of the model that is rounded so far."""
    from copy import deepcopy

    model = deepcopy(model).eval()
    result = {}
    for paths in order:
        grams = dict.fromkeys(paths, 0.0)
        hooks = []
        for path in paths:

            def hook(module, args, path=path, grams=grams):
                rows = args[0].reshape(-1, args[0].shape[-1])
                grams[path] = grams[path] + rows.T @ rows

            hooks.append(model.get_submodule(path).register_forward_pre_hook(hook))
        with torch.no_grad():
            for batch in data:
                model(batch)
        for one in hooks:
            one.remove()
        for path in paths:
            weight = model.get_submodule(path).weight.detach()
            found = gptq_round(weight, grams[path], grid).values()
            plain = round_weight(weight, grid).values()
            worse = output_errors(weight, found, grams[path]) > output_errors(weight, plain, grams[path])
            result[path] = torch.where(worse[:, None], plain, found)
        for path in paths:
            model.get_submodule(path).weight.data = result[path]
    return result


class TestSequence:
    @pytest.mark.parametrize('cls', [Mixed, Skips])
    def test_every_layer_is_rounded_on_what_the_rounded_ones_before_it_give(self, cls):
        model = cls().double()
        data = [torch.randn(10, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(4)]
        small, record = quantize_weights(model, 3, 8, method='gptq', data=data, scale_dtype=None)
        blocks = [[f'blocks.{i}.0', f'blocks.{i}.2'] for i in range(3)]
        expected = by_hand(model, [['before'], *blocks, ['after']], data, Grid(3, 8))
        for path, weight in expected.items():
            assert torch.allclose(small.get_submodule(path).weight, weight, atol=1e-9), path
        assert any("never reached 'never'" in note for note in record.notes)
        assert torch.equal(small.never.weight, round_weight(model.never.weight.detach(), Grid(3, 8)).values())
        assert any('parts of the whole model' in note for note in record.notes) is (cls is Skips)

    def test_a_plain_sequential_is_a_chain_of_its_members(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).double()
        data = [torch.randn(20, 12, dtype=torch.float64)]
        small, record = quantize_weights(model, 3, 8, method='gptq', data=data, scale_dtype=None)
        expected = by_hand(model, [['0'], ['2'], ['4']], data, Grid(3, 8))
        for path, weight in expected.items():
            assert torch.allclose(small.get_submodule(path).weight, weight, atol=1e-9)
        assert record.notes == ()


class TestTransformers:
    @pytest.mark.parametrize('kind', ['llama', 'gpt2', 'opt', 'bert', 'gemma', 't5', 'albert'])
    def test_outputs_are_nearer_than_by_rounding_to_nearest(self, kind):
        model = transformer(kind)
        small, record = quantize_weights(model, 3, 16, method='gptq', data=batches(kind))
        assert all(layer.error <= layer.nearest * (1 + 1e-6) for layer in record.layers)
        assert sum(layer.error for layer in record.layers) < 0.8 * sum(layer.nearest for layer in record.layers)
        assert set(packed_layers(small)) == {layer.name for layer in record.layers}
        assert record.notes == ()

    @pytest.mark.parametrize('kind', ['llama', 'gpt2', 'opt', 'bert', 'gemma', 't5'])
    def test_blocks_by_themselves_are_given_what_the_model_gives_them(self, kind):
        model = transformer(kind)
        targets, _ = select(model, Grid(4))
        with memory_shared(model) as work, torch.no_grad():
            chains = _chains(work, {target.path: target for target in targets})
            assert len(chains) == (2 if kind == 't5' else 1)
            for blocks in chains.values():
                modules = [work.get_submodule(path) for path in blocks]
                data = batches(kind)
                calls = [((), each) if isinstance(each, dict) else ((each,), {}) for each in data]
                feed = _Feed.captured(work, modules, calls)
                taken = []
                for number, module in enumerate(modules):
                    if number == len(modules) - 1:
                        taken = [feed._arguments(batch, number)[0] for batch in range(len(calls))]
                    feed.advance(module, number)
                for (args, kwargs), mine in zip(calls, taken):
                    seen = []
                    hook = modules[-1].register_forward_pre_hook(
                        lambda module, args, kwargs, seen=seen: seen.append((args, kwargs)), with_kwargs=True
                    )
                    work(*args, **kwargs)
                    hook.remove()
                    theirs = torch.utils._pytree.tree_leaves(seen[0])
                    for one, other in zip(mine, theirs, strict=True):
                        if isinstance(one, torch.Tensor):
                            assert torch.equal(one, other)

    def test_batches_may_differ_in_length(self):
        data = [*ids(2, 16), *ids(2, 9)]
        _, record = quantize_weights(transformer('llama'), 3, 16, method='gptq', data=data)
        assert sum(layer.error for layer in record.layers) < 0.8 * sum(layer.nearest for layer in record.layers)

    def test_masks_and_mappings_reach_the_blocks(self):
        data = [{'input_ids': each, 'attention_mask': torch.ones_like(each)} for each in ids()]
        one, _ = quantize_weights(transformer('bert'), 3, 16, method='gptq', data=data)
        other, _ = quantize_weights(transformer('bert'), 3, 16, method='gptq', data=ids())
        for path, layer in packed_layers(one).items():
            assert torch.equal(layer.codes, other.get_submodule(path).codes)

    def test_the_original_and_its_mode_stay(self):
        model = transformer('gpt2').train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        small, _ = quantize_weights(model, 3, 16, method='gptq', data=ids())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(module.training for module in model.modules())
        assert all(module.training for module in small.modules())
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in [*model.modules(), *small.modules()])
        assert model.config.use_cache


class TestBadData:
    def test_gptq_without_data(self):
        with pytest.raises(ConfigError, match='give `data=`'):
            quantize_weights(Mixed(), 4, method='gptq')

    @pytest.mark.parametrize('data', [[], iter(()), [torch.zeros(0, 12)]])
    def test_empty_data(self, data):
        with pytest.raises(DataError, match='empty'):
            quantize_weights(Mixed(), 4, method='gptq', data=data)

    @pytest.mark.parametrize('data', ['some text', {'input_ids': torch.zeros(1)}, 7])
    def test_what_is_no_list_of_batches(self, data):
        with pytest.raises(ConfigError, match='iterable of batches'):
            quantize_weights(Mixed(), 4, method='gptq', data=data)

    def test_nan_in_a_batch_is_placed(self):
        bad = torch.randn(4, 12)
        bad[1, 2] = float('nan')
        with pytest.raises(DataError, match=r'Batch 1 .*NaN.*\(1, 2\)'):
            quantize_weights(Mixed(), 4, method='gptq', data=[torch.randn(4, 12), bad])

    def test_nan_inside_the_model_names_the_layer_and_leaves_the_model(self):
        model = Mixed()
        model.blocks[1][1] = nn.Threshold(-1e9, 0)
        model.blocks[1][0].bias.data[:] = float('inf')
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(DataError, match=r'blocks\.1\.2'):
            quantize_weights(model, 4, 8, method='gptq', data=[torch.randn(4, 12)], inplace=True)
        assert list(model.state_dict()) == list(before)
        assert isinstance(model.before, nn.Linear)

    def test_a_batch_of_another_shape_is_told_with_the_models_error(self):
        with pytest.raises(DataError, match='fails on the first batch'):
            quantize_weights(Mixed(), 4, method='gptq', data=[torch.randn(4, 13)])


class TestFolder:
    def test_finished_blocks_are_not_rounded_again(self, tmp_path, monkeypatch):
        data = [torch.randn(10, 12)]
        first, record = quantize_weights(Mixed(), 3, 8, method='gptq', data=data, folder=tmp_path)
        monkeypatch.setattr('strop.quantization.blockwise.gptq_round', lambda *args, **kwargs: pytest.fail('rounded again'))
        again, other = quantize_weights(Mixed(), 3, 8, method='gptq', data=data, folder=tmp_path)
        for path, layer in packed_layers(first).items():
            assert torch.equal(layer.codes, again.get_submodule(path).codes)
        assert other.layers == record.layers

    def test_a_damaged_file_is_named(self, tmp_path):
        data = [torch.randn(10, 12)]
        quantize_weights(Mixed(), 3, 8, method='gptq', data=data, folder=tmp_path)
        next(tmp_path.glob('*.safetensors')).write_bytes(b'nothing')
        with pytest.raises(ConfigError, match='is damaged'):
            quantize_weights(Mixed(), 3, 8, method='gptq', data=data, folder=tmp_path)

    @pytest.mark.parametrize('change', ['bits', 'data', 'weights', 'damping'])
    def test_a_folder_of_another_run_is_refused(self, tmp_path, change):
        model, data = Mixed(), [torch.randn(10, 12)]
        quantize_weights(model, 3, 8, method='gptq', data=data, folder=tmp_path)
        more, bits = {}, 3
        if change == 'bits':
            bits = 4
        elif change == 'data':
            data = [torch.randn(10, 12)]
        elif change == 'weights':
            model.after.weight.data += 1
        else:
            more = {'damping': 0.1}
        with pytest.raises(ConfigError, match='blocks of another run'):
            quantize_weights(model, bits, 8, method='gptq', data=data, folder=tmp_path, **more)

    @pytest.mark.parametrize('change', ['a norm', 'a statistic', 'a table'])
    def test_so_is_one_of_a_model_that_differs_in_what_is_not_rounded(self, tmp_path, change):
        def model(changed):
            torch.manual_seed(0)
            norms = nn.LayerNorm(12), nn.BatchNorm1d(12), nn.PReLU(12)
            net = nn.Sequential(nn.Linear(12, 12), *norms, nn.Linear(12, 5)).eval()
            tensors = {'a norm': norms[0].weight, 'a statistic': norms[1].running_mean, 'a table': norms[2].weight}
            if changed:
                tensors[change].data[3:] *= 0.1
                tensors[change].data[:3] += 2.0
            return net

        data = [torch.randn(10, 12)]
        first, _ = quantize_weights(model(changed=False), 3, 4, method='gptq', data=data, folder=tmp_path)
        with pytest.raises(ConfigError, match="blocks of another run: 'weights' differ"):
            quantize_weights(model(changed=True), 3, 4, method='gptq', data=data, folder=tmp_path)
        other, _ = quantize_weights(model(changed=True), 3, 4, method='gptq', data=data)
        assert not torch.equal(first[4].codes, other[4].codes)

    @pytest.mark.parametrize('damping', [-1, float('nan')])
    def test_one_whose_options_were_refused_is_free_for_the_corrected_run(self, tmp_path, damping):
        data = [torch.randn(10, 12)]
        unread = iter(data)
        with pytest.raises(ConfigError, match='damping'):
            quantize_weights(Mixed(), 3, 8, method='gptq', data=unread, folder=tmp_path, damping=damping)
        assert len(list(unread)) == 1
        assert list(tmp_path.iterdir()) == []
        small, _ = quantize_weights(Mixed(), 3, 8, method='gptq', data=data, folder=tmp_path)
        expected, _ = quantize_weights(Mixed(), 3, 8, method='gptq', data=data)
        for path, layer in packed_layers(expected).items():
            assert torch.equal(layer.codes, small.get_submodule(path).codes)
            assert torch.equal(layer.scales, small.get_submodule(path).scales)

    def test_a_run_that_began_in_it_meanwhile_is_not_mixed_with_this_one(self, tmp_path):
        data = [torch.randn(10, 12)]

        class Slow(Mixed):
            began = False

            def forward(self, x):
                if not Slow.began:
                    Slow.began = True
                    quantize_weights(Mixed(), 4, 8, method='gptq', data=data, folder=tmp_path)
                return super().forward(x)

        with pytest.raises(ConfigError, match="blocks of another run: 'layers' differ"):
            quantize_weights(Slow(), 3, 8, method='gptq', data=data, folder=tmp_path)

    def test_batches_with_a_number_are_told_apart(self, tmp_path):
        class Scaled(Mixed):
            def forward(self, x, by, on):
                return super().forward(x * by * on)

        x = torch.randn(10, 12)

        def rounded(by):
            data = [{'x': x, 'by': torch.tensor(by), 'on': torch.tensor(True)}]
            return quantize_weights(Scaled(), 3, 8, method='gptq', data=data, folder=tmp_path)

        _, record = rounded(2.0)
        assert rounded(2.0).record == record
        with pytest.raises(ConfigError, match="blocks of another run: 'data' differ"):
            rounded(3.0)

    def test_a_run_that_was_killed_three_times_goes_on_to_the_same_result(self, tmp_path):
        # One process that imports once and forks the runs; the parent of the runs kills them.
        program = textwrap.dedent("""
            import os, signal, sys, time, torch
            from pathlib import Path
            from torch import nn
            from strop.quantization import quantize_weights, save_packed
            torch.set_num_threads(1)
            torch.manual_seed(0)
            blocks = [nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(6)]
            model = nn.Sequential(nn.Linear(12, 32), *blocks, nn.Linear(32, 5))
            data = [torch.randn(40, 12) for _ in range(3)]
            root = Path(sys.argv[1])

            def run(name):
                child = os.fork()
                if not child:
                    small, _ = quantize_weights(model, 3, 8, method='gptq', data=data, folder=root / name)
                    save_packed(small, root / f'{name}.safetensors')
                    os._exit(0)
                return child

            def finished():
                return sum(1 for file in (root / 'parts').glob('[!.]*.safetensors'))

            for least in (1, 3, 6):
                child = run('parts')
                while finished() < least:
                    time.sleep(0.0005)
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                print('killed after', finished())
            for name in ('parts', 'whole'):
                assert os.waitpid(run(name), 0)[1] == 0
        """)
        ran = run_script(program, tmp_path, cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count('killed after') == 3
        assert (tmp_path / 'parts.safetensors').read_bytes() == (tmp_path / 'whole.safetensors').read_bytes()


class InPlace(nn.Sequential):
    """Blocks that change what they are given: what a run of one leaves behind is not what the next run may take."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        blocks = (nn.Sequential(nn.LeakyReLU(0.2, inplace=True), nn.Linear(16, 16)) for _ in range(3))
        super().__init__(nn.Linear(16, 16), *blocks)


@pytest.mark.parametrize('kept', [False, True])
def test_blocks_that_change_their_input_are_run_on_it_as_it_was(tmp_path, kept):
    model = InPlace().double()
    data = [torch.randn(40, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    folder = {'folder': tmp_path / 'kept'} if kept else {}
    for _ in range(1 + kept):  # again, with every block kept
        small, _ = quantize_weights(model, 3, 8, method='gptq', data=[x.clone() for x in data], scale_dtype=None, **folder)
        order = [['0'], ['1.1'], ['2.1'], ['3.1']]
        for path, weight in by_hand(model, order, data, Grid(3, 8)).items():
            assert torch.allclose(small.get_submodule(path).weight, weight, atol=1e-9), path


def test_one_product_is_not_taken_for_that_of_a_tensor_that_was_changed_since():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            x = x.clone()
            x += self.a(x)
            return self.b(x)

    model, data = Adds().double(), [torch.randn(30, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))]
    small, _ = quantize_weights(model, 3, 8, method='gptq', data=data, scale_dtype=None)
    with torch.no_grad():
        inputs = data[0] + model.a(data[0])
    weight = model.b.weight.detach()
    found, plain = gptq_round(weight, inputs.T @ inputs, Grid(3, 8)).values(), round_weight(weight, Grid(3, 8)).values()
    worse = output_errors(weight, found, inputs.T @ inputs) > output_errors(weight, plain, inputs.T @ inputs)
    assert torch.allclose(small.b.weight, torch.where(worse[:, None], plain, found), atol=1e-9)


class Experts(nn.Module):
    """Blocks of two experts each: a sample goes to one of them, by the sign of its first number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.ModuleList(nn.Linear(8, 8) for _ in range(3)) for _ in range(2))
        self.heads = nn.ModuleDict({'plus': nn.Linear(8, 2), 'minus': nn.Linear(8, 2), 'never': nn.Linear(8, 2)})

    def forward(self, x):
        number = int(x[0, 0] < 0)
        for block in self.blocks:
            x = x + block[number](x)
        return self.heads['minus' if number else 'plus'](x)


def test_layers_that_only_a_later_batch_reaches_are_rounded_on_it():
    rows = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(3))
    rows[0, 0, 0], rows[1, 0, 0] = 1.0, -1.0
    model = Experts()
    _, record = quantize_weights(model, 3, 8, method='gptq', data=list(rows))
    rounded = {layer.name: layer.error for layer in record.layers}
    reached = [f'blocks.{block}.{number}' for block in range(2) for number in range(2)] + ['heads.plus', 'heads.minus']
    assert all(rounded[name] is not None for name in reached)
    assert [note for note in record.notes if 'never reached' in note] == [
        "The calibration data never reached 'blocks.0.2', 'blocks.1.2', 'heads.never': rounded to nearest."
    ]


@pytest.mark.parametrize('longer', [65, 70])
def test_a_bad_batch_is_named_by_its_number(longer):
    model = transformer('gpt2')
    with pytest.raises(DataError, match='does not take batch 1 of the calibration data'):
        quantize_weights(model, method='gptq', data=[ids(1)[0], ids(1, length=longer)[0]])


def test_the_error_of_a_shared_weight_is_of_what_is_kept():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x).relu())

    model, data = Shared(), [torch.randn(50, 8, generator=torch.Generator().manual_seed(0))]
    small, record = quantize_weights(model, 3, 8, method='gptq', data=data)
    with torch.no_grad():
        inputs = model.a(data[0]).relu()  # neither is in a block: both are rounded on forwards of the float model
        wanted, found = (inputs @ weight.T for weight in (model.b.weight, small.b.weight))
    error = float((wanted - found).square().sum() / wanted.square().sum())
    assert next(layer.error for layer in record.layers if layer.name == 'b') == pytest.approx(error, rel=1e-3)
