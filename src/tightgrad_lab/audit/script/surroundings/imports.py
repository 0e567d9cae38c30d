"""Import hooks: packages that are not installed become empty ones, and modules are changed as they are imported."""

import importlib.machinery
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

from tightgrad_lab.audit.script.settings import Settings, parse_shrink
from tightgrad_lab.audit.script.surroundings import invented
from tightgrad_lab.audit.script.surroundings.constants import compiled

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


class _Namespace(type):
    """Of classes that may as well be modules of their package, such as MPI.COMM_WORLD."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Nothing()


class Nothing(metaclass=_Namespace):
    """Whatever is asked of it, it is there and does nothing.

    Attributes:
        folder: what it is as a path; gone when the run is over.
    """

    folder = "."

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

    def __fspath__(self) -> str:
        return self.folder

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
        return _Namespace(name, (Nothing,), {}) if name[:1].isupper() else Nothing()


class Changer(MetaPathFinder):
    """Changes modules as they are imported; the first of the finders.

    Args:
        asked: as --shrink gives them.
        main: the module that is run as `__main__`; empty for a file.
        say: told what was changed.
    """

    def __init__(self, asked: Sequence[str], main: str, say: Callable[[str], None]) -> None:
        self._asked = [
            (main if main and module == "__main__" and not cls else module, cls, values)
            for module, cls, values in map(parse_shrink, asked)
        ]
        self._say = say
        self._busy = False

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Let the others find it, and change it when it is run."""
        if self._busy or not (fullname in invented.FORMS or any(module == fullname for module, _, _ in self._asked)):
            return None
        self._busy = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._busy = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Changed(spec.loader, self)
        return spec

    def code(self, name: str, path: str, source: str | bytes) -> CodeType | None:
        """Compile a module with the numbers that it is to assign; None if it is left as it is."""
        values = {
            key: one for asked, cls, given in self._asked if asked == name and not cls for key, one in given.items()
        }
        if not values:
            return None
        code = compiled(source, path, values)
        self._said(name, values)
        return code

    def change(self, module: ModuleType) -> None:
        """Change the classes of one module."""
        if module.__name__ in invented.FORMS:
            invented.change(module, self._say)
        for name, cls_name, values in self._asked:
            if name == module.__name__ and inspect.isclass(cls := getattr(module, cls_name, None)):
                override(cls, values)
                self._said(f"{name}.{cls_name}", values)

    def _said(self, name: str, values: dict[str, object]) -> None:
        changes = ", ".join(f"{key}={value}" for key, value in values.items())
        self._say(f"smaller, as --shrink asks: {name}({changes})")

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
                self._said(f"__main__.{name}", own[name])
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


class _Changed(Loader):
    """A loader whose module is changed: its numbers before it is run, its classes afterwards."""

    def __init__(self, loader: Any, changer: Changer) -> None:
        self._loader = loader
        self._changer = changer

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the loader itself."""
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def get_code(self, name: str) -> CodeType | None:
        """As the loader itself, with other numbers; `python -m` asks for it."""
        changed = self._changed(name)
        code: CodeType | None = self._loader.get_code(name) if changed is None else changed
        return code

    def exec_module(self, module: ModuleType) -> None:
        """As the loader itself, and the rest."""
        changed = self._changed(module.__name__)
        if changed is None:
            self._loader.exec_module(module)
        else:
            exec(changed, vars(module))
        self._changer.change(module)

    def _changed(self, name: str) -> CodeType | None:
        path = getattr(self._loader, "path", "")
        return self._changer.code(name, path, self._loader.get_data(path)) if path.endswith(".py") else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def install(settings: Settings, say: Callable[[str], None]) -> tuple[Stubs, Changer]:
    """Put both into the import system."""
    import builtins

    empty, changer = Stubs(settings.stubs), Changer(settings.shrink, settings.target if settings.is_module else "", say)
    sys.meta_path.insert(0, changer)
    sys.meta_path.append(empty)
    if importlib.util.find_spec("tensorboard") is None:  # torch's own writer asks for it, not the script
        sys.modules["torch.utils.tensorboard"] = _EmptyModule("torch.utils.tensorboard")
    if any(one.startswith("__main__.") for one in settings.shrink):
        builtins.__build_class__ = changer.change_own(builtins.__build_class__)
    return empty, changer
