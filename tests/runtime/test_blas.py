"""The BLAS that MLX is given on a CPU under Linux: found, chosen, refused. Each case is a process of its own."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MLX needs no BLAS of ours")

PRODUCT = """
import mlx.core as mx, numpy as np
a, b = (np.random.RandomState(i).standard_normal((65, 65)).astype(np.float32) for i in (0, 1))
assert np.abs(np.array(mx.array(a) @ mx.array(b)) - a @ b).max() < 1e-4
"""


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", **variables}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def report(before: str = "", **variables: str) -> str:
    """What `load` says after some code; the product that MLX computes with it is checked."""
    result = run(
        f"{before}\nfrom mlx_convnextv2.runtime import mlx_blas as blas\nprint(blas.load())\n{PRODUCT}", **variables
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def openblas() -> str:
    try:
        ctypes.CDLL("libopenblas.so.0")
    except OSError:
        pytest.skip("the system has no OpenBLAS")
    return "libopenblas.so.0"


def test_the_system_s_openblas_is_found_before_mlx_and_can_be_chosen_by_name_or_path_or_refused() -> None:
    library = openblas()
    found = report("from mlx_convnextv2 import load")
    assert found.startswith("OpenBLAS 0.")
    assert found.endswith(f"({library})")
    assert report(MLX_CONVNEXTV2_BLAS="openblas") == found
    used = run(f"import ctypes; ctypes.CDLL({library!r}); print(open('/proc/self/maps').read())").stdout
    path = next(line.split()[-1] for line in used.splitlines() if "libopenblas" in line and "numpy" not in line)
    assert report(MLX_CONVNEXTV2_BLAS=path).endswith(f"({path})")
    assert report(MLX_CONVNEXTV2_BLAS="none") == "MLX's own, as MLX_CONVNEXTV2_BLAS=none asks"


@pytest.mark.parametrize(
    "arguments", [["export", "--demo", "--output"], ["convert", "--hf-path", "nowhere", "--mlx-path"]]
)
def test_commands_that_compute_with_mlx_load_it_before_mlx(arguments: list[str], tmp_path: Path) -> None:
    code = f"""
import sys
from mlx_convnextv2 import {arguments[0]} as command
from mlx_convnextv2.runtime import mlx_blas as blas
def load():
    print("early" if "mlx.core" not in sys.modules else "late")
    return blas.MlxBlas(None, "none")
blas.load = load
command.main({[*arguments[1:], str(tmp_path / "out")]})
"""
    assert run(code).stdout.startswith("early")


def test_importing_the_package_alone_loads_nothing() -> None:
    result = run("import mlx_convnextv2, sys; print('ctypes' in sys.modules, 'mlx.core' in sys.modules)")
    assert result.stdout.split() == ["False", "False"]


@pytest.mark.slow
def test_beside_pytorch_it_is_unwise_and_that_is_explained() -> None:
    pytest.importorskip("torch")
    assert "PyTorch" in report("import torch")


@pytest.mark.parametrize("value", ["/nowhere/libblas.so", "libm.so.6"])
def test_what_is_no_blas_is_an_error_that_says_what_to_set(value: str) -> None:
    result = run("from mlx_convnextv2.runtime import mlx_blas as blas\nblas.load()", MLX_CONVNEXTV2_BLAS=value)
    error = result.stderr.strip().splitlines()[-1]
    assert error.startswith(f"ValueError: MLX_CONVNEXTV2_BLAS={value} is no BLAS that can be loaded")
    assert "openblas, mkl, blis" in error


def test_without_one_it_says_what_to_install(tmp_path) -> None:
    code = """
from mlx_convnextv2.runtime import mlx_blas as blas
blas.LIBRARIES = {"openblas": ("libnowhere.so",)}
print(blas.load())
"""
    assert "mlx-convnextv2[blas]" in run(code).stdout


def make_blas(folder: Path, broken: bool = False) -> str:
    """A library with what is looked for in one; where broken, without the library that it needs itself."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    (folder / "blas.c").write_text("int needed(void); void cblas_sgemm(void) { needed(); }\n")
    (folder / "needed.c").write_text("int needed(void) { return 1; }\n")
    link = [compiler, "-shared", "-fPIC", f"-Wl,-rpath,{folder}", f"-L{folder}"]
    for name, libraries in (("needed", []), ("blas", ["-lneeded"])):
        source, library = folder / f"{name}.c", folder / f"lib{name}.so"
        subprocess.run([*link, source, "-o", library, *libraries], check=True)
    if broken:
        (folder / "libneeded.so").unlink()
    return str(folder / "libblas.so")


def test_a_library_that_lacks_another_says_which(tmp_path) -> None:
    library = make_blas(tmp_path, broken=True)
    result = run("from mlx_convnextv2.runtime import mlx_blas as blas\nblas.load()", MLX_CONVNEXTV2_BLAS=library)
    assert f"{library} needs libneeded.so: cannot open shared object file" in result.stderr


FORWARD = """
from mlx_convnextv2 import ConvNextV2Config, ConvNextV2Model, fuse
from mlx_convnextv2.runtime import mlx_blas as blas
blas.LIBRARIES = {"ours": (%r,)}
model = ConvNextV2Model(ConvNextV2Config(hidden_sizes=[8], depths=[1], num_stages=1))
predict = fuse(model) if %r else lambda pixel_values: model(pixel_values).pooler_output
for _ in range(2):
    mx.eval(predict(mx.zeros((1, 32, 32, 3))))
"""


TOO_LATE = "because mlx was imported before mlx_convnextv2"


@pytest.mark.parametrize(
    ("order", "chosen", "path", "fused", "said"),
    [
        ("late", False, "plain", False, f"MLX computes with its own slow BLAS, {TOO_LATE}"),
        ("late", True, "plain", True, f"libblas.so has no effect, {TOO_LATE}"),
        ("late", False, "numpy", False, ""),  # where nothing is lost
        ("early", False, "plain", True, ""),
    ],
)
def test_it_warns_once_where_the_order_of_imports_costs_speed(tmp_path, order, chosen, path, fused, said) -> None:
    library = make_blas(tmp_path)
    code = FORWARD % (library, fused)
    imports = ["import mlx.core as mx", "from mlx_convnextv2 import load"]
    variables = {"MLX_CONVNEXTV2_OPS": path, **({"MLX_CONVNEXTV2_BLAS": library} if chosen else {})}
    lines = "\n".join(imports if order == "late" else ["import mlx_convnextv2.runtime.mlx_blas", *imports[::-1]])
    result = run(f"{lines}\n{code}", **variables)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("Warning") == (1 if said else 0), result.stderr
    assert said in result.stderr
    assert not said or "import a name from mlx_convnextv2 first" in result.stderr
