"""Module: a tree of layers that knows its parameters.

Attributes are found by their type: a Parameter is trained, a plain Tensor is a buffer (running
statistics), a Module is a child. Names are the attributes' paths, as in PyTorch:
`layer1.0.conv1.weight`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

import numpy

from ..backends import Backend
from ..backends import get as get_backend
from ..state import uses
from ..tensor import Tensor

Hook = Callable[["Module", tuple[Any, ...], Any], Any]
PreHook = Callable[["Module", tuple[Any, ...]], None]


class Parameter(Tensor):
    """A tensor that an optimiser trains."""

    __slots__ = ()

    def __init__(
        self, data: Any, requires_grad: bool = True, dtype: Any = None, backend: Any = None
    ) -> None:
        super().__init__(data, requires_grad, dtype, backend)


class Module:
    """The base of layers and models: subclasses set attributes in __init__, define forward."""

    training = True
    _pre_hooks: Mapping[object, PreHook] = MappingProxyType({})  # until one is registered
    _forward_hooks: Mapping[object, Hook] = MappingProxyType({})

    def forward(self, *args: Any, **settings: Any) -> Any:
        """Compute the output; every subclass has its own."""
        raise NotImplementedError(f"{type(self).__name__} has no forward method")

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """Run forward between its hooks; a value that a forward hook returns is the output."""
        uses(self)
        for before in [*self._pre_hooks.values()]:
            before(self, args)
        y = self.forward(*args, **settings)
        for hook in [*self._forward_hooks.values()]:
            replaced = hook(self, args, y)
            y = y if replaced is None else replaced
        return y

    # ---- the tree ----

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Yield the modules that are attributes of this one."""
        return ((name, v) for name, v in vars(self).items() if isinstance(v, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield this module (named "" at the root) and all below it, each with its path."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator[Module]:
        """Yield this module and all below it."""
        return (module for _, module in self.named_modules())

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter and buffer once, even where modules share it."""
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Tensor) and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{path}.{name}" if path else name, value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield the trained tensors, each with its path."""
        return ((n, t) for n, t in self._named_tensors() if isinstance(t, Parameter))

    def parameters(self) -> list[Parameter]:
        """List the trained tensors."""
        return [p for _, p in self.named_parameters()]

    def num_parameters(self) -> int:
        """Count the trained numbers."""
        return sum(p.size for p in self.parameters())

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that belong to the state but aren't trained."""
        return ((n, t) for n, t in self._named_tensors() if not isinstance(t, Parameter))

    # ---- mode, place, gradients ----

    def train(self, mode: bool = True) -> Module:
        """Switch batch norm and dropout to training; returns the module."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Switch batch norm and dropout to evaluation; returns the module."""
        return self.train(False)

    def to(self, backend: str | Backend) -> Module:
        """Move all parameters and buffers to a backend, dropping gradients; returns the module."""
        target = get_backend(backend)
        for _, t in self._named_tensors():
            t.replace_data(target.asarray(t.numpy()), backend=target)
        return self

    def astype(self, dtype: Any) -> Module:
        """Convert all parameters and buffers, dropping gradients; returns the module."""
        wanted = numpy.dtype(dtype).name
        if wanted not in ("float32", "float64"):
            raise TypeError(f"astype: a module can't be {wanted}; expected float32 or float64")
        for _, t in self._named_tensors():
            t.replace_data(t.data.astype(dtype))
        return self

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.parameters():
            p.grad = None

    # ---- state ----

    def state_dict(self) -> dict[str, numpy.ndarray[Any, Any]]:
        """Copy all parameters and buffers to NumPy arrays, by name."""
        return {name: t.numpy().copy() for name, t in self._named_tensors()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Take values from `state`; names and shapes must match, with strict=False only shapes.

        Nothing is changed unless everything fits. PyTorch's num_batches_tracked is passed over:
        it counts what nothing here depends on.
        """
        own = dict(self._named_tensors())
        state = {n: a for n, a in state.items() if not n.endswith("num_batches_tracked")}
        if problems := _misfits(own, state, strict):
            told = [_told(name, problems) for name in sorted(problems)[:5]]
            more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            raise ValueError(
                f"load_state_dict: the state doesn't fit this {type(self).__name__}: "
                f"{'; '.join(told)}{more}. Was it saved by another model?"
            )
        read = {
            n: numpy.array(numpy.asarray(state[n]), own[n].dtype) for n in own.keys() & state.keys()
        }
        for name, value in read.items():
            own[name].data = own[name].backend.asarray(value)

    # ---- looking in ----

    def register_forward_hook(self, hook: Hook) -> Callable[[], None]:
        """Call hook(module, args, output) after each forward; returns a function to remove it."""
        return self._add_hook("_forward_hooks", hook)

    def register_forward_pre_hook(self, hook: PreHook) -> Callable[[], None]:
        """Call hook(module, args) before each forward; returns a function to remove it."""
        return self._add_hook("_pre_hooks", hook)

    def _add_hook(self, kind: str, hook: Callable[..., Any]) -> Callable[[], None]:
        hooks, key = vars(self).setdefault(kind, {}), object()
        hooks[key] = hook
        return lambda: hooks.pop(key, None)

    def extra_repr(self) -> str:
        """Name the settings shown in the repr."""
        return ""

    def __repr__(self) -> str:
        children = [f"({name}): {child!r}" for name, child in self.named_children()]
        if not children:
            return f"{type(self).__name__}({self.extra_repr()})"
        body = "\n".join(children).replace("\n", "\n  ")
        return f"{type(self).__name__}({self.extra_repr()}\n  {body}\n)"


def _misfits(own: Mapping[str, Tensor], state: Mapping[str, Any], strict: bool) -> dict[str, str]:
    """Map the names that a state lacks, has too many or in another shape to what is wrong."""
    names = own.keys() ^ state.keys() if strict else set()
    problems = {name: "is missing" if name in own else "is unknown" for name in names}
    for name in own.keys() & state.keys():
        got = numpy.shape(state[name])
        if got != own[name].shape:
            problems[name] = f"is {tuple(got)}, expected {own[name].shape}"
    return problems


def _told(name: str, problems: Mapping[str, str]) -> str:
    """Say what is wrong with an entry; of an unknown one, which missing one it may be."""
    missing = [n for n, problem in problems.items() if problem == "is missing"]
    unknown = problems[name] == "is unknown"
    meant = get_close_matches(name, missing, n=1, cutoff=0.8) if unknown else []
    return " ".join([name, problems[name], *(f"(did you mean {n}?)" for n in meant)])


class ModuleList(Module):
    """A list of modules, named "0", "1", ..."""

    def __init__(self, modules: list[Module]) -> None:
        for i, module in enumerate(modules):
            if not isinstance(module, Module):  # it would be left out without a word
                kind = type(module).__name__
                raise TypeError(f"{type(self).__name__}: item {i} is a {kind}; expected a Module")
            setattr(self, str(i), module)

    def __iter__(self) -> Iterator[Module]:
        return (child for _, child in self.named_children())

    def __len__(self) -> int:
        return len(list(self.named_children()))

    def __getitem__(self, i: int) -> Module:
        return list(self)[i]
