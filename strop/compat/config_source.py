"""The text of a Python config: its settings found by parsing, not by running, and edits that keep the rest as it was."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from strop.codebases import is_codebase
from strop.errors import ConfigError


@dataclass(frozen=True)
class Edit:
    """Replace the characters from `start` to `end` of a text.

    >>> edited('type = 1', [Edit(0, 4, 'kind')])
    'kind = 1'
    """

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Change:
    """What one setting needs.

    Args:
        line: Line of the file, from 1; None for the file as a whole.
        kind: 'change' (the edits do it), 'by hand' (they cannot), or 'note' (it works, but something is to be known).
        text: What is said.
        edits: What does it.
    """

    line: int | None
    kind: str
    text: str
    edits: tuple[Edit, ...] = ()


def edited(text: str, edits: Iterable[Edit]) -> str:
    """Return a text with edits made; of two that overlap, the one that starts first (and is longer) counts.

    >>> edited('a = b', [Edit(4, 5, '2'), Edit(0, 1, 'x')])
    'x = 2'
    """
    made, end = [], 0
    for edit in sorted(edits, key=lambda edit: (edit.start, -edit.end)):
        if edit.start < end:
            continue
        made += [text[end : edit.start], edit.text]
        end = edit.end
    return ''.join([*made, text[end:]])


@dataclass(frozen=True)
class Settings:
    """A `dict(...)` or `{...}` as it is written: name -> node of the value, and where it stands.

    Args:
        node: The call or the literal.
        values: Name -> value, without what comes by `**`.
        whole: Whether nothing comes by `**`.
        parent: The name under which it stands in the settings around it, or that it is assigned to.
        root: The name at the top level of the file.
        scope: The nearest literal `_scope_`, its own or one around it. The parts of `type='mmdet.X'` are mmdet's without one,
            as they are when it is built.
    """

    node: ast.Call | ast.Dict
    values: Mapping[str, ast.expr]
    whole: bool
    parent: str = ''
    root: str = ''
    scope: str = ''

    @property
    def line(self) -> int:
        """Line in the file, from 1."""
        return self.node.lineno

    @property
    def scope_inside(self) -> str:
        """The scope of what is in it and has none of its own."""
        package = str(self.constant('type')).rpartition('.')[0]
        return package if '_scope_' not in self.values and is_codebase(package) else self.scope

    def constant(self, name: str) -> object:
        """Return the value of a name if it is a literal, else None."""
        try:
            return ast.literal_eval(self.values[name])
        except (KeyError, ValueError):
            return None


class Source:
    """A parsed Python file.

    Args:
        text: The file's text.
        name: What messages call it.

    Raises:
        ConfigError: If it is not Python; the message names the line.

    >>> source = Source("model = dict(type='SPOS', norm_training=True)")
    >>> source.settings(source.assigned['model'].value).constant('type')
    'SPOS'
    """

    def __init__(self, text: str, name: str = 'the config') -> None:
        self.text = text
        try:
            self.tree = ast.parse(text)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, 'lineno', None)
            place = f'{name}:{line}' if line else name
            raise ConfigError(f'{place} is not Python: {getattr(error, "msg", error)}.') from None
        self._lines = text.splitlines(keepends=True)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))
        #: Name -> the last assignment to it at the top level.
        self.assigned: dict[str, ast.Assign] = {
            target.id: node
            for node in self.tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }

    def offset(self, line: int, column: int) -> int:
        """Return the position of a line and a column in bytes, as `ast` counts them, in the text."""
        within = self._lines[line - 1].encode()[:column].decode() if line <= len(self._lines) else ''
        return self._starts[line - 1] + len(within)

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        """Return where a node starts and ends in the text."""
        last, column = node.end_lineno or node.lineno, node.end_col_offset or node.col_offset
        return self.offset(node.lineno, node.col_offset), self.offset(last, column)

    def of(self, node: ast.expr) -> str:
        """Return a value as it is written."""
        start, end = self.span(node)
        return self.text[start:end]

    def replaced(self, node: ast.expr | ast.stmt, text: str) -> Edit:
        """Return the edit that puts `text` in the place of a node; an empty one takes a statement's whole lines away."""
        start, end = self.span(node)
        if not text and isinstance(node, ast.stmt):
            before, after = self.text[:start].rpartition('\n')[2], self.text[end:].partition('\n')[0].strip()
            if before.strip() or (after and not after.startswith('#')):
                return Edit(start, end, 'pass')  # another statement is on its line
            end += len(self.text[end:].partition('\n')[0]) + 1
        return Edit(start, min(end, len(self.text)), text)

    @property
    def bases(self) -> list[ast.expr]:
        """The entries of `_base_`."""
        statement = self.assigned.get('_base_')
        if statement is None:
            return []
        return list(statement.value.elts) if isinstance(statement.value, (ast.List, ast.Tuple)) else [statement.value]

    def reads(self, name: str) -> bool:
        """Tell whether a name is read anywhere in the file."""
        names = (node for node in ast.walk(self.tree) if isinstance(node, ast.Name))
        return any(node.id == name and isinstance(node.ctx, ast.Load) for node in names)

    def settings(self, node: ast.expr, parent: str = '', root: str = '', scope: str = '') -> Settings | None:
        """Return a node as settings, if it is `dict(...)` or a literal with names as keys; `scope` is the one around it."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
            values = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg is not None}
            whole = len(values) == len(node.keywords) and not node.args
            return Settings(node, values, whole, parent, root, _scope_of(values, scope))
        if isinstance(node, ast.Dict):
            values = {
                key.value: value
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            }
            return Settings(node, values, len(values) == len(node.keys), parent, root, _scope_of(values, scope))
        return None

    def every(self) -> Iterator[Settings]:
        """Yield all settings of the file, each with the name that it stands under."""
        for statement in self.tree.body:
            if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                name = targets[0].id if isinstance(targets[0], ast.Name) else ''
                yield from self._within(statement.value, name, name)

    def _within(self, node: ast.expr, parent: str, root: str, scope: str = '') -> Iterator[Settings]:
        found = self.settings(node, parent, root, scope)
        if found is None:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.keyword):
                    child = child.value
                if isinstance(child, ast.expr):
                    yield from self._within(child, parent, root, scope)
            return
        yield found
        for name, value in found.values.items():
            yield from self._within(value, name, root, found.scope_inside)

    def uses(self, name: str) -> list[ast.Name]:
        """Return every place where a name is written, assigned or read."""
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.Name) and node.id == name]

    def inherited(self, name: str) -> list[ast.Attribute]:
        """Return every place where `_base_.name` is written."""
        return [
            node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Attribute)
            and node.attr == name
            and isinstance(node.value, ast.Name)
            and node.value.id == '_base_'
        ]


def _scope_of(values: Mapping[str, ast.expr], around: str) -> str:
    own = values.get('_scope_')
    return own.value if isinstance(own, ast.Constant) and isinstance(own.value, str) else around
