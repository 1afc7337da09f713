"""The rule for the SoC that an OM is converted for: which source wins, and what is a contradiction."""

from __future__ import annotations

import pytest
from ascendet.core import again
from ascendet.om import soc
from conftest import fails

B3, B4, A3 = "Ascend910B3", "Ascend910B4", "Ascend910_9391"


@pytest.mark.parametrize(
    ("set_env", "npu_smi", "user", "force", "wins", "source"),
    [
        ("", "", "", False, B3, "default"),
        ("", "", B4, False, B4, "user"),
        ("", B4, "", False, B4, "npu-smi"),
        (A3, "", "", False, A3, "set_env.sh"),
        ("ascend910b4", "910B4", "Ascend910B4", False, B4, "set_env.sh"),
        ("", "Ascend NPU", "", False, B3, "default"),  # npu-smi says nothing that one can read
        ("", B3, A3, True, A3, "user"),
        (B3, B4, "", True, B3, "set_env.sh"),
    ],
)
def test_the_first_source_that_names_a_soc_wins(
    set_env: str, npu_smi: str, user: str, force: bool, wins: str, source: str
) -> None:
    choice = soc.choose(set_env=set_env, npu_smi=npu_smi, user=user, default=B3, force=force)
    assert (choice.soc, choice.source) == (wins, source)


@pytest.mark.parametrize(
    ("set_env", "npu_smi", "user"), [("", B3, A3), (B3, "", A3), (B3, B4, ""), (B3, B3, B4)]
)
def test_two_sources_that_differ_are_a_contradiction(set_env: str, npu_smi: str, user: str) -> None:
    error = fails(
        "soc-contradiction",
        soc.choose,
        set_env=set_env,
        npu_smi=npu_smi,
        user=user,
        default=B3,
        force=False,
    )
    for source, name in (("set_env.sh", set_env), ("npu-smi", npu_smi), ("user", user)):
        assert (f"{source}: {name}" in str(error.found)) == bool(name)
    assert error.hint is not None
    taken = f"{user} (user)" if user else f"{set_env} (set_env.sh)"
    assert again.complete(error.hint, "om").startswith(f"make om FORCE=1, which takes {taken}")


def test_what_was_overruled_is_said() -> None:
    choice = soc.choose(set_env="", npu_smi=B3, user=A3, default=B3, force=True)
    assert str(choice) == f"SoC {A3} (user; FORCE=1 over npu-smi's {B3})"


def test_a_soc_that_is_none_is_refused() -> None:
    fails("usage", soc.choose, set_env="", npu_smi="", user="A100", default=B3, force=False)
