"""Numbers in a script's text that --shrink replaces: what it assigns to a name outside its functions and classes."""

import ast
from collections.abc import Mapping
from types import CodeType

from tightgrad_lab.errors import ArgumentError


def compiled(source: str | bytes, path: str, values: Mapping[str, object]) -> CodeType:
    """Compile a module, with these values for names that it assigns.

    Raises:
        ArgumentError: it does not assign one of them outside its functions and classes.
    """
    constants = _Constants(values)
    tree = ast.fix_missing_locations(constants.visit(ast.parse(source, path)))
    if left := sorted(set(values) - constants.done):
        raise ArgumentError(
            f"--shrink: {path} does not assign {', '.join(left)} outside its functions and classes; an argument of a "
            "class is written __main__.Class:name=value."
        )
    return compile(tree, path, "exec", dont_inherit=True)


class _Constants(ast.NodeTransformer):
    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values
        self.done: set[str] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        for target in node.targets:
            node.value = self._assigned(target, node.value)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.value = None if node.value is None else self._assigned(node.target, node.value)
        return node

    def _assigned(self, target: ast.expr, value: ast.expr) -> ast.expr:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            value.elts = [self._assigned(*pair) for pair in zip(target.elts, value.elts, strict=True)]
        if not isinstance(target, ast.Name) or target.id not in self._values:
            return value
        self.done.add(target.id)
        return ast.copy_location(ast.parse(repr(self._values[target.id]), mode="eval").body, value)
