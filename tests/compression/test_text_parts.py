"""Texts as lines and as windows, and what an encoder and a language model are scored by."""

from __future__ import annotations

import gzip

import pytest
import torch

from strop.compression import Judge, open_data
from strop.errors import DataError
from tests.compression.conftest import source_of

transformers = pytest.importorskip('transformers')


@pytest.fixture
def tokenizer(tmp_path):
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', *'abcdefghij']
    (tmp_path / 'words').mkdir()
    (tmp_path / 'words' / 'vocab.txt').write_text('\n'.join(words))
    transformers.BertTokenizer(str(tmp_path / 'words' / 'vocab.txt')).save_pretrained(tmp_path / 'words')
    return str(tmp_path / 'words')


@pytest.fixture
def text(tmp_path):
    lines = [' '.join('abcdefghij'[(number + place) % 10] for place in range(number % 4 + 2)) for number in range(40)]
    (tmp_path / 'text.txt').write_text('\n\n'.join(lines))
    return tmp_path / 'text.txt'


def test_lines_are_samples_padded_to_one_length_with_their_mask(text, tokenizer):
    parts = open_data(source_of(text, tokenizer=tokenizer, length=8))
    inputs = parts.example(2)
    assert inputs['input_ids'].shape == inputs['attention_mask'].shape == (2, 8)
    assert parts.counts() == {'train': 28, 'calibration': 28, 'validation': 4, 'test': 8}
    assert not parts.labels
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=14
    )
    judge = Judge(parts, transformers.BertModel(config).eval())
    assert judge.metric == 'similarity'
    assert judge.scores(judge.original)['similarity'] == pytest.approx(1.0)


def test_windows_are_samples_with_their_own_tokens_as_targets(text, tokenizer, tmp_path):
    (tmp_path / 'text.txt.gz').write_bytes(gzip.compress(text.read_bytes()))
    parts = open_data(source_of(tmp_path / 'text.txt.gz', tokenizer=tokenizer, length=8, chunk='windows'))
    inputs, target = parts.train[0]
    assert torch.equal(inputs['input_ids'], target)
    assert target.shape == (8,)
    assert parts.labels


def test_no_sample_is_in_two_parts(text, tokenizer):
    parts = open_data(source_of(text, tokenizer=tokenizer, length=4, chunk='windows'))
    assert len(parts.train) + len(parts.validation) + len(parts.test) == 140 // 4


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'tokenizer': None}, 'a tokenizer is needed'),
        ({'tokenizer': '/nowhere'}, 'no tokenizer in /nowhere'),
        ({'limit': 4}, 'at least 8'),
        ({'limit': 8, 'val': 0.45, 'test': 0.45}, r'8 samples, of which `val` \(0.45\) and `test` \(0.45\) leave none'),
    ],
)
def test_what_is_missing_is_told(text, tokenizer, options, message):
    with pytest.raises(DataError, match=message):
        open_data(source_of(text, **{'tokenizer': tokenizer, 'length': 8, **options}))


def test_what_is_no_text_is_told(tmp_path, tokenizer):
    (tmp_path / 'text.txt').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(DataError, match='cannot be read as text'):
        open_data(source_of(tmp_path / 'text.txt', tokenizer=tokenizer))


def test_a_packed_text_that_is_damaged_is_told(text, tmp_path, tokenizer):
    packed = bytearray(gzip.compress(text.read_bytes()))
    packed[10] |= 6  # the first block, behind the header, is then of a type that there is not
    (tmp_path / 'text.txt.gz').write_bytes(packed)
    with pytest.raises(DataError, match=r'text\.txt\.gz cannot be read as text'):
        open_data(source_of(tmp_path / 'text.txt.gz', tokenizer=tokenizer))
