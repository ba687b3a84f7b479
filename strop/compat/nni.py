"""What the NAS of NNI 1.9 offers, and where the classes are now."""

from __future__ import annotations

from strop.compat.finder import Table

_NAMES = {
    'nni.nas.pytorch.mutables': {'strop.mutables': 'Mutable MutableScope LayerChoice InputChoice'},
    'nni.nas.pytorch.base_mutator': {'strop.mutators': 'BaseMutator'},
    'nni.nas.pytorch.mutator': {'strop.mutators': 'Mutator'},
    'nni.nas.pytorch.random': {'strop.mutators': 'RandomMutator'},
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
apply_fixed_architecture FixedArchitecture Trainer BaseTrainer Callback LRSchedulerCallback ArchitectureCheckpoint
ModelCheckpoint DartsTrainer DartsMutator EnasTrainer EnasMutator PdartsTrainer CdartsTrainer ProxylessNasTrainer
ProxylessNasMutator SPOSSupernetTrainer SPOSSupernetTrainingMutator SPOSEvolution get_and_apply_next_architecture
NASBench201Mutator DartsCell ENASMicroLayer ENASMacroLayer AverageMeter AverageMeterGroup to_device StructuredMutableTreeNode
Tuner NoMoreTrialError get_next_parameter report_intermediate_result report_final_result get_sequence_id
"""

NNI = Table('nni', _NAMES, _MODULES, _LATER)
