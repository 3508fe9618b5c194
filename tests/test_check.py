"""The code's own checks, as `invoke check` runs them, beside the other tests."""

import subprocess
import sys
from pathlib import Path

import pytest

from tasks import CHECKS, ROOT


@pytest.mark.parametrize("words", CHECKS, ids=lambda words: words[0])
def test_the_code_holds_to(words):
    program, *rest = words
    done = subprocess.run([str(Path(sys.executable).parent / program), *rest], cwd=ROOT, capture_output=True, text=True,
                          check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
