import pytest
from torch import nn

from strop.distill.mappings import check_mappings
from strop.errors import ConfigError


class Loss(nn.Module):
    def forward(self, preds_S, preds_T, gt_labels=None):
        return preds_S


class Anything(nn.Module):
    def forward(self, **records):
        return records


LOSSES = dict(loss_kl=Loss())
CONNECTORS = dict(up=nn.Identity())
RECORDERS = {True: dict(fc=None, labels=None), False: dict(fc=None, neck=None)}
S, T = dict(recorder='fc', from_student=True), dict(recorder='fc', from_student=False)


def check(losses=LOSSES, **mappings):
    return check_mappings(mappings, losses, CONNECTORS, RECORDERS)


def test_a_good_mapping_is_given_back():
    mapping = dict(
        preds_S=dict(S, connector='up', connector_idx=0, record_idx=1),
        preds_T=dict(T, data_idx='logits', connector=None),
        gt_labels=dict(recorder='labels', from_student=True, data_idx=1),
    )
    assert check(loss_kl=mapping) == dict(loss_kl=mapping)
    assert check(loss_kl=dict(mapping, preds_S=dict(S, _scope_='mmrazor'))) == dict(loss_kl=dict(mapping, preds_S=S))
    assert check(dict(loss_x=Anything()), loss_x=dict(whatever=S)) == dict(loss_x=dict(whatever=S))


@pytest.mark.parametrize(
    ('mappings', 'words'),
    [
        (dict(loss_lk=dict(preds_S=S)), "'loss_lk', but distill_losses has no such loss. Did you mean 'loss_kl'"),
        (dict(), r"'loss_kl' gets nothing.*'preds_S', 'preds_T', 'gt_labels'"),
        (dict(loss_kl='fc'), 'mapping argument -> record'),
        (dict(loss_kl=dict(preds_S=S, preds_t=T)), "no argument 'preds_t'. Did you mean 'preds_T'"),
        (dict(loss_kl=dict(preds_S=S)), "Loss also needs 'preds_T'"),
        (dict(loss_kl=dict(preds_S=S, preds_T='fc')), r"must be a record such as dict\(recorder='fc'"),
        (dict(loss_kl=dict(preds_S=S, preds_T=dict(T, record_index=0))), "no key 'record_index'. Did you mean 'record_idx'"),
        (dict(loss_kl=dict(preds_S=S, preds_T=dict(recorder='fc'))), "does not say 'from_student'"),
        (dict(loss_kl=dict(preds_S=S, preds_T=dict(from_student=True))), "does not say 'recorder'"),
        (dict(loss_kl=dict(preds_S=S, preds_T=dict(T, from_student=1))), "'from_student' must be True or False"),
        (dict(loss_kl=dict(preds_S=S, preds_T=dict(T, record_idx=True))), "'record_idx' must be a whole number"),
        (dict(loss_kl=dict(preds_S=S, preds_T=dict(T, record_idx=None))), "'record_idx' must be a whole number"),
        (dict(loss_kl=dict(preds_S=S, preds_T=dict(T, data_idx=0.5))), "'data_idx' must be a whole number or a name"),
        (dict(loss_kl=dict(preds_S=S, preds_T=dict(T, recorder='fcc'))), "teacher has no recorder 'fcc'. Did you mean 'fc'"),
        (
            dict(loss_kl=dict(preds_S=dict(S, recorder='neck'), preds_T=T)),
            'The teacher has one of that name: from_student=False',
        ),
        (dict(loss_kl=dict(preds_S=dict(S, connector='upp'), preds_T=T)), "no connector 'upp'. Did you mean 'up'"),
        (dict(loss_kl=dict(preds_S=dict(S, connector_idx=0), preds_T=T)), 'there is no `connector`'),
    ],
)
def test_bad_mappings(mappings, words):
    with pytest.raises(ConfigError, match=words):
        check(**mappings)
