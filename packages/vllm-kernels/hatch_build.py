"""Hatch's build hook: compiles the native library into the wheel, or leaves it out when there is no compiler."""

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent))
import build_native


class NativeLibrary(BuildHookInterface):  # type: ignore[type-arg]
    """Runs before a wheel is put together, editable ones included."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and mark the wheel as one for this platform. ``version`` is ``standard`` or ``editable``."""
        if self.target_name != "wheel" or not sys.platform.startswith("linux"):
            return
        try:
            library = build_native.build()
        except (build_native.CannotBuild, subprocess.CalledProcessError) as problem:
            self.app.display_warning(f"vllm-kernels without its native library: {problem}")
            return
        build_data["artifacts"].append(str(library.relative_to(self.root)))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
