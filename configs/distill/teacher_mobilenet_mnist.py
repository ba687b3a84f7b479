# A teacher for the other configs of this folder: a wide network of digits, from the labels. About a minute on two cores.
_base_ = ['../_base_/digits_mobilenet.py']

model = dict(
    type='strop.BaseAlgorithm',
    architecture=_base_.architecture,
    data_preprocessor=_base_.data_preprocessor,
)
val_cfg = dict()
test_cfg = dict()
