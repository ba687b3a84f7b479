"""The engine: MMEngine's runner with search and validation loops, hooks, mixed precision and safe checkpoints."""

from strop.engine.calibration import kept_batch_norms, recalibrate_batch_norms
from strop.engine.callbacks import ArchitectureCheckpoint, Callback, LRSchedulerCallback, ModelCheckpoint
from strop.engine.checkpoint import find_checkpoint, load_checkpoint_file
from strop.engine.compression_step import CompressionStep
from strop.engine.darts_loops import DartsEpochBasedTrainLoop, DartsIterBasedTrainLoop, SearchBatches
from strop.engine.distill_hooks import StopDistillHook
from strop.engine.distill_validation import SelfDistillValLoop, SingleTeacherDistillValLoop
from strop.engine.distributed import DistributedAlgorithm, start_process_group
from strop.engine.evolution_search import EvolutionSearchLoop
from strop.engine.feature_maps import RazorVisualizationHook
from strop.engine.greedy_search import AutoSlimGreedySearchLoop
from strop.engine.hooks import (
    DropPathProbHook,
    DumpSubnetHook,
    EstimateResourcesHook,
    NaiveVisualizationHook,
    SubnetVisualizationHook,
)
from strop.engine.launch import build_runner, prepare_config
from strop.engine.meters import AverageMeter, AverageMeterGroup
from strop.engine.precision import AmpOptimWrapper
from strop.engine.pretrained import load_pretrained
from strop.engine.quantization_loops import LSQEpochBasedLoop, PTQLoop, QATEpochBasedLoop, QATValLoop
from strop.engine.scoring import ResourceMeter, Scorer
from strop.engine.search_loop import SearchLoop
from strop.engine.separate_optim import SeparateOptimWrapperConstructor
from strop.engine.sub_model import sub_model
from strop.engine.subnet_validation import SubnetTestLoop, SubnetValLoop
from strop.engine.train_loop import EpochBasedTrainLoop, IterBasedTrainLoop
from strop.engine.trainer import BaseTrainer, Trainer, to_device
from strop.engine.trainer_loop import SearchModel, TrainerLoop
from strop.engine.transformers_trainer import CompressionTrainerMixin
from strop.engine.width_validation import ItePruneValLoop, SlimmableValLoop

__all__ = [
    'AmpOptimWrapper',
    'ArchitectureCheckpoint',
    'AutoSlimGreedySearchLoop',
    'AverageMeter',
    'AverageMeterGroup',
    'BaseTrainer',
    'Callback',
    'CompressionStep',
    'CompressionTrainerMixin',
    'DartsEpochBasedTrainLoop',
    'DartsIterBasedTrainLoop',
    'DistributedAlgorithm',
    'DropPathProbHook',
    'DumpSubnetHook',
    'EpochBasedTrainLoop',
    'EstimateResourcesHook',
    'EvolutionSearchLoop',
    'ItePruneValLoop',
    'IterBasedTrainLoop',
    'LSQEpochBasedLoop',
    'LRSchedulerCallback',
    'ModelCheckpoint',
    'NaiveVisualizationHook',
    'PTQLoop',
    'QATEpochBasedLoop',
    'QATValLoop',
    'RazorVisualizationHook',
    'ResourceMeter',
    'Scorer',
    'SearchBatches',
    'SearchLoop',
    'SearchModel',
    'SelfDistillValLoop',
    'SingleTeacherDistillValLoop',
    'SeparateOptimWrapperConstructor',
    'SlimmableValLoop',
    'StopDistillHook',
    'SubnetTestLoop',
    'SubnetValLoop',
    'SubnetVisualizationHook',
    'Trainer',
    'TrainerLoop',
    'build_runner',
    'find_checkpoint',
    'kept_batch_norms',
    'load_checkpoint_file',
    'load_pretrained',
    'prepare_config',
    'recalibrate_batch_norms',
    'start_process_group',
    'sub_model',
    'to_device',
]
