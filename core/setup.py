"""Builds the search and the first fit of offsets, which have a plain C interface and are loaded by ctypes.

They are optional: without a compiler the installation goes on, and `paddock.planning.offsets` does with less.
"""

import sys

from setuptools import Extension, setup

flags = ["/std:c++17", "/O2", "/EHsc"] if sys.platform == "win32" else ["-std=c++17", "-O2"]
setup(
    ext_modules=[
        Extension(
            "paddock.planning._offset_search",
            ["paddock/planning/offset_search.cpp", "paddock/planning/offset_fit.cpp"],
            language="c++",
            extra_compile_args=flags,
            optional=True,
        )
    ]
)
