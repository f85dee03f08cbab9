"""Settings and fixtures that every test shares.

The first lines must run before anything imports jax: tests see eight simulated CPU devices and never an accelerator.
"""

from __future__ import annotations

import getpass
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

HOST_DEVICES = 8

# Compiling is most of what tests cost, and their programs are small: LLVM's lowest levels, and where jaxlib has it
# XLA's older and quicker code generator. JAXALIGN_TEST_XLA=default leaves XLA as users have it.
JAXLIB = importlib.metadata.version("jaxlib")
QUICK_XLA = ""
if os.environ.get("JAXALIGN_TEST_XLA") != "default":
    older = JAXLIB.startswith("0.10.")
    QUICK_XLA = f"--xla_backend_optimization_level={1 if older else 0}"
    if older:
        QUICK_XLA += " --xla_cpu_use_fusion_emitters=false"

os.environ["JAX_PLATFORMS"] = "cpu"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} {QUICK_XLA} --xla_force_host_platform_device_count={HOST_DEVICES}".strip()
    )
# Tests never reach for a network; a name that is not a folder fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Compiled programs, small ones too, are kept between test runs and shared with the processes that tests start.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(tempfile.gettempdir()) / f"jaxalign-tests-{getpass.getuser()}-jaxlib-{JAXLIB}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Never the user's cache; a folder that each test session, with the processes that it starts, has for itself.
if "JAXALIGN_CACHE" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="jaxalign-tests-cache-", ignore_cleanup_errors=True)
    os.environ["JAXALIGN_CACHE"] = _cache.name

import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# The mathematics is shape-checked at every call, under pytest only. The hook stays for the whole run.
_shape_checks = install_import_hook(["jaxalign.objectives", "jaxalign.logprobs"], "beartype.beartype")

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need a judge where it is not installed (`make test` never pulls one)."""
    for marker, package in (("judge", "torch"), ("trl", "trl"), ("plan", "libtpu")):
        if importlib.util.find_spec(package) is not None:
            continue
        skip = pytest.mark.skip(reason=f"{package} is not installed (extra: {marker})")
        for item in items:
            if marker in item.keywords:
                item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under ``JAXALIGN_REQUIRE_SHARED=1`` a test that wants the shared data must run: a skip of it is a failure."""
    report = yield
    required = os.environ.get("JAXALIGN_REQUIRE_SHARED") == "1" and "shared_data" in getattr(item, "fixturenames", ())
    if required and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but JAXALIGN_REQUIRE_SHARED=1: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def for_tpus() -> Callable[..., str]:
    """Runs Python with these arguments where libtpu can compile, and gives what it prints.

    A process of its own: libtpu refuses XLA's options for CPUs, under which the tests run.
    """
    paths = [str(REPOSITORY), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(paths)}
    # Without these libtpu asks a metadata server that is not there, and wants to be the machine's only one.
    env |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the published data sets and small models that tests read.

    It is ``JAXALIGN_SHARED``, or ``../shared/data`` beside the repository. Where it is absent the test is skipped.
    """
    folder = Path(os.environ.get("JAXALIGN_SHARED") or REPOSITORY.parent / "shared" / "data").resolve()
    if not folder.is_dir():
        pytest.skip(f"shared data not found at {folder}; set JAXALIGN_SHARED")
    return folder
