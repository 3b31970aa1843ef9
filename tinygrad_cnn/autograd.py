"""Reverse-mode automatic differentiation: recording ops and walking back over the record.

This file knows no arrays and no kernels. A value is recorded by giving it a `Node`; a node knows
the nodes it was computed from and, for each of them, a vjp (vector-Jacobian product): the
function that turns the gradient of the result into the gradient of that input. Vjps are written
with the same ops, so a gradient is itself a recorded expression when asked for, and can be
differentiated again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from types import CellType, FunctionType, SimpleNamespace
from typing import Any

Function = Callable[..., Any]  # an op, or a vjp

recording: ContextVar[bool] = ContextVar("recording", default=True)
op_hooks: ContextVar[tuple[Callable[..., None], ...]] = ContextVar("hooks", default=())

ops = SimpleNamespace()  # every op, as an attribute
OPS: dict[str, Callable[..., Any]] = vars(ops)  # the same, by name


class GraphFreed(RuntimeError):
    """The recorded graph was walked before, and its memory given back."""


class SavedTensorChanged(RuntimeError):
    """A tensor that a gradient needs was changed between the forward and the backward pass."""


@contextmanager
def setting(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    """Set a context variable for the length of a `with` block."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def no_grad() -> Any:
    """Record nothing inside a `with` block (or a function it decorates)."""
    return setting(recording, False)


def forward_hook(hook: Callable[[str, Sequence[Variable], Variable], None]) -> Any:
    """Call hook(op name, inputs, output) after every op inside a `with` block."""
    return setting(op_hooks, (*op_hooks.get(), hook))


class Variable:
    """What this file needs of a tensor.

    `version` is a one-element list that counts changes in place; views share it with their base.
    `spare` says of a gradient in a walk that nobody else needs its array: a vjp may write over it.
    `Tensor` adds operators and three methods: lift(value, op=...) makes a fitting variable of an
    operand, constant(array) wraps an array unrecorded, add_in_place(other) changes the own array.
    """

    __slots__ = ("__weakref__", "node", "spare", "version")
    node: Node | None
    version: list[int]
    spare: bool
    shape: tuple[int, ...]
    data: Any


class Node:
    """What backward needs of one recorded value: where its gradient goes next.

    Parents are nodes, never variables, so an array lives on only if a vjp captured it. Only a
    leaf's node refers to its variable, and only weakly.
    """

    __slots__ = (
        "broadcasts", "freed", "leaf", "op", "output", "parents", "saved", "shape", "vjps",
    )  # fmt: skip

    def __init__(
        self, shape: tuple[int, ...], *, op: str = "", leaf: Variable | None = None
    ) -> None:
        self.shape, self.op = shape, op
        self.leaf = weakref.ref(leaf) if leaf is not None else None
        self.parents: Sequence[Node | None] = ()
        self.vjps: Any = ()  # one per parent, or one for all
        self.saved: Sequence[Any] = ()  # of what the vjps use: (version, its value now, shape)
        self.output: Any = None  # unrecorded, and only for vjps that use it
        self.broadcasts = self.freed = False

    def check(self) -> None:
        """Raise if a variable that the vjps use has changed since."""
        for version, then, shape in self.saved:
            if version[0] != then:
                raise SavedTensorChanged(
                    f"{self.op}: a tensor of shape {shape} that its gradient needs was changed "
                    "after the forward pass (assignment to .data, an optimiser's step, "
                    "load_state_dict); run the forward pass again after the change"
                )

    def free(self) -> None:
        """Give back all that was captured."""
        self.parents, self.vjps, self.saved, self.output = (), (), (), None
        self.freed = True


def op(fn: Function | None = None, *, broadcasts: bool = False, view: bool = False) -> Any:
    """Make a differentiable op of fn(*variables, **settings) -> (array, vjps).

    `vjps` is a tuple with one function per variable: `g -> dx`; or a single
    `(g, needs) -> (dx, dw, ...)` where one kernel gives them all and `needs` tells which are
    wanted. A further parameter called `y` is given the op's own output; one called `plus`, None by
    default, the gradient that its input (for a single vjp of all, the first) has from elsewhere, to
    be added in the same pass (to a new array). What a vjp gives may be written over, so it keeps
    none of it. `broadcasts` ops, whose vjps can't have a `plus`, have their gradients summed to
    their inputs' shapes; `view` says that the result may share memory with the input.
    """
    if fn is None:
        return lambda fn: op(fn, broadcasts=broadcasts, view=view)
    name = fn.__name__

    @wraps(fn)
    def call(*operands: Any, **settings: Any) -> Any:
        inputs = _lifted(operands, name)
        try:
            array, vjps = fn(*inputs, **settings)
        except ValueError as error:
            if not broadcasts or "broadcast" not in str(error):
                raise
            shapes = " and ".join(str(x.shape) for x in inputs)
            message = f"{name}: {shapes} don't fit; from the right, sizes must be equal or 1"
            raise ValueError(message) from error
        output = inputs[0].constant(array)
        if view:
            output.version = inputs[0].version
        if recording.get() and any(x.node for x in inputs):
            output.node = _record(name, inputs, vjps, output, broadcasts)
        for hook in op_hooks.get():
            hook(name, inputs, output)
        return output

    OPS[name] = call
    return call


def _lifted(operands: Sequence[Any], name: str) -> list[Any]:
    like: Any = next((x for x in operands if isinstance(x, Variable)), None)
    if like is None:
        got = ", ".join(type(x).__name__ for x in operands) or "nothing"
        raise TypeError(f"{name}: expected a Tensor, got {got}; make one with tg.tensor(...)")
    return [like.lift(x, op=name) for x in operands]


def _record(name: str, inputs: list[Any], vjps: Any, output: Any, broadcasts: bool) -> Node:
    node = Node(output.shape, op=name)
    node.parents, node.broadcasts = [x.node for x in inputs], broadcasts
    if callable(vjps):
        if "needs" not in _parameters(vjps):
            _check_count((), inputs, name)
        node.vjps, kept = vjps, [vjps]
    else:
        _check_count(vjps, inputs, name)
        # a vjp whose input needs no gradient is dropped, and with it the arrays it captured
        node.vjps = [v if x.node else None for v, x in zip(vjps, inputs, strict=True)]
        kept = [v for v in node.vjps if v]
    used = list(_captured(kept))
    if any("y" in _parameters(v) for v in kept):
        node.output = output.constant(output.data)
        used.append(output)
    node.saved = [(x.version, x.version[0], x.shape) for x in used]
    return node


def _check_count(given: Sequence[Any], inputs: Sequence[Any], name: str) -> None:
    if len(given) != len(inputs):
        raise ValueError(
            f"{name}: gave {len(given)} vjps or gradients for {len(inputs)} inputs; "
            "expected one for each (a single vjp needs its comma: `(vjp,)`)"
        )


def _parameters(vjp: Function) -> tuple[str, ...]:
    return vjp.__code__.co_varnames[: vjp.__code__.co_argcount]


def _captured(vjps: Iterable[Function]) -> Iterator[Variable]:
    seen = [*vjps]
    for function in seen:  # which grows: functions capture others, in the end each other
        for held in (c.cell_contents for c in function.__closure__ or () if c != CellType()):
            if isinstance(held, Variable):
                yield held
            elif isinstance(held, FunctionType) and held not in seen:
                seen.append(held)


Waiting = dict[Node, Any]  # the gradients that nodes have so far


def gradients(
    roots: Sequence[Node], seeds: Sequence[Variable], *, targets: Sequence[Node] | None = None,
    create_graph: bool = False, retain_graph: bool = False,
) -> dict[Node, Any]:  # fmt: skip
    """Walk back from `roots` with the gradients `seeds`; map each target to its gradient.

    Without `targets` they are all leaves. Nodes that lead to no target are not visited. Each node
    visited is freed as it is passed, unless the graph is retained. Nothing has been changed or
    freed when an error is found in the graph.
    """
    order = _parents_first(roots, stops=targets or ())
    wanted = {n for n in order if n.leaf} if targets is None else set(targets)
    useful = _leading_to(wanted, order)
    found, waiting = dict[Node, Any](), dict[Node, Any]()
    with setting(recording, create_graph), setting(op_hooks, () if create_graph else (_mark,)):
        for root, seed in zip(roots, seeds, strict=True):
            seed.spare = False  # it is the caller's, who may be a vjp
            _accumulate(waiting, root, seed)
        # order matters: with b = a + a, c = b + b, b must have both its gradients before a gets any
        while order:
            node = order.pop()
            if node not in useful:
                continue
            g = waiting.pop(node)
            if node in wanted:
                found[node], g.spare = g, False
            if not any(parent in useful for parent in node.parents):
                continue  # a leaf, or a target whose own record is not needed, and so not freed
            for parent, dx in _pull(node, g, useful, waiting):
                _accumulate(waiting, parent, dx)
            if not (retain_graph or create_graph):
                node.free()
    return found


def _parents_first(roots: Sequence[Node], *, stops: Sequence[Node]) -> list[Node]:
    """List all nodes that the roots were computed from, every node after its parents.

    A freed node has forgotten its parents, which is an error unless the walk stops at it.
    """
    order, seen, stack = [], set[Node](), [(root, False) for root in roots]
    while stack:  # not recursive: a graph may be 10,000 ops deep
        node, parents_done = stack.pop()
        if parents_done:
            order.append(node)
        elif node not in seen:
            if node.freed and node not in stops:
                raise GraphFreed(
                    "this graph was walked already and its memory given back; run the forward "
                    "pass again, or walk it the first time with retain_graph=True"
                )
            seen.add(node)
            stack.append((node, True))
            stack.extend((parent, False) for parent in node.parents if parent)
    return order


def _leading_to(targets: set[Node], order: list[Node]) -> set[Node]:
    """Select the nodes whose gradients are needed for the targets', and check them."""
    useful = set(targets)
    for node in order:
        if any(parent in useful for parent in node.parents):
            node.check()
            useful.add(node)
    return useful


def _pull(node: Node, g: Any, useful: set[Node], waiting: Waiting) -> Iterator[tuple[Node, Any]]:
    """Yield the parents of a node that need a gradient, each with its share."""
    shares = _call_vjps(node, g, [parent in useful for parent in node.parents], waiting)
    _check_count(shares, node.parents, node.op)
    memory = [id(dx.version) for dx in (g, *shares) if dx is not None]  # views have their base's
    for parent, dx in zip(node.parents, shares, strict=True):
        if parent is None or parent not in useful:
            continue
        dx.spare &= memory.count(id(dx.version)) == 1
        if node.broadcasts:
            dx = unbroadcast(dx, parent.shape)
        if dx.shape != parent.shape:
            raise ValueError(
                f"{node.op}: its vjp gave a gradient of shape {dx.shape} for an input of shape "
                f"{parent.shape}; they must be equal (or declare the op with broadcasts=True)"
            )
        yield parent, dx


def _call_vjps(node: Node, g: Any, needs: list[bool], waiting: Waiting) -> Sequence[Any]:
    y = node.output
    if y is not None:  # a new variable each time: one kept with its node would be a cycle
        y = y.constant(y.data)
        y.node = node  # so that the output, too, can be differentiated
    if callable(node.vjps):
        first = node.parents[0] if needs[0] else None
        return node.vjps(g, needs, **_extras(node.vjps, y, first, waiting))
    g.spare &= sum(needs) == 1  # each vjp is given g
    calls = zip(node.vjps, node.parents, needs, strict=True)
    return [v(g, **_extras(v, y, p, waiting)) if needed else None for v, p, needed in calls]


def _extras(v: Function, y: Any, parent: Node | None, waiting: Waiting) -> dict[str, Any]:
    """Give a vjp the output, and what to add its result to, if it has a parameter for them."""
    extras = {"y": y} if "y" in _parameters(v) else {}
    if "plus" in _parameters(v) and not recording.get():
        extras["plus"] = waiting.pop(parent, None)  # type: ignore[arg-type]
    return extras


def _accumulate(waiting: Waiting, node: Node, g: Any) -> None:
    """Add to the gradient that waits at a node, in place where its array is spare."""
    there = waiting.get(node)
    if there is not None and there.spare:
        there.add_in_place(g)
    else:
        waiting[node] = g if there is None else there + g


def _mark(name: str, inputs: Sequence[Any], output: Any) -> None:
    """Mark what an op made as spare, unless it is a view: the hook of ops in an unrecorded walk."""
    output.spare = not any(x.version is output.version or x.data is output.data for x in inputs)


def unbroadcast(g: Any, shape: tuple[int, ...]) -> Any:
    """Sum a gradient over the axes along which an input of this shape was broadcast."""
    if len(g.shape) > len(shape):
        g = g.sum(tuple(range(len(g.shape) - len(shape))))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    return g.sum(stretched, keepdims=True) if stretched else g
