"""The harness: bars, the last line of JSON, exit codes, child processes."""

import json
import sys

import pytest

from benchmarks.harness import Bar, Outcome, Settings, child, main


def outcome(value: float | None) -> Outcome:
    return Outcome([Bar("times faster", value, ">=", 2.0)], {"rate": 10.0}, threads=2)


def test_last_line_is_the_promised_json(capsys: pytest.CaptureFixture[str]) -> None:
    code = main("speed", lambda settings: outcome(3.0), ["--json"])
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert code == 0
    assert result["benchmark"] == "speed"
    assert result["bars"] == [{"name": "times faster", "value": 3.0, "op": ">=", "target": 2.0, "met": True}]
    assert result["figures"] == {"rate": 10.0}
    assert result["quick"] is False
    assert result["environment"]["threads"] == 2
    assert {"cpu", "cores", "versions", "git_commit", "python"} <= result["environment"].keys()


@pytest.mark.parametrize("value", [1.999, None])
def test_a_missed_bar_exits_1(value: float | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("speed", lambda settings: outcome(value), []) == 1
    assert "NOT MET" in capsys.readouterr().out


def test_quick_reaches_the_measure_and_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Settings] = []

    def measure(settings: Settings) -> Outcome:
        seen.append(settings)
        return outcome(2.0)

    main("speed", measure, ["--json", "--quick"])
    captured = capsys.readouterr()
    assert seen[0].quick
    assert json.loads(captured.out)["quick"] is True
    assert "quick" in captured.err


@pytest.mark.parametrize(("op", "met"), [(">=", True), ("<=", True), (">", False), ("<", False)])
def test_operators_at_the_target(op: str, met: bool) -> None:
    assert Bar("x", 2.0, op, 2.0).met is met


def test_unknown_operator_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown operator '='"):
        Bar("x", 1.0, "=", 1.0)


def test_child_answers_with_its_last_line_and_gets_the_threads() -> None:
    script = (
        "import json, os, sys; request = json.load(sys.stdin); print('noise');"
        "print(json.dumps({'twice': 2 * request['x'], 'threads': os.environ['OMP_NUM_THREADS']}))"
    )
    assert child([sys.executable, "-c", script], {"x": 4}, threads=1) == {"twice": 8, "threads": "1"}


def test_child_that_fails_or_mumbles_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="code 3"):
        child([sys.executable, "-c", "raise SystemExit(3)"], {}, threads=1)
    with pytest.raises(RuntimeError, match="did not end with a line of JSON"):
        child([sys.executable, "-c", "print('hello')"], {}, threads=1)


def test_parts_can_be_measured_alone() -> None:
    seen: list[Settings] = []

    def measure(settings: Settings) -> Outcome:
        seen.append(settings)
        return outcome(2.0)

    main("speed", measure, ["--only", "b"], parts=("a", "b"))
    main("speed", measure, [], parts=("a", "b"))
    assert [list(settings.parts) for settings in seen] == [["b"], []]
    with pytest.raises(SystemExit):
        main("speed", measure, ["--only", "c"], parts=("a", "b"))
