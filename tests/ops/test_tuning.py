"""Candidates that prove and tune themselves, on a fake device: some wrong, some slow, some that do not compile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_convnextv2.files import user_cache
from mlx_convnextv2.ops import tuning
from mlx_convnextv2.ops.trials import Operation, Trial, Verdict
from mlx_convnextv2.ops.tuning import Tuner, WrongKernelWarning

MACHINE = {"device": "Fake M9", "system": "Fake 1", "mlx": "1", "package": "1", "kernels": "text"}
NAMES = ("kernel 4x4", "kernel 1x2", "compiled", "plain")
DEPTHWISE = Operation("depthwise", (1, 8, 8, 4), "float32")
RIGHT = mx.array([1.0, 2.0, -4.0])


pytestmark = pytest.mark.usefixtures("nothing_tuned")


def does_not_compile() -> Any:
    raise RuntimeError("[metal::Device] Unable to build metal library from source\nerror: no type named 'bfloat'")


BROKEN: dict[str, tuple[Callable[[], Any], str]] = {
    "does not compile": (does_not_compile, "[metal::Device] Unable to build metal library from source error: no type"),
    "is wrong": (lambda: RIGHT * 1.001, "it differs from plain MLX by 1.0e-03 of the largest value"),
    "returns NaN": (lambda: mx.array([1.0, 2.0, mx.nan]), "it returns NaN or infinity where plain MLX does not"),
    "returns infinity": (lambda: mx.array([1.0, mx.inf, -4.0]), "it returns NaN or infinity where plain MLX does not"),
    "has another shape": (lambda: mx.zeros((3, 1)), "its result has the shape (3, 1), not (3,)"),
}


@dataclass
class Device:
    """A device whose clock goes on only while it computes, and which notes what was run."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(NAMES, 1e-3))
    broken: dict[str, Callable[[], Any]] = field(default_factory=dict)
    proof_seconds: float = 0.0
    time: float = 0.0
    ran: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def results(self, name: str) -> list[mx.array]:
        self.ran.append(name)
        self.time += self.proof_seconds
        return [self.broken[name]() if name in self.broken else RIGHT]

    def chain(self, name: str, links: int) -> Callable[[], None]:
        def run() -> None:
            self.ran.append(name)
            self.time += links * self.seconds[name]

        return run

    def trial(self, operation: Operation = DEPTHWISE, rule: str = "kernel 4x4") -> Trial:
        return Trial(operation, NAMES, rule, lambda: [RIGHT], self.results, lambda _: 1e-5, self.chain)

    def tuner(self, machine: dict[str, str] = MACHINE, **options: Any) -> Tuner:
        return Tuner(machine, clock=lambda: self.time, say=self.said.append, **options)


def use(device: Device, trial: Trial | None = None, **options: Any) -> Verdict:
    """What a new process finds out."""
    tuner = device.tuner(**options)
    with tuner.session():
        return tuner.measure(trial or device.trial())


@pytest.fixture
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class TestProve:
    @pytest.mark.parametrize("fault", BROKEN)
    def test_a_broken_kernel_is_plain_with_one_warning_and_never_tried_again(self, fault: str) -> None:
        device = Device(broken={"kernel 4x4": BROKEN[fault][0]})
        with pytest.warns(WrongKernelWarning) as warned:
            assert use(device, measures=False).choice == "plain"
        (warning,) = [str(one.message) for one in warned]
        for part in (
            "Fake M9",
            "depthwise of 1x8x8x4 in float32 by kernel 4x4",
            BROKEN[fault][1],
            "Please report this",
            "self-check",
        ):
            assert part in warning
        assert "\n" not in warning
        device.ran.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert use(device, measures=False).choice == "plain"
        assert device.ran == []
        candidate = Device(broken={"kernel 1x2": BROKEN[fault][0]})  # nor does it win by its speed
        candidate.seconds["kernel 1x2"] = 1e-6
        with pytest.warns(WrongKernelWarning, match="kernel 1x2"):
            verdict = use(candidate, machine={**MACHINE, "device": "another"})
        assert verdict.choice == "kernel 4x4"
        assert "kernel 1x2" not in verdict.seconds

    def test_it_is_tried_again_when_something_changes(self, no_warning) -> None:
        with pytest.warns(WrongKernelWarning):
            use(Device(broken={"kernel 4x4": BROKEN["is wrong"][0]}), measures=False)
        for changed in MACHINE:
            mended = Device()
            assert use(mended, measures=False, machine={**MACHINE, changed: "2"}).choice == "kernel 4x4"
            assert mended.ran == ["kernel 4x4"]

    def test_a_kernel_that_is_right_is_tried_once(self, no_warning) -> None:
        device = Device()
        for _ in range(2):
            assert use(device, measures=False).choice == "kernel 4x4"
        assert device.ran == ["kernel 4x4"]

    def test_however_many_fail_there_is_one_warning(self) -> None:
        device = Device(broken=dict.fromkeys(NAMES[:3], BROKEN["is wrong"][0]))
        tuner = device.tuner()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            for side in (8, 4):
                with tuner.session():
                    assert tuner.measure(device.trial(Operation("d", (1, side, side, 4), "float32"))).choice == "plain"
        assert len(warned) == 1
        assert "and 2 more like it" in str(warned[0].message)

    def test_where_plain_is_not_finite_nobody_has_to_be(self) -> None:
        device = Device(broken={"kernel 4x4": lambda: mx.array([mx.nan, 2.0, -4.0])})
        trial = replace(device.trial(), expected=lambda: [mx.array([mx.inf, 2.0, -4.0])])
        assert use(device, trial, measures=False).choice == "kernel 4x4"

    def test_a_lack_of_memory_is_not_the_kernels_fault(self) -> None:
        def fails() -> Any:
            raise RuntimeError("[malloc] Unable to allocate 99 bytes.")

        device = Device(broken={"kernel 4x4": fails})
        with pytest.raises(RuntimeError, match="allocate"):
            use(device)
        assert use(Device(), measures=False).choice == "kernel 4x4"


class TestMeasure:
    @pytest.mark.parametrize("fastest", NAMES)
    def test_each_candidate_wins_where_it_is_fastest(self, fastest: str, no_warning) -> None:
        device = Device()
        device.seconds[fastest] /= 2
        verdict = use(device)
        assert verdict.choice == fastest
        assert verdict.seconds == pytest.approx(device.seconds)
        assert device.said == ["Measuring the fastest kernels for Fake M9, once ..."]
        device.ran.clear()
        device.said.clear()
        assert use(device).choice == fastest  # the next process reads it
        assert device.ran == device.said == []

    def test_a_tie_goes_to_the_rule_or_to_the_first(self) -> None:
        device = Device()
        device.seconds["compiled"] *= 1.02
        assert use(device, device.trial(rule="compiled")).choice == "compiled"
        device = Device(broken={"kernel 4x4": BROKEN["is wrong"][0]})
        device.seconds["plain"] *= 0.99
        with pytest.warns(WrongKernelWarning):
            assert use(device, again=True).choice == "kernel 1x2"

    def test_a_candidate_that_fails_in_the_chain_is_out(self) -> None:
        device = Device()
        chain = device.chain

        def fails(name: str, links: int) -> Callable[[], None]:
            return does_not_compile if name == "compiled" else chain(name, links)

        device.chain = fails  # type: ignore[method-assign]
        device.seconds["kernel 1x2"] /= 2
        with pytest.warns(WrongKernelWarning, match="depthwise of 1x8x8x4 in float32 by compiled"):
            verdict = use(device)
        assert verdict.choice == "kernel 1x2"
        assert "compiled" in verdict.failures

    def test_candidates_alternate_after_a_warm_up(self) -> None:
        device = Device()
        use(device, measures=False)
        device.ran.clear()
        use(device)
        rounds = device.ran[-len(NAMES) * 7 :]
        assert rounds == list(NAMES) * 7
        assert set(device.ran[: -len(NAMES) * 7]) == set(NAMES)

    def test_one_disturbed_round_changes_nothing(self) -> None:
        device = Device()
        device.seconds["kernel 1x2"] /= 2
        chain, calls = device.chain, iter(range(1000))

        def disturbed(name: str, links: int) -> Callable[[], None]:
            run = chain(name, links)

            def once_slow() -> None:
                run()
                if name == "kernel 1x2" and next(calls) == 3:
                    device.time += 0.5

            return once_slow

        device.chain = disturbed  # type: ignore[method-assign]
        assert use(device).choice == "kernel 1x2"

    def test_again_measures_what_is_known(self) -> None:
        device = Device()
        use(device)
        device.seconds["compiled"] /= 2
        assert use(device).choice == "kernel 4x4"
        assert use(device, again=True).choice == "compiled"
        assert use(device).choice == "compiled"


class TestBudget:
    def test_what_was_not_measured_keeps_the_rule_and_the_next_process_goes_on(self) -> None:
        device = Device(dict.fromkeys(NAMES, 0.01))
        device.seconds["plain"] /= 2
        operations = [Operation("depthwise", (1, side, side, 4), "float32") for side in range(8)]

        def process() -> list[str]:
            tuner = device.tuner()
            start = device.time
            with tuner.session():
                choices = [tuner.measure(device.trial(operation)).choice for operation in operations]
            assert device.time - start < 2 + 1
            return choices

        first, second, third = process(), process(), process()
        assert first[0] == "plain"
        assert first[-1] == "kernel 4x4"
        assert first.count("plain") < second.count("plain")
        assert third == ["plain"] * 8

    def test_what_a_whole_budget_cannot_measure_is_not_begun_again(self) -> None:
        device = Device(dict.fromkeys(NAMES, 1.5))
        use(device)  # learns that they are right
        use(device)
        device.ran.clear()
        verdict = use(device)
        assert verdict.choice == "kernel 4x4"
        assert device.ran == []

    def test_proofs_that_take_the_whole_budget_are_not_lost(self) -> None:
        device = Device(proof_seconds=1.9)
        device.seconds["compiled"] /= 2
        for _ in range(3):
            verdict = use(device)
        assert verdict.choice == "compiled"
        assert device.ran.count("kernel 1x2") <= 1 + 1 + 7  # proven once


def test_within_a_trace_nothing_is_tried() -> None:
    device = Device()
    device.seconds["compiled"] /= 2
    assert device.tuner().known(device.trial()).choice == "kernel 4x4"
    assert device.ran == []
    use(device)
    device.ran.clear()
    assert device.tuner().known(device.trial()).choice == "compiled"
    assert device.ran == []


class TestKept:
    @pytest.mark.parametrize(
        "forged",
        [
            {"seconds": {"kernel 9x9": 1.0}},
            {"seconds": {"compiled": "fast"}},
            {"seconds": {"compiled": -1.0}},
            {"seconds": {"compiled": float("nan")}},
            {"failures": ["kernel 4x4"]},
            {"failures": {"kernel 4x4": 1}},
            {"proven": 3},
            {"proven": {"kernel 4x4": 1}},
            {"begun": {"kernel 4x4": "2"}},
            {"given_up": "yes"},
            {"rule": "compiled"},
            {"more": 1},
        ],
        ids=str,
    )
    def test_what_we_cannot_have_written_is_ignored(self, forged: dict[str, Any]) -> None:
        device = Device()
        tuner = device.tuner()
        user_cache.write(tuner._key(DEPTHWISE), forged)
        assert tuner.known(device.trial()) == Verdict("kernel 4x4")

    def test_a_folder_that_cannot_be_written_means_proof_in_each_process_and_no_measurement(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_warning
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("MLX_CONVNEXTV2_CACHE", str(tmp_path / "file" / "cache"))
        device = Device()
        device.seconds["compiled"] /= 2
        for _ in range(2):
            assert use(device).choice == "kernel 4x4"
        assert device.ran == ["kernel 4x4"] * 2
        assert device.said == []
        assert use(device, again=True).choice == "compiled"  # but who asks for it gets it

    def test_two_processes_do_not_measure_at_once(self) -> None:
        device = Device()
        device.seconds["compiled"] /= 2
        with user_cache.alone() as alone:
            assert alone
            assert use(device).choice == "kernel 4x4"
        assert use(device).choice == "compiled"

    def test_a_process_that_is_killed_while_it_measures_leaves_what_it_had(self) -> None:
        killed_in("chain")
        device = Device()
        device.seconds["compiled"] /= 2
        assert use(device).choice == "compiled"
        assert device.ran.count("kernel 1x2") == 1 + 7  # its proof was kept: a warm-up, and seven rounds

    def test_a_kernel_that_ends_two_processes_is_not_tried_in_a_third(self) -> None:
        killed_in("results")
        killed_in("results")
        device = Device()
        with pytest.warns(WrongKernelWarning, match="kernel 4x4: 2 processes ended while they ran it"):
            assert use(device, measures=False).choice == "plain"
        assert device.ran == []

    def test_one_process_that_ends_condemns_nothing(self, no_warning) -> None:
        killed_in("results")
        assert use(Device(), measures=False).choice == "kernel 4x4"

    def test_an_interruption_condemns_nothing(self, no_warning) -> None:
        def interrupted() -> Any:
            raise KeyboardInterrupt

        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                use(Device(broken={"kernel 4x4": interrupted}))
        assert use(Device(), measures=False).choice == "kernel 4x4"


def killed_in(what: str) -> None:
    """Run a process that ends, as by SIGKILL, when it runs a candidate's results or chain."""
    command = f"import test_tuning as here; here.be_killed_in({what!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    process = subprocess.run([sys.executable, "-c", command], env=environment, timeout=600, check=False)
    assert process.returncode == -signal.SIGKILL


def be_killed_in(what: str) -> None:
    device = Device()
    setattr(device, what, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    use(device)


def test_the_variable_turns_it_off_or_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("", None), ("0", False), ("1", True)):
        monkeypatch.setenv("MLX_CONVNEXTV2_TUNE", value)
        assert tuning.measuring() is expected
    monkeypatch.setenv("MLX_CONVNEXTV2_TUNE", "yes")
    with pytest.raises(ValueError, match="MLX_CONVNEXTV2_TUNE must be 0 or 1, not 'yes'"):
        tuning.measuring()


def test_a_verdict_depends_on_the_device_the_versions_and_the_text_of_the_kernels(monkeypatch) -> None:
    monkeypatch.setenv("MLX_ENABLE_TF32", "1")
    here = tuning.machine()
    assert here["device"] == mx.device_info()["device_name"]
    assert {"system", "mlx", "package", "kernels", "architecture", "tf32"} <= here.keys()
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")
    assert tuning.machine() != here
