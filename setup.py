"""Builds the native modules with CMake; everything else is declared in pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt, and puts the modules where setuptools expects the extensions."""

    def build_extension(self, ext: Extension) -> None:
        if ext.optional:  # built with the first, or not at all; one that is left from before would be out of date
            return
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        for other in self.extensions:
            if other.optional:
                Path(self.get_ext_fullpath(other.name)).unlink(missing_ok=True)
                if self.editable_mode:
                    (ROOT / self.get_ext_filename(other.name)).unlink(missing_ok=True)
        build = Path(self.build_temp).resolve() / f"cmake-{sys.implementation.cache_tag}"
        build.mkdir(parents=True, exist_ok=True)
        # A build folder configured inside an isolated environment points at tools that are gone.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DWINO_VERSION={self.distribution.get_version()}",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)
        if not target.exists():
            raise FileNotFoundError(f"the CMake build did not leave {target}")
        if subprocess.run(["cmake", "--build", str(build), "--target", "cuda_kernels"]).returncode:
            print("wino_kernels: no CUDA kernels (nvcc does not compile them, see above); Triton serves the GPU")


setup(
    ext_modules=[
        Extension("wino_kernels._C", sources=[]),
        Extension("wino_kernels._C_cuda", sources=[], optional=True),
    ],
    cmdclass={"build_ext": CMakeBuild},
)
