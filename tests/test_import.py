"""What an import costs and asks for."""

from __future__ import annotations

import subprocess
import sys


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_wino_exports_what_it_promises() -> None:
    code = (
        "import wino\nfor name in wino.__all__: getattr(wino, name)\n"
        "assert set(wino.__all__) <= set(dir(wino))\nprint('ok')"
    )
    assert run(code) == "ok"


def test_using_wino_needs_no_heavy_extra() -> None:
    # Blocked, not looked for afterwards: transformers loads some of them itself where they are installed.
    code = (
        "import sys\n"
        "for name in ('triton', 'peft', 'matplotlib', 'datasets', 'accelerate'): sys.modules[name] = None\n"
        "import wino\nwino.generate, wino.load, wino.patch\nprint('ok')"
    )
    assert run(code) == "ok"


def test_the_operators_do_not_load_triton_before_a_gpu_needs_it() -> None:
    code = (
        "import sys, torch\nbefore = set(sys.modules)\n"
        "import wino_kernels\nwino_kernels.draft_confidence(torch.zeros(2, 5))\n"
        "print({'triton', 'numpy', 'transformers'} & set(sys.modules) - before)"
    )
    assert run(code) == "set()"


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys\nimport wino.cli\nprint('torch' in sys.modules)"
    assert run(code) == "False"


def test_without_the_extra_the_error_says_what_to_install() -> None:
    code = (
        "import importlib.util as util\nfind = util.find_spec\n"
        "util.find_spec = lambda name, *a: None if name in ('transformers', 'tokenizers') else find(name, *a)\n"
        "try:\n    import wino\nexcept ImportError as error:\n    print(error)"
    )
    message = run(code)
    assert "pip install 'wino-kernels[decode]'" in message and "transformers, tokenizers missing" in message
