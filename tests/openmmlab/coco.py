"""COCO128 as folders: images, annotations for detectors, and regions for segmentors.

The file has boxes and no outlines. Regions are painted boxes, which is enough to learn something from real images.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config

FILE = Path(__file__).resolve().parents[2] / '..' / 'shared' / 'data' / 'coco128_320.npz'
#: What regions stand for.
REGIONS = ('background', 'person', 'thing')


def coco_folder(target: Path, names: tuple[str, ...] | list[str], images: int = 16) -> Path:
    """Write the first images of both parts; return the folder, with `train`, `val`, `train.json`, `val.json`.

    Args:
        target: An empty folder.
        names: The 80 names of the classes, in COCO's order.
        images: Number of images of each part, those without any box left out.
    """
    with np.load(FILE, allow_pickle=False) as data:
        for part in ('train', 'val'):
            (target / part).mkdir(parents=True)
            (target / f'{part}_regions').mkdir()
            content = _annotations(data, part, names, images)
            jpeg, offsets = data[f'{part}_jpeg'], data[f'{part}_offsets']
            for image in content['images']:
                row = image.pop('row')
                (target / part / image['file_name']).write_bytes(jpeg[offsets[row] : offsets[row + 1]].tobytes())
                _paint(target / f'{part}_regions', image, [a for a in content['annotations'] if a['image_id'] == image['id']])
            (target / f'{part}.json').write_text(json.dumps(content), encoding='utf-8')
    return target


def _annotations(data: np.lib.npyio.NpzFile, part: str, names: tuple[str, ...] | list[str], images: int) -> dict[str, list]:
    boxes, sizes, ids = data[f'{part}_boxes'], data[f'{part}_wh'].tolist(), data[f'{part}_ids'].tolist()
    rows = [row for row in range(len(ids)) if (boxes[:, 0] == row).any()][:images]
    content: dict[str, list] = {
        'images': [
            {'id': ids[row], 'file_name': f'{ids[row]:012d}.jpg', 'width': sizes[row][0], 'height': sizes[row][1], 'row': row}
            for row in rows
        ],
        'annotations': [],
        'categories': [{'id': number + 1, 'name': name} for number, name in enumerate(names)],
    }
    for row, label, x, y, w, h in boxes.tolist():
        if int(row) in rows:
            width, height = sizes[int(row)]
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            content['annotations'].append(
                {
                    'id': len(content['annotations']) + 1,
                    'image_id': ids[int(row)],
                    'category_id': int(label) + 1,
                    'bbox': [round(value, 3) for value in box],
                    'area': round(box[2] * box[3], 3),
                    'iscrowd': 0,
                }
            )
    return content


def _paint(folder: Path, image: dict, annotations: list[dict]) -> None:
    from PIL import Image

    regions = np.zeros((image['height'], image['width']), dtype=np.uint8)
    for annotation in sorted(annotations, key=lambda annotation: -annotation['area']):
        x, y, w, h = (round(value) for value in annotation['bbox'])
        regions[max(y, 0) : y + h, max(x, 0) : x + w] = 1 if annotation['category_id'] == 1 else 2
    Image.fromarray(regions).save(folder / image['file_name'].replace('.jpg', '.png'))


def need_file() -> None:
    """Skip the test where the file is not there."""
    if not FILE.is_file():
        pytest.skip('needs coco128_320.npz in shared/data beside the checkout')


def detection_data(root: Path, size: int = 160, batch_size: int = 2) -> dict:
    """Return loaders and evaluators of mmdet for a folder of `coco_folder`, images scaled into a square of `size` pixels."""

    def loader(part: str, train: bool) -> dict:
        pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
        pipeline += [dict(type='Resize', scale=(size, size), keep_ratio=True)]
        if train:
            pipeline += [dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]
        else:
            pipeline += [dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
        return dict(
            batch_size=batch_size,
            num_workers=0,
            persistent_workers=False,
            sampler=dict(type='DefaultSampler', shuffle=train),
            batch_sampler=None,
            dataset=dict(
                type='CocoDataset',
                data_root=str(root),
                ann_file=f'{part}.json',
                data_prefix=dict(img=f'{part}/'),
                test_mode=not train,
                pipeline=pipeline,
            ),
        )

    evaluator = dict(type='CocoMetric', ann_file=str(root / 'val.json'), metric='bbox', format_only=False)
    return {
        'train_dataloader': loader('train', True),
        'val_dataloader': loader('val', False),
        'test_dataloader': loader('val', False),
        'val_evaluator': evaluator,
        'test_evaluator': evaluator,
    }


def segmentation_data(root: Path, size: int = 96, batch_size: int = 2) -> dict:
    """Return loaders and evaluators of mmseg for a folder of `coco_folder`, images scaled to squares of `size` pixels."""

    def loader(part: str, train: bool) -> dict:
        # In validation the regions stay as large as they are: predictions are scaled back to them.
        steps = [dict(type='LoadAnnotations'), dict(type='Resize', scale=(size, size))]
        load = [dict(type='LoadImageFromFile'), *(steps if train else steps[::-1])]
        return dict(
            batch_size=batch_size,
            num_workers=0,
            persistent_workers=False,
            sampler=dict(type='DefaultSampler', shuffle=train),
            dataset=dict(
                type='BaseSegDataset',
                data_root=str(root),
                data_prefix=dict(img_path=part, seg_map_path=f'{part}_regions'),
                metainfo=dict(classes=REGIONS, palette=[[0, 0, 0], [220, 20, 60], [119, 11, 32]]),
                img_suffix='.jpg',
                seg_map_suffix='.png',
                pipeline=[*load, dict(type='PackSegInputs')],
            ),
        )

    evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
    return {
        'train_dataloader': loader('train', True),
        'val_dataloader': loader('val', False),
        'test_dataloader': loader('val', False),
        'val_evaluator': evaluator,
        'test_evaluator': evaluator,
    }


def shortened(config: Config, data: dict, iterations: int, work_dir: Path, lr: float = 0.01, **options: object) -> Config:
    """Return a config on other data, trained for some iterations of SGD with one learning rate.

    Args:
        config: The config.
        data: What `detection_data` or `segmentation_data` returns.
        iterations: How many.
        work_dir: Where to.
        lr: The learning rate.
        options: As for `--cfg-options`, `__` for a dot.
    """
    for name, value in data.items():
        config[name] = value
    config.train_cfg = dict(by_epoch=False, max_iters=iterations)
    # What is scored is scored by runner.test(), once.
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    config.test_cfg = dict()
    config.optim_wrapper = dict(
        type='OptimWrapper', optimizer=dict(type='SGD', lr=lr, momentum=0.9), clip_grad=dict(max_norm=10)
    )
    config.param_scheduler = []
    config.default_hooks = dict(
        logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=iterations),
    )
    config.pop('visualizer', None)
    config.pop('vis_backends', None)
    config.work_dir, config.log_level, config.randomness = str(work_dir), 'INFO', dict(seed=0)
    config.merge_from_dict({name.replace('__', '.'): value for name, value in options.items()})
    return config


def taught(runner: Any) -> tuple[float, float]:
    """Train a distillation, and return the sum of its distillation losses on one batch before and after."""
    model = runner.model
    model.init_weights()
    batch = model.data_preprocessor(next(iter(runner.build_dataloader(runner._train_dataloader, seed=0))), True)

    def measured() -> float:
        with torch.no_grad():
            losses = model.train()(**copy.deepcopy(batch), mode='loss')
        return sum(float(value) for name, value in losses.items() if name.startswith('distill.'))

    before = measured()
    runner.train()
    return before, measured()
