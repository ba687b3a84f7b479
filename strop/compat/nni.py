"""What the NAS of NNI 1.9 offers, and where the classes are now."""

from __future__ import annotations

from strop.compat.finder import Table

_NAMES = {
    'nni': {
        'strop.search.trial_side': 'get_next_parameter get_current_parameter get_sequence_id get_trial_id get_experiment_id '
        'report_intermediate_result report_final_result',
        'strop.search.tuner': 'NoMoreTrialError ClassArgsValidator',
    },
    'nni.tuner': {'strop.search.tuner': 'Tuner'},
    'nni.utils': {'strop.search.tuner': 'OptimizeMode extract_scalar_reward'},
    'nni.nas.pytorch.mutables': {'strop.mutables': 'Mutable MutableScope LayerChoice InputChoice'},
    'nni.nas.pytorch.base_mutator': {'strop.mutators': 'BaseMutator'},
    'nni.nas.pytorch.mutator': {'strop.mutators': 'Mutator'},
    'nni.nas.pytorch.random': {'strop.mutators': 'RandomMutator'},
    'nni.nas.pytorch.fixed': {'strop.mutators': 'FixedArchitecture apply_fixed_architecture'},
    'nni.nas.pytorch.classic_nas': {
        'strop.mutators': 'get_and_apply_next_architecture',
        'strop.mutables.search_space_file': 'LAYER_CHOICE=LAYER INPUT_CHOICE=INPUT',
    },
    'nni.nas.pytorch.spos': {
        'strop.search.spos_evolution': 'SPOSEvolution=SPOSTuner',
        'strop.algorithms': 'SPOSSupernetTrainer SPOSSupernetTrainingMutator',
    },
    'nni.nas.pytorch.base_trainer': {'strop.engine': 'BaseTrainer'},
    'nni.nas.pytorch.trainer': {'strop.engine': 'Trainer'},
    'nni.nas.pytorch.callbacks': {'strop.engine': 'Callback LRSchedulerCallback ArchitectureCheckpoint ModelCheckpoint'},
    'nni.nas.pytorch.utils': {
        'strop.engine': 'AverageMeter AverageMeterGroup to_device',
        'strop.compat.fronts': 'TorchTensorEncoder',
    },
    'nni.nas.pytorch.darts': {'strop.mutators': 'DartsMutator', 'strop.algorithms': 'DartsTrainer'},
    'nni.nas.pytorch.proxylessnas': {
        'strop.mutators': 'ProxylessNasMutator=ProxylessMutator',
        'strop.algorithms': 'ProxylessNasTrainer',
    },
}

_MODULES = {
    'nni': 'nas tuner utils',
    'nni.nas': 'pytorch',
    'nni.nas.pytorch': 'base_mutator base_trainer callbacks cdarts classic_nas cream darts enas fixed mutables mutator '
    'nasbench201 pdarts proxylessnas random search_space_zoo spos trainer utils',
    'nni.nas.pytorch.random': 'mutator',
    'nni.nas.pytorch.classic_nas': 'mutator',
    'nni.nas.pytorch.darts': 'mutator trainer',
    'nni.nas.pytorch.enas': 'mutator trainer',
    'nni.nas.pytorch.proxylessnas': 'mutator trainer',
    'nni.nas.pytorch.spos': 'evolution mutator trainer',
}

# What was public in 1.9 and has no equal of its name here, and the modules that only NNI 2 and 3 had.
_NEAREST = {
    'EnasTrainer': "strop.search.run(..., strategy='policy') searches by policy gradients, trial by trial",
    'EnasMutator': "strop.search.run(..., strategy='policy') searches by policy gradients, trial by trial",
    'PdartsTrainer': 'strop.DartsTrainer',
    'PdartsMutator': 'strop.DartsMutator',
    'CdartsTrainer': 'strop.DartsTrainer',
    'NASBench201Mutator': 'strop.RandomMutator',
    'DartsCell': "type='DartsBackbone', the cells of DARTS",
    'ENASMicroLayer': 'cells of LayerChoice and InputChoice, as in strop.architectures.darts_cells',
    'ENASMacroLayer': 'cells of LayerChoice and InputChoice, as in strop.architectures.darts_cells',
    'StructuredMutableTreeNode': 'mutator.mutables, which lists the decisions of a model',
    'nni.retiarii': 'strop.LayerChoice, InputChoice, ValueChoice and Repeat in a plain nn.Module, searched by strop.search.run',
    'nni.nas.nn': 'strop.LayerChoice, InputChoice, ValueChoice and Repeat in a plain nn.Module; `label` is called `key`',
    'nni.nas.space': 'strop.Space, and strop.space_of(model)',
    'nni.nas.strategy': 'strop.search.run(..., strategy=...), and strop.DartsTrainer, ProxylessTrainer, SinglePathTrainer',
    'nni.nas.oneshot': 'strop.DartsTrainer, ProxylessTrainer and SinglePathTrainer',
    'nni.nas.evaluator': 'a function of a subnet, handed to strop.search.run',
    'nni.nas.experiment': 'strop.search.Experiment, or `strop experiment run FILE`',
    'nni.nas.execution': 'strop.search.run(..., executor=...): processes of this machine, or Ray',
    'nni.nas.profiler': 'strop.SpaceEstimator',
    'nni.nas.hub': "searchable backbones: type='SearchableMobileNetV2', type='SearchableShuffleNetV2', type='DartsBackbone'",
    'nni.nas.benchmarks': 'strop.search.run with a function that looks results up',
    'nni.nas.tensorflow': 'models of PyTorch alone',
    'nni.mutable': 'strop.Space and the domains of strop.mutables',
    'nni.choice': 'strop.ValueChoice',
    'nni.experiment': 'strop.search.Experiment, or `strop experiment run FILE`',
    'nni.compression': 'strop.prune, strop.quantize and strop.distiller_for',
    'nni.algorithms': 'strop.prune and strop.quantize; tuners by name in `strop experiment run FILE`',
    'nni.assessor': 'a pruner of the search: `pruner: {type: median}` in an experiment file',
    'nni.trace': 'nothing: configs and recipes rebuild what is saved',
    'nni.common': 'strop.count and strop.measure',
}

NNI = Table('nni', _NAMES, _MODULES, nearest=_NEAREST)
