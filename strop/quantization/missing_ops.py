"""Ops that a format has no form of: which, from which line of the model's code, and what would work."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch.fx import GraphModule, Node

# How exporters name an op that they cannot write.
_NAMED = (
    re.compile(r"No ONNX function found for <OpOverload\(op='(?P<op>[\w.]+)'"),
    re.compile(r'Operator torch\._ops\.(?P<op>\w+\.\w+)(?:\.\w+)? is not (?:in )?Core ATen'),
    re.compile(r'Missing out variants: \{[\'"](?P<op>\w+::\w+)'),
)


def missing_op(graph: GraphModule, error: BaseException, backend: str) -> str | None:
    """Return a sentence about the op that a backend cannot write, or None if that is not what an error says.

    Args:
        graph: The graph that was written.
        error: What its writer raised.
        backend: The name of the backend.

    >>> from strop.quantization.flow import capture
    >>> import torch
    >>> graph = capture(torch.nn.Softsign(), ((torch.rand(2, 3),), {}))
    >>> error = RuntimeError("No ONNX function found for <OpOverload(op='aten.abs', overload='default')>.")
    >>> missing_op(graph, error, 'openvino').split(', computed')[0]
    'openvino has no form of the op aten.abs'
    """
    found = next(filter(None, (pattern.search(str(each)) for each in _chain(error) for pattern in _NAMED)), None)
    if found is None:
        return None
    op = found['op'].replace('::', '.')
    line = next((_line(node) for node in graph.graph.nodes if _matches(node, op)), '')
    other = 'inductor' if backend != 'inductor' else 'onnxruntime'
    return (
        f'{backend} has no form of the op {op}'
        + (f', computed at {line}' if line else '')
        + f', so the model cannot be written for it. Compute it from other ops, or take backend={other!r}'
        + (', which compiles every op of PyTorch.' if other == 'inductor' else '.')
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _matches(node: Node, op: str) -> bool:
    """Whether a node is the op, or what it was decomposed from: `prims.bessel_j0` comes from `aten.special_bessel_j0`."""
    own = str(getattr(node.target, '_opname', '')).strip('_')
    last = op.rpartition('.')[2].strip('_')
    return node.op == 'call_function' and bool(own) and (own == last or own.endswith(f'_{last}') or last.endswith(f'_{own}'))


def _line(node: Node) -> str:
    """Return the last line of the model's code in the trace that `torch.export` left at a node."""
    frames = re.findall(
        r'File "(?P<file>[^"]+)", line (?P<line>\d+)[^\n]*\n\s*(?P<text>[^\n]*)', node.meta.get('stack_trace') or ''
    )
    own = [frame for frame in frames if '/torch/' not in frame[0]] or frames
    return f'{own[-1][0]}:{own[-1][1]}: `{own[-1][2].strip()}`' if own else ''
