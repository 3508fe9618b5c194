"""Where the tests look for a browser, in which order, and what becomes of them where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import browser

SAYS = "#!/bin/sh\necho Chromium 1\n"
BROKEN = "#!/bin/sh\necho 'libnss3.so: cannot open shared object file' >&2\nexit 127\n"


def program(path: Path, text: str = SAYS) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine without any browser, where nothing can be fetched."""
    for variable in (browser.VARIABLE, "CI"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "cache"))
    monkeypatch.setattr(browser, "_ways", lambda: [["/bin/sh", "-c", "echo no network >&2; exit 7"]])
    browser.find.cache_clear()
    yield tmp_path
    browser.find.cache_clear()


def found(told: list[str] | None = None) -> tuple[str, str]:
    browser.find.cache_clear()
    return browser.find((told if told is not None else []).append)


def test_the_chain_is_the_variable_then_path_then_what_playwright_left(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = program(bare / "cache" / "chromium_headless_shell-1" / "chrome-linux" / "headless_shell")
    assert found() == (left, "")
    on_path = program(bare / "bin" / "google-chrome")
    assert found() == (on_path, "")
    for name in ("chromium", "chromium-headless-shell"):
        better = program(bare / "bin" / name)
        assert found() == (better, "")
    named = program(bare / "elsewhere" / "mine")
    monkeypatch.setenv(browser.VARIABLE, named)
    assert found() == (named, "")


def test_one_that_does_not_start_is_no_browser_and_the_reason_is_its_own_word(bare: Path) -> None:
    path = program(bare / "bin" / "chromium", BROKEN)
    assert found()[0] == ""
    assert f"{path}: libnss3.so: cannot open shared object file" in found()[1]


def test_one_that_is_fetched_is_found_and_the_command_is_told(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = bare / "cache" / "chromium-1" / "chrome-linux64" / "chrome"
    fetch = ["/bin/sh", "-c", f"/bin/mkdir -p {target.parent} && printf '#!/bin/sh\\n' > {target} && /bin/chmod 755 {target}"]
    monkeypatch.setattr(browser, "_ways", lambda: [["/bin/false"], fetch])
    told: list[str] = []
    assert found(told) == (str(target), "")
    assert [line.split(": ")[1].split()[0] for line in told] == ["/bin/false", "/bin/sh"]


def test_without_one_a_test_is_skipped_with_the_reason_and_fails_where_ci_is_true(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pytest.skip.Exception, match=r"no browser: .*no network"), browser.launched():
        pytest.fail("a browser was given")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"no browser: .*no network"), browser.launched():
        pytest.skip("a browser was given")
    monkeypatch.setenv("CI", "false")
    with pytest.raises(pytest.skip.Exception), browser.launched():
        pytest.fail("a browser was given")
