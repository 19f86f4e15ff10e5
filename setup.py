"""The compiled core; everything else about the package stands in pyproject.toml.

setuptools hands a ``.pyx`` to Cython by itself. FREEIM_PURE=1 leaves the core out, which gives the pure wheel: the
helper for any Python on any system, without a node.
"""

import os
import sys
from glob import glob

from setuptools import Extension, setup

PURE = (
    os.environ.get("FREEIM_PURE", "0") not in ("", "0")
    or sys.implementation.name != "cpython"
    or sys.platform == "win32"
)

CORE = Extension(
    "freeim._core",
    ["freeim/_core.pyx"],
    depends=sorted([*glob("freeim/_core.pxd"), *glob("freeim/_core_*.pxi")]),
    extra_compile_args=["-O3"],
)

setup(
    ext_modules=[] if PURE else [CORE],
    options={"build_ext": {"cython_c_in_temp": True}},  # generated C stays out of the work tree
)
