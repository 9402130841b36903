from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tskd.engine.checkpoints import load_checkpoint, save_checkpoint


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_the_state_comes_back_as_it_was(tmp_path: Path) -> None:
    weights = torch.randn(3, 4)
    save_checkpoint(tmp_path, 7, {"weights": {"a": weights}, "result": {"steps": 7, "best_score": -float("inf")}})
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert torch.equal(state["weights"]["a"], weights)
    assert state["result"] == {"steps": 7, "best_score": -float("inf")}


def test_two_are_kept_and_nothing_else_lies_about(tmp_path: Path) -> None:
    for step in (9, 10, 99, 100):
        save_checkpoint(tmp_path, step, {"step": step})
    assert files(tmp_path) == [
        "step-00000099.pt",
        "step-00000099.sha256",
        "step-00000100.pt",
        "step-00000100.sha256",
    ]
    assert load_checkpoint(tmp_path) == {"step": 100}


def damage_content(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-40] ^= 4
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lose_checksum(path: Path) -> None:
    path.with_suffix(".sha256").unlink()


def scramble_checksum(path: Path) -> None:
    path.with_suffix(".sha256").write_bytes(b"\xff\xfe" * 32)


def empty_both(path: Path) -> None:
    path.write_bytes(b"")
    path.with_suffix(".sha256").write_bytes(bytes(64))


@pytest.mark.parametrize("damage", [damage_content, cut_short, lose_checksum, scramble_checksum, empty_both])
def test_a_damaged_state_is_passed_over_and_named(
    tmp_path: Path, damage: object, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})
    damage(save_checkpoint(tmp_path, 2, {"step": 2}))  # type: ignore[operator]
    assert load_checkpoint(tmp_path) == {"step": 1}
    assert "step-00000002.pt" in capsys.readouterr().err
    damage(tmp_path / "checkpoints" / "step-00000001.pt")  # type: ignore[operator]
    assert load_checkpoint(tmp_path) is None


def test_a_damaged_state_is_written_over(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})
    damage_content(save_checkpoint(tmp_path, 2, {"step": 2}))
    save_checkpoint(tmp_path, 2, {"step": 2, "again": True})
    assert load_checkpoint(tmp_path) == {"step": 2, "again": True}


def test_no_state_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None


def test_a_kill_while_writing_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1})

    def killed(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 2, {"step": 2})
    monkeypatch.undo()
    assert load_checkpoint(tmp_path) == {"step": 1}


def test_a_pickle_that_runs_code_is_not_loaded(tmp_path: Path) -> None:
    """Even our own folder is read with weights_only: an artifact folder may come from someone else."""
    save_checkpoint(tmp_path, 1, {"path": Path("x")})
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        load_checkpoint(tmp_path)
