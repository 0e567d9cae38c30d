"""Import hooks: packages that are not installed become empty ones, and classes get smaller arguments."""

import importlib.machinery
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from tightgrad_lab.audit.script.settings import parse_shrink

LOGGERS = (
    "aim",
    "clearml",
    "codecarbon",
    "comet_ml",
    "mlflow",
    "neptune",
    "pynvml",
    "swanlab",
    "tensorboard",
    "tensorboardX",
    "trackio",
    "visdom",
    "wandb",
)
"""Packages that only report; a run without them computes the same."""


class Nothing:
    """Whatever is asked of it, it is there and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Nothing()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        only = args[0] if len(args) == 1 and not kwargs else None
        return only if inspect.isfunction(only) or inspect.isclass(only) else Nothing()  # also a decorator

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def __iter__(self) -> Any:
        return iter(())

    def __getitem__(self, key: object) -> Any:
        return Nothing()

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0


class Stubs(MetaPathFinder, Loader):
    """Finds packages that nobody else finds; the last of the finders.

    Args:
        names: of packages that may be empty, besides those that only report.

    Attributes:
        used: those that were asked for.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.asked = set(names)
        self.names = {*names, *LOGGERS}
        self.used: list[str] = []

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Give an empty module in the place of one that is not installed."""
        root = fullname.partition(".")[0]
        if root not in self.names or not self._is_imported(root):
            return None
        if root not in self.used:
            self.used.append(root)
        return ModuleSpec(fullname, self, is_package=True)

    def _is_imported(self, root: str) -> bool:
        """Whether it is imported, and not only looked for; by the script's own code, if nobody asked for it."""
        frame: Any = sys._getframe(2)
        while frame is not None and "importlib" in frame.f_code.co_filename:
            if frame.f_code.co_name == "find_spec" and "util" in frame.f_code.co_filename:
                return False  # importlib.util.find_spec: a library asks whether it is there
            frame = frame.f_back
        return root in self.asked or frame is None or "site-packages" not in frame.f_code.co_filename

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Make a module of which everything can be imported."""
        return _EmptyModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is to be run."""


class _EmptyModule(ModuleType):
    __version__ = "0.0"
    __path__ = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return type(name, (Nothing,), {}) if name[:1].isupper() else Nothing()


class Shrinker(MetaPathFinder):
    """Changes classes of modules as they are imported; the first of the finders.

    Args:
        asked: as --shrink gives them.

    Attributes:
        done: what was changed.
    """

    def __init__(self, asked: Sequence[str]) -> None:
        self._asked = [parse_shrink(one) for one in asked]
        self._busy = False
        self.done: list[str] = []

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Let the others find it, and change its classes once it is run."""
        if self._busy or not any(module == fullname for module, _, _ in self._asked):
            return None
        self._busy = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._busy = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader, self.change)
        return spec

    def change(self, module: ModuleType) -> None:
        """Change the classes of one module."""
        for name, cls_name, values in self._asked:
            if name == module.__name__ and inspect.isclass(cls := getattr(module, cls_name, None)):
                override(cls, values)
                self.done.append(f"{name}.{cls_name}({', '.join(f'{key}={value}' for key, value in values.items())})")

    def change_own(self, build: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `builtins.__build_class__`, for classes that the script itself defines."""
        own = {cls_name: values for module, cls_name, values in self._asked if module == "__main__"}

        def build_class(function: Any, name: str, *bases: Any, **kwargs: Any) -> Any:
            cls = build(function, name, *bases, **kwargs)
            if name in own and cls.__module__ == "__main__":
                for key, value in own[name].items():
                    if key in vars(cls).get("__annotations__", {}) or hasattr(cls, key):
                        setattr(cls, key, value)  # a dataclass takes its defaults from here
                if "__init__" in vars(cls):
                    override(cls, own[name])
                self.done.append(f"__main__.{name}")
            return cls

        return build_class


def override(cls: Any, values: dict[str, object]) -> None:
    """Let a class's constructor take these arguments, whatever it is given."""
    init = cls.__init__
    parameters = list(inspect.signature(init).parameters)[1:]

    def smaller(self: Any, *args: Any, **kwargs: Any) -> None:
        given = list(args)
        for name, value in values.items():
            place = parameters.index(name) if name in parameters else -1
            if 0 <= place < len(given):
                given[place] = value
            else:
                kwargs[name] = value
        init(self, *given, **kwargs)

    cls.__init__ = smaller


class _Then(Loader):
    """A loader that does something more once the module is run."""

    def __init__(self, loader: Any, more: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._more = more

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the loader itself."""
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        """As the loader itself, and the rest."""
        self._loader.exec_module(module)
        self._more(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def install(stubs: Sequence[str], shrink: Sequence[str]) -> tuple[Stubs, Shrinker]:
    """Put both into the import system."""
    import builtins

    empty, smaller = Stubs(stubs), Shrinker(shrink)
    sys.meta_path.insert(0, smaller)
    sys.meta_path.append(empty)
    if importlib.util.find_spec("tensorboard") is None:  # torch's own writer asks for it, not the script
        sys.modules["torch.utils.tensorboard"] = _EmptyModule("torch.utils.tensorboard")
    if any(one.startswith("__main__.") for one in shrink):
        builtins.__build_class__ = smaller.change_own(builtins.__build_class__)
    return empty, smaller
