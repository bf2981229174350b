"""The shape of the package: who may import whom, and how large a piece may grow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "transact"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A module may import its own layer and those above it in this list.
LAYERS = [
    {"transact.errors", "transact.options"},
    {"transact._core"},
    {"transact._sqlalchemy", "transact.translation", "transact.settings"},
    {"transact._database", "transact.database", "transact.sync", "transact.events"},
    {"transact"},
    {"transact.fastapi"},
    {"transact._testing"},
    {"transact.pytest_plugin"},
]
#: What may be imported from outside of the standard library, by layer; every module may import transact itself.
OUTSIDE = [
    set(),
    set(),
    {"sqlalchemy", "pydantic", "pydantic_settings", "tenacity"},
    {"sqlalchemy"},
    set(),
    {"sqlalchemy", "fastapi", "starlette", "pydantic", "anyio"},
    {"sqlalchemy", "typing_extensions"},
    {"sqlalchemy", "pytest"},
]
LINES_OF_A_FUNCTION = 60
LINES_OF_A_MODULE = 400


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> int:
    found = [
        (len(prefix), number)
        for number, layer in enumerate(LAYERS)
        for prefix in layer
        if module == prefix or (prefix != "transact" and module.startswith(f"{prefix}."))
    ]
    assert found, f"{module} belongs to no layer: add it to the list, where it belongs"
    return max(found)[1]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {name_of(module) for module in MODULES}
            found |= {name if name in known else node.module for name in names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downwards_only(path: Path) -> None:
    mine = layer_of(name_of(path))
    for module in imports(path):
        top = module.partition(".")[0]
        if top == "transact":
            assert layer_of(module) <= mine, f"{name_of(path)} imports {module}, which stands above it"
        elif top not in sys.stdlib_module_names:
            assert top in OUTSIDE[mine], f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", [path for path in MODULES if "_core" in path.parts], ids=name_of)
def test_the_core_knows_no_event_loop(path: Path) -> None:
    assert not {module for module in imports(path) if module.partition(".")[0] in {"asyncio", "anyio", "contextvars"}}


def test_the_layers_of_one_level_do_not_know_each_other_but_where_errors_are_translated() -> None:
    users = {name_of(path) for path in MODULES if "transact.translation" in imports(path)}
    assert {user for user in users if user.startswith("transact._sqlalchemy")} <= {
        "transact._sqlalchemy.engines",
        "transact._sqlalchemy.liveness",
        "transact._sqlalchemy.pool",
        "transact._sqlalchemy.retrying",
    }
    for path in MODULES:
        if name_of(path).startswith("transact.translation"):
            assert not [module for module in imports(path) if module.startswith("transact._sqlalchemy")]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_and_modules_stay_small_enough_to_read(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= LINES_OF_A_MODULE
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= LINES_OF_A_FUNCTION, f"{node.name} has {length} lines"


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


def test_importing_the_package_loads_nothing_optional() -> None:
    optional = {"fastapi", "starlette", "asyncpg", "psycopg", "asyncmy", "aiosqlite", "uvicorn", "httpx", "sqlmodel"}
    assert not loaded_by("import transact, transact.errors, transact.events, transact.settings") & optional


def test_importing_the_face_loads_no_driver() -> None:
    assert not loaded_by("import transact.fastapi") & {"asyncpg", "psycopg", "asyncmy", "aiosqlite", "uvicorn"}


def test_the_root_exports_at_most_a_dozen_names() -> None:
    import transact  # noqa: PLC0415  # what it exports is the matter

    assert len(transact.__all__) <= 12
    assert all(hasattr(transact, name) for name in transact.__all__)
    assert all(hasattr(transact.errors, name) for name in transact.errors.__all__)
