"""Which rows of an input are wanted: an expression over their columns, as in `language == "en" and score > 0.8`.

The words are Python's, the meaning is polars': a name is a column, and a row for which the expression is null is not
wanted. Only what looks at one row at a time is known, so that the answer for a row cannot depend on its neighbours, and
with them on the size of a batch; and no code is run.
"""

import ast
import difflib
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from shared.errors import ConfigError
from shared.terminal import safe_text

MAX_DEPTH = 100
METHODS = {  # by namespace of polars
    "": "abs ceil fill_null floor is_between is_finite is_in is_nan is_not_null is_null not_ round sqrt",
    "str": "contains count_matches ends_with extract head len_bytes len_chars replace replace_all slice starts_with "
    "strip_chars strip_prefix strip_suffix tail to_lowercase to_uppercase",
    "list": "contains first get last len",
}
COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
OPERATIONS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.Not: operator.inv,
    ast.Invert: operator.inv,
    ast.USub: operator.neg,
}


def parse_where(text: str) -> pl.Expr:
    """The expression that `text` spells.

    Raises: ConfigError naming what is not understood.

    >>> print(parse_where('language == "en"'))
    [(col("language")) == ("en")]
    >>> parse_where('0.5 < score and not url.str.contains("wiki")').meta.root_names()
    ['score', 'url']
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise _not_understood(text, f"it is no expression: {reason}") from None
    if _depth(tree) > MAX_DEPTH:
        raise _not_understood(text, f"it is nested more than {MAX_DEPTH} deep")
    expression = _Translator(text).visit(tree.body)
    if not isinstance(expression, pl.Expr) or not expression.meta.root_names():
        raise _not_understood(text, "it names no column")
    return expression


class Condition:
    """What `text` asks of a row; `columns` are those that it looks at, each once, in order.

    Raises: ConfigError if it is not understood.

    >>> Condition("b > 1 or a == b").columns
    ['b', 'a']
    """

    def __init__(self, text: str) -> None:
        self._text, self._expression = text, parse_where(text)
        self.columns = list(dict.fromkeys(self._expression.meta.root_names()))

    def holds(self, rows: Any) -> npt.NDArray[np.bool_]:
        """For which rows of a record batch with these columns it holds; where it is null it does not.

        Raises: ConfigError if it does not fit the columns.
        """
        try:
            answers = pl.DataFrame(rows).select(self._expression).to_series()
        except pl.exceptions.PolarsError as error:
            raise self._misfit(str(error).split("\n", maxsplit=1)[0]) from None
        if answers.dtype != pl.Boolean:
            raise self._misfit(f"it gives {answers.dtype}, not true or false")
        return answers.fill_null(value=False).to_numpy()

    def _misfit(self, reason: str) -> ConfigError:
        asked = safe_text(repr(self._text))
        return ConfigError(f"--where {asked} does not fit the columns: {safe_text(reason)}; mend the condition")


class _Translator(ast.NodeVisitor):
    """Python's syntax tree -> a polars expression, or the plain value of a literal."""

    def __init__(self, text: str) -> None:
        self._text = text

    def visit_Name(self, node: ast.Name) -> Any:
        return pl.col(self._column(node.id))

    def visit_Constant(self, node: ast.Constant) -> Any:
        if isinstance(node.value, str | int | float):
            return node.value
        hint = "ask with .is_null() or .is_not_null()" if node.value is None else "write a text or a number"
        raise _not_understood(self._text, f"{node.value!r} is no value to compare with, {hint}")

    def visit_List(self, node: ast.List | ast.Tuple | ast.Set) -> Any:
        values = [self.visit(element) for element in node.elts]
        if any(isinstance(value, pl.Expr | list) for value in values):
            raise _not_understood(self._text, "a list may hold only texts and numbers")
        return values

    visit_Tuple = visit_Set = visit_List

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        combine = operator.and_ if isinstance(node.op, ast.And) else operator.or_
        first, *others = [self._expression(value) for value in node.values]
        for other in others:
            first = combine(first, other)
        return first

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        operand = self.visit(node.operand) if isinstance(node.op, ast.USub) else self._expression(node.operand)
        return self._operation(node.op)(operand)

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        operation = self._operation(node.op)
        return operation(self._expression(node.left), self._expression(node.right))

    def visit_Compare(self, node: ast.Compare) -> Any:
        sides = [self.visit(side) for side in (node.left, *node.comparators)]
        result: Any = None
        for compare, left, right in zip(node.ops, sides, sides[1:], strict=False):
            pair = self._comparison(compare, left if isinstance(left, pl.Expr) else pl.lit(left), right)
            result = pair if result is None else result & pair
        return result

    def _comparison(self, compare: ast.cmpop, left: pl.Expr, right: Any) -> pl.Expr:
        if isinstance(compare, ast.In | ast.NotIn):
            within = left.is_in(self._list("in", [right]))
            return within if isinstance(compare, ast.In) else ~within
        if type(compare) not in COMPARISONS:
            raise _not_understood(self._text, "`is` compares no values, write == or .is_null()")
        result: pl.Expr = COMPARISONS[type(compare)](left, right)
        return result

    def visit_Call(self, node: ast.Call) -> Any:
        arguments = [self.visit(argument) for argument in node.args]
        if isinstance(node.func, ast.Name) and node.func.id == "col":
            return self._named_column(arguments)
        if not isinstance(node.func, ast.Attribute):
            raise _not_understood(self._text, f"{ast.unparse(node.func)} cannot be called")
        if ast.unparse(node.func) == "pl.col":
            return self._named_column(arguments)
        keywords = {keyword.arg: self.visit(keyword.value) for keyword in node.keywords if keyword.arg}
        owner, namespace = self._owner(node.func.value)
        name = self._method(namespace, node.func.attr)
        if name == "is_in":
            self._list(".is_in", arguments)
        elif not namespace:  # there, polars would take a text for the name of a column
            arguments = [pl.lit(argument) if isinstance(argument, str) else argument for argument in arguments]
        try:
            return getattr(getattr(owner, namespace) if namespace else owner, name)(*arguments, **keywords)
        except (TypeError, ValueError) as error:
            raise _not_understood(self._text, f"{ast.unparse(node)}: {error}") from None

    def generic_visit(self, node: ast.AST) -> Any:
        raise _not_understood(self._text, f"{ast.unparse(node)!r} has no meaning for a row")

    def _list(self, asked: str, arguments: list[Any]) -> list[Any]:
        match arguments:
            case [list(values)]:
                return values
        raise _not_understood(self._text, f"{asked} wants a list, as in [1, 2]")

    def _named_column(self, arguments: list[Any]) -> Any:
        match arguments:
            case [str(name)]:
                return pl.col(self._column(name))
        raise _not_understood(self._text, "col wants the name of one column in quotes")

    def _column(self, name: str) -> str:
        if name == "*" or name.startswith("^"):  # polars reads these as patterns of many columns
            raise _not_understood(self._text, f"{name!r} is a pattern, the name of one column is wanted")
        return name

    def _owner(self, node: ast.expr) -> tuple[Any, str]:
        """What a method is called on, and in which of polars' namespaces."""
        if isinstance(node, ast.Attribute) and node.attr in METHODS:
            return self._expression(node.value), node.attr
        return self._expression(node), ""

    def _method(self, namespace: str, name: str) -> str:
        known = METHODS[namespace].split()
        if name in known:
            return name
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise _not_understood(
            self._text, f".{name} is not known, did you mean .{nearest}? (known here: {', '.join(known)})"
        )

    def _operation(self, node: ast.AST) -> Callable[..., Any]:
        if type(node) not in OPERATIONS:
            raise _not_understood(self._text, f"the operator {type(node).__name__} is not known")
        return OPERATIONS[type(node)]

    def _expression(self, node: ast.expr) -> pl.Expr:
        value = self.visit(node)
        return value if isinstance(value, pl.Expr) else pl.lit(value)


def _depth(node: ast.AST) -> int:
    deepest, waiting = 0, [(node, 1)]
    while waiting:
        here, depth = waiting.pop()
        deepest = max(deepest, depth)
        waiting += [(child, depth + 1) for child in ast.iter_child_nodes(here)]
    return deepest


def _not_understood(text: str, reason: str) -> ConfigError:
    return ConfigError(
        safe_text(f"--where {text!r} is not understood: {reason}; a condition on the columns is wanted, for example ")
        + 'language == "en"'
    )
