"""Folders to open: each of `$SHRINK_CASES` is a converted model with what shrink computes with it in `expected.json`.

`tests/engines/latents.rs` makes them and runs this suite; CONTRIBUTING.md says how to run it by hand.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM

#: Which transformers this is.
VERSION = Version(transformers.__version__)
#: What it calls the cache of a pass.
CACHE = "cache" if Version("5.24") <= VERSION else "past_key_values"
#: From which version on it runs a donor as the newest does: before, it lacks the family, or reads its fields otherwise.
SINCE = {"olmo3": "5.16", "ministral": "5.0", "qwen3-moe-raw": "5.16", "gpt-oss": "5.24"}

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@dataclass
class Case:
    """A converted folder, and what shrink computes with it."""

    path: Path

    @property
    def expected(self) -> dict[str, Any]:
        return json.loads((self.path / "expected.json").read_text())

    @property
    def quantised(self) -> bool:
        """Whether its cache holds integers."""
        return self.path.name.endswith("int4")

    def open(self, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
        """As a user does."""
        name = "dtype" if Version("4.56") <= VERSION else "torch_dtype"
        more = {name: dtype, "trust_remote_code": True, **more}
        return AutoModelForCausalLM.from_pretrained(self.path, **more).eval()


def cases() -> list[Path]:
    root = os.environ.get("SHRINK_CASES")
    if not root:
        raise pytest.UsageError("SHRINK_CASES names the folder that tests/engines/latents.rs makes")
    found = sorted(path.parent for path in Path(root).glob("*/expected.json"))
    if not found:
        raise pytest.UsageError(f"{root} holds no case")
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        paths = cases()
        only = [mark.args for mark in metafunc.definition.iter_markers("only")]
        chosen = [path for path in paths if not only or path.name.startswith(only[0])]
        metafunc.parametrize("case", [Case(path) for path in chosen], ids=[path.name for path in chosen])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "only(*prefixes): of the cases, those whose names begin so")


@pytest.fixture(autouse=True)
def known(request: pytest.FixtureRequest) -> None:
    """Skips what this transformers does not run as the newest does."""
    if "case" in request.fixturenames:
        name = request.getfixturevalue("case").path.name.split(".")[0]
        if Version(SINCE.get(name, "0")) > VERSION:
            pytest.skip(f"transformers {VERSION} runs {name}'s donor otherwise, or not at all")
