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

_LATER = """
EnasTrainer EnasMutator PdartsTrainer PdartsMutator CdartsTrainer NASBench201Mutator DartsCell ENASMicroLayer ENASMacroLayer
StructuredMutableTreeNode
"""

NNI = Table('nni', _NAMES, _MODULES, _LATER)
