"""`strop train`, `strop search` and `strop test`: a config, run by MMEngine's runner."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from strop.cli.options import command, run_options

if TYPE_CHECKING:
    from mmengine.config import Config

CHECKPOINT = click.Path(exists=True, dir_okay=False)


def _prepared(name: str, settings: Mapping[str, Any], seed: int | None, work_dir: str | None, amp: bool = False) -> Config:
    from strop.cli.configs import default_work_dir, load_config, use_mixed_precision

    config = load_config(name, settings)
    config.work_dir = default_work_dir(config, name, work_dir)
    if seed is not None:
        config.randomness = {**(config.get('randomness') or {}), 'seed': seed}
    if amp:
        use_mixed_precision(config)
    return config


@command(
    'train',
    """
    strop train strop::spos/spos_shufflenet_supernet_mnist.py --work-dir runs/supernet
    strop train strop::spos/spos_shufflenet_supernet_mnist.py --work-dir runs/short \\
        --cfg-options train_cfg.max_epochs=1 optim_wrapper.optimizer.lr=0.1
    torchrun --nproc-per-node 2 -m strop train CONFIG --launcher pytorch
    """,
)
@click.argument('config')
@click.option('--resume', is_flag=True, help='Go on from the furthest checkpoint in the work directory, if there is one.')
@click.option('--amp', is_flag=True, help='Train in mixed precision: bfloat16 on CPUs, float16 with loss scaling on GPUs.')
@run_options
def train(
    config: str, resume: bool, amp: bool, work_dir: str | None, seed: int | None, launcher: str, settings: dict[str, Any]
) -> None:
    """Train a supernet, or the model of any other config.

    A run that was killed goes on with --resume, from the last checkpoint, and ends with the same weights as one that
    was not. Checkpoints inside an epoch: default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=...).
    """
    from strop.cli.console import note
    from strop.engine import build_runner, find_checkpoint

    cfg = _prepared(config, settings, seed, work_dir, amp)
    found = find_checkpoint(cfg.work_dir, strict=resume) if Path(cfg.work_dir).is_dir() else None
    if found is not None and not resume:
        note(f'{found} is not resumed from; this run starts anew in the same folder (--resume goes on with it).')
    elif found is None and resume:
        note(f'there is no checkpoint in {cfg.work_dir} to resume from; training starts at the beginning.')
    runner = build_runner(cfg, 'search' if _searches(cfg, 'train_cfg') else 'train', resume=resume, launcher=launcher)
    runner.train()
    if runner.rank == 0:
        note(f'done; the files are in {cfg.work_dir}')


def _searches(cfg: Config, name: str) -> bool:
    """Tell whether `train_cfg` or `test_cfg` of a config is a search loop."""
    from strop.engine import SearchLoop
    from strop.registry import LOOPS

    kind = (cfg.get(name) or {}).get('type')
    found = LOOPS.get(kind) if isinstance(kind, str) else kind
    return isinstance(found, type) and issubclass(found, SearchLoop)


@command(
    'search',
    """
    strop search strop::spos/spos_shufflenet_search_mnist.py --work-dir runs/search \\
        --checkpoint runs/supernet/epoch_10.pth
    strop search CONFIG --checkpoint supernet.pth --resume
    strop search CONFIG --checkpoint supernet.pth --cfg-options "train_cfg.constraints_range.flops=(0,300)"
    """,
)
@click.argument('config')
@click.option('--checkpoint', type=CHECKPOINT, help="The trained supernet; the config's `load_from` by default.")
@click.option('--resume', is_flag=True, help='Go on with the trials that the work directory holds.')
@click.option('--top', type=click.IntRange(min=1), default=5, show_default=True, help='How many subnets to print.')
@run_options
def search(
    config: str,
    checkpoint: str | None,
    resume: bool,
    top: int,
    work_dir: str | None,
    seed: int | None,
    launcher: str,
    settings: dict[str, Any],
) -> None:
    """Search a trained supernet for its best subnets under a budget.

    The config's train_cfg is a search loop: dict(type='EvolutionSearchLoop', constraints_range=dict(flops=(0, 330)), ...);
    or its test_cfg is one: dict(type='AutoSlimGreedySearchLoop', target_flops=[300, 200], ...).
    Every trial is kept in search.journal, which `strop show` and optuna-dashboard read; the best subnet is written to
    best_fix_subnet.yaml. Exit code 3: no subnet meets the budget.
    """
    from strop.cli.console import note, pairs, show
    from strop.cli.tables import search_progress, trials_table
    from strop.cli.weights import check_weights
    from strop.engine import build_runner
    from strop.engine.search_loop import BEST_FILE, RESULT_FILE, STORE_FILE
    from strop.errors import ConfigError

    cfg = _prepared(config, settings, seed, work_dir)
    task = 'search' if _searches(cfg, 'train_cfg') else 'test' if _searches(cfg, 'test_cfg') else None
    if task is None:
        kind = (cfg.get('train_cfg') or {}).get('type', 'a training loop')
        raise ConfigError(
            f"To search, the config needs train_cfg = dict(type='EvolutionSearchLoop', ...), but it has {kind!r}; or, for "
            "widths, test_cfg = dict(type='AutoSlimGreedySearchLoop', ...). "
            '`strop train` trains a supernet.'
        )
    cfg.load_from = checkpoint or cfg.get('load_from')
    if cfg.load_from is None:
        note('no --checkpoint is given: the supernet that is searched has the weights that it is initialized with.')
    if task == 'test' and resume and not cfg.test_cfg.get('resume_from'):
        cfg.test_cfg.resume_from = True
    runner = build_runner(cfg, task, resume=resume, launcher=launcher)
    if cfg.load_from is not None:
        check_weights(runner.model, cfg.load_from)
    loop = runner.train_loop if task == 'search' else runner.test_loop
    with search_progress(runner, loop):
        runner.train() if task == 'search' else runner.test()
    result = loop.result
    if result is None:
        return
    files = {name: Path(cfg.work_dir) / name for name in (BEST_FILE, RESULT_FILE, STORE_FILE)}
    show(trials_table(result.ranked()[:top], result.objectives, f'The best of {len(result.complete)} subnets'))
    if result.failed:
        note(f'{len(result.failed)} trials failed; {files[RESULT_FILE]} has their reasons.')
    show(pairs('Files', {'best subnet': files[BEST_FILE], 'all trials': files[RESULT_FILE], 'store': files[STORE_FILE]}))


@command(
    'test',
    """
    strop test strop::spos/spos_shufflenet_supernet_mnist.py --checkpoint runs/supernet/epoch_10.pth
    strop test strop::spos/spos_shufflenet_supernet_mnist.py --checkpoint runs/supernet/epoch_10.pth \\
        --subnet runs/search/best_fix_subnet.yaml
    """,
)
@click.argument('config')
@click.option(
    '--checkpoint',
    type=CHECKPOINT,
    help="The weights; by default the config's `load_from`, or the furthest checkpoint in the work directory.",
)
@click.option('--subnet', type=CHECKPOINT, help='Test this subnet of the supernet, with the weights that it inherits.')
@click.option(
    '--calibrate',
    type=click.IntRange(min=0),
    help='Training images to recalibrate batch norms on before a subnet is tested; by default as the config searches or '
    'validates, else 4096.',
)
@click.option('--out', type=click.Path(dir_okay=False), help='Also write the metrics to this JSON file.')
@run_options
def test(
    config: str,
    checkpoint: str | None,
    subnet: str | None,
    calibrate: int | None,
    out: str | None,
    work_dir: str | None,
    seed: int | None,
    launcher: str,
    settings: dict[str, Any],
) -> None:
    """Test a model on the test data of its config.

    A supernet without --subnet is tested by its largest, its smallest and a random subnet.
    """
    from strop.cli.console import pairs, show
    from strop.cli.weights import calibration_images, check_weights
    from strop.engine import SubnetValLoop, build_runner
    from strop.engine.train_loop import unwrapped
    from strop.errors import ConfigError
    from strop.files import atomic_write, json_text

    cfg = _prepared(config, settings, seed, work_dir)
    _set_weights(cfg, checkpoint)
    images = calibration_images(cfg, calibrate)
    calibrates = _calibrates(cfg.get('test_cfg') or {})
    if calibrates:
        cfg.test_cfg.calibrate_sample_num = images
    runner = build_runner(cfg, 'test', launcher=launcher)
    if cfg.get('load_from') is not None:
        check_weights(runner.model, cfg.load_from)
    model = unwrapped(runner.model)
    if subnet is not None:
        metrics = _test_subnet(runner, model, subnet, images)
    elif getattr(model, 'mutator', None) is not None and not (cfg.get('test_cfg') or {}).get('type'):
        # Only now is it known that the model has subnets; MMEngine's default loop would run it undecided.
        runner._test_loop = SubnetValLoop(runner, cfg.test_dataloader, cfg.test_evaluator, calibrate_sample_num=images)
        metrics = runner.test()
    elif calibrate is not None and not calibrates:
        raise ConfigError('--calibrate is for a supernet, or for a --subnet of one; nothing else is recalibrated to be tested.')
    else:
        metrics = runner.test()
    if runner.rank == 0:
        show(pairs(f'Metrics{f" of {subnet}" if subnet else ""}', metrics))
        if out is not None:
            atomic_write(out, json_text(metrics, indent=2) + '\n')


def _calibrates(loop: Mapping[str, Any]) -> bool:
    """Whether the loop of a config recalibrates batch norms."""
    from strop.registry import LOOPS

    kind = loop.get('type')
    found = LOOPS.get(kind) if isinstance(kind, str) else kind
    return found is not None and 'calibrate_sample_num' in inspect.signature(found).parameters


def _set_weights(cfg: Config, checkpoint: str | None) -> None:
    from strop.cli.console import note
    from strop.engine import find_checkpoint
    from strop.errors import ConfigError

    if checkpoint is not None:
        cfg.load_from = checkpoint
    if cfg.get('load_from') is None:
        found = find_checkpoint(cfg.work_dir) if Path(cfg.work_dir).is_dir() else None
        # A model may also take its weights from an `init_cfg` of its own.
        if found is None and 'checkpoint' not in str(cfg.get('model') or cfg.get('algorithm')):
            raise ConfigError(
                f'To test, weights are needed: give --checkpoint FILE. There is no checkpoint in {cfg.work_dir} either.'
            )
        if found is not None:
            note(f'the weights are those of {found}')
            cfg.load_from = str(found)


def _test_subnet(runner: Any, model: Any, path: str, images: int) -> dict[str, float]:
    from strop.cli.console import note
    from strop.engine import ResourceMeter, Scorer
    from strop.engine.scoring import mutator_of, sample_batch
    from strop.mutables import load_subnet

    subnet = load_subnet(path, mutator_of(model).space)
    runner.load_or_resume()
    loop = runner.test_loop
    if images > 0:
        note(f'batch norms are recalibrated on {images} training images (--calibrate 0 leaves them as they are).')
    metrics = Scorer(runner, loop.dataloader, loop.evaluator, images).metrics(subnet)
    return {**metrics, **ResourceMeter(model, sample_batch(runner, loop.dataloader)).measure(subnet)}
