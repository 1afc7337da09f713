"""DEVICES: everything that the runtime would swallow silently is refused."""

from __future__ import annotations

import pytest
from ascendet.errors import AscendetError
from ascendet.machine import devices


@pytest.mark.parametrize(
    ("text", "ids"), [("0", (0,)), ("6,7", (6, 7)), ("7,6", (6, 7)), ("3,0,1", (0, 1, 3)), ("06,7", (6, 7))]
)
def test_good(text: str, ids: tuple[int, ...]) -> None:
    assert devices.parse(text, 8) == ids


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "7,6,x",
        "9",
        "8",
        "6,6",
        "6, 7",
        "6,7,",
        ",6",
        "6;7",
        "-1",
        "+1",
        "1.0",
        "0-3",
        "٣",
        "1_0",
        "6\n",
    ],
)
def test_bad(text: str) -> None:
    with pytest.raises(AscendetError) as caught:
        devices.parse(text, 8)
    assert caught.value.name == "devices-invalid"
    assert caught.value.expected == "ids of 0 to 7, each once, separated by commas only"
    assert caught.value.found == f"DEVICES={text}"


def test_sorting_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CANN_SIM_DEVICES", raising=False)
    assert devices.choose("7,6", 8) == (6, 7)
    assert "DEVICES=7,6 is used as 6,7" in capsys.readouterr().err
    assert devices.choose("6,7", 8) == (6, 7)
    assert capsys.readouterr().err == ""


def test_simulated_count_is_the_simulators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANN_SIM_DEVICES", "2")
    assert devices.available("sim") == 2
    monkeypatch.setenv("CANN_SIM_DEVICES", "two")
    with pytest.raises(AscendetError, match="CANN_SIM_DEVICES"):
        devices.available("sim")
