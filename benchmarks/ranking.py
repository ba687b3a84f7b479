"""How well a supernet ranks its subnets: Kendall's tau between supernet scores and stand-alone training.

The space is the demo's, the data Fashion-MNIST (Debian package dataset-fashion-mnist, or any folder of its idx files). The
supernet is trained on the training part; subnets are scored by it on the validation part, with batch norms recalibrated on
training images; each subnet is then trained alone from scratch and scored on the test part. Every cell (the supernet, each
subnet) is kept in the work folder, so that the benchmark resumes.

    python benchmarks/ranking.py --out benchmarks/results/ranking.json
    python benchmarks/ranking.py --full        # all images, more epochs, 50 subnets
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import write_result
from scipy.stats import kendalltau, spearmanr

from strop.cli.demo import Demo, DemoSettings
from strop.engine.scoring import Scorer
from strop.files import atomic_write
from strop.mutables import Subnet
from strop.randomness import counter_rng


class Ranking(Demo):
    """The demo's supernet on a limited number of images, and its scores of given subnets."""

    def __init__(self, settings: DemoSettings, out: Path, limit: int | None) -> None:
        super().__init__(settings, out, lambda *_: None)
        if limit is not None:
            self.config['train_dataloader']['dataset']['limit'] = limit

    def supernet_scores(self, subnets: list[Subnet]) -> list[float]:
        file = self.out / 'supernet_scores.json'
        known: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
        if any(subnet.digest not in known for subnet in subnets):
            from mmengine.runner import load_checkpoint

            runner = self._runner('scores', self.config)
            load_checkpoint(runner.model, str(self._checkpoint('supernet')))
            loader = runner.build_dataloader(self.config['val_dataloader'])
            scorer = Scorer(runner, loader, runner.build_evaluator(self.config['val_evaluator']), calibrate_sample_num=1024)
            for subnet in subnets:
                known[subnet.digest] = float(scorer.metrics(dict(subnet))['accuracy/top1'])
            atomic_write(file, json.dumps(known))
        return [known[subnet.digest] for subnet in subnets]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default='/usr/share/datasets/fashion-mnist')
    parser.add_argument('--subnets', type=int, default=24)
    parser.add_argument('--epochs', type=int, default=40)
    parser.add_argument('--retrain-epochs', type=int, default=6)
    parser.add_argument('--limit', type=int, default=6000, help='training images')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--full', action='store_true')
    parser.add_argument('--work', type=Path, default=Path('work_dirs/ranking'))
    parser.add_argument('--out', default='benchmarks/results/ranking.json')
    args = parser.parse_args()
    if args.full:
        args.subnets, args.epochs, args.retrain_epochs, args.limit = 50, 60, 20, 0
    torch.set_num_threads(args.threads)
    settings = DemoSettings(data=args.data, epochs=args.epochs, retrain_epochs=args.retrain_epochs, seed=args.seed)
    ranking = Ranking(settings, args.work / f'{settings.digest}-{args.limit}', args.limit or None)
    ranking.train_supernet()
    space = ranking.estimator.space
    subnets: list[Subnet] = [space.extreme(True), space.extreme(False)]
    counter = 0
    while len(subnets) < args.subnets:
        drawn = space.sample(counter_rng(args.seed, 'ranking', counter))
        counter += 1
        if drawn not in subnets:
            subnets.append(drawn)
    shared = ranking.supernet_scores(subnets)
    alone = []
    for number, subnet in enumerate(subnets):
        stage = f'alone/{subnet.digest}'
        file = ranking.out / stage / 'score.json'
        if not file.exists():
            atomic_write(file, json.dumps(ranking._train_alone(stage, subnet, 0)))
        alone.append(json.loads(file.read_text()))
        print(f'{number + 1}/{len(subnets)}: supernet {shared[number]:.2f}, alone {alone[-1]:.2f}', flush=True)
    macs = [ranking.estimator.estimate(subnet, ['macs'])['macs'] for subnet in subnets]
    tau, p_value = kendalltau(shared, alone)
    figures: dict[str, Any] = {
        'kendall_tau': float(tau),
        'p_value': float(p_value),
        'spearman_rho': float(spearmanr(shared, alone)[0]),
        'kendall_tau_of_macs_alone': float(kendalltau(macs, alone)[0]),
        'best_by_supernet_is_of_rank': int(np.argsort(-np.array(alone)).tolist().index(int(np.argmax(shared)))) + 1,
        'alone_range': [min(alone), max(alone)],
        'supernet_range': [min(shared), max(shared)],
        'subnets': len(subnets),
    }
    rows = [{'supernet': s, 'alone': a, 'macs': m, 'choices': dict(n)} for s, a, m, n in zip(shared, alone, macs, subnets)]
    content = {
        'seed': args.seed,
        'settings': {**asdict(settings), 'train_images': args.limit or 'all'},
        'figures': figures,
        'rows': rows,
    }
    write_result(args.out, 'ranking', content, packages=('scipy',))
    print(figures)


if __name__ == '__main__':
    main()
